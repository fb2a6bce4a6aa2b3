// Products of a few rows of weights with a few rows of activations: a tile keeps its sums in registers.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/activations.h"
#include "kernels/dequantize.h"
#include "kernels/formats.h"
#include "kernels/matrix.h"
#include "kernels/prefetch.h"
#include "simd/isa.h"

#include MOEKIT_VECTORS

namespace moekit::MOEKIT_ISA {

// Products of bits with 8-bit numbers are whole numbers, summed up exactly for every block: only what scales do to them
// is rounded, in the same order for any number of rows, in every instruction set. Of 256 columns the even blocks come
// first; blocks 2 q and 2 q + 1 go to lane q of their row's four, which `row_sum` adds.

// What sums of the even or the odd blocks, or of a half of each, begin with.
template <typename Format>
inline Ints offsets(const ActivationBlock& x, int odd, int part) {
    const int32_t* of = Format::offsets(x, part);
    return of ? repeat(of + 4 * odd) : set_ints(0);
}

#if defined(MOEKIT_ROW_RUNS)
// The even or the odd blocks of 256 columns of four rows, times one row of activations: sorting the bits by blocks
// costs more than sorting their sums.
template <typename Format, int ODD>
MOEKIT_INLINE Ints sums_of_one(const Rows& rows, const ActivationBlock& x) {
    Ints sums[4];
#pragma GCC unroll 4
    for (int row = 0; row < 4; ++row) {
        Bytes w[2];
        Format::template row_bits<ODD>(rows.p + row * rows.distance, w);
        Dot<Format::MOST> dot;
        dot.start(set_ints(0));
        dot.add(w[0], load_bytes(x.numbers + 128 * ODD));
        dot.add(w[1], load_bytes(x.numbers + 128 * ODD + 64));
        sums[row] = dot.sum();
    }
    return add(offsets<Format>(x, ODD, 0), quarter_totals(sums));
}
#endif

// What scales do to the sums of the even or the odd blocks, or of a half of each.
template <typename Format, int ODD>
inline Floats add_scaled(Ints sum, const Scales& scales, int part, const ActivationBlock& x, Floats to) {
    const Floats scaled = multiply(to_floats(sum), repeat(x.scales + 4 * ODD));
    to = fused(scaled, part ? scales.second[ODD] : scales.of[ODD], to);
    return Format::MINIMUMS ? fused(scales.second[ODD], repeat(x.minus_sums + 4 * ODD), to) : to;
}

// The even or the odd blocks of 256 columns of four rows, times B rows of activations.
template <typename Format, int ODD, int B>
MOEKIT_INLINE void add_blocks(const Rows& rows, const Scales& scales, const ActivationBlock* x, int64_t x_stride,
                              Floats (&sums)[B]) {
#if defined(MOEKIT_ROW_RUNS)
    if constexpr (B == 1 && Format::RUNS) {
        sums[0] = add_scaled<Format, ODD>(sums_of_one<Format, ODD>(rows, *x), scales, 0, *x, sums[0]);
        return;
    }
#endif
    // One after another they would wait for each other, where no other row's come between.
    constexpr int CHAINS = B <= 2 && !Format::HALVES ? 2 : 1;
    constexpr int PARTS = Format::HALVES ? 2 : 1, VECTORS = 8 / PARTS;
    Bytes w[8];
    Format::template bits<ODD>(rows, w);
#pragma GCC unroll 2
    for (int part = 0; part < PARTS; ++part) {
        Dot<Format::MOST> dots[B][CHAINS];
#pragma GCC unroll 8
        for (int b = 0; b < B; ++b) {
            dots[b][0].start(offsets<Format>(x[b * x_stride], ODD, part));
            if constexpr (CHAINS == 2) {
                dots[b][1].start(set_ints(0));
            }
        }
#pragma GCC unroll 8
        for (int i = part * VECTORS; i < (part + 1) * VECTORS; ++i) {
#pragma GCC unroll 8
            for (int b = 0; b < B; ++b) {
                dots[b][i % CHAINS].add(w[i], repeat(x[b * x_stride].numbers + 128 * ODD + 16 * i));
            }
        }
#pragma GCC unroll 8
        for (int b = 0; b < B; ++b) {
            Ints sum = dots[b][0].sum();
            if constexpr (CHAINS == 2) {
                sum = add(sum, dots[b][1].sum());
            }
            sums[b] = add_scaled<Format, ODD>(sum, scales, part, x[b * x_stride], sums[b]);
        }
    }
}

// The scales of the first `count` of eight blocks, and zeros.
inline Scales first_blocks(Scales scales, int count) {
    alignas(16) static const int32_t KEPT[8] = {-1, -1, -1, -1, 0, 0, 0, 0};
    for (int odd = 0; odd < 2; ++odd) {
        scales.of[odd] = masked(scales.of[odd], repeat(KEPT + 4 - (count + 1 - odd) / 2));
    }
    return scales;
}

// Asks for what follows in each of the R streams: the processor's own prefetching starts late and ends with every page.
// What lies behind the matrix is asked for in vain, and not read.
template <int R, int BYTES>
inline void prefetch(const uint8_t* p, int64_t distance) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
        for (int at = 0; at < BYTES; at += 64) {
            __builtin_prefetch(p + r * distance + PREFETCH_AHEAD + at, 0, SECOND_CACHE);
        }
    }
}

// Where the results of a tile go: those of its rows `rows_apart` from each other, of the activations' rows `stride`.
struct Place {
    float* y;
    int64_t rows_apart;
    int64_t stride;
};

template <int R, int B>
inline void clear(Floats (&sums)[R][B]) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
        for (int b = 0; b < B; ++b) {
            sums[r][b] = set(0.0f);
        }
    }
}

template <int R, int B>
inline void put_sums(const Floats (&sums)[R][B], const Place& to) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
        for (int b = 0; b < B; ++b) {
            to.y[b * to.stride + r * to.rows_apart] = sum(sums[r][b]);
        }
    }
}

inline float row_sum(const float* lanes) { return (lanes[0] + lanes[2]) + (lanes[1] + lanes[3]); }

// The integer products: any type of 8-bit blocks. Four rows at a time; a single one counts as four.
template <typename Format>
struct Quantized {
    static constexpr int rows(int) { return 4; }

    template <int R, int B>
    static inline void tile(const uint8_t* p, int64_t distance, const uint8_t* matrix_end, const Activations& x,
                            int64_t first, const Place& to) {
        constexpr int STEP = ActivationBlock::NUMBERS / Format::BLOCK * Format::BYTES;
        const ActivationBlock* a = x.blocks(first);
        Floats sums[B];
#pragma GCC unroll 8
        for (int b = 0; b < B; ++b) {
            sums[b] = set(0.0f);
        }
        const auto add = [&](const Rows& rows, const Scales& scales, int64_t block) __attribute__((always_inline)) {
            add_blocks<Format, 0>(rows, scales, a + block, x.stride, sums);
            add_blocks<Format, 1>(rows, scales, a + block, x.stride, sums);
        };
        const int64_t apart = R == 1 ? 0 : distance;
        const int64_t blocks = x.columns / ActivationBlock::NUMBERS;
        for (int64_t block = 0; block < blocks; ++block) {
            prefetch<R, STEP>(p + block * STEP, distance);
            const Rows rows{p + block * STEP, apart};
            add(rows, Format::scales(rows), block);
        }
        if constexpr (Format::BLOCK < ActivationBlock::NUMBERS) {
            const auto rest = static_cast<int>(x.columns % ActivationBlock::NUMBERS / Format::BLOCK);
            const uint8_t* last = p + blocks * STEP;
            if (rest > 0 && last + (R - 1) * distance + STEP <= matrix_end) {
                // What follows are the next rows' blocks, which meet zeros, if only their scales are finite.
                const Rows rows{last, apart};
                add(rows, first_blocks(Format::scales(rows), rest), blocks);
            } else if (rest > 0) {
                // Vectors may begin before the first row, though nothing there is loaded.
                constexpr int BEFORE = 64;
                uint8_t padded[BEFORE + R * STEP] = {};
                for (int r = 0; r < R; ++r) {
                    memcpy(padded + BEFORE + r * STEP, last + r * distance, static_cast<size_t>(rest) * Format::BYTES);
                }
                const Rows rows{padded + BEFORE, R == 1 ? 0 : STEP};
                add(rows, Format::scales(rows), blocks);
            }
        }
        for (int b = 0; b < B; ++b) {
            alignas(64) float lanes[16];
            store(lanes, sums[b]);
            for (int r = 0; r < R; ++r) {
                to.y[b * to.stride + r * to.rows_apart] = row_sum(lanes + 4 * r);
            }
        }
    }
};

// fp32 and fp16 weights with fp32 activations.
template <typename Weights>
struct Plain {
    static constexpr int STEP = 16;

    template <int R, int B>
    static inline void add(const uint8_t* p, int64_t distance, const float* x, int64_t x_stride, Floats (&sums)[R][B]) {
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            const Floats w = Weights::numbers(p + r * distance);
#pragma GCC unroll 8
            for (int b = 0; b < B; ++b) {
                sums[r][b] = multiply_add(w, load(x + b * x_stride), sums[r][b]);
            }
        }
    }

    static inline const float* row(const Activations& x, int64_t index) { return x.numbers(index); }
    using Number = float;
    static constexpr int BYTES = Weights::BYTES;
};

// bf16 weights with bf16 activations.
struct Bf16Pairs {
    static constexpr int STEP = 32;

    template <int R, int B>
    static inline void add(const uint8_t* p, int64_t distance, const uint16_t* x, int64_t x_stride,
                           Floats (&sums)[R][B]) {
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            const Bytes w = load_bytes(p + r * distance);
#pragma GCC unroll 8
            for (int b = 0; b < B; ++b) {
                sums[r][b] = dot_bf16(sums[r][b], w, load_bytes(x + b * x_stride));
            }
        }
    }

    static inline const uint16_t* row(const Activations& x, int64_t index) { return x.bf16(index); }
    using Number = uint16_t;
    static constexpr int BYTES = 2;
};

template <typename Kind>
struct Floating {
    // What as many rows of activations are multiplied with at a time.
    static constexpr int rows(int batch) { return batch == 1 ? 4 : 2; }

    template <int R, int B>
    static inline void tile(const uint8_t* p, int64_t distance, const uint8_t*, const Activations& x, int64_t first,
                            const Place& to) {
        using Number = typename Kind::Number;
        const Number* a = Kind::row(x, first);
        Floats sums[R][B];
        clear(sums);
        int64_t at = 0;
        for (; at + Kind::STEP <= x.columns; at += Kind::STEP) {
            prefetch<R, Kind::STEP * Kind::BYTES>(p + at * Kind::BYTES, distance);
            Kind::add(p + at * Kind::BYTES, distance, a + at, x.stride, sums);
        }
        if (at < x.columns) {
            constexpr int WIDTH = Kind::STEP * Kind::BYTES;
            uint8_t weights[R * WIDTH] = {};
            Number numbers[B * Kind::STEP] = {};
            const auto rest = static_cast<size_t>(x.columns - at);
            for (int r = 0; r < R; ++r) {
                memcpy(weights + r * WIDTH, p + r * distance + at * Kind::BYTES, rest * Kind::BYTES);
            }
            for (int b = 0; b < B; ++b) {
                memcpy(numbers + b * Kind::STEP, a + b * x.stride + at, rest * sizeof(Number));
            }
            Kind::add(weights, WIDTH, numbers, Kind::STEP, sums);
        }
        put_sums(sums, to);
    }
};

// R rows with all activations, B of them at a time and the rest by halves of that: the rows come from memory once and
// then from the cache.
template <typename Kind, int R, int B>
inline void multiply_tile(const uint8_t* p, int64_t distance, const uint8_t* matrix_end, const Activations& x,
                          int64_t first, Place to) {
    for (; x.rows - first >= B; first += B, to.y += B * to.stride) {
        Kind::template tile<R, B>(p, distance, matrix_end, x, first, to);
    }
    if constexpr (B > 1) {
        multiply_tile<Kind, R, B / 2>(p, distance, matrix_end, x, first, to);
    }
}

// The R rows of a tile are far apart, one from each R-th of the range: memory is faster with several streams than with
// one that rows on end would make.
template <typename Kind, int R, int B>
void multiply_range(const Matrix& matrix, const Activations& x, int64_t begin, int64_t end, float* y,
                    int64_t y_stride) {
    const int64_t row_bytes = matrix.row_bytes();
    const uint8_t* matrix_end = matrix.row(matrix.rows);
    const int64_t part = (end - begin) / R;
    // All streams' beginnings at once: one by one, each would be waited for.
    for (int64_t at = 0; at < PREFETCH_AHEAD; at += 64) {
        for (int r = 0; r < R; ++r) {
            __builtin_prefetch(matrix.row(begin + r * part) + at, 0, SECOND_CACHE);
        }
    }
    for (int64_t row = begin; row < begin + part; ++row) {
        multiply_tile<Kind, R, B>(matrix.data + row * row_bytes, part * row_bytes, matrix_end, x, 0,
                                  {y + row, part, y_stride});
    }
    for (int64_t row = begin + R * part; row < end; ++row) {
        multiply_tile<Kind, 1, B>(matrix.data + row * row_bytes, row_bytes, matrix_end, x, 0, {y + row, 1, y_stride});
    }
}

template <typename Kind>
inline void multiply_kind(const Matrix& matrix, const Activations& x, int64_t begin, int64_t end, float* y,
                          int64_t y_stride) {
    if (x.rows == 1) {
        multiply_range<Kind, Kind::rows(1), 1>(matrix, x, begin, end, y, y_stride);
    } else {
        multiply_range<Kind, Kind::rows(TILE_BATCH), TILE_BATCH>(matrix, x, begin, end, y, y_stride);
    }
}

inline void multiply_matrix(const Matrix& matrix, const Activations& x, int64_t begin, int64_t end, float* y,
                            int64_t y_stride) {
    switch (matrix.type) {
        case Type::F32:
            return multiply_kind<Floating<Plain<F32Weights>>>(matrix, x, begin, end, y, y_stride);
        case Type::F16:
            return multiply_kind<Floating<Plain<F16Weights>>>(matrix, x, begin, end, y, y_stride);
        case Type::BF16:
            return multiply_kind<Floating<Bf16Pairs>>(matrix, x, begin, end, y, y_stride);
        case Type::Q4_0:
            return multiply_kind<Quantized<Q4_0>>(matrix, x, begin, end, y, y_stride);
        case Type::Q8_0:
            return multiply_kind<Quantized<Q8_0>>(matrix, x, begin, end, y, y_stride);
        case Type::Q4_K:
            return multiply_kind<Quantized<Q4_K>>(matrix, x, begin, end, y, y_stride);
        case Type::Q6_K:
            return multiply_kind<Quantized<Q6_K>>(matrix, x, begin, end, y, y_stride);
    }
}

}  // namespace moekit::MOEKIT_ISA
