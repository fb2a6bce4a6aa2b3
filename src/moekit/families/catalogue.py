"""The one list of families: a family is in it, or it does not exist."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moekit.config import (
    Config,
    EncoderConfig,
    EncoderDecoderConfig,
    GRUSeq2SeqConfig,
    LSTMConfig,
    LSTMSeq2SeqConfig,
    ModelConfig,
    XLNetConfig,
)
from moekit.config.comparing import same_function
from moekit.core.errors import MoekitError, UsageError, did_you_mean
from moekit.families import (
    bert,
    deepseek,
    deepseek_v3,
    falcon,
    gemma3,
    gpt2,
    gpt3,
    gpt_neo,
    grok1,
    gshard,
    llama,
    lstm,
    mistral,
    mixtral,
    olmoe,
    qwen,
    seq2seq,
    switch,
    t5,
    xlnet,
)
from moekit.families.family import Family, Preset
from moekit.families.settings import Settings
from moekit.families.whole import whole_family

# By the configuration that they describe; the first that can say a configuration is the one it is saved as.
FAMILIES: Mapping[type[Config], tuple[Family, ...]] = {
    ModelConfig: (
        llama.FAMILY,
        mistral.FAMILY,
        mistral.MINISTRAL,
        *qwen.FAMILIES,
        mixtral.FAMILY,
        olmoe.FAMILY,
        deepseek.FAMILY,
        deepseek_v3.FAMILY,
        gemma3.FAMILY,
        gpt2.FAMILY,
        gpt_neo.FAMILY,
        falcon.FAMILY,
        whole_family(ModelConfig, "moekit_decoder", "Decoder"),
    ),
    EncoderConfig: bert.FAMILIES,
    XLNetConfig: xlnet.FAMILIES,
    EncoderDecoderConfig: (t5.FAMILY, switch.FAMILY, gshard.FAMILY),
    LSTMConfig: (lstm.FAMILY,),
    LSTMSeq2SeqConfig: (seq2seq.LSTM_FAMILY,),
    GRUSeq2SeqConfig: (seq2seq.GRU_FAMILY,),
}


def presets() -> dict[str, Preset]:
    """Give every published configuration, by its name."""
    families = [family for of_config in FAMILIES.values() for family in of_config]
    found = {name: preset for family in families for name, preset in family.presets.items()}
    return found | gpt3.PRESETS | grok1.PRESETS


def preset(name: str) -> Preset:
    """Find the published configuration of that name; raises UsageError with the nearest name where there is none."""
    known = presets()
    if name not in known:
        raise UsageError(f"There is no preset {name!r}: {did_you_mean(name, known)}")
    return known[name]


def family_of(settings: Settings) -> Family:
    """Find the family that a config.json names by its model_type; raises MoekitError where there is none."""
    known = {family.model_type: family for of_config in FAMILIES.values() for family in of_config}
    model_type = settings.text("model_type")
    if model_type not in known:
        raise settings.problem(
            "model_type", f"is {model_type!r}, a family that moekit does not read; it reads {', '.join(sorted(known))}"
        )
    return known[model_type]


def describe(config: Config, preferred: str | None = None) -> tuple[Family, dict[str, Any]]:
    """Find the family to save a model of that configuration as, and its settings.

    That is the one with model_type `preferred`, if it can say the configuration, else the first that can.
    """
    for family in sorted(FAMILIES[type(config)], key=lambda family: family.model_type != preferred):
        settings = family.write(config)
        if settings is not None and _says(family, settings, config):
            return family, {"architectures": [family.architecture], "model_type": family.model_type, **settings}
    raise MoekitError(f"No folder can hold a {type(config).__name__} like this one.")


def _says(family: Family, settings: dict[str, Any], config: Config) -> bool:
    """Tell whether the family reads the same function out of the settings."""
    try:
        again = family.config(Settings(settings, Path("config.json")))
    except (MoekitError, ValueError):
        return False
    return same_function(again, config)
