// The softmax cross entropy of rows of logits, and its gradient.
#pragma once

#include <cstdint>

#include "training/tables.h"

namespace moekit {

template <typename Number>
struct TokenLossPasses {
    // loss = log_sum - logits[target] of each of `rows` rows, with log_sum = log of the sum of all exponentials. False
    // where a target is none of the `vocabulary` numbers of a row.
    bool (*forward)(const Number* logits, const int64_t* target, int64_t rows, int64_t vocabulary, float* loss,
                    float* log_sum);
    // grad_logits = (softmax - one at the target) * grad_loss.
    void (*backward)(const Number* logits, const int64_t* target, const float* log_sum, const float* grad_loss,
                     int64_t rows, int64_t vocabulary, Number* grad_logits);
};

struct TokenLossTable {
    TokenLossPasses<float> fp32;
    TokenLossPasses<uint16_t> bf16;

    const TokenLossPasses<float>& of(const float*) const { return fp32; }
    const TokenLossPasses<uint16_t>& of(const uint16_t*) const { return bf16; }
};

MOEKIT_TRAINING_TABLE(TokenLossTable, TOKEN_LOSS)

}  // namespace moekit
