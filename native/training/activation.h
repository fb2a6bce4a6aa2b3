// The activation between the two products of a feed-forward network, and its gradient, in one pass each.
#pragma once

#include <cstdint>

#include "kernels/vector_ops.h"
#include "training/tables.h"

namespace moekit {

// In bf16. Of `rows` rows x has the gate's `width` numbers, then those of the up projection; ungated, the latter alone.
struct ActivationTable {
    // hidden (rows, width) = function(gate) * up, or function(up).
    void (*forward)(ActivationFunction function, bool gated, const uint16_t* x, int64_t rows, int64_t width,
                    uint16_t* hidden);
    // grad_x from the gradient of hidden, and from the x that gave it.
    void (*backward)(ActivationFunction function, bool gated, const uint16_t* grad_hidden, const uint16_t* x,
                     int64_t rows, int64_t width, uint16_t* grad_x);
};

MOEKIT_TRAINING_TABLE(ActivationTable, ACTIVATION)

}  // namespace moekit
