// AdamW with decoupled weight decay, and the average of the weights, in one pass over memory.
#pragma once

#include <cstdint>

#include "training/tables.h"

namespace moekit {

// What one step does to all numbers of a parameter.
struct AdamWStep {
    float gradient_scale;  // of the clipped norm
    float beta1;
    float beta2;
    float kept;             // 1 - rate * weight decay
    float rate;             // over 1 - beta1^t
    float root_correction;  // sqrt(1 - beta2^t)
    float eps;
    float average_kept;  // average = weight + kept (average - weight)
};

struct AdamWTable {
    // average may be null.
    void (*step)(const AdamWStep& step, const float* gradient, int64_t count, float* weight, float* first_moment,
                 float* second_moment, float* average);
    double (*sum_of_squares)(const float* x, int64_t count);
};

MOEKIT_TRAINING_TABLE(AdamWTable, ADAMW)

}  // namespace moekit
