// Tiles of sums of products of bf16 numbers, accumulated in fp32.
#pragma once

#include <cstdint>
#include <cstring>

#include "simd/isa.h"
#include "simd/lanes.h"
#include "training/pairs.h"

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace moekit::MOEKIT_ISA::lanes {

// sum + a.first * b.first + a.second * b.second in each lane; `a` is one pair for all of them.
static MOEKIT_INLINE Lanes dot(Lanes sum, UnsignedLanes a, UnsignedLanes b) {
#if defined(__AVX512BF16__)
    return (Lanes)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
    sum += (Lanes)(a << 16) * (Lanes)(b << 16);
    return sum + (Lanes)(a & 0xffff0000) * (Lanes)(b & 0xffff0000);
#endif
}

static MOEKIT_INLINE UnsignedLanes repeated(const uint32_t* from) {
    uint32_t word;
    memcpy(&word, from, sizeof word);
    return UnsignedLanes{} + word;
}

static MOEKIT_INLINE UnsignedLanes words_at(const uint32_t* from) {
    UnsignedLanes words;
    memcpy(&words, from, sizeof words);
    return words;
}

// sums (ROWS, stride): of the rows that left[i] points to, pair after pair `step` words apart, with VECTORS vectors.
template <int ROWS, int VECTORS, int STEP>
static MOEKIT_INLINE void multiply_tile(const uint32_t* const (&left)[ROWS], const uint32_t* right, int64_t pairs,
                                        float* sums, int64_t stride) {
    Lanes sum[ROWS][VECTORS] = {};
    for (int64_t pair = 0; pair < pairs; ++pair, right += VECTORS * LANES) {
        UnsignedLanes b[VECTORS];
#pragma GCC unroll 8
        for (int vector = 0; vector < VECTORS; ++vector) {
            b[vector] = words_at(right + vector * LANES);
        }
#pragma GCC unroll 8
        for (int row = 0; row < ROWS; ++row) {
            const UnsignedLanes a = repeated(left[row] + pair * STEP);
#pragma GCC unroll 8
            for (int vector = 0; vector < VECTORS; ++vector) {
                sum[row][vector] = dot(sum[row][vector], a, b[vector]);
            }
        }
    }
#pragma GCC unroll 8
    for (int row = 0; row < ROWS; ++row) {
#pragma GCC unroll 8
        for (int vector = 0; vector < VECTORS; ++vector) {
            store(sum[row][vector], sums + row * stride + vector * LANES);
        }
    }
}

template <int ROWS, int STEP, int VECTORS>
static MOEKIT_INLINE void multiply_panel(const uint32_t* const (&left)[ROWS], const uint32_t* right, int64_t vectors,
                                         int64_t pairs, float* sums) {
    if (vectors == VECTORS) {
        multiply_tile<ROWS, VECTORS, STEP>(left, right, pairs, sums, TILE_VECTORS * LANES);
    } else if constexpr (VECTORS > 1) {
        multiply_panel<ROWS, STEP, VECTORS - 1>(left, right, vectors, pairs, sums);
    }
}

// A tile's sums: row after row, TILE_VECTORS vectors apart.
struct alignas(64) TileSums {
    float at[GROUP * TILE_VECTORS * LANES];

    const float* row(int64_t row, int64_t vector) const { return at + (row * TILE_VECTORS + vector) * LANES; }
};

// Rows begin to end, which row_at gives, with a right side: done(sums, row, rows, vector, vectors) for each tile.
// Panels come one after the other, and within a panel all rows.
template <typename RowAt, typename Done>
static MOEKIT_INLINE void multiply_rows(RowAt row_at, int64_t begin, int64_t end, const uint32_t* right, int64_t pairs,
                                        Panels panels, Done done) {
    TileSums sums;
    for (int64_t panel = 0; panel < panels.count(); ++panel) {
        const int64_t first = panels.begin(panel), vectors = panels.begin(panel + 1) - first;
        for (int64_t row = begin; row < end; row += TILE_ROWS) {
            const int64_t rows = end - row < TILE_ROWS ? end - row : TILE_ROWS;
            const uint32_t* left[TILE_ROWS];
            for (int64_t i = 0; i < TILE_ROWS; ++i) {
                left[i] = reinterpret_cast<const uint32_t*>(row_at(i < rows ? row + i : row));
            }
            multiply_panel<TILE_ROWS, 1, TILE_VECTORS>(left, right + first * LANES * pairs, vectors, pairs, sums.at);
            done(sums, row, rows, first, vectors);
        }
    }
}

// Groups begin to end of a left side with a right side, likewise.
template <typename Done>
static MOEKIT_INLINE void multiply_groups(const uint32_t* groups, int64_t begin, int64_t end, const uint32_t* right,
                                          int64_t pairs, Panels panels, Done done) {
    TileSums sums;
    for (int64_t panel = 0; panel < panels.count(); ++panel) {
        const int64_t first = panels.begin(panel), vectors = panels.begin(panel + 1) - first;
        for (int64_t group = begin; group < end; ++group) {
            const uint32_t* left[GROUP];
            for (int64_t i = 0; i < GROUP; ++i) {
                left[i] = groups + group * pairs * GROUP + i;
            }
            multiply_panel<GROUP, GROUP, GRADIENT_VECTORS>(left, right + first * LANES * pairs, vectors, pairs,
                                                           sums.at);
            done(sums, group * GROUP, first, vectors);
        }
    }
}

}  // namespace moekit::MOEKIT_ISA::lanes
