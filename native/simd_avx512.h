// The vectors of kernels.inl in AVX-512 (F, BW, VL, DQ, VNNI): see simd_portable.h for what each operation means.

constexpr int TILE_BATCH = 8;
constexpr int FP32_ROWS = 8, FP32_BLOCKS = 3;

using Bytes = __m512i;
using Ints = __m512i;
using Floats = __m512;

inline Bytes load_bytes(const void* memory) { return _mm512_loadu_si512(memory); }
inline void store_bytes(void* memory, Bytes v) { _mm512_storeu_si512(memory, v); }

inline Bytes quarters(const uint8_t* a, const uint8_t* b, const uint8_t* c, const uint8_t* d) {
    const __m512i ab = _mm512_inserti32x4(_mm512_castsi128_si512(load_16(a)), load_16(b), 1);
    return _mm512_inserti32x4(_mm512_inserti32x4(ab, load_16(c), 2), load_16(d), 3);
}

inline Bytes even_quarters(const uint8_t* p) {
    return _mm512_shuffle_i32x4(load_bytes(p), load_bytes(p + 64), 0x88);
}
inline Bytes odd_quarters(const uint8_t* p) {
    return _mm512_shuffle_i32x4(load_bytes(p), load_bytes(p + 64), 0xdd);
}
inline Bytes doubled_quarters(const uint8_t* a, const uint8_t* b) {
    const __m512i low = _mm512_castsi256_si512(_mm256_broadcastsi128_si256(load_16(a)));
    return _mm512_inserti64x4(low, _mm256_broadcastsi128_si256(load_16(b)), 1);
}

inline Bytes low_nibbles(Bytes v) { return _mm512_and_si512(v, _mm512_set1_epi8(0x0f)); }
inline Bytes high_nibbles(Bytes v) { return low_nibbles(_mm512_srli_epi16(v, 4)); }
inline Bytes upper_nibbles(Bytes v) { return _mm512_and_si512(v, _mm512_set1_epi8(static_cast<char>(0xf0))); }
inline Bytes plus_128(Bytes v) { return _mm512_xor_si512(v, _mm512_set1_epi8(static_cast<char>(0x80))); }

inline Bytes minus(Bytes v, int number) { return _mm512_sub_epi8(v, _mm512_set1_epi8(static_cast<char>(number))); }

template <int A, int B, int C, int D>
inline Bytes turn_left(Bytes v) {
    return _mm512_rolv_epi32(v, _mm512_setr_epi32(A, A, A, A, B, B, B, B, C, C, C, C, D, D, D, D));
}

inline Bytes merge_6_bits(Bytes low, Bytes high) {
    return _mm512_or_si512(low_nibbles(low), _mm512_and_si512(high, _mm512_set1_epi8(0x30)));
}

inline Ints dot(Ints to, Bytes u, Bytes s) { return _mm512_dpbusd_epi32(to, u, s); }
inline Ints dot(Bytes u, Bytes s) { return dot(_mm512_setzero_si512(), u, s); }
inline Floats to_floats(Ints v) { return _mm512_cvtepi32_ps(v); }

inline Floats set(float number) { return _mm512_set1_ps(number); }
inline Floats set_half(const uint8_t* memory) { return _mm512_cvtph_ps(_mm256_set1_epi16(half_at(memory))); }
inline Floats load(const void* memory) { return _mm512_loadu_ps(memory); }
inline void store(float* memory, Floats v) { _mm512_storeu_ps(memory, v); }
inline Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
inline Floats subtract(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
inline Floats multiply(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
inline Floats multiply_add(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
inline Floats subtract_product(Floats c, Floats a, Floats b) { return _mm512_fnmadd_ps(a, b, c); }
inline Floats magnitudes(Floats v) { return _mm512_abs_ps(v); }
inline Floats greater(Floats a, Floats b) { return _mm512_max_ps(a, b); }
inline Floats to_nearest(Floats v) { return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline float sum(Floats v) { return _mm512_reduce_add_ps(v); }
inline float greatest(Floats v) { return _mm512_reduce_max_ps(v); }

template <int I>
inline Floats spread(Floats v) {
    return _mm512_permute_ps(v, I * 0x55);
}

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
    const Floats low = multiply_add(_mm512_castsi512_ps(_mm512_slli_epi32(p, 16)),
                                    _mm512_castsi512_ps(_mm512_slli_epi32(q, 16)), to);
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

// Scales lie at every 9th or 17th word: whole vectors hold several of them, at places that do not meet, so that they are
// laid on top of each other and put in order once. Nothing behind the blocks is read: what is not wanted is not loaded.
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
inline Floats pair_sums(Floats v) { return _mm512_maskz_add_ps(0xaaaa, v, _mm512_permute_ps(v, 0xb1)); }

template <int STRIDE>
inline Floats eight_halves(const uint8_t* memory) {
    static_assert(STRIDE == 34);
    const __m512i order = _mm512_castsi128_si512(_mm_setr_epi16(0, 17, 2, 19, 4, 21, 6, 23));
    __m512i words = words_at<1u << 0 | 1u << 17>(_mm512_setzero_si512(), memory);
    words = words_at<1u << 2 | 1u << 19>(words, memory + 64);
    words = words_at<1u << 4 | 1u << 21>(words, memory + 128);
    words = words_at<1u << 6 | 1u << 23>(words, memory + 192);
    words = _mm512_permutexvar_epi16(order, words);
    return _mm512_zextps256_ps512(_mm256_cvtph_ps(_mm512_castsi512_si128(words)));
}
template <int I>
inline Floats spread_pair(Floats v) {
    constexpr int A = 2 * I, B = 2 * I + 1;
    return _mm512_permutexvar_ps(_mm512_setr_epi32(A, A, A, A, A, A, A, A, B, B, B, B, B, B, B, B), v);
}
inline Bytes two_blocks(const uint8_t* a, const uint8_t* b) {
    const __m256i first = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(a));
    return _mm512_inserti64x4(_mm512_castsi256_si512(first), _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b)), 1);
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
