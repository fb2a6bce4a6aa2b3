// What a router of a mixture of experts computes, all of it in fp32: the projection, the choice of each token's experts
// with what losses and telemetry sum up, and the gradients of both.
//
// The experts with the highest scores are chosen; of equal scores the expert with the lower id. NaN is above all.
#pragma once

#include <cstdint>

#include "training/tables.h"

namespace moekit {

// The products of x (rows, width) and the router's weights (experts, width).
template <typename Number>
struct RouterProducts {
    // Lays the weights out for `logits`, and for `grad_x`: `packed` has space for packed(experts, width) numbers.
    void (*pack_logits)(const float* weight, int64_t experts, int64_t width, float* packed);
    void (*pack_grad_x)(const float* weight, int64_t experts, int64_t width, float* packed);
    // logits (rows, experts). Here and below, `space` is of space(experts, width) numbers.
    void (*logits)(const Number* x, int64_t rows, int64_t width, const float* packed, int64_t experts, float* space,
                   float* logits);
    // grad_x (rows, width) from the gradient of the logits.
    void (*grad_x)(const float* grad_logits, int64_t rows, int64_t experts, const float* packed, int64_t width,
                   float* space, Number* grad_x);
    // The columns begin … end - 1 of grad_weight (experts, width), over all rows; fastest TOGETHER at a time.
    void (*grad_weight)(const float* grad_logits, const Number* x, int64_t rows, int64_t experts, int64_t width,
                        int64_t begin, int64_t end, float* grad_weight);

    static constexpr int64_t TOGETHER = 32, BLOCK = 32;
    static int64_t packed(int64_t experts, int64_t width) { return (experts + 15) * width; }
    static int64_t space(int64_t experts, int64_t width) { return BLOCK * (width > experts ? width : experts + 1); }
};

// How experts are chosen and weighed.
struct RouterRule {
    int64_t experts, top_k;
    // Scores are the sigmoids of the logits, and the choice goes by score + bias; else the scores are their softmax.
    bool sigmoid;
    // Weights are scores, divided by (their sum + epsilon) if `renormalize`, times `scale`.
    bool renormalize;
    float epsilon, scale;
};

// What a router finds out about `rows` tokens; all tensors have a row a token.
struct RouterRows {
    int64_t rows;
    const float* logits;
    const float* bias;    // (experts) or null
    const uint8_t* real;  // 0 at padding, which chooses nothing (-1) and is in no sum; null where nothing is padding
    bool decided;         // `expert` says what was chosen before, negative where nothing was; else it is written
    int64_t* expert;      // (rows, top_k)
    float* score;         // (rows, experts)
    float* weight;        // (rows, top_k)
    float* log_sum;       // (rows): logsumexp(logits), or null where it is not needed
};

// Sums over the rows that are real; `score` and `chosen` are of each expert.
struct RouterSums {
    double *score, *chosen;
    double top_score, logit_squares, log_sum_squares;
};

// The gradient of the logits, from what came out and the gradients of that.
struct RouterGradients {
    int64_t rows;
    const float* logits;       // needed for the sigmoid with log_sum alone
    const float* score;        // (rows, experts)
    const uint8_t* real;       // 0 at padding, null where there is none
    const int64_t* expert;     // (rows, top_k), negative where nothing was chosen
    const float* grad_weight;  // (rows, top_k), or null
    const float* grad_scores;  // (rows, experts), or null
    const float* grad_sums;    // (experts), of the sums of the scores, or null
    const float* log_sum;      // (rows), or null
    float grad_squares;        // of the sum of log_sum squared
    float* grad_logits;        // (rows, experts)
};

struct RouterTable {
    RouterProducts<float> fp32;
    RouterProducts<uint16_t> bf16;
    // `space`: of space(rule) numbers. Adds to `sums`.
    void (*choose)(const RouterRule& rule, const RouterRows& rows, float* space, RouterSums& sums);
    void (*differentiate)(const RouterRule& rule, const RouterGradients& rows, float* space);

    const RouterProducts<float>& of(const float*) const { return fp32; }
    const RouterProducts<uint16_t>& of(const uint16_t*) const { return bf16; }
    static int64_t space(const RouterRule& rule) { return 16 * (4 * rule.experts + 3 * rule.top_k); }
};

MOEKIT_TRAINING_TABLE(RouterTable, ROUTER)

}  // namespace moekit
