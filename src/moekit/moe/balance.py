"""Auxiliary losses of routers, as pure functions.

T tokens, E experts, K experts per token.
"""

from torch import Tensor


def load_balancing_loss(probs_TE: Tensor, counts_E: Tensor) -> Tensor:
    """E · sum_i f_i P_i, normalised so that perfect balance gives 1 for any K; 0 where nothing was assigned.

    f_i: the share of all T · K assignments that went to expert i (no gradient); P_i: the mean over tokens of p_i.
    Switch Transformer, arXiv 2101.03961, eq. 4–6; for K > 1 the convention of Megatron and MegaBlocks, which divide by
    K (transformers does not: its balanced value is K).
    """
    share_E = counts_E.to(probs_TE.dtype) / counts_E.sum().clamp(min=1)
    return probs_TE.shape[1] * (share_E * probs_TE.mean(0)).sum()


def z_loss(logits_TE: Tensor) -> Tensor:
    """mean over tokens of logsumexp(logits)², which keeps router logits small (ST-MoE, arXiv 2202.08906, eq. 5)."""
    return logits_TE.logsumexp(-1).square().mean()
