"""Q3_K to Q6_K: a search for the scales that give the least squared error, in torch.

The numbers of a sub-block are x = s q - m with levels q (Q3_K, Q6_K: without m), where the sub-blocks' s and m are
small integers times one scale each of the block. For given levels the best s and m follow from three sums over the
sub-block, and the error from them, so that scales are searched without another pass over the numbers. Three steps: the
best of some ranges for each sub-block; rounding of s and m to the block's integers; and descent: levels for given
scales, scales for given levels, of which neither can make the error larger but for the rounding of the block's scales
to fp16.

N blocks, C numbers of a sub-block, M = N S sub-blocks. Sub-blocks lie along the last dimension: sums over a short last
dimension are slow.
"""

from typing import NamedTuple

import torch
from torch import Tensor

_ROUNDS = 3
_SMALLEST = 1e-30


class _Sums(NamedTuple):
    """Sums over each sub-block: of its levels, of their squares, and of levels times numbers."""

    q_M: Tensor
    qq_M: Tensor
    qx_M: Tensor


def q4_k(blocks_NC: Tensor) -> Tensor:
    """Pack blocks of 256 numbers into 144 bytes each.

    A block holds two fp16 scales, one of its scales and one of its minima; eight pairs of 6-bit integers, a scale and a
    minimum of each sub-block; and levels from 0 to 15.
    """
    d_N1, e_N1, i_NS, j_NS, levels_NSC = _with_minima(blocks_NC, 15)
    levels = levels_NSC.reshape(-1, 4, 2, 32)
    nibbles = levels[:, :, 0] | (levels[:, :, 1] << 4)
    return torch.cat([_half(d_N1), _half(e_N1), _packed_scales(i_NS, j_NS), nibbles.flatten(1)], -1)


def q5_k(blocks_NC: Tensor) -> Tensor:
    """Pack blocks of 256 numbers into 176 bytes each.

    They are blocks of Q4_K with levels from 0 to 31, whose highest bits stand before the others: bit s of a byte is
    that of sub-block s.
    """
    d_N1, e_N1, i_NS, j_NS, levels_NSC = _with_minima(blocks_NC, 31)
    high_NC = _bits(levels_NSC >> 4)
    levels = (levels_NSC & 0x0F).reshape(-1, 4, 2, 32)
    nibbles = levels[:, :, 0] | (levels[:, :, 1] << 4)
    return torch.cat([_half(d_N1), _half(e_N1), _packed_scales(i_NS, j_NS), high_NC, nibbles.flatten(1)], -1)


def _with_minima(blocks_NC: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Find units, integers and levels from 0 to `most` for eight sub-blocks of 32 numbers.

    Returns:
        d_N1 and e_N1, the units of scales and minima; i_NS and j_NS, their integers; levels_NSC (uint8).
    """
    blocks = len(blocks_NC)
    x_CM = blocks_NC.view(-1, 32).t().contiguous()
    x_M, xx_M = x_CM.sum(0), (x_CM * x_CM).sum(0)
    scale_M, minimum_M = _ranges(x_CM, x_M, xx_M, most)
    scales, minima = scale_M.view(blocks, 8), minimum_M.view(blocks, 8)
    d_N1, e_N1 = (_rounded(part.amax(-1, keepdim=True) / 63) for part in (scales, minima))
    i_NS, j_NS = (_integers(part, unit, 0, 63) for part, unit in ((scales, d_N1), (minima, e_N1)))
    for _ in range(_ROUNDS):
        sums = _sums(_levels(x_CM, d_N1 * i_NS, e_N1 * j_NS, most), x_CM)
        i_NS, j_NS = _neighbours(sums, x_M, d_N1, e_N1, i_NS, j_NS)
        d_N1, e_N1 = _units(sums, x_M, i_NS, j_NS, d_N1, e_N1)
    levels_CM = _levels(x_CM, d_N1 * i_NS, e_N1 * j_NS, most)
    return d_N1, e_N1, i_NS, j_NS, levels_CM.to(torch.uint8).t().reshape(blocks, 8, 32)


def q6_k(blocks_NC: Tensor) -> Tensor:
    """Pack blocks of 256 numbers into 210 bytes each.

    A block holds levels from -32 to 31, sixteen 8-bit scales, and their fp16 scale.
    """
    d_N1, i_NS, levels_NSC = _signed(blocks_NC, 32, 128)
    levels = levels_NSC.reshape(-1, 2, 4, 32)
    low, high = levels & 0x0F, levels >> 4
    nibbles = low[:, :, :2] | (low[:, :, 2:] << 4)
    pairs = high[:, :, 0] | (high[:, :, 1] << 2) | (high[:, :, 2] << 4) | (high[:, :, 3] << 6)
    scales = i_NS.to(torch.int8).view(torch.uint8)
    return torch.cat([nibbles.flatten(1), pairs.flatten(1), scales, _half(d_N1)], -1)


def q3_k(blocks_NC: Tensor) -> Tensor:
    """Pack blocks of 256 numbers into 110 bytes each.

    A block holds levels from -4 to 3, which are their two low bits, and one more that is 0 where four is taken off;
    sixteen 6-bit scales; and their fp16 scale.
    """
    d_N1, i_NS, levels_NSC = _signed(blocks_NC, 4, 32)
    levels = levels_NSC.reshape(-1, 8, 32)
    high_NC = _bits(levels >> 2)
    low = (levels & 0x03).view(-1, 2, 4, 32)
    pairs = low[:, :, 0] | (low[:, :, 1] << 2) | (low[:, :, 2] << 4) | (low[:, :, 3] << 6)
    scales = (i_NS + 32).to(torch.uint8)
    nibbles = (scales[:, :8] & 0x0F) | ((scales[:, 8:] & 0x0F) << 4)
    quarters = scales.view(-1, 4, 4) >> 4
    rest = quarters[:, 0] | (quarters[:, 1] << 2) | (quarters[:, 2] << 4) | (quarters[:, 3] << 6)
    return torch.cat([high_NC, pairs.flatten(1), nibbles, rest, _half(d_N1)], -1)


def _signed(blocks_NC: Tensor, levels: int, integers: int) -> tuple[Tensor, Tensor, Tensor]:
    """Find unit, integers and levels for sixteen sub-blocks of 16 numbers without minima.

    Args:
        blocks_NC: the numbers.
        levels: they go from -levels to levels - 1.
        integers: the scales' go from -integers to integers - 1.

    Returns:
        d_N1, the unit of the scales; i_NS, their integers; levels_NSC, each `levels` higher (uint8).
    """
    blocks = len(blocks_NC)
    x_CM = blocks_NC.view(-1, 16).t().contiguous()
    scale_NS = _signed_ranges(x_CM, levels).view(blocks, 16)
    # The largest takes the longer side of the integers, as the largest number takes that of the levels.
    largest_N1 = scale_NS.gather(-1, scale_NS.abs().argmax(-1, keepdim=True))
    d_N1 = _rounded(largest_N1 / -integers)
    i_NS = _integers(scale_NS, d_N1, -integers, integers - 1)
    for _ in range(_ROUNDS):
        sums = _sums(_signed_levels(x_CM, d_N1 * i_NS, levels), x_CM)
        qq_NS, qx_NS = sums.qq_M.view(blocks, 16), sums.qx_M.view(blocks, 16)
        i_NS = _integers(qx_NS / qq_NS.clamp(min=_SMALLEST), d_N1, -integers, integers - 1)
        best_N1 = (i_NS * qx_NS).sum(-1, keepdim=True) / (i_NS * i_NS * qq_NS).sum(-1, keepdim=True).clamp(
            min=_SMALLEST
        )
        d_N1 = _rounded(best_N1)
    found_CM = _signed_levels(x_CM, d_N1 * i_NS, levels) + levels
    return d_N1, i_NS, found_CM.to(torch.uint8).t().reshape(blocks, 16, 16)


def _bits(bits_NSC: Tensor) -> Tensor:
    """Pack a bit of each of eight sub-blocks into a byte."""
    shifts_S1 = torch.arange(8, dtype=torch.uint8)[:, None]
    return (bits_NSC << shifts_S1).sum(1, dtype=torch.uint8)


def _sums(q_CM: Tensor, x_CM: Tensor) -> _Sums:
    return _Sums(q_CM.sum(0), (q_CM * q_CM).sum(0), (q_CM * x_CM).sum(0))


def _rounded(unit_N1: Tensor) -> Tensor:
    """Round to fp16, in fp32."""
    return unit_N1.half().float()


def _half(unit_N1: Tensor) -> Tensor:
    return unit_N1.half().view(torch.uint8)


def _inverse(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, 0.0, 1 / scale)


def _integers(scale_NS: Tensor, unit_N1: Tensor, least: int, most: int) -> Tensor:
    return (scale_NS * _inverse(unit_N1)).round().clamp(least, most)


def _levels(x_CM: Tensor, scale_NS: Tensor, minimum_NS: Tensor, most: int) -> Tensor:
    inverse_M = _inverse(scale_NS).flatten()
    return torch.addcmul(minimum_NS.flatten() * inverse_M, x_CM, inverse_M).round_().clamp_(0, most)


def _signed_levels(x_CM: Tensor, scale_NS: Tensor, levels: int) -> Tensor:
    return (x_CM * _inverse(scale_NS).flatten()).round_().clamp_(-levels, levels - 1)


def _ranges(x_CM: Tensor, x_M: Tensor, xx_M: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Find the unrounded scale and minimum of each sub-block: the best of several ranges around its numbers' own."""
    low_M, high_M = x_CM.amin(0).clamp_(max=0), x_CM.amax(0)
    width_M = high_M - low_M
    scale_M, minimum_M, error_M = width_M / most, -low_M, torch.full_like(xx_M, torch.inf)
    for steps in _STEPS[most]:
        inverse_M = steps * _inverse(width_M)
        sums = _sums(torch.addcmul(-low_M * inverse_M, x_CM, inverse_M).round_().clamp_(0, most), x_CM)
        found_M, offset_M = _line(sums, x_M, len(x_CM))
        error = xx_M - found_M * sums.qx_M - offset_M * x_M
        better_M = error < error_M
        scale_M = torch.where(better_M, found_M, scale_M)
        minimum_M = torch.where(better_M, -offset_M, minimum_M)
        error_M = torch.where(better_M, error, error_M)
    return scale_M, minimum_M


def _line(sums: _Sums, x_M: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Find the s >= 0 and the offset <= 0 that minimise the squared error of s q + offset.

    They are the line of least squares, or where that leaves these bounds the better of the two lines on them.
    """
    determinant_M = count * sums.qq_M - sums.q_M * sums.q_M
    safe_M = determinant_M.clamp(min=_SMALLEST)
    scale_M = (count * sums.qx_M - sums.q_M * x_M) / safe_M
    offset_M = (sums.qq_M * x_M - sums.q_M * sums.qx_M) / safe_M
    usable_M = (determinant_M > 0) & (offset_M <= 0) & (scale_M > 0)
    through_zero_M = sums.qx_M.clamp(min=0) / sums.qq_M.clamp(min=_SMALLEST)
    flat_M = x_M.clamp(max=0) / count
    is_flat_M = flat_M * x_M > through_zero_M * sums.qx_M  # by how much either lowers the squared error
    return (
        torch.where(usable_M, scale_M, torch.where(is_flat_M, 0.0, through_zero_M)),
        torch.where(usable_M, offset_M, torch.where(is_flat_M, flat_M, 0.0)),
    )


def _neighbours(
    sums: _Sums, x_M: Tensor, d_N1: Tensor, e_N1: Tensor, i_NS: Tensor, j_NS: Tensor
) -> tuple[Tensor, Tensor]:
    """Find the best integers near the present ones for given levels and units: the best scale for each minimum."""
    q_NS, qq_NS, qx_NS = (part.view(i_NS.shape) for part in sums)
    x_NS, best_NS = x_M.view(i_NS.shape), torch.full_like(i_NS, torch.inf)
    found_i_NS, found_j_NS = i_NS, j_NS
    for step in (-1, 0, 1):
        near_NS = (j_NS + step).clamp(0, 63)
        minimum_NS = e_N1 * near_NS
        scale_NS = (qx_NS + minimum_NS * q_NS) / qq_NS.clamp(min=_SMALLEST)
        near_i_NS = _integers(scale_NS, d_N1, 0, 63)
        scale_NS = d_N1 * near_i_NS
        # The squared error but for the sum of x², which is the same for all.
        error_NS = scale_NS * (scale_NS * qq_NS - 2 * qx_NS - 2 * minimum_NS * q_NS)
        error_NS += minimum_NS * (32 * minimum_NS + 2 * x_NS)
        better_NS = error_NS < best_NS
        found_i_NS = torch.where(better_NS, near_i_NS, found_i_NS)
        found_j_NS = torch.where(better_NS, near_NS, found_j_NS)
        best_NS = torch.where(better_NS, error_NS, best_NS)
    return found_i_NS, found_j_NS


def _units(sums: _Sums, x_M: Tensor, i_NS: Tensor, j_NS: Tensor, d_N1: Tensor, e_N1: Tensor) -> tuple[Tensor, Tensor]:
    """Fit the block's two units to given levels and integers by least squares; keep them where it has no solution."""
    q_NS, qq_NS, qx_NS = (part.view(i_NS.shape) for part in sums)
    x_NS = x_M.view(i_NS.shape)
    parts = (i_NS * i_NS * qq_NS, i_NS * j_NS * q_NS, 32 * j_NS * j_NS, i_NS * qx_NS, j_NS * x_NS)
    a, b, c, p, r = (part.sum(-1, keepdim=True) for part in parts)
    determinant = a * c - b * b
    solvable = determinant > 1e-6 * a * c
    safe = torch.where(solvable, determinant, 1.0)
    d, e = (c * p - b * r) / safe, (b * p - a * r) / safe
    usable = solvable & (d > 0) & (e >= 0)
    return _rounded(torch.where(usable, d, d_N1)), _rounded(torch.where(usable, e, e_N1))


def _packed_scales(i_NS: Tensor, j_NS: Tensor) -> Tensor:
    """Pack scales and minima into the twelve bytes that `sub_scales` reads."""
    scales, minima = i_NS.to(torch.uint8), j_NS.to(torch.uint8)
    first, second = (part[:, :4] | ((part[:, 4:] >> 4) << 6) for part in (scales, minima))
    return torch.cat([first, second, (scales[:, 4:] & 0x0F) | ((minima[:, 4:] & 0x0F) << 4)], -1)


def _signed_ranges(x_CM: Tensor, levels: int) -> Tensor:
    """Find the unrounded scale of each sub-block, of either sign: the largest number takes the level -levels."""
    largest_M = x_CM.gather(0, x_CM.abs().argmax(0, keepdim=True))[0]
    scale_M, gain_M = largest_M / -levels, torch.zeros_like(largest_M)
    for steps in _SIGNED_STEPS[levels]:
        sums = _sums((x_CM * (-steps * _inverse(largest_M))).round_().clamp_(-levels, levels - 1), x_CM)
        found_M = sums.qx_M / sums.qq_M.clamp(min=_SMALLEST)
        gain = found_M * sums.qx_M  # by how much it lowers the squared error
        better_M = gain > gain_M
        scale_M, gain_M = torch.where(better_M, found_M, scale_M), torch.where(better_M, gain, gain_M)
    return scale_M


_STEPS = {15: (13.6, 14.2, 14.7, 15.2, 15.7, 16.3), 31: (29.0, 29.8, 30.5, 31.2, 31.9, 32.7)}
"""Steps that the range of the numbers is cut into, by the highest level; more than that clips the ends."""
_SIGNED_STEPS = {4: (3.2, 3.5, 3.8, 4.1, 4.4, 4.7), 32: (30.6, 31.2, 31.8, 32.4, 33.2)}
