"""Attention: grouped queries or latent, and its positions."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from moekit.config.config_base import Config, Positive


class Llama3Scaling(Config):
    """Llama 3.1's longer context.

    Wavelengths over `context` / `low` are multiplied by `factor`, those under `context` / `high` stay, and between the
    two the frequencies are mixed (arXiv 2407.21783, section 3.4.3 and code).

    Attributes:
        context: the context of the pretraining, in tokens.
    """

    kind: Literal["llama3"] = "llama3"
    factor: Positive
    low: Positive = 1.0
    high: Positive = 4.0
    context: PositiveInt

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.high <= self.low:
            raise ValueError(f"high ({self.high}) must be larger than low ({self.low})")
        return self


class YarnScaling(Config):
    """YaRN (Peng et al., arXiv 2309.00071, section 3.2 to 3.4).

    Frequencies that turn fewer than `slow` times within `context` are divided by `factor`, those that turn more than
    `fast` times stay; a ramp lies between.

    Attributes:
        context: the context of the pretraining, in tokens.
        magnitude: the factor of cos and sin; None for 0.1 ln(factor) + 1.
    """

    kind: Literal["yarn"] = "yarn"
    factor: Annotated[float, Field(ge=1)]
    context: PositiveInt
    fast: Positive = 32.0
    slow: Positive = 1.0
    magnitude: Positive | None = None
    # Some implementations round the ramp's ends to whole dimensions, some do not (transformers' `truncate`).
    whole_ends: bool = True


class LinearScaling(Config):
    """All frequencies are divided by `factor` (position interpolation, arXiv 2306.15595)."""

    kind: Literal["linear"] = "linear"
    factor: Positive


RopeScaling = Annotated[Llama3Scaling | YarnScaling | LinearScaling, Field(discriminator="kind")]


class RotaryConfig(Config):
    """Rotary positions (Su et al., arXiv 2104.09864) as attention of either kind has them."""

    rope_base: Annotated[float, Field(gt=1)] = 10_000.0
    rope_scaling: RopeScaling | None = None


class AttentionConfig(RotaryConfig):
    """Grouped-query causal attention (arXiv 2305.13245).

    Attributes:
        positions: `rotary`; `alibi`, a penalty on distance (arXiv 2108.12409); or `none`, where the model has learned
            ones.
        window: how far back a token looks, in tokens, itself included; None is everything.
        scale: the factor of the scores, None for 1 / sqrt(head_width).
        soft_cap: scores become cap · tanh(score / cap) (Grok-1).
        query_key_norm: RMSNorm of queries and keys before they are rotated, `head` by head or over `all` heads at once.
    """

    also_read: ClassVar = {"windows": "where attention stands beside layers, for all of them"}

    kind: Literal["grouped"] = "grouped"
    heads: PositiveInt
    kv_heads: PositiveInt
    head_width: PositiveInt
    positions: Literal["rotary", "alibi", "none"] = "rotary"
    window: PositiveInt | None = None
    scale: Positive | None = None
    soft_cap: Positive | None = None
    qkv_bias: bool = False
    output_bias: bool = False
    query_key_norm: Literal["none", "head", "all"] = "none"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.heads % self.kv_heads:
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        if self.positions == "rotary" and self.head_width % 2:
            raise ValueError(f"head_width ({self.head_width}) must be even: rotary positions turn pairs")
        return self

    @property
    def cached_values_per_token(self) -> int:
        """The numbers that a layer's KV cache holds for one token."""
        return 2 * self.kv_heads * self.head_width


class LatentAttentionConfig(RotaryConfig):
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1).

    Keys and values come from a latent vector of `kv_rank` numbers a token, which is what the cache holds, beside one
    key of `rotary_width` for all heads.

    Attributes:
        query_rank: the rank of the queries' latent; None projects queries directly.
        head_width: the width of the part of keys and queries without positions.
        scale: the factor of the scores, None for 1 / sqrt(head_width + rotary_width).
    """

    kind: Literal["latent"] = "latent"
    heads: PositiveInt
    head_width: PositiveInt
    rotary_width: PositiveInt
    value_width: PositiveInt
    kv_rank: PositiveInt
    query_rank: PositiveInt | None = None
    bias: bool = False
    scale: Positive | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.rotary_width % 2:
            raise ValueError(f"rotary_width ({self.rotary_width}) must be even: rotary positions turn pairs")
        return self

    @property
    def window(self) -> None:
        """None: a token sees all that came before it."""
        return None

    @property
    def cached_values_per_token(self) -> int:
        """The numbers that a layer's cache holds for one token."""
        return self.kv_rank + self.rotary_width


AnyAttentionConfig = Annotated[AttentionConfig | LatentAttentionConfig, Field(discriminator="kind")]
