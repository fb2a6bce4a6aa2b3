// Sixteen numbers of a tensor as Lanes: fp32, or bf16 (uint16_t), which is computed with as fp32. Whole lanes, and the
// `count` < 16 of a row's end; lanes beyond it are 0.
#pragma once

#include <cstdint>

#include "simd/isa.h"
#include "simd/lanes.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace moekit::MOEKIT_ISA::lanes {

static MOEKIT_INLINE Lanes read(const float* from) { return load(from); }
static MOEKIT_INLINE Lanes read(const uint16_t* from) { return load_bf16(from); }
static MOEKIT_INLINE void write(Lanes x, float* to) { store(x, to); }
// Rounded to nearest, ties to even. Where the processor does it, numbers below 2^-126 become 0.
static MOEKIT_INLINE void write(Lanes x, uint16_t* to) {
#if defined(__AVX512BF16__)
    const __m256bh narrow = _mm512_cvtneps_pbh((__m512)x);
    memcpy(to, &narrow, sizeof narrow);
#else
    store_bf16(x, to);
#endif
}

#if defined(__AVX512F__)
static MOEKIT_INLINE __mmask16 first(int64_t count) { return static_cast<__mmask16>((1u << count) - 1); }
static MOEKIT_INLINE Lanes read(const float* from, int64_t count) {
    return (Lanes)_mm512_maskz_loadu_ps(first(count), from);
}
static MOEKIT_INLINE Lanes read(const uint16_t* from, int64_t count) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first(count), from));
    return (Lanes)_mm512_slli_epi32(wide, 16);
}
static MOEKIT_INLINE void write(Lanes x, float* to, int64_t count) {
    _mm512_mask_storeu_ps(to, first(count), (__m512)x);
}
static MOEKIT_INLINE void write(Lanes x, uint16_t* to, int64_t count) {
    alignas(32) uint16_t whole[LANES];
    write(x, whole);
    _mm256_mask_storeu_epi16(to, first(count), _mm256_load_si256(reinterpret_cast<const __m256i*>(whole)));
}
#else
template <typename Number>
static MOEKIT_INLINE Lanes read(const Number* from, int64_t count) {
    Number whole[LANES] = {};
    for (int64_t i = 0; i < count; ++i) {
        whole[i] = from[i];
    }
    return read(whole);
}
template <typename Number>
static MOEKIT_INLINE void write(Lanes x, Number* to, int64_t count) {
    Number whole[LANES];
    write(x, whole);
    for (int64_t i = 0; i < count; ++i) {
        to[i] = whole[i];
    }
}
#endif

// apply(i, count) for each 16 numbers of `width`, from i on; `count` is what is left where that is less, else 16, which
// the compiler knows, so that read(at, count) and write(x, at, count) below become the plain ones.
template <typename Apply>
static MOEKIT_INLINE void each_lanes(int64_t width, Apply apply) {
    int64_t i = 0;
    for (; i + LANES <= width; i += LANES) {
        apply(i, LANES);
    }
    if (i < width) {
        apply(i, width - i);
    }
}

template <typename Number>
static MOEKIT_INLINE Lanes read_up_to(const Number* from, int64_t count) {
    return count == LANES ? read(from) : read(from, count);
}
template <typename Number>
static MOEKIT_INLINE void write_up_to(Lanes x, Number* to, int64_t count) {
    if (count == LANES) {
        write(x, to);
    } else {
        write(x, to, count);
    }
}

}  // namespace moekit::MOEKIT_ISA::lanes
