// The vectors of AVX-512 (F, BW, VL, DQ, VNNI): see portable_numbers.h for what each operation means.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "simd/isa.h"
#include "simd/x86.h"

namespace moekit::MOEKIT_ISA {

constexpr int TILE_BATCH = 8;
constexpr int FP32_ROWS = 8, FP32_BLOCKS = 3;
constexpr int PANELS = 2, PANEL_TOKENS = 8;

#define MOEKIT_ROW_RUNS

using Bytes = __m512i;
using Ints = __m512i;
using Floats = __m512;

inline Bytes load_bytes(const void* memory) { return _mm512_loadu_si512(memory); }
inline void store_bytes(void* memory, Bytes v) { _mm512_storeu_si512(memory, v); }

// Masks instead of insertions, which took longer when measured.
inline Bytes quarters(const uint8_t* a, const uint8_t* b, const uint8_t* c, const uint8_t* d) {
    const __m512i ab = _mm512_mask_broadcast_i32x4(_mm512_castsi128_si512(load_16(a)), 0x00f0, load_16(b));
    return _mm512_mask_broadcast_i32x4(_mm512_mask_broadcast_i32x4(ab, 0x0f00, load_16(c)), 0xf000, load_16(d));
}

inline Bytes even_quarters(const uint8_t* p) { return _mm512_shuffle_i32x4(load_bytes(p), load_bytes(p + 64), 0x88); }
inline Bytes odd_quarters(const uint8_t* p) { return _mm512_shuffle_i32x4(load_bytes(p), load_bytes(p + 64), 0xdd); }
inline Bytes doubled_quarters(const uint8_t* a, const uint8_t* b) {
    const __m512i low = _mm512_castsi256_si512(_mm256_broadcastsi128_si256(load_16(a)));
    return _mm512_inserti64x4(low, _mm256_broadcastsi128_si256(load_16(b)), 1);
}

inline Bytes low_nibbles(Bytes v) { return _mm512_and_si512(v, _mm512_set1_epi8(0x0f)); }
inline Bytes high_nibbles(Bytes v) { return low_nibbles(_mm512_srli_epi16(v, 4)); }
inline Bytes plus_128(Bytes v) { return _mm512_xor_si512(v, _mm512_set1_epi8(static_cast<char>(0x80))); }

inline Bytes minus(Bytes v, int number) { return _mm512_sub_epi8(v, _mm512_set1_epi8(static_cast<char>(number))); }

template <int A, int B, int C, int D>
inline Bytes turn_left(Bytes v) {
    return _mm512_rolv_epi32(v, _mm512_setr_epi32(A, A, A, A, B, B, B, B, C, C, C, C, D, D, D, D));
}

inline Bytes merge_6_bits(Bytes low, Bytes high) {
    return _mm512_or_si512(low_nibbles(low), _mm512_and_si512(high, _mm512_set1_epi8(0x30)));
}

inline void transpose(Bytes (&v)[4]) {
    const __m512i a = _mm512_unpacklo_epi32(v[0], v[1]), b = _mm512_unpackhi_epi32(v[0], v[1]);
    const __m512i c = _mm512_unpacklo_epi32(v[2], v[3]), d = _mm512_unpackhi_epi32(v[2], v[3]);
    v[0] = _mm512_unpacklo_epi64(a, c);
    v[1] = _mm512_unpackhi_epi64(a, c);
    v[2] = _mm512_unpacklo_epi64(b, d);
    v[3] = _mm512_unpackhi_epi64(b, d);
}

inline __m512i two_runs(const uint8_t* a, const uint8_t* b) {
    const __m256i first = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(a));
    const __m256i second = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b));
    return b == a + 32 ? load_bytes(a) : _mm512_mask_broadcast_i64x4(_mm512_castsi256_si512(first), 0xf0, second);
}

inline void transpose_quarters(const Bytes (&v)[4], Bytes* out) {
    const __m512i a = _mm512_shuffle_i32x4(v[0], v[1], 0x88), b = _mm512_shuffle_i32x4(v[0], v[1], 0xdd);
    const __m512i c = _mm512_shuffle_i32x4(v[2], v[3], 0x88), d = _mm512_shuffle_i32x4(v[2], v[3], 0xdd);
    out[0] = _mm512_shuffle_i32x4(a, c, 0x88);
    out[1] = _mm512_shuffle_i32x4(b, d, 0x88);
    out[2] = _mm512_shuffle_i32x4(a, c, 0xdd);
    out[3] = _mm512_shuffle_i32x4(b, d, 0xdd);
}

template <int STRIDE>
inline void row_runs(const uint8_t* p, Bytes (&out)[2]) {
    const __m512i first = _mm512_setr_epi32(0, 8, 16, 24, 1, 9, 17, 25, 2, 10, 18, 26, 3, 11, 19, 27);
    const __m512i last = _mm512_add_epi32(first, _mm512_set1_epi32(4));
    const __m512i a = two_runs(p, p + STRIDE), b = two_runs(p + 2 * STRIDE, p + 3 * STRIDE);
    out[0] = _mm512_permutex2var_epi32(a, first, b);
    out[1] = _mm512_permutex2var_epi32(a, last, b);
}

template <int STRIDE>
inline void four_runs(const uint8_t* memory, int64_t distance, Bytes (&out)[8]) {
    Bytes low[4], high[4];
#pragma GCC unroll 4
    for (int row = 0; row < 4; ++row) {
        Bytes runs[2];
        row_runs<STRIDE>(memory + row * distance, runs);
        low[row] = runs[0];
        high[row] = runs[1];
    }
    transpose_quarters(low, out);
    transpose_quarters(high, out + 4);
}

// Four runs of 16 bytes, 36 apart, four bytes of each in turn. They are 124 bytes, and no more are read.
inline Bytes short_runs(const uint8_t* p) {
    const __m512i order = _mm512_setr_epi32(0, 9, 18, 27, 1, 10, 19, 28, 2, 11, 20, 29, 3, 12, 21, 30);
    return _mm512_permutex2var_epi32(load_bytes(p), order, _mm512_maskz_loadu_epi32(0x7fff, p + 64));
}

inline Ints pairs_of_quarters(Ints a, Ints b) {
    return _mm512_add_epi32(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xdd));
}
inline Ints quarter_totals(const Ints (&v)[4]) {
    return pairs_of_quarters(pairs_of_quarters(v[0], v[1]), pairs_of_quarters(v[2], v[3]));
}

inline Bytes spread_word(const int8_t* memory) {
    int word;
    memcpy(&word, memory, sizeof word);
    return _mm512_set1_epi32(word);
}
inline Bytes repeat(const int8_t* memory) { return _mm512_broadcast_i32x4(load_16(memory)); }
inline Ints repeat(const int32_t* memory) { return _mm512_broadcast_i32x4(load_16(memory)); }
inline Floats repeat(const float* memory) { return _mm512_broadcast_f32x4(_mm_loadu_ps(memory)); }
inline Ints set_ints(int32_t number) { return _mm512_set1_epi32(number); }
inline Floats masked(Floats v, Ints mask) {
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(v), mask));
}
inline Ints add(Ints a, Ints b) { return _mm512_add_epi32(a, b); }

constexpr bool SIGNED_BYTES = false;
template <int MOST>
struct Dot {
    Ints of;

    inline void start(Ints from) { of = from; }
    inline void add(Bytes u, Bytes s) { of = _mm512_dpbusd_epi32(of, u, s); }
    inline Ints sum() const { return of; }
};
inline Floats to_floats(Ints v) { return _mm512_cvtepi32_ps(v); }

inline Floats set(float number) { return _mm512_set1_ps(number); }
inline Floats set_half(const uint8_t* memory) { return _mm512_cvtph_ps(_mm256_set1_epi16(half_at(memory))); }
inline Floats load(const void* memory) { return _mm512_loadu_ps(memory); }
inline void store(float* memory, Floats v) { _mm512_storeu_ps(memory, v); }
inline Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
inline Floats subtract(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
inline Floats multiply(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
inline Floats multiply_add(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
inline Floats fused(Floats a, Floats b, Floats c) { return multiply_add(a, b, c); }
inline Floats magnitudes(Floats v) { return _mm512_abs_ps(v); }
inline Floats greater(Floats a, Floats b) { return _mm512_max_ps(a, b); }
inline Floats to_nearest(Floats v) { return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline float sum(Floats v) { return _mm512_reduce_add_ps(v); }
inline float greatest(Floats v) { return _mm512_reduce_max_ps(v); }

inline Floats load_halves(const uint8_t* memory) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(memory)));
}

inline Floats load_bf16(const void* memory) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(memory)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

// The processor's own conversion takes numbers below 2^-126 for 0.
inline void store_bf16(uint16_t* memory, Floats v) {
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    const __m512i kept = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(memory), _mm512_cvtepi32_epi16(_mm512_srli_epi32(kept, 16)));
}

#if defined(__AVX512BF16__)
#define MOEKIT_BF16_TABLES

inline __m256i load_32(const void* memory) { return _mm256_loadu_si256(static_cast<const __m256i*>(memory)); }
inline __m256i low_nibbles(__m256i v) { return _mm256_and_si256(v, _mm256_set1_epi8(0x0f)); }
inline __m256i high_nibbles(__m256i v) { return low_nibbles(_mm256_srli_epi16(v, 4)); }

// The low nibbles of 16 bytes before their high ones.
inline __m256i all_nibbles(const uint8_t* memory) {
    const __m256i twice = _mm256_broadcastsi128_si256(load_16(memory));
    return low_nibbles(_mm256_srlv_epi64(twice, _mm256_setr_epi64x(0, 0, 4, 4)));
}

// 32 numbers of a table of 16, rounded to bf16; bytes say which.
inline void look_up(Floats table, __m256i which, uint16_t* out) {
    const __m512i rounded = _mm512_castsi256_si512(reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(table)));
    _mm512_storeu_si512(out, _mm512_permutexvar_epi16(_mm512_cvtepu8_epi16(which), rounded));
}

inline void store_normal_bf16(uint16_t* memory, Floats v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(memory), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v)));
}

inline Floats dot_bf16(Floats to, Bytes a, Bytes b) {
    return _mm512_dpbf16_ps(to, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
}
#else
inline void store_normal_bf16(uint16_t* memory, Floats v) { store_bf16(memory, v); }

// Even and odd numbers each make a sum of their own: a word's high half is one as it is, its low half after a shift.
inline Floats dot_bf16(Floats to, Bytes p, Bytes q) {
    const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000));
    const Floats low =
        multiply_add(_mm512_castsi512_ps(_mm512_slli_epi32(p, 16)), _mm512_castsi512_ps(_mm512_slli_epi32(q, 16)), to);
    return multiply_add(_mm512_castsi512_ps(_mm512_and_si512(p, high)), _mm512_castsi512_ps(_mm512_and_si512(q, high)),
                        low);
}
#endif

inline Floats signed_bytes(const uint8_t* memory) { return to_floats(_mm512_cvtepi8_epi32(load_16(memory))); }

inline void store_signed_bytes(int8_t* memory, Floats v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(memory), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v)));
}

// The wanted ones of the 32 words from `memory` on; the others are those of v.
template <uint32_t WANTED>
inline __m512i words_at(__m512i v, const uint8_t* memory) {
    return _mm512_mask_loadu_epi16(v, WANTED, memory);
}

// Scales lie at every 9th or 17th word: whole vectors hold several of them, at places that do not meet, so that they
// are laid on top of each other and put in order once. Nothing behind the blocks is read: what is not wanted is not
// loaded.
template <int STRIDE>
inline Floats halves_twice(const uint8_t* memory) {
    static_assert(STRIDE == 18);
    const __m256i order = _mm256_setr_epi16(0, 0, 9, 9, 18, 18, 27, 27, 4, 4, 13, 13, 22, 22, 31, 31);
    __m512i words = words_at<1u << 0 | 1u << 9 | 1u << 18 | 1u << 27>(_mm512_setzero_si512(), memory);
    words = words_at<1u << 4 | 1u << 13 | 1u << 22 | 1u << 31>(words, memory + 64);
    words = _mm512_permutexvar_epi16(_mm512_castsi256_si512(order), words);
    return _mm512_cvtph_ps(_mm512_castsi512_si256(words));
}

inline Floats bytes_in_turn(uint64_t first, uint64_t second) {
    const __m128i bytes = _mm_unpacklo_epi8(_mm_cvtsi64_si128(static_cast<int64_t>(first)),
                                            _mm_cvtsi64_si128(static_cast<int64_t>(second)));
    return to_floats(_mm512_cvtepu8_epi32(bytes));
}
inline Floats two_halves(const uint8_t* memory) {
    int halves;
    memcpy(&halves, memory, sizeof halves);
    return _mm512_cvtph_ps(_mm256_set1_epi32(halves));
}

// Two rows share a vector of words: those of the first lie where the masks say, those of the second one word on or
// back.
template <int STRIDE>
inline __m512i words_of_two(const uint8_t* a, const uint8_t* b) {
    if constexpr (STRIDE == 18) {
        constexpr uint32_t FIRST = 1u << 0 | 1u << 9 | 1u << 18 | 1u << 27, LAST = FIRST << 4;
        __m512i words = words_at<FIRST>(_mm512_setzero_si512(), a);
        words = words_at<LAST>(words, a + 64);
        words = words_at<(FIRST << 1)>(words, b - 2);
        return words_at<(LAST >> 1)>(words, b + 66);
    } else {
        static_assert(STRIDE == 34);
        constexpr uint32_t FIRST = 1u << 0 | 1u << 17;
        __m512i words = words_at<FIRST>(_mm512_setzero_si512(), a);
        words = words_at<(FIRST << 2)>(words, a + 64);
        words = words_at<(FIRST << 4)>(words, a + 128);
        words = words_at<(FIRST << 6)>(words, a + 192);
        words = words_at<(FIRST << 1)>(words, b - 2);
        words = words_at<(FIRST << 3)>(words, b + 62);
        words = words_at<(FIRST << 5)>(words, b + 126);
        return words_at<(FIRST << 7)>(words, b + 190);
    }
}

template <int STRIDE>
inline void strided_halves(const uint8_t* memory, int64_t distance, Floats (&out)[2]) {
    // Of the first row and the second, even and odd blocks; the other two rows' words go to the other halves of these.
    const __m256i even = STRIDE == 18 ? _mm256_setr_epi16(0, 18, 4, 22, 1, 19, 3, 21, 0, 18, 4, 22, 1, 19, 3, 21)
                                      : _mm256_setr_epi16(0, 2, 4, 6, 1, 3, 5, 7, 0, 2, 4, 6, 1, 3, 5, 7);
    const __m256i odd = STRIDE == 18
                            ? _mm256_setr_epi16(9, 27, 13, 31, 10, 28, 12, 30, 9, 27, 13, 31, 10, 28, 12, 30)
                            : _mm256_setr_epi16(17, 19, 21, 23, 18, 20, 22, 24, 17, 19, 21, 23, 18, 20, 22, 24);
    const __m512i order = _mm512_inserti64x4(_mm512_castsi256_si512(even), odd, 1);
    const __m512i first = words_of_two<STRIDE>(memory, memory + distance);
    const __m512i second = words_of_two<STRIDE>(memory + 2 * distance, memory + 3 * distance);
    const __m512i words =
        _mm512_mask_permutexvar_epi16(_mm512_permutexvar_epi16(order, first), 0xff00ff00, order, second);
    out[0] = _mm512_cvtph_ps(_mm512_castsi512_si256(words));
    out[1] = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(words, 1));
}

template <int WORD>
inline Floats quarter_halves(Bytes v) {
    constexpr short A = WORD, B = WORD + 8, C = WORD + 16, D = WORD + 24;
    const __m256i order = _mm256_setr_epi16(A, A, A, A, B, B, B, B, C, C, C, C, D, D, D, D);
    return _mm512_cvtph_ps(_mm512_castsi512_si256(_mm512_permutexvar_epi16(_mm512_castsi256_si512(order), v)));
}

template <int I>
inline Floats signed_byte(Bytes v) {
    return to_floats(_mm512_srai_epi32(I == 3 ? v : _mm512_slli_epi32(v, 24 - 8 * I), 24));
}

inline Bytes spread_6_bits(Bytes heads) {
    const __m512i low = _mm512_and_si512(heads, _mm512_set1_epi8(0x3f));
    const __m512i top = _mm512_and_si512(_mm512_srli_epi16(heads, 2), _mm512_set1_epi8(0x30));
    const __m512i turns = _mm512_broadcast_i32x4(_mm_setr_epi32(0, 0, 4, 0));
    const __m512i last = _mm512_srlv_epi32(_mm512_shuffle_epi32(heads, _MM_PERM_DDDD), turns);
    const __m512i high = _mm512_or_si512(low_nibbles(last), top);
    // The scales of all blocks are the upper half of the first of these two, the minimums the lower half of the second.
    const __m512i scales = _mm512_unpacklo_epi32(low, high), minimums = _mm512_unpackhi_epi32(low, high);
    const __m128i order = _mm_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15);
    return _mm512_shuffle_epi8(_mm512_alignr_epi8(minimums, scales, 8), _mm512_broadcast_i32x4(order));
}

inline void transpose(__m512i (&r)[16]) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; ++i) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
    for (int i = 0; i < 4; ++i) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
        r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
        r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
    }
}
inline void transpose(Floats (&rows)[16]) {
    __m512i words[16];
    for (int i = 0; i < 16; ++i) {
        words[i] = _mm512_castps_si512(rows[i]);
    }
    transpose(words);
    for (int i = 0; i < 16; ++i) {
        rows[i] = _mm512_castsi512_ps(words[i]);
    }
}

}  // namespace moekit::MOEKIT_ISA
