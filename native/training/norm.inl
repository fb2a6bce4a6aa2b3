// The functions of NormTable. Sums over a row are those of 16 lanes; all is computed in fp32.

#include "training/norm.h"

#include <cstdint>

#include "simd/isa.h"
#include "simd/lanes.h"
#include "training/numbers.h"

namespace moekit::MOEKIT_ISA {
namespace lanes {

// x where there is a number, else 0: what is beyond a row's end must not count once a mean was taken off it.
static MOEKIT_INLINE Lanes only(Lanes x, int64_t count) {
    if (count == LANES) {
        return x;
    }
    const IntLanes lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return lane < static_cast<int32_t>(count) ? x : Lanes{};
}

template <bool CENTRED, typename X, typename Added, typename Y>
static MOEKIT_INLINE void normalize_rows(const NormWeights& norm, const NormRows<X, Added, Y>& rows, int64_t begin,
                                         int64_t end) {
    const int64_t width = norm.width;
    const float share = 1.0f / static_cast<float>(width);
    for (int64_t row = begin; row < end; ++row) {
        const X* x = rows.x + row * width;
        if (rows.added) {
            const Added* added = rows.added + row * width;
            X* to = rows.sum + row * width;
            each_lanes(width, [=](int64_t i, int64_t count) MOEKIT_INLINED {
                write_up_to(read_up_to(x + i, count) + read_up_to(added + i, count), to + i, count);
            });
            x = to;
        }
        Lanes mean = {};
        if constexpr (CENTRED) {
            Lanes total = {};
            each_lanes(width, [&](int64_t i, int64_t count) MOEKIT_INLINED { total += read_up_to(x + i, count); });
            mean = splat(sum(total) * share);
            rows.mean[row] = mean[0];
        }
        Lanes squares = {};
        each_lanes(width, [&](int64_t i, int64_t count) MOEKIT_INLINED {
            const Lanes value = only(read_up_to(x + i, count) - mean, count);
            squares += value * value;
        });
        const float scale = 1.0f / __builtin_sqrtf(sum(squares) * share + norm.eps);
        rows.scale[row] = scale;
        Y* y = rows.y + row * width;
        each_lanes(width, [=, &norm](int64_t i, int64_t count) MOEKIT_INLINED {
            const Lanes factor = norm.offset + read_up_to(norm.weight + i, count);
            Lanes value = (read_up_to(x + i, count) - mean) * scale * factor;
            if constexpr (CENTRED) {
                value += read_up_to(norm.bias + i, count);
            }
            write_up_to(value, y + i, count);
        });
    }
}

template <typename X, typename Added, typename Y>
static void normalize(const NormWeights& norm, const NormRows<X, Added, Y>& rows, int64_t begin, int64_t end) {
    if (norm.bias) {
        normalize_rows<true>(norm, rows, begin, end);
    } else {
        normalize_rows<false>(norm, rows, begin, end);
    }
}

template <bool CENTRED, typename X, typename Added, typename Y>
static MOEKIT_INLINE void differentiate_rows(const NormWeights& norm, const NormGradientRows<X, Added, Y>& rows,
                                             int64_t begin, int64_t end, float* grad_weight, float* grad_bias) {
    const int64_t width = norm.width;
    const float share = 1.0f / static_cast<float>(width);
    for (int64_t row = begin; row < end; ++row) {
        const X* x = rows.sum + row * width;
        const Y* grad_y = rows.grad_y + row * width;
        const Lanes mean = CENTRED ? splat(rows.mean[row]) : Lanes{};
        const float scale = rows.scale[row];
        Lanes along = {}, total = {};
        each_lanes(width, [&](int64_t i, int64_t count) MOEKIT_INLINED {
            const Lanes grad = read_up_to(grad_y + i, count);
            const Lanes normed = (read_up_to(x + i, count) - mean) * scale;
            const Lanes inner = grad * (norm.offset + read_up_to(norm.weight + i, count));
            along += inner * normed;
            store(load(grad_weight + i) + grad * normed, grad_weight + i);
            if constexpr (CENTRED) {
                total += inner;
                store(load(grad_bias + i) + grad, grad_bias + i);
            }
        });
        const float mean_along = sum(along) * share, mean_total = CENTRED ? sum(total) * share : 0.0f;
        const X* grad_sum = rows.grad_sum ? rows.grad_sum + row * width : nullptr;
        X* grad_x = rows.grad_x + row * width;
        Added* grad_added = rows.grad_added ? rows.grad_added + row * width : nullptr;
        each_lanes(width, [=, &norm](int64_t i, int64_t count) MOEKIT_INLINED {
            const Lanes normed = (read_up_to(x + i, count) - mean) * scale;
            const Lanes inner = read_up_to(grad_y + i, count) * (norm.offset + read_up_to(norm.weight + i, count));
            Lanes grad = (inner - mean_total - normed * mean_along) * scale;
            if (grad_sum) {
                grad += read_up_to(grad_sum + i, count);
            }
            write_up_to(grad, grad_x + i, count);
            if (grad_added) {
                write_up_to(grad, grad_added + i, count);
            }
        });
    }
}

template <typename X, typename Added, typename Y>
static void differentiate(const NormWeights& norm, const NormGradientRows<X, Added, Y>& rows, int64_t begin,
                          int64_t end, float* grad_weight, float* grad_bias) {
    if (norm.bias) {
        differentiate_rows<true>(norm, rows, begin, end, grad_weight, grad_bias);
    } else {
        differentiate_rows<false>(norm, rows, begin, end, grad_weight, grad_bias);
    }
}

template <typename X, typename Added, typename Y>
constexpr NormPasses<X, Added, Y> NORM_PASSES = {normalize<X, Added, Y>, differentiate<X, Added, Y>};

}  // namespace lanes

const NormTable NORM = {
    lanes::NORM_PASSES<float, float, float>,       lanes::NORM_PASSES<float, float, uint16_t>,
    lanes::NORM_PASSES<float, uint16_t, float>,    lanes::NORM_PASSES<float, uint16_t, uint16_t>,
    lanes::NORM_PASSES<uint16_t, uint16_t, float>, lanes::NORM_PASSES<uint16_t, uint16_t, uint16_t>};

}  // namespace moekit::MOEKIT_ISA
