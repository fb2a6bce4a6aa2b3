// Vectors of fewer than 16 floats.
#pragma once

#include <cstdint>
#include <cstring>

#include "simd/isa.h"

#include MOEKIT_VECTORS

namespace moekit::MOEKIT_ISA {

// Up to 16 numbers, and zeros behind them.
inline Floats load_some(const float* from, int64_t count) {
    if (count >= 16) {
        return load(from);
    }
    float padded[16] = {};
    memcpy(padded, from, static_cast<size_t>(count > 0 ? count : 0) * sizeof(float));
    return load(padded);
}

inline void store_some(float* to, Floats v, int64_t count) {
    if (count >= 16) {
        return store(to, v);
    }
    float all[16];
    store(all, v);
    memcpy(to, all, static_cast<size_t>(count) * sizeof(float));
}

}  // namespace moekit::MOEKIT_ISA
