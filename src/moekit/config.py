"""A model is its configuration: frozen, keyword-only classes that say everything about its shape.

No behaviour hangs on a model's name. A layer plan says per layer whether its feed-forward part is dense or a
mixture of experts (MoE), the latter alone, with a shared expert, or beside a residual dense branch.
Nothing here needs torch, so a configuration can be read, checked and counted (`moekit.counting`) at once.
"""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

NonNegative = Annotated[float, Field(ge=0)]

# Byte-level models: every byte value is a token.
BYTE_VOCAB_SIZE = 256


class Config(BaseModel):
    """Base of all configuration classes: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class AttentionConfig(Config):
    """Grouped-query causal attention with rotary positions (arXiv 2305.13245; arXiv 2104.09864)."""

    heads: PositiveInt
    kv_heads: PositiveInt
    head_width: PositiveInt
    rope_base: Annotated[float, Field(gt=1)] = 10_000.0

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.heads % self.kv_heads:
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        if self.head_width % 2:
            raise ValueError(f"head_width ({self.head_width}) must be even: rotary positions turn pairs")
        return self


class DenseConfig(Config):
    """A gated feed-forward network of hidden width `width`: down(silu(gate(x)) * up(x)) (Shazeer, arXiv 2002.05202)."""

    kind: Literal["dense"] = "dense"
    width: PositiveInt


class SoftmaxTopKConfig(Config):
    """Softmax over all experts, then the K largest; `renormalize` divides their weights by their sum."""

    kind: Literal["softmax_top_k"] = "softmax_top_k"
    top_k: PositiveInt
    renormalize: bool = True

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.top_k == 1 and self.renormalize:
            raise ValueError(
                "a renormalised top-1 router always weighs its expert 1.0 and so never learns; set renormalize: false"
            )
        return self


class MoEConfig(Config):
    """A mixture of `experts` gated feed-forward networks of hidden width `expert_width` each.

    branch: what stands beside the routed experts, a dense network of hidden width `branch_width`:
    `shared` adds its output (DeepSeekMoE, arXiv 2401.06066); `residual` mixes it with the experts' output by
    two learned, softmax-normalised coefficients per token (Residual-MoE, arXiv 2201.05596, section 4.1.1).
    """

    kind: Literal["moe"] = "moe"
    experts: PositiveInt
    expert_width: PositiveInt
    router: SoftmaxTopKConfig
    branch: Literal["none", "shared", "residual"] = "none"
    branch_width: Annotated[int, Field(ge=0)] = 0
    balance_loss: NonNegative = 0.01
    z_loss: NonNegative = 0.001

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.router.top_k > self.experts:
            raise ValueError(f"top_k ({self.router.top_k}) is larger than the number of experts ({self.experts})")
        if (self.branch == "none") != (self.branch_width == 0):
            raise ValueError("branch and branch_width go together: set both, or neither")
        return self


FeedForwardConfig = Annotated[DenseConfig | MoEConfig, Field(discriminator="kind")]


class ModelConfig(Config):
    """A causal decoder: Llama's shape where a layer is dense, Mixtral's where it is a mixture of experts.

    width: of the residual stream (D). layers: the plan, one feed-forward configuration a layer.
    context: the longest sequence in tokens. init_std: of the normal initialisation; matrices that write to the
    residual stream get init_std / sqrt(2 * layers) (GPT-2).
    """

    vocab_size: PositiveInt
    width: PositiveInt
    context: PositiveInt
    attention: AttentionConfig
    layers: Annotated[tuple[FeedForwardConfig, ...], Field(min_length=1)]
    tie_embeddings: bool = False
    norm_eps: Annotated[float, Field(gt=0)] = 1e-5
    init_std: Annotated[float, Field(gt=0)] = 0.02
