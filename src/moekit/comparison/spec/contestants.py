"""Who can take part in a comparison: the default set, the set of routers, or what a user describes.

Most contestants of one comparison share the outer shape that `--size` names and differ in their layer plan; some have a
shape of their own, and the compute of the others.
"""

import bisect
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Self, TypeVar

from pydantic import AfterValidator, Field, PositiveFloat, field_validator, model_validator

from moekit.comparison.spec.model_costs import ContestantConfig, costs_of
from moekit.config import (
    BYTE_VOCAB_SIZE,
    AnyRouterConfig,
    AttentionConfig,
    Config,
    DenseConfig,
    ExpertChoiceConfig,
    FeedForwardConfig,
    GShardConfig,
    HashConfig,
    LSTMConfig,
    ModelConfig,
    MoEConfig,
    NGramConfig,
    NoisyTopKConfig,
    NormConfig,
    SigmoidBiasConfig,
    SinkhornConfig,
    SwitchConfig,
    decoder_layers,
    never_learns,
)
from moekit.config import SoftmaxTopKConfig as SoftmaxTopK
from moekit.core.errors import UsageError
from moekit.core.validation import validate

if TYPE_CHECKING:
    from moekit.comparison.spec.upcycling_phases import UpcyclingPhases


@dataclass(frozen=True, kw_only=True)
class Size:
    """The outer shape that all contestants share, and the batch.

    hidden: the dense contestant's feed-forward width (F). context: tokens of a sequence. sequences: of a batch.
    """

    width: int
    depth: int
    heads: int
    kv_heads: int
    hidden: int
    context: int
    sequences: int


# The best of 4 to 7 on the embedded corpus at the default number of tokens, and at four and sixteen times as many;
# 8 gains about 0.01 bits per byte more and takes two to three times as long, its n-grams no longer fitting 64 bits.
NGRAM_ORDER = 7
# The best of several powers of two (benchmarks/learning_rates.py); at the others' rate an LSTM ends 0.6 bits higher.
GPT3_RATE_FACTOR, LSTM_RATE_FACTOR = 2.0, 8.0
LSTM_LAYERS = 1

Shape = TypeVar("Shape", ModelConfig, LSTMConfig)

SIZES = {
    "xs": Size(width=128, depth=4, heads=2, kv_heads=1, hidden=384, context=128, sequences=16),
    "s": Size(width=192, depth=4, heads=3, kv_heads=1, hidden=512, context=128, sequences=16),
    "m": Size(width=256, depth=6, heads=4, kv_heads=2, hidden=768, context=256, sequences=32),
    "l": Size(width=512, depth=8, heads=8, kv_heads=4, hidden=1536, context=512, sequences=32),
}


def _check_name(name: str) -> str:
    # Names become folders and labels.
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,39}", name):
        raise ValueError("a name is up to 40 lower-case letters, digits, dots, dashes and underscores")
    return name


class Contestant(Config):
    """Who takes part, before a size is known: a name, and either the layers' feed-forward parts or a whole model.

    layers: repeated from their start until the depth of the size is reached, in the size's outer shape.
    model: of a shape of its own; it reads bytes, and as much context as the size has.
    upcycle: of a decoder that becomes a mixture on the way; the keys of `UpcyclingOptions` in `upcycling_phases.py`,
    which is imported only where it is needed, since that takes torch.
    rate_factor: of the learning rate that serves the default set's decoders, where another kind of model needs more.
    """

    name: Annotated[str, AfterValidator(_check_name)]
    layers: Annotated[tuple[FeedForwardConfig, ...], Field(min_length=1)] | None = None
    model: ContestantConfig | None = None
    upcycle: dict[str, Any] | None = None
    rate_factor: PositiveFloat = 1.0
    description: str = ""

    @field_validator("model", mode="before")
    @classmethod
    def _usual_vocabulary(cls, model: Any) -> Any:
        """Take bytes, where nothing is said."""
        if isinstance(model, dict) and model.get("kind", "decoder") in ("decoder", "lstm"):
            return {"vocab_size": BYTE_VOCAB_SIZE} | model
        return model

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.layers is None) == (self.model is None):
            raise ValueError("a contestant is either layers, a plan in the size's shape, or model, a whole one")
        planned = self.model.feed_forwards if isinstance(self.model, ModelConfig) else self.layers
        if reason := never_learns(planned or ()):
            raise ValueError(reason)
        if self.upcycle is not None and isinstance(self.model, LSTMConfig | NGramConfig):
            raise ValueError(f"upcycle is for decoders, and model is of kind {self.model.kind}")
        if isinstance(self.model, NGramConfig):
            if self.model.unit != "bytes":
                raise ValueError("contestants read bytes: set model.unit to bytes")
        elif self.model is not None and self.model.vocab_size != BYTE_VOCAB_SIZE:
            raise ValueError(f"contestants read bytes: set model.vocab_size to {BYTE_VOCAB_SIZE}")
        return self

    def config(self, size: Size) -> ContestantConfig:
        """Give what takes part (what it starts as, if it is upcycled): the model, or the layers in the shape of `size`.

        Raises ValueError where the model has less context than the size.
        """
        if isinstance(self.model, ModelConfig) and self.model.context < size.context:
            raise ValueError(f"model.context ({self.model.context}) is less than the size's, {size.context}")
        return self.model or self._planned(size)

    def upcycled(self, size: Size, where: str = "upcycle") -> "tuple[ModelConfig, UpcyclingPhases]":
        """Give what comes out, and the phases of a run; raises UsageError with `where` where `upcycle` does not fit."""
        from moekit.comparison.spec.upcycling_phases import UpcyclingOptions, upcycled

        options, dense = validate(UpcyclingOptions, self.upcycle, where=where), self.config(size)
        assert isinstance(dense, ModelConfig)
        try:
            return upcycled(dense, options, size.context)
        except UsageError as error:
            raise UsageError(f"{where}: {error}") from error

    def _planned(self, size: Size) -> ModelConfig:
        assert self.layers is not None
        return ModelConfig(
            vocab_size=BYTE_VOCAB_SIZE,
            width=size.width,
            context=size.context,
            layers=decoder_layers(
                AttentionConfig(heads=size.heads, kv_heads=size.kv_heads, head_width=size.width // size.heads),
                [self.layers[index % len(self.layers)] for index in range(size.depth)],
            ),
            init_std=_init_std(size.width),
        )


def _init_std(width: int) -> float:
    """Give narrow models larger weights than GPT-2's 0.02 (SmallInit, arXiv 1910.05895, section 2.2)."""
    return math.sqrt(2 / (5 * width))


def default_contestants(size: Size) -> dict[str, Contestant]:
    """Describe the default set, by name.

    `moe`, `moe-fine`, `moe-many` and `hybrid` have the active FLOPs of `dense`, within 2 %; a router that chooses among
    more experts multiplies more.
    """
    hidden = size.hidden
    fine = hidden // 4
    plans = [
        Contestant(
            name="dense", description=f"every layer dense, hidden width {hidden}", layers=(DenseConfig(width=hidden),)
        ),
        Contestant(
            name="moe",
            description=f"every layer 8 experts of width {hidden // 2}, top-2",
            layers=(MoEConfig(experts=8, expert_width=hidden // 2, router=SoftmaxTopK(top_k=2)),),
        ),
        Contestant(
            name="moe-fine",
            description=f"every layer 16 experts of width {fine}, top-4",
            layers=(MoEConfig(experts=16, expert_width=fine, router=SoftmaxTopK(top_k=4)),),
        ),
        Contestant(
            name="moe-many",
            description=f"every layer 32 experts of width {fine}, top-4: moe-fine with twice as many to choose from",
            layers=(MoEConfig(experts=32, expert_width=fine, router=SoftmaxTopK(top_k=4)),),
        ),
        Contestant(
            name="hybrid",
            description=f"dense layers and layers of 16 experts of width {fine}, top-3 and one shared, in turn",
            layers=(
                DenseConfig(width=hidden),
                MoEConfig(
                    experts=16,
                    expert_width=fine,
                    router=SoftmaxTopK(top_k=3),
                    branch="shared",
                    branch_width=fine,
                ),
            ),
        ),
        Contestant(
            name="dense-large",
            description=f"every layer dense, hidden width {4 * hidden}: the total parameters of moe",
            layers=(DenseConfig(width=4 * hidden),),
        ),
    ]
    return {plan.name: plan for plan in plans}


def own_contestants(size: Size) -> dict[str, Contestant]:
    """Describe those with a shape of their own, by name: `gpt3` and `lstm` with the FLOPs of `dense`, and `ngram`."""
    gpt3, lstm = _gpt3(size), _lstm(size)
    ngram = NGramConfig(order=NGRAM_ORDER)
    feed_forward = gpt3.feed_forwards[0]
    assert isinstance(feed_forward, DenseConfig)
    found = [
        Contestant(
            name="gpt3",
            description="a dense decoder of GPT-3's kind: LayerNorm, learned positions, full attention and a band of "
            f"{size.context // 2} tokens in turn, an ungated network of hidden width {feed_forward.width} with biases",
            model=gpt3,
            rate_factor=GPT3_RATE_FACTOR,
        ),
        Contestant(
            name="lstm",
            description=f"{_layers(lstm)}, no dropout; trained by the optimiser of all others",
            model=lstm,
            rate_factor=LSTM_RATE_FACTOR,
        ),
        Contestant(
            name="ngram",
            description=f"counts of up to {NGRAM_ORDER} bytes in a row, modified Kneser-Ney; it multiplies nothing",
            model=ngram,
        ),
    ]
    return {one.name: one for one in found}


def upcycled_contestant(size: Size) -> Contestant:
    """Describe `upcycled`: `dense` for half of the FLOPs, then of the shape of `moe`; all three cost the same."""
    return Contestant(
        name="upcycled",
        description=f"dense for half of the FLOPs, then 8 experts of width {size.hidden // 2}, top-2: of each network "
        "4 copies, cut in two",
        layers=(DenseConfig(width=size.hidden),),
        upcycle={"after": 0.5, "experts": 4, "granularity": 2, "top_k": 2},
    )


def default_set(size: Size) -> tuple[list[Contestant], list[Contestant]]:
    """Give who takes part where nothing is asked, and who does too where the budget allows."""
    own = own_contestants(size)
    return [*default_contestants(size).values(), own["ngram"]], [own["gpt3"], own["lstm"]]


def _gpt3(size: Size) -> ModelConfig:
    """Describe a model of GPT-3's kind (arXiv 2005.14165, section 2.1), as wide inside as gives the FLOPs of `dense`.

    Every second layer sees a band of half the context: GPT-3's own is unpublished, and narrower ones would lose more
    of a context that is short already.
    """

    def model(hidden: int) -> ModelConfig:
        network = DenseConfig(width=hidden, activation="gelu_tanh", gated=False, bias=True)
        attention = AttentionConfig(
            heads=size.heads,
            kv_heads=size.heads,
            head_width=size.width // size.heads,
            positions="none",
            qkv_bias=True,
            output_bias=True,
        )
        windows, norm = (None, max(1, size.context // 2)), NormConfig(kind="layer")
        return ModelConfig(
            vocab_size=BYTE_VOCAB_SIZE,
            width=size.width,
            context=size.context,
            layers=decoder_layers(attention, (network,) * size.depth, windows=windows, norm=norm),
            norm=norm,
            learned_positions=True,
            tie_embeddings=True,
            init_std=_init_std(size.width),
        )

    return _nearest(model, range(16, 4 * size.hidden, 16), size)


def _lstm(size: Size) -> LSTMConfig:
    """Describe an LSTM as wide as gives the FLOPs of `dense`."""

    def model(width: int) -> LSTMConfig:
        return LSTMConfig(vocab_size=BYTE_VOCAB_SIZE, embedding_width=width, widths=(width,) * LSTM_LAYERS)

    return _nearest(model, range(8, 4 * (size.width + size.hidden) * size.depth, 8), size)


def _nearest(model: Callable[[int], Shape], widths: range, size: Size) -> Shape:
    """Find the model whose training FLOPs for a token are nearest to those of `dense`; they grow with the width.

    widths: to choose from, multiples of what kernels like.
    """

    def flops(width: int) -> int:
        return costs_of(model(width), size.context).flops_per_token

    wanted = costs_of(default_contestants(size)["dense"].config(size), size.context).flops_per_token
    place = bisect.bisect_left(widths, wanted, hi=len(widths) - 1, key=flops)
    return model(min(widths[max(0, place - 1) : place + 1], key=lambda width: abs(flops(width) - wanted)))


def _layers(lstm: LSTMConfig) -> str:
    many = "one LSTM layer" if len(lstm.widths) == 1 else f"{len(lstm.widths)} LSTM layers"
    return f"{many} of width {lstm.widths[-1]}"


def router_contestants(size: Size) -> dict[str, Contestant]:
    """Describe `dense`, and contestants that differ in the router alone, by name.

    Each has 8 experts a layer, of the width at which the active FLOPs are those of `dense`, within 2 %.
    """
    routers: dict[str, tuple[AnyRouterConfig, str]] = {
        "softmax": (SoftmaxTopK(top_k=2), "softmax, top-2, renormalised"),
        "noisy": (NoisyTopKConfig(top_k=2), "noisy top-2"),
        "switch": (SwitchConfig(), "Switch, top-1, capacity factor 1.25"),
        "gshard": (GShardConfig(), "GShard, top-2, the second by chance, capacity factor 1"),
        "expert-choice": (
            ExpertChoiceConfig(mean_experts=2, leaky=True),
            "expert choice, 2 experts a token on average; it sees later tokens, so its bits per byte do not count as a "
            "language model's",
        ),
        "sigmoid-bias": (SigmoidBiasConfig(top_k=2), "sigmoid with a balancing bias, top-2"),
        "hash": (HashConfig(), "a table by byte, evened out by how often bytes occur, top-1; nothing learned"),
        "sinkhorn": (SinkhornConfig(top_k=1), "Sinkhorn, top-1"),
    }
    contestants = {"dense": default_contestants(size)["dense"]}
    for name, (router, text) in routers.items():
        width = size.hidden // router.experts_per_token
        contestants[name] = Contestant(
            name=name,
            description=f"every layer 8 experts of width {width}; router: {text}",
            layers=(MoEConfig(experts=8, expert_width=width, router=router),),
        )
    return contestants


def caveat_of(model: ContestantConfig) -> str | None:
    """Say why the model's bits per byte do not count as a language model's; gives None where they do."""
    if not isinstance(model, ModelConfig):
        return None
    for layer in model.feed_forwards:
        if isinstance(layer, MoEConfig) and isinstance(layer.router, ExpertChoiceConfig):
            return "its router sees later tokens, so its bits per byte do not count as a language model's"
        if isinstance(layer, MoEConfig) and isinstance(layer.router, GShardConfig) and layer.router.capacity_factor:
            return (
                "in its queues later tokens displace earlier ones, so its bits per byte do not count as a language "
                "model's"
            )
    return None
