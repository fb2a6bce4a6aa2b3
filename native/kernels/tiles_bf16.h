// The functions of TileKernels for bf16 numbers, on processors that multiply bf16 vectors. See tiles.h for the layout.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "kernels/tiles.h"
#include "simd/avx512.h"
#include "simd/isa.h"

namespace moekit::MOEKIT_ISA {

// Two vectors as 32 bf16 numbers, those of the first before those of the second.
inline __m512i bf16_pair(__m512 first, __m512 second) {
    return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(second, first));
}

static void pack(const float* const* rows, int64_t count, int64_t columns, uint16_t* tiles) {
    for (int64_t at = 0; at < columns; at += TILE_COLUMNS, tiles += TILE_NUMBERS) {
        const int64_t left = columns - at;
        const auto first = static_cast<__mmask16>(left >= 16 ? 0xffff : (1u << left) - 1);
        const auto second = static_cast<__mmask16>(left >= 32 ? 0xffff : left > 16 ? (1u << (left - 16)) - 1 : 0);
        __m512i pairs[16];
        for (int64_t i = 0; i < TILE_TOKENS; ++i) {
            pairs[i] = i < count ? bf16_pair(_mm512_maskz_loadu_ps(first, rows[i] + at),
                                             _mm512_maskz_loadu_ps(second, rows[i] + at + 16))
                                 : _mm512_setzero_si512();
        }
        transpose(pairs);
        for (int i = 0; i < 16; ++i) {
            _mm512_storeu_si512(tiles + 32 * i, pairs[i]);
        }
    }
}

static void pack_sums(const float* sums, int64_t stride, int64_t columns, uint16_t* tiles) {
    // Number i of the first beside number i of the second.
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                           21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    for (int64_t column = 0; column < columns; column += 2, sums += 2 * stride, tiles += 2 * TILE_TOKENS) {
        const __m512i pair = bf16_pair(_mm512_loadu_ps(sums), _mm512_loadu_ps(sums + stride));
        _mm512_storeu_si512(tiles, _mm512_permutexvar_epi16(order, pair));
    }
}

static void unpack(const float* sums, int64_t stride, int64_t rows, int64_t tokens, float* out, int64_t out_stride) {
    for (int64_t row = 0; row < rows; row += 16) {
        const int64_t count = rows - row < 16 ? rows - row : 16;
        __m512i block[16];
        for (int64_t i = 0; i < 16; ++i) {
            block[i] = i < count ? _mm512_loadu_si512(sums + (row + i) * stride) : _mm512_setzero_si512();
        }
        transpose(block);
        const auto mask = static_cast<__mmask16>((1u << count) - 1);
        for (int64_t token = 0; token < tokens; ++token) {
            _mm512_mask_storeu_epi32(out + token * out_stride + row, mask, block[token]);
        }
    }
}

// R rows of weights, whose pairs of columns are spread over a vector each, with B blocks.
template <int R, int B>
static void multiply_block(const uint16_t* weights, int64_t stride, const uint16_t* tiles, int64_t block_stride,
                           int64_t columns, bool add, float* sums, int64_t sums_stride) {
    __m512 total[R][B];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int b = 0; b < B; ++b) {
            total[r][b] = add ? _mm512_loadu_ps(sums + r * sums_stride + b * TILE_TOKENS) : _mm512_setzero_ps();
        }
    }
    for (int64_t column = 0; column < columns; column += 2, tiles += 2 * TILE_TOKENS) {
        __m512bh x[B];
#pragma GCC unroll 4
        for (int b = 0; b < B; ++b) {
            x[b] = reinterpret_cast<__m512bh>(_mm512_loadu_si512(tiles + b * block_stride));
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            int pair;
            memcpy(&pair, weights + r * stride + column, sizeof pair);
            const auto w = reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair));
#pragma GCC unroll 4
            for (int b = 0; b < B; ++b) {
                total[r][b] = _mm512_dpbf16_ps(total[r][b], w, x[b]);
            }
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int b = 0; b < B; ++b) {
            _mm512_storeu_ps(sums + r * sums_stride + b * TILE_TOKENS, total[r][b]);
        }
    }
}

static void multiply_tiles(const uint16_t* weights, int64_t stride, int64_t rows, const uint16_t* tiles,
                           int64_t block_stride, int64_t blocks, int64_t columns, bool add, float* sums,
                           int64_t sums_stride) {
    constexpr int ROWS = 8;
    for (int64_t row = 0; row < rows; row += ROWS) {
        const uint16_t* w = weights + row * stride;
        float* y = sums + row * sums_stride;
        int64_t block = 0;
        for (; block + 3 <= blocks; block += 3) {
            multiply_block<ROWS, 3>(w, stride, tiles + block * block_stride, block_stride, columns, add,
                                    y + block * TILE_TOKENS, sums_stride);
        }
        const uint16_t* last = tiles + block * block_stride;
        if (blocks - block == 2) {
            multiply_block<ROWS, 2>(w, stride, last, block_stride, columns, add, y + block * TILE_TOKENS, sums_stride);
        } else if (blocks - block == 1) {
            multiply_block<ROWS, 1>(w, stride, last, block_stride, columns, add, y + block * TILE_TOKENS, sums_stride);
        }
    }
}

static const TileKernels<uint16_t> TILES = {pack, pack_sums, multiply_tiles, unpack};

}  // namespace moekit::MOEKIT_ISA
