// The functions of ActivationTable.

#include "training/activation.h"

#include <cstdint>

#include "simd/isa.h"
#include "simd/lanes.h"
#include "training/activation_functions.h"
#include "training/numbers.h"

namespace moekit::MOEKIT_ISA {
namespace lanes {

template <typename Function, bool GATED>
static MOEKIT_INLINE void activate_rows(const uint16_t* x, int64_t rows, int64_t width, uint16_t* hidden) {
    for (int64_t row = 0; row < rows; ++row, x += GATED ? 2 * width : width, hidden += width) {
        each_lanes(width, [=](int64_t i, int64_t count) MOEKIT_INLINED {
            Lanes y = Function::at(read_up_to(x + i, count)).value;
            if constexpr (GATED) {
                y *= read_up_to(x + width + i, count);
            }
            write_up_to(y, hidden + i, count);
        });
    }
}

template <typename Function, bool GATED>
static MOEKIT_INLINE void differentiate_rows(const uint16_t* grad_hidden, const uint16_t* x, int64_t rows,
                                             int64_t width, uint16_t* grad_x) {
    constexpr int64_t HALVES = GATED ? 2 : 1;
    for (int64_t row = 0; row < rows; ++row, grad_hidden += width, x += HALVES * width, grad_x += HALVES * width) {
        each_lanes(width, [=](int64_t i, int64_t count) MOEKIT_INLINED {
            const Lanes grad = read_up_to(grad_hidden + i, count);
            const ValueAndSlope at = Function::at(read_up_to(x + i, count));
            if constexpr (GATED) {
                const Lanes up = read_up_to(x + width + i, count);
                write_up_to(grad * up * at.slope, grad_x + i, count);
                write_up_to(grad * at.value, grad_x + width + i, count);
            } else {
                write_up_to(grad * at.slope, grad_x + i, count);
            }
        });
    }
}

static void activate(ActivationFunction function, bool gated, const uint16_t* x, int64_t rows, int64_t width,
                     uint16_t* hidden) {
    with_function(function, [=](auto chosen) MOEKIT_INLINED {
        if (gated) {
            activate_rows<decltype(chosen), true>(x, rows, width, hidden);
        } else {
            activate_rows<decltype(chosen), false>(x, rows, width, hidden);
        }
    });
}

static void differentiate(ActivationFunction function, bool gated, const uint16_t* grad_hidden, const uint16_t* x,
                          int64_t rows, int64_t width, uint16_t* grad_x) {
    with_function(function, [=](auto chosen) MOEKIT_INLINED {
        if (gated) {
            differentiate_rows<decltype(chosen), true>(grad_hidden, x, rows, width, grad_x);
        } else {
            differentiate_rows<decltype(chosen), false>(grad_hidden, x, rows, width, grad_x);
        }
    });
}

}  // namespace lanes

const ActivationTable ACTIVATION = {lanes::activate, lanes::differentiate};

}  // namespace moekit::MOEKIT_ISA
