// The scales of blocks as they lie in files, in plain C++.
#pragma once

#include <cstdint>

#include "simd/isa.h"
#include "simd/portable_numbers.h"

namespace moekit::MOEKIT_ISA {

// The eight fp16 numbers at distance STRIDE, each twice.
template <int STRIDE>
inline Floats halves_twice(const uint8_t* memory) {
    Floats out;
    for (int i = 0; i < 16; ++i) {
        out.at[i] = load_half(memory + i / 2 * STRIDE);
    }
    return out;
}

// The eight bytes of two numbers, lowest first, one of each in turn.
inline Floats bytes_in_turn(uint64_t first, uint64_t second) {
    Floats out;
    for (int i = 0; i < 16; ++i) {
        out.at[i] = static_cast<float>((i % 2 ? second : first) >> (i / 2 * 8) & 0xff);
    }
    return out;
}

// Two fp16 numbers that lie side by side, in turn.
inline Floats two_halves(const uint8_t* memory) {
    Floats out;
    for (int i = 0; i < 16; ++i) {
        out.at[i] = load_half(memory + i % 2 * 2);
    }
    return out;
}

// An fp16 number, sixteen times.
inline Floats set_half(const uint8_t* memory) { return set(load_half(memory)); }

// The eight fp16 numbers at distance STRIDE of each of four rows, `distance` bytes apart, a quarter a row: first
// numbers 0, 2, 4, 6, then the others.
template <int STRIDE>
inline void strided_halves(const uint8_t* memory, int64_t distance, Floats (&out)[2]) {
    for (int i = 0; i < 16; ++i) {
        const uint8_t* p = memory + i / 4 * distance + i % 4 * 2 * STRIDE;
        out[0].at[i] = load_half(p);
        out[1].at[i] = load_half(p + STRIDE);
    }
}

// Word WORD of each quarter as an fp16 number, four times.
template <int WORD>
inline Floats quarter_halves(const Bytes& v) {
    Floats out;
    for (int i = 0; i < 16; ++i) {
        out.at[i] = load_half(v.at + i / 4 * 16 + 2 * WORD);
    }
    return out;
}

// Byte I of each 32 bits.
template <int I>
inline Floats signed_byte(const Bytes& v) {
    Floats out;
    for (int i = 0; i < 16; ++i) {
        out.at[i] = static_cast<int8_t>(v.at[4 * i + I]);
    }
    return out;
}

// Each quarter is the head of a block of Q4_K: of its eight 6-bit scales and minimums, two of the former and the two of
// the latter that belong to them in 32 bits.
inline Bytes spread_6_bits(const Bytes& heads) {
    Bytes out;
    for (int quarter = 0; quarter < 4; ++quarter) {
        const uint8_t* a = heads.at + 16 * quarter + 4;
        for (int block = 0; block < 8; ++block) {
            const int at = block % 4;
            const int scale = block < 4 ? a[at] & 63 : (a[8 + at] & 15) | (a[at] >> 6) << 4;
            const int minimum = block < 4 ? a[4 + at] & 63 : a[8 + at] >> 4 | (a[4 + at] >> 6) << 4;
            uint8_t* to = out.at + 16 * quarter + block / 2 * 4 + block % 2;
            to[0] = static_cast<uint8_t>(scale);
            to[2] = static_cast<uint8_t>(minimum);
        }
    }
    return out;
}

}  // namespace moekit::MOEKIT_ISA
