"""What published laws say of a mixture's leverage: constants as printed, their ranges, and what N and FLOPs mean there.

Losses of different laws are nats a token of different texts and are never compared; a leverage is a ratio of FLOPs, and
is. Expansion is total over active feed-forward parameters, which is the number of experts of a layer that uses one
whole network's width for each token; activation ratio is one over it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq, minimize_scalar

from moekit.comparison.results_schema import ContestantResults
from moekit.config import ModelConfig, MoEConfig

# Tokens for each parameter at the optimum: about 20 around 1e21 FLOPs (Besiroglu et al., arXiv 2404.10102: 21.6).
OPTIMAL_TOKENS_PER_PARAMETER = 20
CLARK_TOKENS = 130e9
KRAJEWSKI_EXPANSION = 64


@dataclass(frozen=True)
class Sparsity:
    """What laws ask of a mixture.

    expansion: total over active feed-forward parameters. granularity: twice the model's width over an expert's (Ling).
    active_experts: of a token, shared ones included.
    """

    expansion: float
    granularity: float
    active_experts: float


@dataclass(frozen=True)
class PublishedLaw:
    """A law for mixtures, with its source.

    meaning: of N and of FLOPs there. flops: the budgets that it was fitted on. checked: how its constants were.
    speaks_of: whether it says anything of such a mixture, whose expansion and granularity it may not have; leverage: of
    the mixture at so many FLOPs.
    """

    name: str
    source: str
    formula: str
    meaning: str
    flops: tuple[float, float]
    fitted_on: str
    checked: str
    speaks_of: Callable[[Sparsity], bool]
    leverage: Callable[[Sparsity, float], float]


def sparsity_of(contestant: ContestantResults) -> Sparsity | None:
    """Describe a mixture as laws do, means over its layers with experts; None for a model without experts."""
    config = contestant.config
    if not isinstance(config, ModelConfig):
        return None
    described = [_layer(layer, config.width) for layer in config.feed_forwards if isinstance(layer, MoEConfig)]
    if not described:
        return None
    share = len(described) / len(config.feed_forwards)
    expansion = share * float(np.mean([one.expansion for one in described])) + 1 - share
    return Sparsity(
        expansion=expansion,
        granularity=float(np.mean([one.granularity for one in described])),
        active_experts=float(np.mean([one.active_experts for one in described])),
    )


def _layer(layer: MoEConfig, width: int) -> Sparsity:
    shared = layer.branch_width or 0 if layer.branch is not None else 0
    active = layer.router.experts_per_token * layer.expert_width + shared
    return Sparsity(
        expansion=(layer.experts * layer.expert_width + shared) / active,
        granularity=2 * width / layer.expert_width,
        active_experts=active / layer.expert_width,
    )


def saturating(experts: float, start: float, end: float) -> float:
    """Give the number of experts as Clark et al. bend it at both ends (arXiv 2202.01169, equation 5)."""
    return 1 / (1 / (experts - 1 + 1 / (1 / start - 1 / end)) + 1 / end)


def clark_log_loss(size: float, experts: float) -> float:
    """Give log10 of the loss of S-BASE (arXiv 2202.01169, equation 1 and table 3), all trained on 130 B tokens."""
    bent, log_size = np.log10(saturating(experts, 1.847, 314.478)), np.log10(size)
    return float(-0.082 * log_size - 0.108 * bent + 0.009 * log_size * bent + 1.104)


def clark_equivalent(size: float, experts: float) -> float:
    """Give the size of the dense model with the loss of a routed one."""
    at_one, a_decade_on = clark_log_loss(1.0, 1), clark_log_loss(10.0, 1)
    return float(10 ** ((clark_log_loss(size, experts) - at_one) / (a_decade_on - at_one)))


def ludziejewski_terms(expansion: float) -> tuple[float, float, float, float]:
    """Give m, mu, n, nu of m N^mu + n D^nu + 1.3637 for a number of experts (arXiv 2502.05172, equation 6, table 3)."""
    bent = saturating(expansion, 2.0732, 290.4521)
    log = np.log(bent)
    return (
        float(35.91 * bent**-0.2285),
        float(-0.1889 + 0.0098 * log),
        float(35.98 * bent**0.5529),
        float(-0.1775 - 0.0259 * log),
    )


def ludziejewski_loss(flops: float, expansion: float) -> float:
    """Give the loss of the best model of so many experts and FLOPs = 6 N D."""
    m, mu, n, nu = ludziejewski_terms(expansion)
    return 1.3637 + _lowest(lambda size: m * size**mu + n * (flops / (6 * size)) ** nu)


def abnar_loss(flops: float, expansion: float) -> float:
    """Give the loss of the best model of a sparsity, N its total parameters (arXiv 2501.12370, equation 6, table 3)."""
    active = 1 / expansion  # 1 - S

    def loss(size: float) -> float:
        tokens = flops / (6 * size * active)
        shortage = 16612.50 * size**-0.5962 + 5455.67 * tokens**-0.3954
        return float(shortage + 0.4598 * active**0.1666 + 17.26 * active**-0.1603 * size**-0.1595 + 0.94)

    return _lowest(loss)


def krajewski_loss(flops: float, granularity: float | None) -> float:
    """Give the loss of the best model (arXiv 2402.07871, equations 9 and 10, table 1); no granularity: the dense one.

    Its N counts all parameters but embeddings, d^2 (8 E + 4) a block, of which a token needs 12 d^2; width is 64 times
    the depth, and routing costs 14 d E G a block.
    """

    def loss(active: float) -> float:
        width = (64 * active / 12) ** (1 / 3)
        if granularity is None:
            return float(16.3 * active**-0.126 + 26.7 * (flops / (6 * active)) ** -0.127 + 0.47)
        routing = 14 * width * KRAJEWSKI_EXPANSION * granularity * width / 64
        size = active * (8 * KRAJEWSKI_EXPANSION + 4) / 12
        level = 2.1 * granularity**-0.58 + 18.1
        return float(level * size**-0.115 + 30.8 * (flops / (6 * active + routing)) ** -0.147 + 0.47)

    return _lowest(loss)


def ling_leverage(activation: float, granularity: float, flops: float) -> float:
    """Give the efficiency leverage (arXiv 2507.17702, equation 13 and table 2).

    The paper names no base of its logarithms. Ten for FLOPs and two for granularity are those with which the printed
    constants give its own figures: above 7 at 1e22 FLOPs, 3.1 % and 12, and the best granularity between 8 and 12.
    """
    bent = saturating(activation + 1, 1.63e-2, 5.28e16)  # A instead of E - 1
    fine = np.log2(granularity)
    return float(bent ** (1.23 - 7.61e-2 * np.log10(flops) + 1.67e-2 * fine**2 - 1.17e-1 * fine))


def _lowest(loss: Callable[[float], float]) -> float:
    """Give the least loss over sizes from 1e3 to 1e16 parameters."""
    found = minimize_scalar(
        lambda log_size: loss(float(np.exp(log_size))), bounds=(np.log(1e3), np.log(1e16)), method="bounded"
    )
    return float(found.fun)


def _ratio(dense: Callable[[float], float], wanted: float, flops: float) -> float:
    """Give how many times `flops` the dense model needs for a loss."""
    return float(10 ** brentq(lambda decades: dense(flops * 10**decades) - wanted, -6, 12))


PUBLISHED_LAWS = (
    PublishedLaw(
        name="Clark 2022",
        source="Clark et al., Unified Scaling Laws for Routed Language Models, arXiv 2202.01169, equation 1, table 3, "
        "S-BASE",
        formula="log L = a log N + b log Ê + c log N log Ê + d",
        meaning="N: parameters of the dense model that is given experts; FLOPs: 6 N times 130 B tokens, which all its "
        "models were trained on",
        flops=(6 * 15e6 * CLARK_TOKENS, 6 * 1.3e9 * CLARK_TOKENS),
        fitted_on="15 M to 1.3 B parameters, up to 512 experts, top-1",
        checked="constants and the dense model of 55 M that 5 M parameters with 128 experts equal, in a transcription; "
        "the largest size of the fit was not checked",
        speaks_of=lambda mixture: 1 < mixture.expansion <= 512,
        leverage=lambda mixture, flops: (
            clark_equivalent(flops / (6 * CLARK_TOKENS), mixture.expansion) / (flops / (6 * CLARK_TOKENS))
        ),
    ),
    PublishedLaw(
        name="Krajewski 2024",
        source="Krajewski et al., Scaling Laws for Fine-Grained Mixture of Experts, arXiv 2402.07871, equation 9, "
        "table 1",
        formula="L = c + (g/G^γ + a)/N^α + b/D^β",
        meaning="N: total parameters without embeddings, in which its table 2 comes out; FLOPs: of active parameters "
        "and routing, at the best N and D",
        flops=(1e18, 6 * 3.7e9 * 130e9),
        fitted_on="129 M to 3.7 B parameters, 16 to 130 B tokens, expansion 64 alone, granularity 1 to 16",
        checked="constants and what N is, in the text of the paper; its table 2 to 0.03 nats",
        speaks_of=lambda mixture: abs(np.log2(mixture.expansion / KRAJEWSKI_EXPANSION)) <= 0.5,
        leverage=lambda mixture, flops: _ratio(
            lambda dense: krajewski_loss(dense, None), krajewski_loss(flops, mixture.active_experts), flops
        ),
    ),
    PublishedLaw(
        name="Ludziejewski 2025",
        source="Ludziejewski et al., Joint MoE Scaling Laws, arXiv 2502.05172, equation 6, table 3",
        formula="L = a Ê^δ N^(α + γ ln Ê) + b Ê^ω D^(β + ζ ln Ê) + c",
        meaning="N: active parameters with embeddings; FLOPs: 6 N D, at the best N and D",
        flops=(6 * 79e6 * 0.5e9, 6 * 1.1e9 * 80e9),
        fitted_on="79 M to 2.7 B active parameters, 0.5 to 80 B tokens, 1 to 32 experts, top-1",
        checked="constants, their reduction to each number of experts (table 4) and the best sizes (table 1), in the "
        "text of the paper",
        speaks_of=lambda mixture: 1 < mixture.expansion <= 32,
        leverage=lambda mixture, flops: _ratio(
            lambda dense: ludziejewski_loss(dense, 1), ludziejewski_loss(flops, mixture.expansion), flops
        ),
    ),
    PublishedLaw(
        name="Abnar 2025",
        source="Abnar et al., Parameters vs FLOPs, arXiv 2501.12370, equation 6, table 3",
        formula="L = a/N^α + b/D^β + c/(1−S)^λ + d/((1−S)^δ N^γ) + e",
        meaning="N: total parameters; FLOPs: 6 N (1 − S) D, all parameters taken as experts', at the best N and D",
        flops=(3e19, 1e21),
        fitted_on="sparsity up to 0.98; R² 99 % in the fit and 68 % on what was held out",
        checked="constants in two transcriptions; the range of FLOPs was not checked",
        speaks_of=lambda mixture: 1 < mixture.expansion <= 50,
        leverage=lambda mixture, flops: _ratio(
            lambda dense: abnar_loss(dense, 1), abnar_loss(flops, mixture.expansion), flops
        ),
    ),
    PublishedLaw(
        name="Ling 2025",
        source="Tian et al., Towards Greater Leverage, arXiv 2507.17702, equation 13, table 2",
        formula="EL = Â^(a + d log C + γ (log G)² + β log G)",
        meaning="A: active over total experts; G: twice the width over an expert's; C: training FLOPs without "
        "embeddings, at the best size and tokens",
        flops=(3e18, 3e20),
        fitted_on="activation ratios of 0.8 to 100 %, granularity 2 to 16, leverage below 6",
        checked="constants in the text of the paper; bases of logarithms by its own figures",
        speaks_of=lambda mixture: 1 < mixture.expansion <= 128 and 1 <= mixture.granularity <= 32,
        leverage=lambda mixture, flops: ling_leverage(1 / mixture.expansion, mixture.granularity, flops),
    ),
)
