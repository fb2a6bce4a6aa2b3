// Matrices laid out for products of bf16 numbers, two inner ones at a time: the processor multiplies pairs of them, and
// a pair is one 32-bit word, its first number in the low half.
//
// Right: `inner` x `columns` numbers as vectors of 16 columns, in panels of a few vectors that a tile multiplies
// together; within a panel pair after pair, and of each pair its vectors. Left (of weight gradients, whose inner
// dimension is the rows of both): columns in groups of 8, within a group pair after pair. What is missing is 0.
#pragma once

#include <cstdint>
#include <cstring>

#include "simd/isa.h"
#include "simd/lanes.h"
#include "training/numbers.h"

namespace moekit::MOEKIT_ISA::lanes {

// How many rows, and at most how many vectors, a tile of sums has: as many as stay in registers. A weight gradient's
// tile has the 8 rows of a group.
#if defined(__AVX512F__)
constexpr int TILE_ROWS = 6, TILE_VECTORS = 4, GRADIENT_VECTORS = 3;
#else
constexpr int TILE_ROWS = 3, TILE_VECTORS = 2, GRADIENT_VECTORS = 1;
#endif
constexpr int GROUP = 8;

// How `vectors` are cut into panels of at most `most`, as even as can be, in units of `unit` vectors.
struct Panels {
    int64_t vectors;
    int64_t most;
    int64_t unit = 1;

    int64_t count() const { return (vectors + most - 1) / most; }
    int64_t begin(int64_t panel) const { return vectors / unit * panel / count() * unit; }
};

static MOEKIT_INLINE int64_t vectors_of(int64_t columns) { return (columns + LANES - 1) / LANES; }

// 16 numbers as bf16, each in a word; those from `count` on are 0.
static MOEKIT_INLINE UnsignedLanes bf16_words(const uint16_t* from, int64_t count) {
    if (count >= LANES) {
        ShortLanes x;
        memcpy(&x, from, sizeof x);
        return __builtin_convertvector(x, UnsignedLanes);
    }
    return count > 0 ? (UnsignedLanes)read(from, count) >> 16 : UnsignedLanes{};
}
static MOEKIT_INLINE UnsignedLanes bf16_words(const float* from, int64_t count) {
    if (count <= 0) {
        return UnsignedLanes{};
    }
    uint16_t rounded[LANES];
    write(count >= LANES ? read(from) : read(from, count), rounded);
    return bf16_words(rounded, LANES);
}
template <typename Number>
static MOEKIT_INLINE UnsignedLanes pair_words(const Number* first, const Number* second, int64_t count) {
    const UnsignedLanes low = bf16_words(first, count);
    return second ? low | bf16_words(second, count) << 16 : low;
}

// Pairs begin to end of the rows that row_at(i) gives (null behind the last) into a right side of `pairs` pairs.
template <typename RowAt>
static MOEKIT_INLINE void pack_right(RowAt row_at, int64_t columns, Panels panels, int64_t pairs, int64_t begin,
                                     int64_t end, uint32_t* out) {
    for (int64_t panel = 0; panel < panels.count(); ++panel) {
        const int64_t first = panels.begin(panel), last = panels.begin(panel + 1);
        uint32_t* to = out + first * LANES * pairs + begin * (last - first) * LANES;
        for (int64_t pair = begin; pair < end; ++pair) {
            const auto* above = row_at(2 * pair);
            const auto* below = row_at(2 * pair + 1);
            for (int64_t vector = first; vector < last; ++vector, to += LANES) {
                const int64_t column = vector * LANES;
                const UnsignedLanes words =
                    pair_words(above + column, below ? below + column : nullptr, columns - column);
                memcpy(to, &words, sizeof words);
            }
        }
    }
}

// The place of one column's word of a pair in a right side.
static MOEKIT_INLINE int64_t place_of(int64_t column, Panels panels, int64_t pairs, int64_t pair) {
    const int64_t vector = column / LANES;
    int64_t panel = 0;
    while (panels.begin(panel + 1) <= vector) {
        ++panel;
    }
    const int64_t first = panels.begin(panel), width = panels.begin(panel + 1) - first;
    return first * LANES * pairs + (pair * width + vector - first) * LANES + column % LANES;
}

// The same rows into a left side: columns are the outer loop, so that what is written lies in few places at a time.
template <typename RowAt>
static MOEKIT_INLINE void pack_left(RowAt row_at, int64_t columns, int64_t pairs, int64_t begin, int64_t end,
                                    uint32_t* out) {
    for (int64_t column = 0; column < columns; column += LANES) {
        uint32_t* to = out + (column / GROUP * pairs + begin) * GROUP;
        for (int64_t pair = begin; pair < end; ++pair, to += GROUP) {
            const auto* above = row_at(2 * pair);
            const auto* below = row_at(2 * pair + 1);
            const UnsignedLanes words = pair_words(above + column, below ? below + column : nullptr, columns - column);
            memcpy(to, &words, sizeof words / 2);
            if (column + GROUP < columns) {
                memcpy(to + pairs * GROUP, reinterpret_cast<const uint32_t*>(&words) + GROUP, sizeof words / 2);
            }
        }
    }
}

// word i of v[j] becomes word j of v[i].
static MOEKIT_INLINE void transpose_words(UnsignedLanes (&v)[16]) {
    UnsignedLanes t[16];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        t[i] = __builtin_shufflevector(v[i], v[i + 1], 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29);
        t[i + 1] = __builtin_shufflevector(v[i], v[i + 1], 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
#pragma GCC unroll 2
        for (int j = 0; j < 2; ++j) {
            const UnsignedLanes a = t[i + j], b = t[i + j + 2];
            v[i + 2 * j] = __builtin_shufflevector(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
            v[i + 2 * j + 1] =
                __builtin_shufflevector(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
        }
    }
    // v[4 i + k] now has, in quarter q, words 4 q + k of rows 4 i to 4 i + 3.
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
        const UnsignedLanes low_a =
            __builtin_shufflevector(v[k], v[k + 4], 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27);
        const UnsignedLanes high_a =
            __builtin_shufflevector(v[k], v[k + 4], 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
        const UnsignedLanes low_b =
            __builtin_shufflevector(v[k + 8], v[k + 12], 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27);
        const UnsignedLanes high_b =
            __builtin_shufflevector(v[k + 8], v[k + 12], 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
        // low_a: quarters 0 and 2 of rows 0-3, then of rows 4-7.
        t[k] = __builtin_shufflevector(low_a, low_b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27);
        t[k + 8] = __builtin_shufflevector(low_a, low_b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
        t[k + 4] = __builtin_shufflevector(high_a, high_b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27);
        t[k + 12] = __builtin_shufflevector(high_a, high_b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
    }
    memcpy(v, t, sizeof t);
}

// Rows of weights, each a column of the right side: vectors of the panels begin to end. `inner` (even) is how many
// numbers a row has. gated: the second half of the rows is taken in turns with the first, a vector each.
template <typename Number>
static MOEKIT_INLINE void pack_transposed(const Number* weights, int64_t rows, int64_t inner, bool gated, Panels panels,
                                          int64_t begin, int64_t end, uint32_t* out) {
    const int64_t pairs = inner / 2, half = gated ? rows / 2 : rows;
    for (int64_t panel = begin; panel < end; ++panel) {
        const int64_t first = panels.begin(panel), width = panels.begin(panel + 1) - first;
        for (int64_t vector = 0; vector < width; ++vector) {
            const int64_t at = first + vector, row = (gated ? at / 2 : at) * LANES;
            const Number* from = weights + (row + (gated && at % 2 ? half : 0)) * inner;
            const int64_t there = half - row < LANES ? half - row : LANES;
            uint32_t* to = out + first * LANES * pairs + vector * LANES;
            for (int64_t pair = 0; pair < pairs; pair += LANES) {
                const int64_t count = pairs - pair < LANES ? pairs - pair : LANES;
                UnsignedLanes words[LANES] = {};
                for (int64_t i = 0; i < there; ++i) {
                    const Number* numbers = from + i * inner + 2 * pair;
                    uint16_t bits[2 * LANES];
                    if constexpr (sizeof(Number) == 2) {
                        if (count == LANES) {
                            memcpy(&words[i], numbers, sizeof words[i]);
                        } else {
                            memcpy(bits, numbers, count * sizeof(uint32_t));
                            memcpy(&words[i], bits, sizeof words[i]);
                        }
                    } else {
                        if (count == LANES) {
                            write(read(numbers), bits);
                            write(read(numbers + LANES), bits + LANES);
                        } else {
                            const int64_t left = 2 * count;
                            write(left >= LANES ? read(numbers) : read(numbers, left), bits);
                            if (left > LANES) {
                                write(read(numbers + LANES, left - LANES), bits + LANES);
                            }
                        }
                        memcpy(&words[i], bits, sizeof words[i]);
                    }
                }
                transpose_words(words);
                for (int64_t i = 0; i < count; ++i) {
                    memcpy(to + (pair + i) * width * LANES, &words[i], sizeof words[i]);
                }
            }
        }
    }
}

}  // namespace moekit::MOEKIT_ISA::lanes
