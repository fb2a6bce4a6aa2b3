// The vectors of AVX2 with FMA and F16C, two registers each: see portable_numbers.h for what each operation
// means.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "simd/isa.h"
#include "simd/x86.h"

namespace moekit::MOEKIT_ISA {

constexpr int TILE_BATCH = 2;
constexpr int FP32_ROWS = 6, FP32_BLOCKS = 1;
constexpr int PANELS = 1, PANEL_TOKENS = 4;

struct Bytes {
    __m256i low, high;
};
struct Ints {
    __m256i low, high;
};
struct Floats {
    __m256 low, high;
};

inline __m256i load_32(const void* memory) { return _mm256_loadu_si256(static_cast<const __m256i*>(memory)); }
inline void store_32(void* memory, __m256i v) { _mm256_storeu_si256(static_cast<__m256i*>(memory), v); }

inline Bytes load_bytes(const void* memory) {
    return {load_32(memory), load_32(static_cast<const uint8_t*>(memory) + 32)};
}
inline void store_bytes(void* memory, Bytes v) {
    store_32(memory, v.low);
    store_32(static_cast<uint8_t*>(memory) + 32, v.high);
}

inline Bytes quarters(const uint8_t* a, const uint8_t* b, const uint8_t* c, const uint8_t* d) {
    return {_mm256_inserti128_si256(_mm256_castsi128_si256(load_16(a)), load_16(b), 1),
            _mm256_inserti128_si256(_mm256_castsi128_si256(load_16(c)), load_16(d), 1)};
}

inline Bytes even_quarters(const uint8_t* p) { return quarters(p, p + 32, p + 64, p + 96); }
inline Bytes odd_quarters(const uint8_t* p) { return even_quarters(p + 16); }
inline Bytes doubled_quarters(const uint8_t* a, const uint8_t* b) {
    return {_mm256_broadcastsi128_si256(load_16(a)), _mm256_broadcastsi128_si256(load_16(b))};
}

inline __m256i low_nibbles(__m256i v) { return _mm256_and_si256(v, _mm256_set1_epi8(0x0f)); }
inline Bytes low_nibbles(Bytes v) { return {low_nibbles(v.low), low_nibbles(v.high)}; }
inline Bytes high_nibbles(Bytes v) {
    return {low_nibbles(_mm256_srli_epi16(v.low, 4)), low_nibbles(_mm256_srli_epi16(v.high, 4))};
}
inline Bytes plus_128(Bytes v) {
    const __m256i flip = _mm256_set1_epi8(static_cast<char>(0x80));
    return {_mm256_xor_si256(v.low, flip), _mm256_xor_si256(v.high, flip)};
}

inline Bytes minus(Bytes v, int number) {
    const __m256i all = _mm256_set1_epi8(static_cast<char>(number));
    return {_mm256_sub_epi8(v.low, all), _mm256_sub_epi8(v.high, all)};
}

// A shift by 32 gives 0, so that a turn by 0 is whole too.
template <int A, int B>
inline __m256i turn_left(__m256i v) {
    const __m256i left = _mm256_setr_epi32(A, A, A, A, B, B, B, B);
    return _mm256_or_si256(_mm256_sllv_epi32(v, left),
                           _mm256_srlv_epi32(v, _mm256_sub_epi32(_mm256_set1_epi32(32), left)));
}
template <int A, int B, int C, int D>
inline Bytes turn_left(Bytes v) {
    return {turn_left<A, B>(v.low), turn_left<C, D>(v.high)};
}

inline __m256i merge_6_bits(__m256i low, __m256i high) {
    return _mm256_or_si256(low_nibbles(low), _mm256_and_si256(high, _mm256_set1_epi8(0x30)));
}
inline Bytes merge_6_bits(Bytes low, Bytes high) {
    return {merge_6_bits(low.low, high.low), merge_6_bits(low.high, high.high)};
}

inline void transpose(__m256i& p, __m256i& q, __m256i& r, __m256i& s) {
    const __m256i a = _mm256_unpacklo_epi32(p, q), b = _mm256_unpackhi_epi32(p, q);
    const __m256i c = _mm256_unpacklo_epi32(r, s), d = _mm256_unpackhi_epi32(r, s);
    p = _mm256_unpacklo_epi64(a, c);
    q = _mm256_unpackhi_epi64(a, c);
    r = _mm256_unpacklo_epi64(b, d);
    s = _mm256_unpackhi_epi64(b, d);
}
inline void transpose(Bytes (&v)[4]) {
    transpose(v[0].low, v[1].low, v[2].low, v[3].low);
    transpose(v[0].high, v[1].high, v[2].high, v[3].high);
}

template <int STRIDE>
inline void four_runs(const uint8_t* memory, int64_t distance, Bytes (&out)[8]) {
    const auto run = [&](int index, int half) {
        const uint8_t* p = memory + index * STRIDE + 16 * half;
        return quarters(p, p + distance, p + 2 * distance, p + 3 * distance);
    };
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
        Bytes v[4] = {run(0, half), run(1, half), run(2, half), run(3, half)};
        transpose(v);
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
            out[4 * half + i] = v[i];
        }
    }
}

inline Bytes spread_word(const int8_t* memory) {
    int word;
    memcpy(&word, memory, sizeof word);
    const __m256i v = _mm256_set1_epi32(word);
    return {v, v};
}
inline Bytes repeat(const int8_t* memory) {
    const __m256i twice = _mm256_broadcastsi128_si256(load_16(memory));
    return {twice, twice};
}
inline Ints repeat(const int32_t* memory) {
    const __m256i twice = _mm256_broadcastsi128_si256(load_16(memory));
    return {twice, twice};
}
inline Floats repeat(const float* memory) {
    const __m256 twice = _mm256_castsi256_ps(_mm256_broadcastsi128_si256(load_16(memory)));
    return {twice, twice};
}
inline Floats masked(Floats v, Ints mask) {
    return {_mm256_and_ps(v.low, _mm256_castsi256_ps(mask.low)), _mm256_and_ps(v.high, _mm256_castsi256_ps(mask.high))};
}
inline Ints set_ints(int32_t number) { return {_mm256_set1_epi32(number), _mm256_set1_epi32(number)}; }
inline Ints add(Ints a, Ints b) { return {_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)}; }

inline __m256i pair_sums(__m256i words) { return _mm256_madd_epi16(words, _mm256_set1_epi16(1)); }

// The instruction for bytes makes 16-bit sums of two products. Of nibbles, eight such sums on end fit: 8 * 2 * 15 *
// 127.
template <int MOST>
struct Dot {
    static_assert(MOST <= 15);
    Ints from;
    __m256i low, high;

    inline void start(Ints of) {
        from = of;
        low = high = _mm256_setzero_si256();
    }
    inline void add(Bytes u, Bytes s) {
        low = _mm256_add_epi16(low, _mm256_maddubs_epi16(u.low, s.low));
        high = _mm256_add_epi16(high, _mm256_maddubs_epi16(u.high, s.high));
    }
    inline Ints sum() const {
        return {_mm256_add_epi32(from.low, pair_sums(low)), _mm256_add_epi32(from.high, pair_sums(high))};
    }
};

// Of 6 bits, one does.
template <>
struct Dot<63> {
    Ints of;

    inline void start(Ints from) { of = from; }
    inline void add(Bytes u, Bytes s) {
        of.low = _mm256_add_epi32(of.low, pair_sums(_mm256_maddubs_epi16(u.low, s.low)));
        of.high = _mm256_add_epi32(of.high, pair_sums(_mm256_maddubs_epi16(u.high, s.high)));
    }
    inline Ints sum() const { return of; }
};

// 255 * 127 * 2 does not fit, 128 * 127 * 2 does: signed weights give their signs to the other side.
constexpr bool SIGNED_BYTES = true;
template <>
struct Dot<255> {
    Ints of;

    static inline __m256i products(__m256i w, __m256i s) {
        return pair_sums(_mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(s, w)));
    }
    inline void start(Ints from) { of = from; }
    inline void add(Bytes w, Bytes s) {
        of.low = _mm256_add_epi32(of.low, products(w.low, s.low));
        of.high = _mm256_add_epi32(of.high, products(w.high, s.high));
    }
    inline Ints sum() const { return of; }
};

inline Floats to_floats(Ints v) { return {_mm256_cvtepi32_ps(v.low), _mm256_cvtepi32_ps(v.high)}; }

inline Floats set(float number) { return {_mm256_set1_ps(number), _mm256_set1_ps(number)}; }
inline Floats set_half(const uint8_t* memory) { return set(load_half(memory)); }
inline Floats load(const void* memory) {
    const Bytes bits = load_bytes(memory);
    return {_mm256_castsi256_ps(bits.low), _mm256_castsi256_ps(bits.high)};
}
inline void store(float* memory, Floats v) {
    _mm256_storeu_ps(memory, v.low);
    _mm256_storeu_ps(memory + 8, v.high);
}
inline Floats add(Floats a, Floats b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
inline Floats subtract(Floats a, Floats b) { return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
inline Floats multiply(Floats a, Floats b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
inline Floats multiply_add(Floats a, Floats b, Floats c) {
    return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
inline Floats fused(Floats a, Floats b, Floats c) { return multiply_add(a, b, c); }
inline Floats magnitudes(Floats v) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, v.low), _mm256_andnot_ps(sign, v.high)};
}
inline Floats greater(Floats a, Floats b) { return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }
inline Floats to_nearest(Floats v) {
    constexpr int MODE = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(v.low, MODE), _mm256_round_ps(v.high, MODE)};
}

inline float sum(Floats v) {
    const __m256 eight = _mm256_add_ps(v.low, v.high);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
inline float greatest(Floats v) {
    const __m256 eight = _mm256_max_ps(v.low, v.high);
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

inline Floats load_halves(const uint8_t* memory) {
    return {_mm256_cvtph_ps(load_16(memory)), _mm256_cvtph_ps(load_16(memory + 16))};
}

inline __m256 widen_bf16(__m128i v) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(v), 16)); }
inline Floats load_bf16(const void* memory) {
    return {widen_bf16(load_16(memory)), widen_bf16(load_16(static_cast<const uint8_t*>(memory) + 16))};
}

inline __m256i rounded_to_bf16(__m256 v) {
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    return _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
}
inline void store_bf16(uint16_t* memory, Floats v) {
    const __m256i packed = _mm256_packus_epi32(rounded_to_bf16(v.low), rounded_to_bf16(v.high));
    store_32(memory, _mm256_permute4x64_epi64(packed, 0xd8));
}

inline void store_normal_bf16(uint16_t* memory, Floats v) { store_bf16(memory, v); }

// Even and odd numbers each make a sum of their own: a word's high half is one as it is, its low half after a shift.
inline __m256 dot_bf16(__m256 to, __m256i p, __m256i q) {
    const __m256i high = _mm256_set1_epi32(static_cast<int>(0xffff0000));
    const __m256 low = _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_slli_epi32(p, 16)),
                                       _mm256_castsi256_ps(_mm256_slli_epi32(q, 16)), to);
    return _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_and_si256(p, high)),
                           _mm256_castsi256_ps(_mm256_and_si256(q, high)), low);
}
inline Floats dot_bf16(Floats to, Bytes p, Bytes q) {
    return {dot_bf16(to.low, p.low, q.low), dot_bf16(to.high, p.high, q.high)};
}

inline Floats signed_bytes(const uint8_t* memory) {
    const __m128i v = load_16(memory);
    return to_floats(Ints{_mm256_cvtepi8_epi32(v), _mm256_cvtepi8_epi32(_mm_srli_si128(v, 8))});
}
inline void store_signed_bytes(int8_t* memory, Floats v) {
    const __m256i words = _mm256_packs_epi32(_mm256_cvtps_epi32(v.low), _mm256_cvtps_epi32(v.high));
    const __m256i ordered = _mm256_permute4x64_epi64(words, 0xd8);
    const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(ordered), _mm256_extracti128_si256(ordered, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(memory), bytes);
}

inline Floats twice(__m256 v) {
    return {_mm256_permutevar8x32_ps(v, _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3)),
            _mm256_permutevar8x32_ps(v, _mm256_setr_epi32(4, 4, 5, 5, 6, 6, 7, 7))};
}
template <int STRIDE>
inline Floats halves_twice(const uint8_t* memory) {
    return twice(_mm256_cvtph_ps(gather_halves<STRIDE>(memory)));
}
inline Floats bytes_in_turn(uint64_t first, uint64_t second) {
    const __m128i bytes = _mm_unpacklo_epi8(_mm_cvtsi64_si128(static_cast<int64_t>(first)),
                                            _mm_cvtsi64_si128(static_cast<int64_t>(second)));
    return to_floats(Ints{_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8))});
}
inline Floats two_halves(const uint8_t* memory) {
    int halves;
    memcpy(&halves, memory, sizeof halves);
    const __m256 eight = _mm256_cvtph_ps(_mm_set1_epi32(halves));
    return {eight, eight};
}

// Numbers 0, 2, 4, 6, then the others.
template <int STRIDE>
inline __m256 even_and_odd_halves(const uint8_t* p) {
    return _mm256_cvtph_ps(_mm_set_epi16(half_at(p + 7 * STRIDE), half_at(p + 5 * STRIDE), half_at(p + 3 * STRIDE),
                                         half_at(p + STRIDE), half_at(p + 6 * STRIDE), half_at(p + 4 * STRIDE),
                                         half_at(p + 2 * STRIDE), half_at(p)));
}
template <int STRIDE>
inline void strided_halves(const uint8_t* memory, int64_t distance, Floats (&out)[2]) {
    const __m256 a = even_and_odd_halves<STRIDE>(memory), b = even_and_odd_halves<STRIDE>(memory + distance);
    const __m256 c = even_and_odd_halves<STRIDE>(memory + 2 * distance);
    const __m256 d = even_and_odd_halves<STRIDE>(memory + 3 * distance);
    out[0] = {_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(c, d, 0x20)};
    out[1] = {_mm256_permute2f128_ps(a, b, 0x31), _mm256_permute2f128_ps(c, d, 0x31)};
}

template <int WORD>
inline __m256 quarter_halves(__m256i v) {
    const __m256i order = _mm256_set1_epi16(static_cast<short>((2 * WORD + 1) << 8 | 2 * WORD));
    const __m256i words = _mm256_shuffle_epi8(v, order);
    return _mm256_cvtph_ps(_mm_unpacklo_epi64(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}
template <int WORD>
inline Floats quarter_halves(Bytes v) {
    return {quarter_halves<WORD>(v.low), quarter_halves<WORD>(v.high)};
}

template <int I>
inline __m256i signed_byte(__m256i v) {
    return _mm256_srai_epi32(_mm256_slli_epi32(v, 24 - 8 * I), 24);
}
template <int I>
inline Floats signed_byte(Bytes v) {
    return to_floats(Ints{signed_byte<I>(v.low), signed_byte<I>(v.high)});
}

inline __m256i spread_6_bits(__m256i heads) {
    const __m256i low = _mm256_and_si256(heads, _mm256_set1_epi8(0x3f));
    const __m256i top = _mm256_and_si256(_mm256_srli_epi16(heads, 2), _mm256_set1_epi8(0x30));
    const __m256i turns = _mm256_setr_epi32(0, 0, 4, 0, 0, 0, 4, 0);
    const __m256i last = _mm256_srlv_epi32(_mm256_shuffle_epi32(heads, 0xff), turns);
    const __m256i high = _mm256_or_si256(low_nibbles(last), top);
    // The scales of all blocks are the upper half of the first of these two, the minimums the lower half of the second.
    const __m256i scales = _mm256_unpacklo_epi32(low, high), minimums = _mm256_unpackhi_epi32(low, high);
    const __m128i order = _mm_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15);
    return _mm256_shuffle_epi8(_mm256_alignr_epi8(minimums, scales, 8), _mm256_broadcastsi128_si256(order));
}

inline void transpose(__m256 (&r)[8]) {
    __m256 t[8];
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        for (int j = 0; j < 2; ++j) {
            r[i + 2 * j] = _mm256_shuffle_ps(t[i + j], t[i + j + 2], 0x44);
            r[i + 2 * j + 1] = _mm256_shuffle_ps(t[i + j], t[i + j + 2], 0xee);
        }
    }
    for (int i = 0; i < 4; ++i) {
        t[i] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x20);
        t[i + 4] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x31);
    }
    for (int i = 0; i < 8; ++i) {
        r[i] = t[i];
    }
}
inline void transpose(Floats (&rows)[16]) {
    __m256 parts[4][8];
    for (int i = 0; i < 8; ++i) {
        parts[0][i] = rows[i].low;
        parts[1][i] = rows[i + 8].low;
        parts[2][i] = rows[i].high;
        parts[3][i] = rows[i + 8].high;
    }
    for (auto& part : parts) {
        transpose(part);
    }
    for (int i = 0; i < 8; ++i) {
        rows[i] = {parts[0][i], parts[1][i]};
        rows[i + 8] = {parts[2][i], parts[3][i]};
    }
}

inline Bytes spread_6_bits(Bytes heads) { return {spread_6_bits(heads.low), spread_6_bits(heads.high)}; }

}  // namespace moekit::MOEKIT_ISA
