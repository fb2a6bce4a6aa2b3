// Activation functions and their slopes on Lanes, in fp32: relative errors of some 1e-6.
#pragma once

#include "kernels/vector_ops.h"
#include "simd/isa.h"
#include "simd/lanes.h"

namespace moekit::MOEKIT_ISA::lanes {

struct ValueAndSlope {
    Lanes value;
    Lanes slope;
};

struct Silu {
    static MOEKIT_INLINE ValueAndSlope at(Lanes x) {
        const Lanes sigmoid = 1.0f / (1.0f + exponential(-x));
        const Lanes value = x * sigmoid;
        return {value, sigmoid + value * (1.0f - sigmoid)};
    }
};

// x Phi(x), whose slope is Phi(x) + x phi(x), with the normal distribution's Phi and density phi.
struct Gelu {
    static MOEKIT_INLINE ValueAndSlope at(Lanes x) {
        const Lanes below = 0.5f * (1.0f + error_function(x * 0.70710678f));
        const Lanes density = 0.39894228f * exponential(-0.5f * x * x);
        return {x * below, below + x * density};
    }
};

// x (1 + t) / 2 with t = tanh(sqrt(2 / pi) (x + 0.044715 x^3)).
struct GeluTanh {
    static MOEKIT_INLINE ValueAndSlope at(Lanes x) {
        const Lanes t = hyperbolic_tangent(0.79788456f * (x + 0.044715f * x * x * x));
        const Lanes inner_slope = 0.79788456f * (1.0f + 0.134145f * x * x);
        const Lanes half = 0.5f * (1.0f + t);
        return {x * half, half + 0.5f * x * (1.0f - t * t) * inner_slope};
    }
};

struct Relu {
    static MOEKIT_INLINE ValueAndSlope at(Lanes x) {
        const Lanes zero = {}, one = splat(1.0f);
        return {x > zero ? x : (x == x ? zero : x), x > zero ? one : zero};
    }
};

// use(Function{}) with the function that is meant.
template <typename Use>
static MOEKIT_INLINE void with_function(ActivationFunction function, Use use) {
    switch (function) {
        case ActivationFunction::Silu:
            return use(Silu{});
        case ActivationFunction::Gelu:
            return use(Gelu{});
        case ActivationFunction::GeluTanh:
            return use(GeluTanh{});
        case ActivationFunction::Relu:
            return use(Relu{});
    }
}

}  // namespace moekit::MOEKIT_ISA::lanes
