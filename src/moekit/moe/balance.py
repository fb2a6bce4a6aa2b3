"""Auxiliary losses of routers, as pure functions of sums over tokens.

Sums add up: over micro-batches and over ranks the loss of the total is exactly the loss of the whole batch, where a
mean of the parts' losses is something else (a product of means is not the mean of products). Padding is in no sum.
T tokens, E experts, K experts per token.
"""

from typing import Literal

import torch
from torch import Tensor


def load_balancing_loss(
    chosen_E: Tensor, probs_E: Tensor, tokens: Tensor | float, *, balanced: Literal["1", "K"] = "1"
) -> Tensor:
    """Compute E · sum_i f_i P_i (Switch Transformer, arXiv 2101.03961, eq. 4–6); 0 where nothing was chosen.

    Args:
        chosen_E: how many tokens chose each expert; it has no gradient.
        probs_E: the sum over tokens of the router's probabilities; P_i = probs_i / tokens.
        tokens: how many tokens there are.
        balanced: the loss at perfect balance for K > 1, where codebases differ. "1": f_i is the share of the choices
            (Megatron-LM, OLMo-core and MegaBlocks, which divide by K); "K": f_i is the share of the tokens
            (transformers, flaxformer).
    """
    tokens = torch.as_tensor(tokens).clamp(min=1)
    chosen_E = chosen_E.to(probs_E.dtype)
    shared = chosen_E.sum().clamp(min=1) if balanced == "1" else tokens
    return torch.dot(chosen_E, probs_E) * (probs_E.numel() / (shared * tokens))


def squared_variation(sum_E: Tensor) -> Tensor:
    """Compute CV² = variance / mean² over the experts: 0 if all are equal.

    Shazeer et al., arXiv 1701.06538, eq. 7 and 11: the importance loss is CV² of the summed weights, the load loss CV²
    of the summed smooth loads. The variance is the population's (division by E), as the square of the coefficient of
    variation of E numbers.
    """
    mean = sum_E.mean()
    return (sum_E - mean).square().mean() / (mean.square() + 1e-10)


def smooth_load(logits_TE: Tensor, noisy_TE: Tensor, scale_TE: Tensor, top_k: int) -> Tensor:
    """Compute the probability P_TE that expert i is among a token's K best if its own noise alone is drawn again.

    Phi((logits_i - the K-th largest of noisy without i) / scale_i): Shazeer et al., appendix A, eq. 8 and 9. With K = E
    it is 1.

    Args:
        logits_TE: the logits before noise.
        noisy_TE: the logits with noise.
        scale_TE: the noise's standard deviation.
        top_k: K, the experts per token.
    """
    if top_k >= noisy_TE.shape[1]:
        return torch.ones_like(noisy_TE)
    best = noisy_TE.topk(top_k + 1, dim=-1).values
    lowest_in, highest_out = best[:, top_k - 1 : top_k], best[:, top_k : top_k + 1]
    # Leaving out one of the K best, the (K + 1)-th moves up to be the K-th.
    threshold_TE = torch.where(noisy_TE >= lowest_in, highest_out, lowest_in)
    load_TE: Tensor = torch.special.ndtr((logits_TE - threshold_TE) / scale_TE)
    return load_TE


def z_loss(squares: Tensor, tokens: Tensor | float) -> Tensor:
    """Compute the mean over tokens of logsumexp(logits)², which keeps logits small (ST-MoE, arXiv 2202.08906, eq. 5).

    Args:
        squares: the sum over tokens of logsumexp(logits)².
        tokens: how many tokens there are.
    """
    return squares / tokens
