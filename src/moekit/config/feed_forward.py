"""The feed-forward part of a layer: dense, or a mixture of experts."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveInt, field_validator, model_validator

from moekit.config.config_base import Config
from moekit.config.routers import AnyRouterConfig, SigmoidBiasConfig

ActivationName = Literal["silu", "gelu", "gelu_tanh", "relu"]
"""gelu: with the error function; gelu_tanh: Google's and GPT-2's approximation."""


class DenseConfig(Config):
    """A feed-forward network of hidden width `width`.

    It computes down(act(gate(x)) * up(x)) (Shazeer, arXiv 2002.05202), or down(act(up(x))) where it is not `gated`.
    """

    kind: Literal["dense"] = "dense"
    width: PositiveInt
    activation: ActivationName = "silu"
    gated: bool = True
    bias: bool = False


class MoEConfig(Config):
    """A mixture of `experts` feed-forward networks of hidden width `expert_width` each.

    Attributes:
        branch: what stands beside the routed experts, a dense network of hidden width `branch_width`: `shared` adds its
            output (a shared expert; DeepSeekMoE, arXiv 2401.06066); `gated_shared` adds it times the sigmoid of a
            learned value per token (Qwen1.5-MoE); `residual` mixes it with the experts' output by two learned,
            softmax-normalised coefficients per token (Residual-MoE, arXiv 2201.05596, section 4.1.1).
        activation: the activation of the experts and of the branch, as in DenseConfig.
        gated: whether the experts and the branch have gates, as in DenseConfig.
        bias: whether their matrices have biases, as in DenseConfig.
    """

    kind: Literal["moe"] = "moe"
    experts: Annotated[int, Field(gt=0, le=100_000)]
    expert_width: PositiveInt
    router: AnyRouterConfig
    branch: Literal["none", "shared", "gated_shared", "residual"] = "none"
    branch_width: Annotated[int, Field(ge=0)] = 0
    activation: ActivationName = "silu"
    gated: bool = True
    bias: bool = False

    @field_validator("router", mode="before")
    @classmethod
    def _usual_router(cls, router: Any) -> Any:
        """Take a router without a kind for a softmax over the top k."""
        return {"kind": "softmax_top_k"} | router if isinstance(router, dict) else router

    @model_validator(mode="after")
    def _check(self) -> Self:
        chosen = self.router.experts_per_token
        if chosen > self.experts:
            raise ValueError(f"{chosen} experts per token are more than the {self.experts} experts there are")
        if isinstance(self.router, SigmoidBiasConfig):
            self.router.check_experts(self.experts)
        if (self.branch == "none") != (self.branch_width == 0):
            raise ValueError("branch and branch_width go together: set both, or neither")
        return self

    @property
    def dense_branch(self) -> DenseConfig:
        """The network beside the experts; only where there is a branch."""
        return DenseConfig(width=self.branch_width, activation=self.activation, gated=self.gated, bias=self.bias)


def never_learns(layers: Iterable[DenseConfig | MoEConfig]) -> str | None:
    """Say in words why a router of these layers would never learn; None where all can."""
    reasons = (layer.router.never_learns for layer in layers if isinstance(layer, MoEConfig))
    return next(filter(None, reasons), None)


FeedForwardConfig = Annotated[DenseConfig | MoEConfig, Field(discriminator="kind")]
