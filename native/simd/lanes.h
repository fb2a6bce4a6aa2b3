// Sixteen floats at once, in the compiler's own vector types: one source for every instruction set.
//
// Everything is inlined and has internal linkage: what is compiled for one processor must not run on another.
#pragma once

#include <cstdint>
#include <cstring>

#include "simd/isa.h"

namespace moekit::MOEKIT_ISA::lanes {

constexpr int64_t LANES = 16;

typedef float Lanes __attribute__((vector_size(64)));
typedef float HalfLanes __attribute__((vector_size(32)));
typedef float QuarterLanes __attribute__((vector_size(16)));
typedef int32_t IntLanes __attribute__((vector_size(64)));
typedef uint32_t UnsignedLanes __attribute__((vector_size(64)));
typedef uint16_t ShortLanes __attribute__((vector_size(32)));
typedef int8_t ByteLanes __attribute__((vector_size(16)));

static MOEKIT_INLINE Lanes splat(float value) { return Lanes{} + value; }

static MOEKIT_INLINE Lanes load(const float* from) {
    Lanes x;
    memcpy(&x, from, sizeof x);
    return x;
}

static MOEKIT_INLINE void store(Lanes x, float* to) { memcpy(to, &x, sizeof x); }

static MOEKIT_INLINE Lanes load_bf16(const uint16_t* from) {
    ShortLanes x;
    memcpy(&x, from, sizeof x);
    return (Lanes)(__builtin_convertvector(x, UnsignedLanes) << 16);
}

static MOEKIT_INLINE Lanes load_int8(const int8_t* from) {
    ByteLanes x;
    memcpy(&x, from, sizeof x);
    return __builtin_convertvector(x, Lanes);
}

// Rounded to nearest, ties to even; NaN stays one.
static MOEKIT_INLINE void store_bf16(Lanes x, uint16_t* to) {
    const UnsignedLanes bits = (UnsignedLanes)x;
    const UnsignedLanes rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const UnsignedLanes kept = (x == x) ? rounded : (bits >> 16) | 0x40;
    const ShortLanes narrow = __builtin_convertvector(kept, ShortLanes);
    memcpy(to, &narrow, sizeof narrow);
}

// To the nearest whole number, ties to even; all must lie within a byte. NaN becomes any byte.
static MOEKIT_INLINE void store_int8(Lanes x, int8_t* to) {
    // Adding 1.5 * 2^23 rounds to a whole number, which then stands in the low bits.
    const UnsignedLanes bits = (UnsignedLanes)(x + 12582912.0f);
    const ByteLanes narrow = __builtin_convertvector((IntLanes)bits, ByteLanes);
    memcpy(to, &narrow, sizeof narrow);
}

static MOEKIT_INLINE Lanes largest(Lanes x, Lanes y) { return x > y ? x : y; }
static MOEKIT_INLINE Lanes magnitude(Lanes x) { return (Lanes)((UnsignedLanes)x & 0x7fffffff); }

// The lanes added up, in the same order on every processor.
static MOEKIT_INLINE float sum(Lanes x) {
    HalfLanes halves[2];
    memcpy(halves, &x, sizeof halves);
    const HalfLanes eight = halves[0] + halves[1];
    QuarterLanes quarters[2];
    memcpy(quarters, &eight, sizeof quarters);
    const QuarterLanes four = quarters[0] + quarters[1];
    return (four[0] + four[2]) + (four[1] + four[3]);
}

static MOEKIT_INLINE float largest(Lanes x) {
    float most = x[0];
    for (int64_t lane = 1; lane < LANES; ++lane) {
        most = x[lane] > most ? x[lane] : most;
    }
    return most;
}

// e^x with a relative error under 2e-7 for -87 < x < 88, and the value at the nearer end beyond: no infinity comes out
// of it. e^x = 2^n e^r, and the polynomial for e^r is that of Cephes' expf.
static MOEKIT_INLINE Lanes exponential(Lanes x) {
    const Lanes low = splat(-87.3f), high = splat(88.0f);
    x = x < low ? low : x;  // written so that NaN goes through
    x = x > high ? high : x;
    // Adding 1.5 * 2^23 rounds to a whole number, which then stands in the low bits.
    const Lanes magic = splat(12582912.0f);
    const Lanes shifted = x * 1.44269504088896341f + magic;
    const Lanes n = shifted - magic;
    const Lanes r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    Lanes p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const UnsignedLanes exponent = ((UnsignedLanes)shifted - (UnsignedLanes)magic + 127) << 23;
    return p * (Lanes)exponent;
}

// tanh(x) with an absolute error under 2e-7.
static MOEKIT_INLINE Lanes hyperbolic_tangent(Lanes x) {
    const Lanes e = exponential(x + x);
    return 1.0f - 2.0f / (e + 1.0f);
}

// The error function with an absolute error under 3e-7 (Abramowitz and Stegun, Handbook of Mathematical Functions,
// formula 7.1.26, in fp32).
static MOEKIT_INLINE Lanes error_function(Lanes x) {
    const Lanes size = magnitude(x);
    const Lanes t = 1.0f / (1.0f + 0.3275911f * size);
    Lanes p = splat(1.061405429f);
    p = p * t - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    const Lanes value = 1.0f - p * t * exponential(-size * size);
    return (Lanes)((UnsignedLanes)value | ((UnsignedLanes)x & 0x80000000));
}

}  // namespace moekit::MOEKIT_ISA::lanes
