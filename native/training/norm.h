// RMS and layer normalisation of rows, after the residual is added, and their gradients.
#pragma once

#include <cstdint>

#include "training/tables.h"

namespace moekit {

// y = (x - mean) * scale * (offset + weight) + bias, with x first increased by what a layer adds to the residual
// stream. An RMS norm has neither mean nor bias. Pointers that are not used are null. X is the stream's type, Added the
// other's.
template <typename X, typename Added, typename Y>
struct NormRows {
    const X* x;
    const Added* added;
    X* sum;  // x + added, where something is added
    Y* y;
    float* mean;   // one a row, for a layer norm
    float* scale;  // one a row
};

// From the gradients of y and of the sum (null for zeros) to that of x, and of what was added (null where it is not
// wanted, or of x's type: the two are equal).
template <typename X, typename Added, typename Y>
struct NormGradientRows {
    const X* sum;
    const float* mean;
    const float* scale;
    const Y* grad_y;
    const X* grad_sum;
    X* grad_x;
    Added* grad_added;
};

struct NormWeights {
    const float* weight;
    const float* bias;
    float offset;
    float eps;
    int64_t width;
};

template <typename X, typename Added, typename Y>
struct NormPasses {
    void (*forward)(const NormWeights& norm, const NormRows<X, Added, Y>& rows, int64_t begin, int64_t end);
    // grad_weight and grad_bias (null for an RMS norm) have room for whole 16s; what is added to them comes from the
    // rows in order.
    void (*backward)(const NormWeights& norm, const NormGradientRows<X, Added, Y>& rows, int64_t begin, int64_t end,
                     float* grad_weight, float* grad_bias);
};

struct NormTable {
    NormPasses<float, float, float> fff;
    NormPasses<float, float, uint16_t> ffb;
    NormPasses<float, uint16_t, float> fbf;
    NormPasses<float, uint16_t, uint16_t> fbb;
    NormPasses<uint16_t, uint16_t, float> bbf;
    NormPasses<uint16_t, uint16_t, uint16_t> bbb;

    const auto& of(float, float, float) const { return fff; }
    const auto& of(float, float, uint16_t) const { return ffb; }
    const auto& of(float, uint16_t, float) const { return fbf; }
    const auto& of(float, uint16_t, uint16_t) const { return fbb; }
    const auto& of(uint16_t, uint16_t, float) const { return bbf; }
    const auto& of(uint16_t, uint16_t, uint16_t) const { return bbb; }
};

MOEKIT_TRAINING_TABLE(NormTable, NORM)

}  // namespace moekit
