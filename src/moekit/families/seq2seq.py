"""Recurrent models from source to target: our own names, and published configurations."""

from moekit.config.seq2seq import GRUSeq2SeqConfig, LSTMSeq2SeqConfig
from moekit.families.family import Preset
from moekit.families.whole import whole_family

# 30,000 words, and one id for the end of a sentence.
_RNN_SEARCH = GRUSeq2SeqConfig(
    source_vocab_size=30_001, target_vocab_size=30_001, embedding_width=620, width=1000, end_token=30_000
)
_RNN_SOURCE = (
    "arXiv 1409.0473, section 4.2 and appendix A; github.com/lisa-groundhog/GroundHog, experiments/nmt/state.py"
)

_SUTSKEVER = LSTMSeq2SeqConfig(
    source_vocab_size=160_000, target_vocab_size=80_000, embedding_width=1000, width=1000, end_token=0
)

LSTM_FAMILY = whole_family(
    LSTMSeq2SeqConfig,
    "moekit_lstm_seq2seq",
    "LSTMSeq2Seq",
    {
        "sutskever-lstm": Preset(
            config=_SUTSKEVER,
            source="arXiv 1409.3215, section 3.4: 384 M parameters, of which 64 M recurrent",
            parameters=384e6,
        )
    },
)
GRU_FAMILY = whole_family(
    GRUSeq2SeqConfig,
    "moekit_gru_seq2seq",
    "GRUSeq2Seq",
    {
        "rnnsearch-50": Preset(config=_RNN_SEARCH, source=_RNN_SOURCE),
        "rnnencdec-50": Preset(config=_RNN_SEARCH.model_copy(update={"attention": False}), source=_RNN_SOURCE),
    },
)
