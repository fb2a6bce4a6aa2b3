// The functions of TileKernels for fp32 numbers, from the vectors that the file which includes this one has defined.
// See tiles.h for the layout.
#pragma once

#include <cstdint>

#include "kernels/some_numbers.h"
#include "kernels/tiles.h"
#include "simd/isa.h"

#include MOEKIT_VECTORS

namespace moekit::MOEKIT_ISA {

static void pack_fp32(const float* const* rows, int64_t count, int64_t columns, float* tiles) {
    const int64_t whole = (columns + TILE_COLUMNS - 1) / TILE_COLUMNS * TILE_COLUMNS;
    for (int64_t column = 0; column < whole; column += 16) {
        Floats square[TILE_TOKENS];
        for (int64_t i = 0; i < TILE_TOKENS; ++i) {
            square[i] = i < count ? load_some(rows[i] + column, columns - column) : set(0.0f);
        }
        transpose(square);
        for (int64_t i = 0; i < 16; ++i, tiles += TILE_TOKENS) {
            store(tiles, square[i]);
        }
    }
}

static void pack_sums_fp32(const float* sums, int64_t stride, int64_t columns, float* tiles) {
    for (int64_t column = 0; column < columns; ++column, sums += stride, tiles += TILE_TOKENS) {
        store(tiles, load(sums));
    }
}

static void unpack_fp32(const float* sums, int64_t stride, int64_t rows, int64_t tokens, float* out,
                        int64_t out_stride) {
    for (int64_t row = 0; row < rows; row += 16, sums += 16 * stride) {
        Floats square[16];
        for (int64_t i = 0; i < 16; ++i) {
            square[i] = row + i < rows ? load(sums + i * stride) : set(0.0f);
        }
        transpose(square);
        for (int64_t token = 0; token < tokens; ++token) {
            store_some(out + token * out_stride + row, square[token], rows - row);
        }
    }
}

// R rows of weights, whose numbers are spread over a vector each, with B blocks.
template <int R, int B>
static void multiply_block_fp32(const float* weights, int64_t stride, const float* tiles, int64_t block_stride,
                                int64_t columns, bool add, float* sums, int64_t sums_stride) {
    Floats total[R][B];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int b = 0; b < B; ++b) {
            total[r][b] = add ? load(sums + r * sums_stride + b * TILE_TOKENS) : set(0.0f);
        }
    }
#pragma GCC unroll 4
    for (int64_t column = 0; column < columns; ++column, tiles += TILE_TOKENS) {
        Floats x[B];
#pragma GCC unroll 4
        for (int b = 0; b < B; ++b) {
            x[b] = load(tiles + b * block_stride);
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            const Floats w = set(weights[r * stride + column]);
#pragma GCC unroll 4
            for (int b = 0; b < B; ++b) {
                total[r][b] = multiply_add(w, x[b], total[r][b]);
            }
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int b = 0; b < B; ++b) {
            store(sums + r * sums_stride + b * TILE_TOKENS, total[r][b]);
        }
    }
}

// R rows with as many blocks at a time as there are registers for, then with fewer.
template <int R, int B>
static void multiply_blocks_fp32(const float* weights, int64_t stride, const float* tiles, int64_t block_stride,
                                 int64_t blocks, int64_t columns, bool add, float* sums, int64_t sums_stride) {
    for (; blocks >= B; blocks -= B, tiles += B * block_stride, sums += B * TILE_TOKENS) {
        multiply_block_fp32<R, B>(weights, stride, tiles, block_stride, columns, add, sums, sums_stride);
    }
    if constexpr (B > 1) {
        multiply_blocks_fp32<R, B - 1>(weights, stride, tiles, block_stride, blocks, columns, add, sums, sums_stride);
    }
}

static void multiply_fp32(const float* weights, int64_t stride, int64_t rows, const float* tiles, int64_t block_stride,
                          int64_t blocks, int64_t columns, bool add, float* sums, int64_t sums_stride) {
    int64_t row = 0;
    for (; (rows - row) % FP32_ROWS; row += 4) {
        multiply_blocks_fp32<4, FP32_BLOCKS>(weights + row * stride, stride, tiles, block_stride, blocks, columns, add,
                                             sums + row * sums_stride, sums_stride);
    }
    for (; row < rows; row += FP32_ROWS) {
        multiply_blocks_fp32<FP32_ROWS, FP32_BLOCKS>(weights + row * stride, stride, tiles, block_stride, blocks,
                                                     columns, add, sums + row * sums_stride, sums_stride);
    }
}

const TileKernels<float> FP32_TILES = {pack_fp32, pack_sums_fp32, multiply_fp32, unpack_fp32};

}  // namespace moekit::MOEKIT_ISA
