"""BERT: folders of transformers' BertForPreTraining and BertForMaskedLM."""

from collections.abc import Iterator
from typing import Any

from moekit.checkpoint.layout import Stored, stored
from moekit.config import DenseConfig
from moekit.config.encoder import EncoderConfig
from moekit.families.activations import ACTIVATION_NAMES, ACTIVATIONS
from moekit.families.family import Family, Preset
from moekit.families.llama_like import number_of_layers
from moekit.families.parts import both, rows
from moekit.families.settings import Settings
from moekit.families.whole import whole_family

WITH_NEXT_SENTENCE, MASKED_ONLY = "BertForPreTraining", "BertForMaskedLM"

DEFAULTS: dict[str, Any] = {
    "vocab_size": 30_522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-12,
    "is_decoder": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}

# config.json has no standard place for most of these; transformers keeps what it does not know.
_TOKENS = {
    "pad_token": "pad_token_id",
    "start_token": "cls_token_id",
    "separator_token": "sep_token_id",
    "mask_token": "mask_token_id",
}


def read(settings: Settings) -> EncoderConfig:
    """Read the configuration. Which heads there are, config.json says by its `architectures` alone."""
    settings.require("position_embedding_type", "absolute")
    for key in ("is_decoder", "add_cross_attention"):
        settings.require(key, False)
    settings.require("tie_word_embeddings", True)
    activation = settings.choice("hidden_act", ACTIVATIONS)
    layer = DenseConfig(width=settings.integer("intermediate_size"), activation=activation, gated=False, bias=True)
    return EncoderConfig(
        vocab_size=settings.integer("vocab_size"),
        width=settings.integer("hidden_size"),
        context=settings.integer("max_position_embeddings"),
        heads=settings.integer("num_attention_heads"),
        layers=(layer,) * number_of_layers(settings),
        types=settings.integer("type_vocab_size"),
        norm_eps=settings.number("layer_norm_eps"),
        head_activation=activation,
        next_sentence=_architecture(settings) == WITH_NEXT_SENTENCE,
        init_std=settings.number("initializer_range"),
        **{ours: settings.integer(theirs) for ours, theirs in _TOKENS.items() if settings.has(theirs)},
    )


def _architecture(settings: Settings) -> str:
    names = settings.values.get("architectures") or [WITH_NEXT_SENTENCE]
    if not isinstance(names, list) or len(names) != 1 or names[0] not in (WITH_NEXT_SENTENCE, MASKED_ONLY):
        raise settings.problem("architectures", f"is {names!r}, and moekit has {WITH_NEXT_SENTENCE} or {MASKED_ONLY}")
    return str(names[0])


def write(config: EncoderConfig) -> dict[str, Any] | None:
    """Give the settings; None where layers differ, have experts or a gate, or another activation than the head.

    Dropout is not the model's, so it is left to transformers' defaults.
    """
    layer = config.layers[0]
    if not isinstance(layer, DenseConfig) or set(config.layers) != {layer}:
        return None
    if layer.gated or not layer.bias or layer.activation != config.head_activation:
        return None
    return {
        "architectures": [WITH_NEXT_SENTENCE if config.next_sentence else MASKED_ONLY],
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": len(config.layers),
        "num_attention_heads": config.heads,
        "intermediate_size": layer.width,
        "hidden_act": ACTIVATION_NAMES[layer.activation],
        "max_position_embeddings": config.context,
        "type_vocab_size": config.types,
        "layer_norm_eps": config.norm_eps,
        "initializer_range": config.init_std,
        "tie_word_embeddings": True,
        **{theirs: getattr(config, ours) for ours, theirs in _TOKENS.items()},
    }


def layout(config: EncoderConfig) -> list[Stored]:
    """List the tensors of a folder; the decoder's copies of tied weights are in files of old versions only."""
    return list(_layout(config))


def _layout(config: EncoderConfig) -> Iterator[Stored]:
    yield stored("bert.embeddings.word_embeddings.weight", "embedding.weight")
    yield stored("bert.embeddings.position_embeddings.weight", "position_embedding.weight")
    yield stored("bert.embeddings.token_type_embeddings.weight", "type_embedding.weight")
    yield from both("bert.embeddings.LayerNorm", "embedding_norm", bias=True)
    width = config.width
    for index in range(len(config.layers)):
        theirs, ours = f"bert.encoder.layer.{index}", f"layers.{index}"
        for number, name in enumerate(("query", "key", "value")):
            yield from both(
                f"{theirs}.attention.self.{name}",
                f"{ours}.attention.query_key_value",
                bias=True,
                of_ours=rows(number * width, (number + 1) * width),
            )
        yield from both(f"{theirs}.attention.output.dense", f"{ours}.attention.output", bias=True)
        yield from both(f"{theirs}.attention.output.LayerNorm", f"{ours}.attention_norm", bias=True)
        yield from both(f"{theirs}.intermediate.dense", f"{ours}.feed_forward.network.gate_up", bias=True)
        yield from both(f"{theirs}.output.dense", f"{ours}.feed_forward.network.down", bias=True)
        yield from both(f"{theirs}.output.LayerNorm", f"{ours}.feed_forward.norm", bias=True)
    yield from both("cls.predictions.transform.dense", "head_dense", bias=True)
    yield from both("cls.predictions.transform.LayerNorm", "head_norm", bias=True)
    yield stored("cls.predictions.bias", "head_bias")
    for name, ours in (("weight", "embedding.weight"), ("bias", "head_bias")):
        copy = stored(f"cls.predictions.decoder.{name}", ours)
        yield Stored(name=copy.name, parts=copy.parts, optional=True)
    if config.next_sentence:
        yield from both("bert.pooler.dense", "pooler", bias=True)
        yield from both("cls.seq_relationship", "next_sentence", bias=True)


def is_next_sentence_head(name: str) -> bool:
    """Tell whether a tensor is of the next-sentence head.

    Files of a model may hold that head although its config.json says BertForMaskedLM (bert-base-uncased does); where it
    says BertForPreTraining the head is in the layout.
    """
    return name.startswith(("bert.pooler.", "cls.seq_relationship."))


def modern_name(name: str) -> str:
    """Today's name of a stored tensor: files converted from TensorFlow call a norm's parameters gamma and beta."""
    if name.endswith("LayerNorm.gamma"):
        return name.removesuffix("gamma") + "weight"
    return name.removesuffix("beta") + "bias" if name.endswith("LayerNorm.beta") else name


def _published(layers: int, width: int, vocab_size: int, parameters: float | None) -> Preset:
    network = DenseConfig(width=4 * width, activation="gelu", gated=False, bias=True)
    return Preset(
        config=EncoderConfig(
            vocab_size=vocab_size,
            width=width,
            context=512,
            heads=width // 64,
            layers=(network,) * layers,
            pad_token=0,
            start_token=101,
            separator_token=102,
            mask_token=103,
        ),
        source=(
            "arXiv 1810.04805, section 3 (sizes, parameters); bert_config.json and vocab.txt of "
            "https://github.com/google-research/bert"
        ),
        parameters=parameters,
    )


# The paper's totals are rounded: ours count all of BertForPreTraining, heads included (110.1 M and 336.2 M for the
# uncased vocabulary). The paper does not count the cased models.
FAMILY = Family(
    model_type="bert",
    architecture=WITH_NEXT_SENTENCE,
    read=read,
    write=write,
    layout=layout,
    presets={
        "bert-base-uncased": _published(12, 768, 30_522, 110e6),
        "bert-large-uncased": _published(24, 1024, 30_522, 340e6),
        "bert-base-cased": _published(12, 768, 28_996, None),
        "bert-large-cased": _published(24, 1024, 28_996, None),
    },
    defaults=DEFAULTS,
    leftover=is_next_sentence_head,
    renamed=modern_name,
)

# What the other cannot say, experts above all. The order is that of preference.
FAMILIES = (FAMILY, whole_family(EncoderConfig, "moekit_encoder", "Encoder"))
