// The gradient of a router's input in bf16, by the processor's instruction for pairs of bf16 numbers, which adds up in
// fp32: what is rounded to bf16 in the end is computed from bf16 numbers.
#pragma once

#include <cstdint>
#include <cstring>

#include "simd/isa.h"
#include "simd/lanes.h"
#include "training/numbers.h"

#if defined(__AVX512BF16__)
#include <immintrin.h>

namespace moekit::MOEKIT_ISA::lanes {

// Fewer experts fill so few lanes that laying numbers out in pairs takes longer than it saves.
constexpr int64_t FEWEST_IN_PAIRS = 17;

static MOEKIT_INLINE Lanes add_pairs(Lanes sum, uint32_t pair, UnsignedLanes pairs) {
    const __m512i repeated = _mm512_set1_epi32(static_cast<int32_t>(pair));
    return (Lanes)_mm512_dpbf16_ps((__m512)sum, (__m512bh)repeated, (__m512bh)pairs);
}
// Rounded to bf16, each in the low half of a word.
static MOEKIT_INLINE UnsignedLanes rounded_words(Lanes x) {
    ShortLanes rounded;
    const __m256bh narrow = _mm512_cvtneps_pbh((__m512)x);
    memcpy(&rounded, &narrow, sizeof rounded);
    return __builtin_convertvector(rounded, UnsignedLanes);
}
// Packed (pairs of experts, width) from weight (experts, width).
static void pack_grad_x_pairs(const float* weight, int64_t experts, int64_t width, uint32_t* packed) {
    for (int64_t e = 0; e < experts; e += 2, packed += width) {
        each_lanes(width, [=](int64_t d, int64_t count) MOEKIT_INLINED {
            const Lanes first = read_up_to(weight + e * width + d, count);
            const Lanes second = e + 1 < experts ? read_up_to(weight + (e + 1) * width + d, count) : Lanes{};
            const UnsignedLanes pairs = rounded_words(first) | rounded_words(second) << 16;
            write_up_to((Lanes)pairs, reinterpret_cast<float*>(packed) + d, count);
        });
    }
}

template <int64_t COUNT, int64_t COLUMNS>
static MOEKIT_INLINE void grad_x_pair_tile(const uint32_t* grads, int64_t pairs, const uint32_t* packed, int64_t width,
                                           int64_t part, uint16_t* grad_x) {
    Lanes total[COUNT][COLUMNS] = {};
    for (int64_t pair = 0; pair < pairs; ++pair) {
        UnsignedLanes w[COLUMNS];
#pragma GCC unroll 8
        for (int64_t c = 0; c < COLUMNS; ++c) {
            w[c] = (UnsignedLanes)read_up_to(reinterpret_cast<const float*>(packed + pair * width + c * LANES), part);
        }
#pragma GCC unroll 8
        for (int64_t r = 0; r < COUNT; ++r) {
#pragma GCC unroll 8
            for (int64_t c = 0; c < COLUMNS; ++c) {
                total[r][c] = add_pairs(total[r][c], grads[r * pairs + pair], w[c]);
            }
        }
    }
#pragma GCC unroll 8
    for (int64_t r = 0; r < COUNT; ++r) {
#pragma GCC unroll 8
        for (int64_t c = 0; c < COLUMNS; ++c) {
            write_up_to(total[r][c], grad_x + r * width + c * LANES, part);
        }
    }
}

template <int64_t COUNT>
static void grad_x_pair_rows(const uint32_t* grads, int64_t pairs, const uint32_t* packed, int64_t width,
                             uint16_t* grad_x) {
    int64_t d = 0;
    for (; d + 4 * LANES <= width; d += 4 * LANES) {
        grad_x_pair_tile<COUNT, 4>(grads, pairs, packed + d, width, LANES, grad_x + d);
    }
    for (; d + LANES <= width; d += LANES) {
        grad_x_pair_tile<COUNT, 1>(grads, pairs, packed + d, width, LANES, grad_x + d);
    }
    if (d < width) {
        grad_x_pair_tile<COUNT, 1>(grads, pairs, packed + d, width, width - d, grad_x + d);
    }
}

static void grad_x_by_pairs(const float* grad_logits, int64_t rows, int64_t experts, const uint32_t* packed,
                            int64_t width, uint32_t* space, uint16_t* grad_x) {
    constexpr int64_t COUNT = 6;
    const int64_t pairs = (experts + 1) / 2;
    auto* numbers = reinterpret_cast<uint16_t*>(space);
    for (int64_t row = 0; row < rows;) {
        const int64_t count = rows - row < COUNT ? 1 : COUNT;
        for (int64_t r = 0; r < count; ++r) {
            const float* from = grad_logits + (row + r) * experts;
            numbers[(r + 1) * 2 * pairs - 1] = 0;
            each_lanes(experts, [=](int64_t e, int64_t part) MOEKIT_INLINED {
                write_up_to(read_up_to(from + e, part), numbers + r * 2 * pairs + e, part);
            });
        }
        if (count == COUNT) {
            grad_x_pair_rows<COUNT>(space, pairs, packed, width, grad_x + row * width);
        } else {
            grad_x_pair_rows<1>(space, pairs, packed, width, grad_x + row * width);
        }
        row += count;
    }
}

}  // namespace moekit::MOEKIT_ISA::lanes
#endif
