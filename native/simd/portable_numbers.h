// The vectors of every processor, in plain C++. What each operation means is said here, once.
#pragma once

#include <cstdint>
#include <cstring>

#include "simd/isa.h"

namespace moekit::MOEKIT_ISA {

// How many rows of activations share the weights in registers.
constexpr int TILE_BATCH = 1;
// Rows of a matrix (2, 4, 6 or 8) and blocks of 16 tokens whose fp32 sums stay in registers.
constexpr int FP32_ROWS = 2, FP32_BLOCKS = 1;
// Panels of 16 rows of packed weights (1 or 2), and rows of activations whose sums stay in registers.
constexpr int PANELS = 1, PANEL_TOKENS = 2;

// 64 bytes, 16 whole numbers, 16 floats.
struct Bytes {
    uint8_t at[64];
};
struct Ints {
    int32_t at[16];
};
struct Floats {
    float at[16];
};

inline Bytes load_bytes(const void* memory) {
    Bytes v;
    memcpy(v.at, memory, 64);
    return v;
}

inline void store_bytes(void* memory, const Bytes& v) { memcpy(memory, v.at, 64); }

// Four runs of 16 bytes, from anywhere.
inline Bytes quarters(const uint8_t* a, const uint8_t* b, const uint8_t* c, const uint8_t* d) {
    Bytes v;
    memcpy(v.at, a, 16);
    memcpy(v.at + 16, b, 16);
    memcpy(v.at + 32, c, 16);
    memcpy(v.at + 48, d, 16);
    return v;
}

// Every other one of eight on end, from the first or from the second.
inline Bytes even_quarters(const uint8_t* p) { return quarters(p, p + 32, p + 64, p + 96); }
inline Bytes odd_quarters(const uint8_t* p) { return even_quarters(p + 16); }

// Each of two, twice.
inline Bytes doubled_quarters(const uint8_t* a, const uint8_t* b) { return quarters(a, a, b, b); }

inline Bytes low_nibbles(const Bytes& v) {
    Bytes out;
    for (int i = 0; i < 64; ++i) {
        out.at[i] = v.at[i] & 0x0f;
    }
    return out;
}

inline Bytes high_nibbles(const Bytes& v) {
    Bytes out;
    for (int i = 0; i < 64; ++i) {
        out.at[i] = v.at[i] >> 4;
    }
    return out;
}

// Signed bytes plus 128, as unsigned ones.
inline Bytes plus_128(const Bytes& v) {
    Bytes out;
    for (int i = 0; i < 64; ++i) {
        out.at[i] = v.at[i] ^ 0x80;
    }
    return out;
}

// Less the same number everywhere.
inline Bytes minus(const Bytes& v, int number) {
    Bytes out;
    for (int i = 0; i < 64; ++i) {
        out.at[i] = static_cast<uint8_t>(v.at[i] - number);
    }
    return out;
}

// Each quarter's 32-bit words turned left by its own number of bits.
template <int A, int B, int C, int D>
inline Bytes turn_left(const Bytes& v) {
    constexpr int BITS[4] = {A, B, C, D};
    Bytes out;
    for (int i = 0; i < 16; ++i) {
        uint32_t word;
        memcpy(&word, v.at + 4 * i, 4);
        word = word << BITS[i / 4] | word >> ((32 - BITS[i / 4]) & 31);
        memcpy(out.at + 4 * i, &word, 4);
    }
    return out;
}

// Bits 0 to 3 of one, bits 4 and 5 of the other.
inline Bytes merge_6_bits(const Bytes& low, const Bytes& high) {
    Bytes out;
    for (int i = 0; i < 64; ++i) {
        out.at[i] = (low.at[i] & 0x0f) | (high.at[i] & 0x30);
    }
    return out;
}

// Within each quarter: word i of v[j] becomes word j of v[i].
inline void transpose(Bytes (&v)[4]) {
    Bytes out[4];
    for (int i = 0; i < 4; ++i) {
        for (int j = 0; j < 4; ++j) {
            for (int quarter = 0; quarter < 4; ++quarter) {
                memcpy(out[i].at + 16 * quarter + 4 * j, v[j].at + 16 * quarter + 4 * i, 4);
            }
        }
    }
    for (int i = 0; i < 4; ++i) {
        v[i] = out[i];
    }
}

// Four runs of 32 bytes, STRIDE apart, in each of four rows, `distance` bytes apart: 4 bytes of all in a vector, a row
// in a quarter.
template <int STRIDE>
inline void four_runs(const uint8_t* memory, int64_t distance, Bytes (&out)[8]) {
    for (int i = 0; i < 8; ++i) {
        for (int lane = 0; lane < 16; ++lane) {
            memcpy(out[i].at + 4 * lane, memory + lane / 4 * distance + lane % 4 * STRIDE + 4 * i, 4);
        }
    }
}

// Four bytes, as every word.
inline Bytes spread_word(const int8_t* memory) {
    Bytes v;
    for (int word = 0; word < 16; ++word) {
        memcpy(v.at + 4 * word, memory, 4);
    }
    return v;
}

// 16 bytes, four whole numbers, four floats: for each quarter.
inline Bytes repeat(const int8_t* memory) {
    Bytes v;
    for (int quarter = 0; quarter < 4; ++quarter) {
        memcpy(v.at + 16 * quarter, memory, 16);
    }
    return v;
}
inline Ints repeat(const int32_t* memory) {
    Ints v;
    for (int i = 0; i < 16; ++i) {
        v.at[i] = memory[i % 4];
    }
    return v;
}
inline Floats masked(const Floats& v, const Ints& mask) {
    Floats kept;
    for (int i = 0; i < 16; ++i) {
        kept.at[i] = mask.at[i] ? v.at[i] : 0.0f;
    }
    return kept;
}
inline Floats repeat(const float* memory) {
    Floats v;
    for (int i = 0; i < 16; ++i) {
        v.at[i] = memory[i % 4];
    }
    return v;
}

inline Ints set_ints(int32_t number) {
    Ints v;
    for (int i = 0; i < 16; ++i) {
        v.at[i] = number;
    }
    return v;
}

inline Ints add(const Ints& a, const Ints& b) {
    Ints out;
    for (int i = 0; i < 16; ++i) {
        out.at[i] = a.at[i] + b.at[i];
    }
    return out;
}

// Products of unsigned bytes up to MOST with signed ones, summed by fours and over up to eight pairs of vectors, with
// what they start from. Where SIGNED_BYTES, of signed bytes instead of unsigned ones up to 255.
constexpr bool SIGNED_BYTES = false;
template <int MOST>
struct Dot {
    Ints of;

    inline void start(const Ints& from) { of = from; }
    inline void add(const Bytes& u, const Bytes& s) {
        for (int i = 0; i < 16; ++i) {
            for (int j = 4 * i; j < 4 * i + 4; ++j) {
                of.at[i] += static_cast<int32_t>(u.at[j]) * static_cast<int8_t>(s.at[j]);
            }
        }
    }

    inline Ints sum() const { return of; }
};

inline Floats to_floats(const Ints& v) {
    Floats out;
    for (int i = 0; i < 16; ++i) {
        out.at[i] = static_cast<float>(v.at[i]);
    }
    return out;
}

inline Floats set(float number) {
    Floats out;
    for (int i = 0; i < 16; ++i) {
        out.at[i] = number;
    }
    return out;
}

inline Floats load(const void* memory) {
    Floats v;
    memcpy(v.at, memory, 64);
    return v;
}

inline void store(float* memory, const Floats& v) { memcpy(memory, v.at, 64); }

inline Floats add(const Floats& a, const Floats& b) {
    Floats out;
    for (int i = 0; i < 16; ++i) {
        out.at[i] = a.at[i] + b.at[i];
    }
    return out;
}

inline Floats subtract(const Floats& a, const Floats& b) {
    Floats out;
    for (int i = 0; i < 16; ++i) {
        out.at[i] = a.at[i] - b.at[i];
    }
    return out;
}

inline Floats multiply(const Floats& a, const Floats& b) {
    Floats out;
    for (int i = 0; i < 16; ++i) {
        out.at[i] = a.at[i] * b.at[i];
    }
    return out;
}

// a * b + c, rounded once or twice.
inline Floats multiply_add(const Floats& a, const Floats& b, const Floats& c) {
    Floats out;
    for (int i = 0; i < 16; ++i) {
        out.at[i] = a.at[i] * b.at[i] + c.at[i];
    }
    return out;
}

// a * b + c, rounded once: what must have the same bits everywhere.
inline Floats fused(const Floats& a, const Floats& b, const Floats& c) {
    Floats out;
    for (int i = 0; i < 16; ++i) {
        out.at[i] = __builtin_fmaf(a.at[i], b.at[i], c.at[i]);
    }
    return out;
}

inline Floats magnitudes(const Floats& v) {
    Floats out;
    for (int i = 0; i < 16; ++i) {
        out.at[i] = v.at[i] < 0 ? -v.at[i] : v.at[i];
    }
    return out;
}

inline Floats greater(const Floats& a, const Floats& b) {
    Floats out;
    for (int i = 0; i < 16; ++i) {
        out.at[i] = a.at[i] > b.at[i] ? a.at[i] : b.at[i];
    }
    return out;
}

// To whole numbers, halves to even, of magnitudes below 2^22: adding 1.5 * 2^23 leaves no bits behind the point.
inline Floats to_nearest(const Floats& v) {
    Floats out;
    for (int i = 0; i < 16; ++i) {
        volatile float shifted = v.at[i] + 12582912.0f;
        out.at[i] = shifted - 12582912.0f;
    }
    return out;
}

inline float sum(const Floats& v) {
    float total = 0;
    for (int i = 0; i < 16; ++i) {
        total += v.at[i];
    }
    return total;
}

inline float greatest(const Floats& v) {
    float most = v.at[0];
    for (int i = 1; i < 16; ++i) {
        most = v.at[i] > most ? v.at[i] : most;
    }
    return most;
}

inline float half_to_float(uint16_t half) {
    const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
    const uint32_t exponent = half >> 10 & 0x1f;
    const uint32_t fraction = half & 0x3ff;
    uint32_t bits;
    if (exponent == 0) {
        const float small = static_cast<float>(fraction) * 0x1p-24f;
        memcpy(&bits, &small, 4);
    } else if (exponent == 31) {
        bits = 0x7f800000 | fraction << 13 | (fraction ? 0x400000 : 0);
    } else {
        bits = (exponent + 112) << 23 | fraction << 13;
    }
    bits |= sign;
    float out;
    memcpy(&out, &bits, 4);
    return out;
}

inline float load_half(const uint8_t* memory) {
    uint16_t half;
    memcpy(&half, memory, 2);
    return half_to_float(half);
}

inline Floats load_halves(const uint8_t* memory) {
    Floats out;
    for (int i = 0; i < 16; ++i) {
        out.at[i] = load_half(memory + 2 * i);
    }
    return out;
}

inline Floats load_bf16(const void* memory) {
    Floats out;
    for (int i = 0; i < 16; ++i) {
        uint16_t high;
        memcpy(&high, static_cast<const uint8_t*>(memory) + 2 * i, 2);
        const uint32_t bits = static_cast<uint32_t>(high) << 16;
        memcpy(&out.at[i], &bits, 4);
    }
    return out;
}

// Rounded to nearest, halves to even; a NaN stays one.
inline void store_bf16(uint16_t* memory, const Floats& v) {
    for (int i = 0; i < 16; ++i) {
        uint32_t bits;
        memcpy(&bits, &v.at[i], 4);
        const bool nan = (bits & 0x7fffffff) > 0x7f800000;
        const uint32_t rounded = nan ? (bits >> 16 | 0x40) : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
        const auto high = static_cast<uint16_t>(rounded);
        memcpy(memory + i, &high, 2);
    }
}

// The same for numbers of which none is denormal (below 2^-126 and not 0), which may be faster.
inline void store_normal_bf16(uint16_t* memory, const Floats& v) { store_bf16(memory, v); }

// Products of 32 pairs of bf16 numbers, added up in fp32.
inline Floats dot_bf16(const Floats& to, const Bytes& a, const Bytes& b) {
    const Floats half = multiply_add(load_bf16(a.at), load_bf16(b.at), to);
    return multiply_add(load_bf16(a.at + 32), load_bf16(b.at + 32), half);
}

// 16 bytes as floats.
inline Floats signed_bytes(const uint8_t* memory) {
    Floats out;
    for (int i = 0; i < 16; ++i) {
        out.at[i] = static_cast<int8_t>(memory[i]);
    }
    return out;
}

// Whole numbers of magnitudes up to 127 as 16 bytes.
inline void store_signed_bytes(int8_t* memory, const Floats& v) {
    for (int i = 0; i < 16; ++i) {
        memory[i] = static_cast<int8_t>(v.at[i]);
    }
}

// Turned round: number i of row j becomes number j of row i.
inline void transpose(Floats (&rows)[16]) {
    for (int i = 0; i < 16; ++i) {
        for (int j = 0; j < i; ++j) {
            const float kept = rows[i].at[j];
            rows[i].at[j] = rows[j].at[i];
            rows[j].at[i] = kept;
        }
    }
}

}  // namespace moekit::MOEKIT_ISA
