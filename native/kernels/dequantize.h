// Packed numbers to fp32 or bf16, bit for bit what the format says in fp32, rounded to nearest even for bf16.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/formats.h"
#include "kernels/matrix.h"
#include "simd/isa.h"

#include MOEKIT_VECTORS

namespace moekit::MOEKIT_ISA {

inline void put(float* out, const Floats& v) { store(out, v); }
inline void put(uint16_t* out, const Floats& v) { store_bf16(out, v); }

// Scales are multiples of fp16's least number, 2^-24: what comes of them is never denormal.
inline void put_normal(float* out, const Floats& v) { store(out, v); }
inline void put_normal(uint16_t* out, const Floats& v) { store_normal_bf16(out, v); }

template <typename Format, typename Out>
inline void dequantize_block(const uint8_t* p, Out* out) {
    const Unpacked u = Format::unpack(p);
    // The offset is taken off the whole numbers, which is exact.
    alignas(64) uint8_t numbers[256];
    alignas(64) float scales[16];
    store_bytes(numbers, minus(u.even_first, Format::ZERO));
    store_bytes(numbers + 64, minus(u.even_second, Format::ZERO));
    store_bytes(numbers + 128, minus(u.odd_first, Format::ZERO));
    store_bytes(numbers + 192, minus(u.odd_second, Format::ZERO));
    store(scales, u.scales);
#pragma GCC unroll 16
    for (int half = 0; half < 16; ++half) {
        const int block = half / 2;
        const uint8_t* from = numbers + block % 2 * 128 + half % 2 * 64 + block / 2 * 16;
        if constexpr (Format::MINIMUMS) {
            const Floats v = multiply(set(scales[2 * block]), signed_bytes(from));
            put_normal(out + 16 * half, subtract(v, set(scales[2 * block + 1])));
        } else {
            put_normal(out + 16 * half, multiply(set(scales[half]), signed_bytes(from)));
        }
    }
}

// Blocks of 32 bytes with one scale need no rearranging.
template <typename Out>
inline void dequantize_q8_0(const uint8_t* p, int64_t columns, Out* out) {
    for (; columns > 0; columns -= Q8_0::BLOCK, p += Q8_0::BYTES, out += Q8_0::BLOCK) {
        const Floats scale = set_half(p);
        put_normal(out, multiply(scale, signed_bytes(p + 2)));
        put_normal(out + 16, multiply(scale, signed_bytes(p + 18)));
    }
}

#if defined(MOEKIT_BF16_TABLES)
// The sixteen numbers that four bits can stand for are made once for a block of 32, and looked up.
inline Floats sixteen() { return _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }

inline void dequantize_row_bf16(const Q4_0&, const uint8_t* p, int64_t columns, uint16_t* out) {
    const Floats numbers = subtract(sixteen(), set(Q4_0::ZERO));
    for (; columns > 0; columns -= Q4_0::BLOCK, p += Q4_0::BYTES, out += Q4_0::BLOCK) {
        look_up(multiply(set_half(p), numbers), all_nibbles(p + 2), out);
    }
}

inline void dequantize_row_bf16(const Q4_K&, const uint8_t* p, int64_t columns, uint16_t* out) {
    alignas(64) float scales[16];
    for (; columns > 0; columns -= Q4_K::BLOCK, p += Q4_K::BYTES) {
        store(scales, Q4_K::scales(p));
        // Spreading a number is free when it comes from memory; the compiler would take them from the register.
        __asm__ volatile("" ::: "memory");
        const auto table = [&](int block) {
            return subtract(multiply(set(scales[2 * block]), sixteen()), set(scales[2 * block + 1]));
        };
        for (int block = 0; block < 8; block += 2, out += 64) {
            const __m256i bits = load_32(p + 16 + 16 * block);
            look_up(table(block), low_nibbles(bits), out);
            look_up(table(block + 1), high_nibbles(bits), out + 32);
        }
    }
}
#endif

template <typename Format, typename Out>
inline void dequantize_row(const uint8_t* p, int64_t columns, Out* out) {
    constexpr int STEP = ActivationBlock::NUMBERS / Format::BLOCK * Format::BYTES;
    for (; columns >= ActivationBlock::NUMBERS; columns -= ActivationBlock::NUMBERS) {
        dequantize_block<Format>(p, out);
        p += STEP;
        out += ActivationBlock::NUMBERS;
    }
    if (columns > 0) {
        uint8_t padded[STEP] = {};
        Out numbers[ActivationBlock::NUMBERS];
        memcpy(padded, p, static_cast<size_t>(columns / Format::BLOCK * Format::BYTES));
        dequantize_block<Format>(padded, numbers);
        memcpy(out, numbers, static_cast<size_t>(columns) * sizeof(Out));
    }
}

template <typename Format, typename Out>
inline void dequantize_4_bits(const uint8_t* p, int64_t columns, Out* out) {
#if defined(MOEKIT_BF16_TABLES)
    if constexpr (sizeof(Out) == 2) {
        return dequantize_row_bf16(Format{}, p, columns, out);
    }
#endif
    dequantize_row<Format>(p, columns, out);
}

struct F32Weights {
    static constexpr int BYTES = 4;
    static inline Floats numbers(const uint8_t* p) { return load(p); }
    template <typename Out>
    static inline void convert(const uint8_t* p, Out* out) {
        put(out, numbers(p));
    }
};

struct F16Weights {
    static constexpr int BYTES = 2;
    static inline Floats numbers(const uint8_t* p) { return load_halves(p); }
    template <typename Out>
    static inline void convert(const uint8_t* p, Out* out) {
        put_normal(out, numbers(p));
    }
};

struct BF16Weights {
    static constexpr int BYTES = 2;
    static inline void convert(const uint8_t* p, float* out) { store(out, load_bf16(p)); }
};

template <typename Weights, typename Out>
inline void convert_row(const uint8_t* p, int64_t columns, Out* out) {
    int64_t at = 0;
    for (; at + 16 <= columns; at += 16) {
        Weights::convert(p + at * Weights::BYTES, out + at);
    }
    if (at < columns) {
        uint8_t padded[16 * Weights::BYTES] = {};
        Out numbers[16];
        memcpy(padded, p + at * Weights::BYTES, static_cast<size_t>((columns - at) * Weights::BYTES));
        Weights::convert(padded, numbers);
        memcpy(out + at, numbers, static_cast<size_t>(columns - at) * sizeof(Out));
    }
}

// `columns` columns from `column` on, both whole blocks, of rows begin to end, which come to lie `stride` apart.
template <typename Out>
inline void dequantize(const Matrix& matrix, int64_t begin, int64_t end, int64_t column, int64_t columns, Out* out,
                       int64_t stride) {
    const int64_t row_bytes = matrix.row_bytes();
    const uint8_t* p = matrix.data + begin * row_bytes + column / block_numbers(matrix.type) * block_bytes(matrix.type);
    // Pieces of rows lie far apart: the processor does not guess where the next begins. What lies behind the last is
    // asked for in vain, unless it is the next that is wanted.
    constexpr int64_t AHEAD = 4, LINE = 64;
    const int64_t piece_bytes = columns / block_numbers(matrix.type) * block_bytes(matrix.type);
    for (int64_t row = begin; row < end; ++row, p += row_bytes, out += stride) {
        if (piece_bytes < row_bytes) {
            for (int64_t at = 0; at < piece_bytes + LINE; at += LINE) {
                __builtin_prefetch(p + AHEAD * row_bytes + at);
            }
        }
        switch (matrix.type) {
            case Type::F32:
                convert_row<F32Weights>(p, columns, out);
                break;
            case Type::F16:
                convert_row<F16Weights>(p, columns, out);
                break;
            case Type::BF16:
                if constexpr (sizeof(Out) == 2) {
                    memcpy(out, p, static_cast<size_t>(columns) * 2);
                } else {
                    convert_row<BF16Weights>(p, columns, out);
                }
                break;
            case Type::Q4_0:
                dequantize_4_bits<Q4_0>(p, columns, out);
                break;
            case Type::Q8_0:
                dequantize_q8_0(p, columns, out);
                break;
            case Type::Q4_K:
                dequantize_4_bits<Q4_K>(p, columns, out);
                break;
            case Type::Q6_K:
                dequantize_row<Q6_K>(p, columns, out);
                break;
        }
    }
}

}  // namespace moekit::MOEKIT_ISA
