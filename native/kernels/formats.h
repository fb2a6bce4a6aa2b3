// GGUF's block formats as 256 numbers each: what the integer product and the unpacking start from.
//
// number = scale of its half block (16 numbers) * (its unsigned bits - ZERO), or scale of its block * bits - minimum.
// For products, 256 numbers of each of four rows: vector i of eight has bits 4 i to 4 i + 3 of the even or of the odd
// blocks of all rows, 32 bits a block, a quarter of the vector a row; scales lie accordingly. MOST is the bits'
// greatest.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/activations.h"
#include "simd/isa.h"

#include MOEKIT_VECTORS

namespace moekit::MOEKIT_ISA {

struct Unpacked {
    // First halves of the even blocks of 32, their second halves, the odd blocks.
    Bytes even_first, even_second, odd_first, odd_second;
    // Of each half block; or, where the format has minimums, of each block its scale before its minimum.
    Floats scales;
};

// 256 numbers of four rows of weights, `distance` bytes apart.
struct Rows {
    const uint8_t* p;
    int64_t distance;

    // 16 bytes of each.
    inline Bytes at(int place) const {
        const uint8_t* q = p + place;
        return quarters(q, q + distance, q + 2 * distance, q + 3 * distance);
    }
};

// Of the even (0) and odd (1) blocks of four rows.
struct Scales {
    Floats of[2];
    Floats second[2];  // where the format has them: of second halves, or minimums
};

// As it lies in files; for products plus 128, or signed where SIGNED_BYTES.
struct Q8_0 {
    static constexpr int BLOCK = 32, BYTES = 34, ZERO = 128, MOST = 255;
    static constexpr bool MINIMUMS = false, HALVES = false, RUNS = true;

    MOEKIT_INLINE static Scales scales(const Rows& rows) {
        Scales s;
        strided_halves<BYTES>(rows.p, rows.distance, s.of);
        return s;
    }

    template <int ODD>
    MOEKIT_INLINE static void bits(const Rows& rows, Bytes (&w)[8]) {
        four_runs<2 * BYTES>(rows.p + ODD * BYTES + 2, rows.distance, w);
#pragma GCC unroll 8
        for (Bytes& v : w) {
            v = SIGNED_BYTES ? v : plus_128(v);
        }
    }

#if defined(MOEKIT_ROW_RUNS)
    template <int ODD>
    MOEKIT_INLINE static void row_bits(const uint8_t* p, Bytes (&w)[2]) {
        row_runs<2 * BYTES>(p + ODD * BYTES + 2, w);
        w[0] = plus_128(w[0]);
        w[1] = plus_128(w[1]);
    }
#endif

    // Of each block, or half block: what takes ZERO off its sums; null where nothing does.
    static inline const int32_t* offsets(const ActivationBlock& x, int) { return SIGNED_BYTES ? nullptr : x.minus_128; }
};

struct Q4_0 {
    static constexpr int BLOCK = 32, BYTES = 18, ZERO = 8, MOST = 15;
    static constexpr bool MINIMUMS = false, HALVES = false, RUNS = true;

    MOEKIT_INLINE static Scales scales(const Rows& rows) {
        Scales s;
        strided_halves<BYTES>(rows.p, rows.distance, s.of);
        return s;
    }

    template <int ODD>
    MOEKIT_INLINE static void bits(const Rows& rows, Bytes (&w)[8]) {
        constexpr int FROM = ODD * BYTES + 2;
        Bytes v[4] = {rows.at(FROM), rows.at(FROM + 2 * BYTES), rows.at(FROM + 4 * BYTES), rows.at(FROM + 6 * BYTES)};
        transpose(v);
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
            w[i] = low_nibbles(v[i]);
            w[4 + i] = high_nibbles(v[i]);
        }
    }

#if defined(MOEKIT_ROW_RUNS)
    template <int ODD>
    MOEKIT_INLINE static void row_bits(const uint8_t* p, Bytes (&w)[2]) {
        const Bytes runs = short_runs(p + ODD * BYTES + 2);
        w[0] = low_nibbles(runs);
        w[1] = high_nibbles(runs);
    }
#endif

    static inline const int32_t* offsets(const ActivationBlock& x, int) { return x.minus_8; }

    static inline Unpacked unpack(const uint8_t* p) {
        const uint8_t* q = p + 2;
        const Bytes even = quarters(q, q + 36, q + 72, q + 108);
        const Bytes odd = quarters(q + 18, q + 54, q + 90, q + 126);
        Unpacked u;
        u.even_first = low_nibbles(even);
        u.even_second = high_nibbles(even);
        u.odd_first = low_nibbles(odd);
        u.odd_second = high_nibbles(odd);
        u.scales = halves_twice<BYTES>(p);
        return u;
    }
};

// fp16 scale and minimum of all, eight 6-bit scales and minimums in 12 bytes, then 4 bits a number: block 2j in the low
// and 2j + 1 in the high halves of 32 bytes.
struct Q4_K {
    static constexpr int BLOCK = 256, BYTES = 144, ZERO = 0, MOST = 15;
    static constexpr bool MINIMUMS = true, HALVES = false, RUNS = true;

    static inline Floats scales(const uint8_t* p) {
        uint32_t a, b, c;
        memcpy(&a, p + 4, 4);
        memcpy(&b, p + 8, 4);
        memcpy(&c, p + 12, 4);
        // Blocks 0 to 3 have their 6 bits in a and b; 4 to 7 four bits in c, and two at the top of a's and b's bytes.
        const uint64_t scales = (a & 0x3f3f3f3f) | static_cast<uint64_t>((c & 0x0f0f0f0f) | (a >> 2 & 0x30303030))
                                                       << 32;
        const uint64_t minimums =
            (b & 0x3f3f3f3f) | static_cast<uint64_t>((c >> 4 & 0x0f0f0f0f) | (b >> 2 & 0x30303030)) << 32;
        return multiply(two_halves(p), bytes_in_turn(scales, minimums));
    }

    static inline Unpacked unpack(const uint8_t* p) {
        const uint8_t* q = p + 16;
        const Bytes first = even_quarters(q);
        const Bytes second = odd_quarters(q);
        Unpacked u;
        u.even_first = low_nibbles(first);
        u.even_second = low_nibbles(second);
        u.odd_first = high_nibbles(first);
        u.odd_second = high_nibbles(second);
        u.scales = scales(p);
        return u;
    }

    MOEKIT_INLINE static Scales scales(const Rows& rows) {
        const Bytes heads = rows.at(0);
        const Floats scale = quarter_halves<0>(heads), minimum = quarter_halves<1>(heads);
        const Bytes bits = spread_6_bits(heads);
        return {{multiply(scale, signed_byte<0>(bits)), multiply(scale, signed_byte<1>(bits))},
                {multiply(minimum, signed_byte<2>(bits)), multiply(minimum, signed_byte<3>(bits))}};
    }

    template <int ODD>
    MOEKIT_INLINE static void bits(const Rows& rows, Bytes (&w)[8]) {
        four_runs<32>(rows.p + 16, rows.distance, w);
#pragma GCC unroll 8
        for (Bytes& v : w) {
            v = ODD ? high_nibbles(v) : low_nibbles(v);
        }
    }

#if defined(MOEKIT_ROW_RUNS)
    template <int ODD>
    MOEKIT_INLINE static void row_bits(const uint8_t* p, Bytes (&w)[2]) {
        row_runs<32>(p + 16, w);
        w[0] = ODD ? high_nibbles(w[0]) : low_nibbles(w[0]);
        w[1] = ODD ? high_nibbles(w[1]) : low_nibbles(w[1]);
    }
#endif

    static inline const int32_t* offsets(const ActivationBlock&, int) { return nullptr; }
};

// Of each 128: 64 bytes with the low 4 bits (blocks 0 and 1 in the low, 2 and 3 in the high halves), 32 bytes with the
// high 2 bits of all four blocks; then 16 signed scales of half blocks, and an fp16 scale of all.
struct Q6_K {
    static constexpr int BLOCK = 256, BYTES = 210, ZERO = 32, MOST = 63;
    static constexpr bool MINIMUMS = false, HALVES = true, RUNS = false;

    // Blocks B, B + 2, B + 4 and B + 6, the half of them that begins at `from`.
    template <int B>
    static inline Bytes part(const uint8_t* low, const uint8_t* high, int from) {
        const uint8_t* l = low + 32 * B + from;
        const uint8_t* h = high + from;
        constexpr int FIRST = B == 0 ? 4 : 2;     // bits 0 and 1, or 2 and 3, come to 4 and 5
        constexpr int THIRD = (FIRST + 28) % 32;  // so do 4 and 5, or 6 and 7
        return merge_6_bits(turn_left<0, 28, 0, 28>(doubled_quarters(l, l + 64)),
                            turn_left<FIRST, THIRD, FIRST, THIRD>(doubled_quarters(h, h + 32)));
    }

    static inline Unpacked unpack(const uint8_t* p) {
        Unpacked u;
        u.even_first = part<0>(p, p + 128, 0);
        u.even_second = part<0>(p, p + 128, 16);
        u.odd_first = part<1>(p, p + 128, 0);
        u.odd_second = part<1>(p, p + 128, 16);
        u.scales = multiply(set(load_half(p + 208)), signed_bytes(p + 192));
        return u;
    }

    MOEKIT_INLINE static Scales scales(const Rows& rows) {
        const Floats scale = quarter_halves<7>(rows.at(BYTES - 16));
        const Bytes bits = rows.at(192);
        return {{multiply(scale, signed_byte<0>(bits)), multiply(scale, signed_byte<2>(bits))},
                {multiply(scale, signed_byte<1>(bits)), multiply(scale, signed_byte<3>(bits))}};
    }

    template <int ODD>
    MOEKIT_INLINE static void bits(const Rows& rows, Bytes (&w)[8]) {
        constexpr int FIRST = ODD ? 2 : 4, SECOND = ODD ? 30 : 0;  // bring their two bits to 4 and 5
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) {
            Bytes v[4];
#pragma GCC unroll 2
            for (int part = 0; part < 2; ++part) {
                const Bytes low = rows.at(64 * part + 32 * ODD + 16 * half);
                const Bytes high = rows.at(128 + 32 * part + 16 * half);
                v[2 * part] = merge_6_bits(low, turn_left<FIRST, FIRST, FIRST, FIRST>(high));
                v[2 * part + 1] =
                    merge_6_bits(turn_left<28, 28, 28, 28>(low), turn_left<SECOND, SECOND, SECOND, SECOND>(high));
            }
            transpose(v);
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) {
                w[4 * half + i] = v[i];
            }
        }
    }

    static inline const int32_t* offsets(const ActivationBlock& x, int half) { return x.minus_32[half]; }
};

}  // namespace moekit::MOEKIT_ISA
