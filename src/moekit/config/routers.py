"""The routers' configurations: the rule of the choice, the capacity, and the coefficients of the losses."""

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from moekit.config.config_base import Config, NonNegative


class RouterConfig(Config):
    """What routers have in common.

    Attributes:
        capacity_factor: an expert takes at most ceil(K · T / E · capacity_factor) of T tokens, first come, first served
            (Megatron's convention; K counts, unlike in mesh-tensorflow's). None means as many as choose it (dropless).
        z_loss: the coefficient of the router z-loss.
    """

    capacity_factor: Annotated[float, Field(gt=0)] | None = None
    z_loss: NonNegative = 0.001

    @property
    def experts_per_token(self) -> int:
        """Give K, how many experts compute for one token, on average where tokens differ."""
        raise NotImplementedError

    @property
    def never_learns(self) -> str | None:
        """Tell why training would teach such a router nothing, in words; None where it can learn.

        To run one is fine: folders hold mixtures of one expert a token.
        """
        return None


class TopKConfig(RouterConfig):
    """A router that chooses `top_k` experts for each token."""

    top_k: PositiveInt

    @property
    def experts_per_token(self) -> int:
        """K: how many experts compute for one token."""
        return self.top_k


class RenormalizingConfig(TopKConfig):
    """A router whose weights, those of the chosen experts, are divided by their sum if `renormalize`."""

    renormalize: bool = True

    @property
    def never_learns(self) -> str | None:
        """Why a task can teach such a router nothing, in words; None where it can."""
        if self.top_k > 1 or not self.renormalize:
            return None
        return "a renormalised top-1 router always weighs its expert 1.0 and so never learns; set renormalize: false"


class SoftmaxTopKConfig(RenormalizingConfig):
    """Softmax over all experts, then the K largest; `renormalize` divides their weights by their sum (Mixtral)."""

    kind: Literal["softmax_top_k"] = "softmax_top_k"
    balance_loss: NonNegative = 0.01


class NoisyTopKConfig(TopKConfig):
    """Noise with a learned scale before the choice, in training (Shazeer et al., arXiv 1701.06538).

    Attributes:
        importance_loss: the coefficient of the squared coefficient of variation of the experts' importance (eq. 7).
        load_loss: the same of their load (eq. 11).
    """

    kind: Literal["noisy_top_k"] = "noisy_top_k"
    importance_loss: NonNegative = 0.1
    load_loss: NonNegative = 0.1
    z_loss: NonNegative = 0.0

    @property
    def never_learns(self) -> str | None:
        """Why a task can teach such a router nothing, in words; None where it can."""
        if self.top_k > 1:
            return None
        return "a noisy top-1 router weighs its expert 1.0 and so never learns; set top_k to 2 or more"


class SwitchConfig(RouterConfig):
    """One expert a token, weighed by its probability; jitter multiplies the router's input by U(1 - e, 1 + e)."""

    kind: Literal["switch"] = "switch"
    jitter: Annotated[float, Field(ge=0, lt=1)] = 0.01
    balance_loss: NonNegative = 0.01
    capacity_factor: Annotated[float, Field(gt=0)] | None = 1.25

    @property
    def experts_per_token(self) -> int:
        """K: how many experts compute for one token."""
        return 1


class GShardConfig(RouterConfig):
    """Two experts a token; in training the second is kept only if u < weight / `second_threshold`, u uniform.

    Attributes:
        second_threshold: 0.5 is the paper's "2 · g2 > u" (arXiv 2006.16668, algorithm 1); 0 keeps every second expert.
    """

    kind: Literal["gshard"] = "gshard"
    second_threshold: NonNegative = 0.5
    balance_loss: NonNegative = 0.01
    capacity_factor: Annotated[float, Field(gt=0)] | None = 1.0

    @property
    def experts_per_token(self) -> int:
        """K: how many experts compute for one token."""
        return 2


class ExpertChoiceConfig(RouterConfig):
    """Each expert takes its best ceil(T · mean_experts / E) tokens (arXiv 2202.09368).

    So a token's experts depend on the tokens after it. A causal decoder refuses that unless `leaky` says that it is
    meant.
    """

    kind: Literal["expert_choice"] = "expert_choice"
    mean_experts: PositiveInt = 2
    leaky: bool = False
    capacity_factor: None = None

    @property
    def experts_per_token(self) -> int:
        """K: how many experts compute for one token, on average."""
        return self.mean_experts


class SigmoidBiasConfig(RenormalizingConfig):
    """Sigmoid scores, chosen with a bias per expert that balances the load (DeepSeek-V3, arXiv 2412.19437, 2.1.2).

    Attributes:
        bias_step: how far the bias moves after each optimiser step.
        groups: how many equal groups the experts form.
        top_groups: a token's experts are chosen inside so many groups, those whose two best experts score highest.
        scale: the factor of the renormalised weights.
    """

    kind: Literal["sigmoid_bias"] = "sigmoid_bias"
    bias_step: NonNegative = 0.001
    groups: PositiveInt = 1
    top_groups: PositiveInt = 1
    scale: Annotated[float, Field(gt=0)] = 1.0
    z_loss: NonNegative = 0.0

    @model_validator(mode="after")
    def _check_groups(self) -> Self:
        if self.top_groups > self.groups:
            raise ValueError(f"top_groups ({self.top_groups}) is larger than groups ({self.groups})")
        return self

    def check_experts(self, experts: int) -> None:
        """Raise ValueError unless the groups divide `experts` and those chosen hold K of them."""
        if experts % self.groups:
            raise ValueError(f"experts ({experts}) must be a multiple of groups ({self.groups})")
        held = experts // self.groups * self.top_groups
        if self.top_k > held:
            raise ValueError(f"top_k ({self.top_k}) is larger than the {held} experts that top_groups leave")


class HashConfig(RouterConfig):
    """The expert is a fixed function of the token's id (Roller et al., arXiv 2106.04426): nothing is learned.

    The table is drawn from `seed`, the same number of ids for every expert; `HashRouter.balance` evens out the load.
    """

    kind: Literal["hash"] = "hash"
    seed: int = 0
    z_loss: Annotated[float, Field(ge=0, le=0)] = 0.0

    @property
    def experts_per_token(self) -> int:
        """K: how many experts compute for one token."""
        return 1


class SinkhornConfig(TopKConfig):
    """Experts chosen, in training, from logits that Sinkhorn's iterations made even over experts.

    Clark et al., arXiv 2202.01169, section 3.2. In evaluation they are chosen from the logits as they are.
    """

    kind: Literal["sinkhorn"] = "sinkhorn"
    top_k: PositiveInt = 1
    iterations: PositiveInt = 8


AnyRouterConfig = Annotated[
    SoftmaxTopKConfig
    | NoisyTopKConfig
    | SwitchConfig
    | GShardConfig
    | ExpertChoiceConfig
    | SigmoidBiasConfig
    | HashConfig
    | SinkhornConfig,
    Field(discriminator="kind"),
]
