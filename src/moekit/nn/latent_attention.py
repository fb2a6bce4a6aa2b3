"""Multi-head latent attention: the cache holds one short vector a token instead of every head's keys and values.

B batch, T tokens, D model width, H heads, C head width without positions, J rotary width, W value width, L latent rank,
P positions in the cache.
"""

import math

import torch
from torch import Tensor, nn

from moekit.config import LatentAttentionConfig
from moekit.nn.attention import KeyValueCache
from moekit.nn.norm import RMSNorm
from moekit.nn.rope import RopeAngles
from moekit.nn.scores import Scores


class LatentAttention(nn.Module):
    """k = [U_k n(c), rope(k_r)], v = U_v n(c) with c, k_r = W x (DeepSeek-V2, arXiv 2405.04434, eq. 9 to 19).

    latent_down: W, rows of c, then of k_r, the one key with positions that all heads share. latent_up: per head the C
    rows of U_k, then the W rows of U_v. Queries pass through a latent of their own where `query_rank` is given.
    """

    def __init__(self, width: int, config: LatentAttentionConfig, norm_eps: float = 1e-6) -> None:
        super().__init__()
        self.config = config
        query_rows = config.heads * (config.head_width + config.rotary_width)
        if config.query_rank is None:
            self.query = nn.Linear(width, query_rows, bias=False)
        else:
            self.query_down = nn.Linear(width, config.query_rank, bias=config.bias)
            self.query_norm = RMSNorm(config.query_rank, norm_eps)
            self.query_up = nn.Linear(config.query_rank, query_rows, bias=False)
        self.latent_down = nn.Linear(width, config.kv_rank + config.rotary_width, bias=config.bias)
        self.latent_norm = RMSNorm(config.kv_rank, norm_eps)
        self.latent_up = nn.Linear(config.kv_rank, config.heads * (config.head_width + config.value_width), bias=False)
        self.output = nn.Linear(config.heads * config.value_width, width, bias=config.bias)
        self.scores = Scores(scale=config.scale or 1 / math.sqrt(config.head_width + config.rotary_width))

    def forward(self, x_BTD: Tensor, angles: RopeAngles, cache: KeyValueCache | None = None) -> Tensor:
        """Compute y_BTD. angles: of the positions of x. With a cache, x follows the tokens in it."""
        config = self.config
        batch, tokens, _ = x_BTD.shape
        query_BHTQ = self._query(x_BTD).view(batch, tokens, config.heads, -1).transpose(1, 2)
        query_BHTC, query_BHTJ = torch.split(query_BHTQ, [config.head_width, config.rotary_width], -1)
        latent_BTL, key_BTJ = torch.split(self.latent_down(x_BTD), [config.kv_rank, config.rotary_width], -1)
        latent_B1PL, key_B1PJ = self.latent_norm(latent_BTL)[:, None], angles.rotate(key_BTJ[:, None])
        if cache:
            latent_B1PL, key_B1PJ = cache.append(latent_B1PL, key_B1PJ)
        expanded = self.latent_up(latent_B1PL[:, 0]).view(
            batch, -1, config.heads, config.head_width + config.value_width
        )
        key_BHPC, value_BHPW = torch.split(expanded.transpose(1, 2), [config.head_width, config.value_width], -1)
        key_BHPQ = torch.cat((key_BHPC, key_B1PJ.to(key_BHPC.dtype).expand(-1, config.heads, -1, -1)), -1)
        mixed_BHTW = self.scores.mix(torch.cat((query_BHTC, angles.rotate(query_BHTJ)), -1), key_BHPQ, value_BHPW)
        return self.output(mixed_BHTW.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def new_cache(self, batch: int, context: int, dtype: torch.dtype) -> KeyValueCache:
        """Make an empty cache for `batch` sequences: the latent, and the key with positions."""
        return KeyValueCache(batch, 1, (self.config.kv_rank, self.config.rotary_width), context, dtype)

    def _query(self, x_BTD: Tensor) -> Tensor:
        if self.config.query_rank is None:
            return self.query(x_BTD)  # type: ignore[no-any-return]
        return self.query_up(self.query_norm(self.query_down(x_BTD)))  # type: ignore[no-any-return]
