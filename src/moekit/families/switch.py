"""The Switch Transformer as transformers stores it: T5 with mixtures of experts in some of the layers.

transformers drops a token where its expert has `expert_capacity` tokens of the same sequence before it, padding
included. moekit reads such a model without a capacity: no token is dropped. Both give the same wherever no expert is
chosen more than `expert_capacity` times (64 in the published files) in a sequence.
"""

from typing import Any

from moekit.checkpoint.layout import Stored
from moekit.config import DenseConfig, FeedForwardConfig, MoEConfig, SwitchConfig
from moekit.config.encoder_decoder import EncoderDecoderConfig
from moekit.families.activations import ACTIVATION_NAMES, ACTIVATIONS
from moekit.families.family import Family, Preset
from moekit.families.settings import Settings
from moekit.families.t5 import (
    ALIASES,
    SHAPE_DEFAULTS,
    SHAPE_NULLS,
    has_shape,
    read_count,
    read_shape,
    stored_model,
    write_shape,
)

# No sequence is so long that an expert could have more: nothing is dropped.
_NO_CAPACITY = 2**31 - 1

DEFAULTS: dict[str, Any] = SHAPE_DEFAULTS | {
    "d_model": 768,
    "num_layers": 12,
    "num_decoder_layers": 12,
    "num_heads": 12,
    "num_sparse_encoder_layers": 3,
    "num_sparse_decoder_layers": 3,
    "encoder_sparse_step": None,
    "decoder_sparse_step": None,
    "num_experts": 8,
    "expert_capacity": 64,
    "router_bias": False,
    "router_dtype": "float32",
    "router_jitter_noise": 0.01,
    "router_aux_loss_coef": 0.001,
    "router_z_loss_coef": 0.001,
    "dense_act_fn": "relu",
}


def read(settings: Settings) -> EncoderDecoderConfig:
    """Read the configuration of a folder; without a capacity, whatever the folder says (see above)."""
    settings.require("router_bias", False)
    settings.require("router_dtype", "float32")
    # Without ties transformers unties all three tables, the encoder's, the decoder's and the output's, and keeps a
    # fourth that is idle. No published files are so.
    settings.require("tie_word_embeddings", True)
    settings.integer("expert_capacity")
    activation: Any = settings.choice("dense_act_fn", ACTIVATIONS)
    width = settings.integer("d_ff")
    dense = DenseConfig(width=width, activation=activation, gated=False)
    sparse = MoEConfig(
        experts=settings.integer("num_experts"),
        expert_width=width,
        activation=activation,
        gated=False,
        router=SwitchConfig(
            capacity_factor=None,
            jitter=settings.number("router_jitter_noise"),
            balance_loss=settings.number("router_aux_loss_coef"),
            z_loss=settings.number("router_z_loss_coef"),
        ),
    )
    encoder = read_count(settings, "num_layers")
    decoder = read_count(settings, "num_decoder_layers", encoder)
    return read_shape(
        settings,
        encoder_layers=plan(encoder, _read_step(settings, "encoder", encoder), dense, sparse),
        decoder_layers=plan(decoder, _read_step(settings, "decoder", decoder), dense, sparse),
        tie_embeddings=True,
        scaled_logits=True,
    )


def plan(layers: int, step: int, dense: FeedForwardConfig, sparse: FeedForwardConfig) -> tuple[FeedForwardConfig, ...]:
    """Follow transformers' rule: layer i is sparse where i % step is 1, each where step is 1, none where it is 0."""
    return tuple(sparse if step == 1 or (step > 0 and index % step == 1) else dense for index in range(layers))


def write(config: EncoderDecoderConfig) -> dict[str, Any] | None:
    """Give the settings of config.json; None where transformers has no such model, as with a capacity factor."""
    kinds = {*config.encoder_layers, *config.decoder_layers}
    sparse = next((layer for layer in kinds if isinstance(layer, MoEConfig)), None)
    if not has_shape(config) or not (config.tie_embeddings and config.scaled_logits) or sparse is None:
        return None
    dense = DenseConfig(width=sparse.expert_width, activation=sparse.activation, gated=False)
    router = sparse.router
    if not isinstance(router, SwitchConfig) or router.capacity_factor is not None:
        return None
    if kinds - {sparse, dense} or sparse.gated or sparse.branch != "none":
        return None
    steps = {}
    for stack, layers in (("encoder", config.encoder_layers), ("decoder", config.decoder_layers)):
        step = _step_of(layers, dense, sparse)
        if step is None:
            return None
        steps[f"{stack}_sparse_step"] = step
        # transformers works out the step from the number, unless it is given, too.
        steps[f"num_sparse_{stack}_layers"] = len(layers) // step if step else 0
    return (
        write_shape(config)
        | steps
        | {
            "d_ff": dense.width,
            "dense_act_fn": ACTIVATION_NAMES[dense.activation],
            "num_experts": sparse.experts,
            "expert_capacity": _NO_CAPACITY,
            "router_bias": False,
            "router_dtype": "float32",
            "router_jitter_noise": router.jitter,
            "router_aux_loss_coef": router.balance_loss,
            "router_z_loss_coef": router.z_loss,
        }
    )


def layout(config: EncoderDecoderConfig) -> list[Stored]:
    """List the tensors of a folder."""
    return list(stored_model(config, "mlp"))


def _read_step(settings: Settings, stack: str, layers: int) -> int:
    """Read the step, or work it out from the number of sparse layers."""
    sparse = settings.integer(f"num_sparse_{stack}_layers")
    return settings.integer(f"{stack}_sparse_step", layers // sparse if sparse > 0 else layers)


def _step_of(layers: tuple[FeedForwardConfig, ...], dense: FeedForwardConfig, sparse: FeedForwardConfig) -> int | None:
    """Find the step that gives those layers, 0 for one without experts; None where there is none."""
    return next((step for step in range(len(layers) + 1) if plan(len(layers), step, dense, sparse) == layers), None)


def _preset(
    layers: int,
    width: int,
    heads: int,
    inner: int,
    experts: int,
    source: str,
    parameters: float,
    *,
    step: int = 2,
    gated: bool = False,
    tied: bool = True,
    capacity_factor: float = 1.25,
) -> Preset:
    """Describe a model as trained: with jitter, a capacity factor, and a tenth of the usual variance at the start."""
    activation: Any = "gelu_tanh" if gated else "relu"
    dense = DenseConfig(width=inner, activation=activation, gated=gated)
    router = SwitchConfig(capacity_factor=capacity_factor, z_loss=0.0)
    sparse = MoEConfig(experts=experts, expert_width=inner, activation=activation, gated=gated, router=router)
    config = EncoderDecoderConfig(
        vocab_size=32_128,
        width=width,
        heads=heads,
        head_width=64,
        encoder_layers=plan(layers, step, dense, sparse),
        decoder_layers=plan(layers, step, dense, sparse),
        tie_embeddings=tied,
        scaled_logits=tied,
        init_factor=0.1**0.5,
    )
    return Preset(config=config, source=source, parameters=parameters)


_GIN = "google/flaxformer t5x/configs/moe/models/switch_{}.gin; arXiv 2101.03961, table 9 and section 2.4"
_HUB = "huggingface.co/google/switch-base-{}/config.json; capacity and initialisation: arXiv 2101.03961, section 2"


def _base(experts: int, source: str) -> Preset:
    # Only the model with 128 experts has its total published: 7 B.
    preset = _preset(12, 768, 12, 3072, experts, source, 7e9)
    return preset if experts == 128 else Preset(config=preset.config, source=source)


FAMILY = Family(
    model_type="switch_transformers",
    architecture="SwitchTransformersForConditionalGeneration",
    read=read,
    write=write,
    layout=layout,
    defaults=DEFAULTS,
    nulls=SHAPE_NULLS | {"encoder_sparse_step": None, "decoder_sparse_step": None},
    aliases=ALIASES,
    presets={
        **{f"switch-base-{experts}": _base(experts, _HUB.format(experts)) for experts in (8, 16, 32, 64, 256)},
        "switch-base-128": _base(128, _GIN.format("base")),
        "switch-large-128": _preset(24, 1024, 16, 4096, 128, _GIN.format("large"), 26e9),
        "switch-xxl-128": _preset(24, 4096, 64, 10_240, 128, _GIN.format("xxl"), 395e9, gated=True, tied=False),
        "switch-c-2048": _preset(
            15, 2080, 30, 6144, 2048, _GIN.format("c"), 1.571e12, step=1, tied=False, capacity_factor=1.0
        ),
    },
)
