// The vectors of kernels.inl in AVX2 with FMA and F16C, two registers each: see simd_portable.h for what each operation
// means.

constexpr int TILE_BATCH = 2;
constexpr int FP32_ROWS = 6, FP32_BLOCKS = 1;

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
inline Bytes upper_nibbles(Bytes v) {
    const __m256i mask = _mm256_set1_epi8(static_cast<char>(0xf0));
    return {_mm256_and_si256(v.low, mask), _mm256_and_si256(v.high, mask)};
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

// The instruction for bytes saturates its sums of two (255 * 127 * 2 > 32767), so the unsigned side goes in two parts.
inline __m256i dot(__m256i u, __m256i s) {
    const __m256i ones = _mm256_set1_epi16(1);
    const __m256i top = _mm256_set1_epi8(static_cast<char>(0x80));
    const __m256i small = _mm256_maddubs_epi16(_mm256_andnot_si256(top, u), s);
    const __m256i large = _mm256_maddubs_epi16(_mm256_and_si256(top, u), s);
    return _mm256_add_epi32(_mm256_madd_epi16(small, ones), _mm256_madd_epi16(large, ones));
}
inline Ints dot(Bytes u, Bytes s) { return {dot(u.low, s.low), dot(u.high, s.high)}; }
inline Ints dot(Ints to, Bytes u, Bytes s) {
    return {_mm256_add_epi32(to.low, dot(u.low, s.low)), _mm256_add_epi32(to.high, dot(u.high, s.high))};
}
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
inline Floats subtract_product(Floats c, Floats a, Floats b) {
    return {_mm256_fnmadd_ps(a.low, b.low, c.low), _mm256_fnmadd_ps(a.high, b.high, c.high)};
}
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

template <int I>
inline Floats spread(Floats v) {
    return {_mm256_permute_ps(v.low, I * 0x55), _mm256_permute_ps(v.high, I * 0x55)};
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
inline __m256 pair_sums(__m256 v) {
    return _mm256_blend_ps(_mm256_setzero_ps(), _mm256_add_ps(v, _mm256_permute_ps(v, 0xb1)), 0xaa);
}
inline Floats pair_sums(Floats v) { return {pair_sums(v.low), pair_sums(v.high)}; }

template <int STRIDE>
inline Floats eight_halves(const uint8_t* memory) {
    return {_mm256_cvtph_ps(gather_halves<STRIDE>(memory)), _mm256_setzero_ps()};
}
template <int I>
inline Floats spread_pair(Floats v) {
    return {_mm256_permutevar8x32_ps(v.low, _mm256_set1_epi32(2 * I)),
            _mm256_permutevar8x32_ps(v.low, _mm256_set1_epi32(2 * I + 1))};
}
inline Bytes two_blocks(const uint8_t* a, const uint8_t* b) {
    return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(a)),
            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b))};
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
