// Causal softmax attention of whole sequences with rotary positions, and its gradient, for training.
#pragma once

#include <cstdint>

namespace moekit {

// Queries, keys and values are rows of (heads + 2 kv_heads) heads of `width` numbers, one a token. cosine and sine
// (tokens, width), the first half of each sine negated, or null: queries and keys are rotated by them.
struct SelfAttention {
    int64_t batch;
    int64_t tokens;
    int64_t heads;
    int64_t kv_heads;
    int64_t width;
    int64_t window;  // how many positions a token sees at most, itself included
    float scale;
    const float* cosine;
    const float* sine;

    int64_t projected() const { return (heads + 2 * kv_heads) * width; }
};

// mixed (batch, tokens, heads * width) = softmax(scale q k) v. Storage: float or bf16 (uint16_t), which is multiplied
// as it is where the processor has such products.
template <typename Storage>
void attend(const SelfAttention& shape, const Storage* projected, Storage* mixed);

// grad_projected from the gradient of what `attend` gave. It computes scores again: nothing of T^2 numbers is kept.
template <typename Storage>
void attend_backward(const SelfAttention& shape, const Storage* projected, const Storage* grad_mixed,
                     Storage* grad_projected);

}  // namespace moekit
