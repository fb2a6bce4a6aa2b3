// What AVX2 and AVX-512 have in common: 128-bit pieces.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "simd/isa.h"

namespace moekit::MOEKIT_ISA {

inline __m128i load_16(const void* memory) { return _mm_loadu_si128(static_cast<const __m128i*>(memory)); }

inline short half_at(const uint8_t* memory) {
    short half;
    memcpy(&half, memory, 2);
    return half;
}

inline float load_half(const uint8_t* memory) {
    return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(static_cast<uint16_t>(half_at(memory)))));
}

// Eight fp16 numbers at distance STRIDE.
template <int STRIDE>
inline __m128i gather_halves(const uint8_t* p) {
    return _mm_set_epi16(half_at(p + 7 * STRIDE), half_at(p + 6 * STRIDE), half_at(p + 5 * STRIDE),
                         half_at(p + 4 * STRIDE), half_at(p + 3 * STRIDE), half_at(p + 2 * STRIDE), half_at(p + STRIDE),
                         half_at(p));
}

}  // namespace moekit::MOEKIT_ISA
