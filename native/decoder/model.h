// What a decoder consists of: for each layer its attention and its ffn, and what is of the whole model.
//
// D model width, H query heads, G key-value heads, C head width, F hidden width of an ffn, E experts, V vocabulary.
// All memory belongs to whoever makes a description, and must live as long as the decoder that is made of it.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/matrix.h"
#include "kernels/vector_ops.h"

namespace moekit {

struct Vector {
    const float* data = nullptr;
    int64_t count = 0;
};

// RMS norm: x / sqrt(mean(x^2) + eps) * weight; without a weight there is no norm.
struct Norm {
    Vector weight;
    float eps = 0;

    explicit operator bool() const { return weight.data != nullptr; }
};

// Rotary positions: pair i of a head turns by frequencies[i] radians a position.
struct Rope {
    std::vector<double> frequencies;  // C/2 of them
    float magnitude = 1;              // of cosines and sines
    bool interleaved = false;         // the pairs are (2i, 2i + 1) and not (i, i + C/2)

    int64_t pairs() const { return static_cast<int64_t>(frequencies.size()); }
};

// Grouped-query attention. Biases and norms may be empty.
struct Attention {
    static constexpr int64_t NO_ROPE = -1;

    int64_t heads = 0;
    int64_t kv_heads = 0;
    int64_t head_width = 0;
    Matrix query, key, value;  // (H C, D), (G C, D), (G C, D)
    Matrix output;             // (D, H C)
    Vector query_bias, key_bias, value_bias, output_bias;
    Norm query_norm, key_norm;    // before rope
    bool norm_all_heads = false;  // of all heads at once, H C and G C numbers, and not head by head
    int64_t rope = NO_ROPE;       // index into the model's ropes
    int64_t window = 0;           // positions that a token sees, itself included; 0: all
    float scale = 1;              // of the scores
    float soft_cap = 0;           // scores become cap * tanh(score / cap); 0: they stay

    int64_t query_rows() const { return heads * head_width; }
    int64_t key_rows() const { return kv_heads * head_width; }
    int64_t projected_rows() const { return query_rows() + 2 * key_rows(); }
    int64_t queries_per_key() const { return heads / kv_heads; }
};

// down(act(gate(x)) * up(x)), or down(act(up(x))) where there is no gate; of several experts with their rows on end.
struct Ffn {
    int64_t hidden = 0;  // F
    Matrix gate, up;     // (F, D) or (E F, D)
    Matrix down;         // (D, F) or (E D, F)
    ActivationFunction function = ActivationFunction::Silu;

    bool gated() const { return gate.data != nullptr; }
};

// What makes a layer's ffn a mixture of experts; without experts it is dense.
struct Moe {
    int64_t experts = 0;
    int64_t top_k = 0;
    bool renormalize = false;   // the weights of the top k experts are divided by their sum
    Matrix router;              // (E, D)
    Ffn shared_expert;          // sees every token; its down is empty where there is none
    Vector shared_expert_gate;  // D numbers; the sigmoid of its product with x weighs the shared expert; may be empty

    bool has_shared_expert() const { return shared_expert.down.data != nullptr; }
};

// Post norms, of what attention and ffn add to the residual stream, make a sandwich block; a pre block has none.
struct Layer {
    Norm attention_norm;
    Attention attention;
    Norm attention_post_norm;
    Norm ffn_norm;
    Ffn ffn;  // the experts' where there are any
    Moe moe;
    Norm ffn_post_norm;

    bool is_moe() const { return moe.experts > 0; }
};

struct Model {
    int64_t width = 0;
    int64_t vocabulary = 0;
    std::vector<Rope> ropes;
    std::vector<Layer> layers;
    Matrix embedding, head;  // (V, D)
    float embedding_scale = 1;
    float logit_scale = 1;
    Norm norm;  // the last one, before the head
};

// Throws std::invalid_argument, with a sentence that names the part, where shapes do not fit each other.
void check(const Model& model);

}  // namespace moekit
