// The functions of AdamWTable.

#include "training/adamw.h"

#include <cstdint>

#include "simd/isa.h"
#include "simd/lanes.h"
#include "training/numbers.h"

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

namespace moekit::MOEKIT_ISA {
namespace lanes {

static MOEKIT_INLINE Lanes square_root(Lanes x) {
#if defined(__AVX512F__)
    return (Lanes)_mm512_sqrt_ps((__m512)x);
#elif defined(__AVX2__)
    __m256 halves[2];
    memcpy(halves, &x, sizeof halves);
    halves[0] = _mm256_sqrt_ps(halves[0]);
    halves[1] = _mm256_sqrt_ps(halves[1]);
    memcpy(&x, halves, sizeof halves);
    return x;
#else
    for (int64_t lane = 0; lane < LANES; ++lane) {
        x[lane] = __builtin_sqrtf(x[lane]);
    }
    return x;
#endif
}

static void adamw_step(const AdamWStep& step, const float* gradient, int64_t count, float* weight, float* first_moment,
                       float* second_moment, float* average) {
    const AdamWStep s = step;
    each_lanes(count, [=](int64_t i, int64_t n) MOEKIT_INLINED {
        const Lanes g = read_up_to(gradient + i, n) * s.gradient_scale;
        Lanes first = read_up_to(first_moment + i, n), second = read_up_to(second_moment + i, n);
        first += (1.0f - s.beta1) * (g - first);
        second = s.beta2 * second + (1.0f - s.beta2) * g * g;
        write_up_to(first, first_moment + i, n);
        write_up_to(second, second_moment + i, n);
        const Lanes size = square_root(second) / s.root_correction + s.eps;
        const Lanes moved = read_up_to(weight + i, n) * s.kept - s.rate * first / size;
        write_up_to(moved, weight + i, n);
        if (average) {
            const Lanes before = read_up_to(average + i, n);
            write_up_to(moved + s.average_kept * (before - moved), average + i, n);
        }
    });
}

static double sum_of_squares(const float* x, int64_t count) {
    Lanes squares[4] = {};
    int64_t i = 0;
    for (; i + 4 * LANES <= count; i += 4 * LANES) {
        for (int64_t j = 0; j < 4; ++j) {
            const Lanes value = load(x + i + j * LANES);
            squares[j] += value * value;
        }
    }
    each_lanes(count - i, [&](int64_t j, int64_t n) MOEKIT_INLINED {
        const Lanes value = read_up_to(x + i + j, n);
        squares[0] += value * value;
    });
    return sum((squares[0] + squares[1]) + (squares[2] + squares[3]));
}

}  // namespace lanes

const AdamWTable ADAMW = {lanes::adamw_step, lanes::sum_of_squares};

}  // namespace moekit::MOEKIT_ISA
