// A causal decoder that computes one token for each of several sequences, or many tokens of one, in a single parallel
// region.
//
// D model width, H query heads, G key-value heads, C head width, F hidden width, E experts, V vocabulary, B sequences.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "decoder/attention.h"
#include "kernels/matrix.h"
#include "kernels/vector_ops.h"

namespace moekit {

// down(act(gate(x)) * up(x)), or down(act(up(x))) where there is no gate; of several experts with their rows on end.
struct Ffn {
    Matrix gate;
    Matrix up;
    Matrix down;
    ActivationFunction function = ActivationFunction::Silu;

    bool gated() const { return gate.data != nullptr; }
    int64_t hidden() const { return down.columns; }
};

// Pointers may be null where a model lacks a part.
struct Layer {
    const float* attention_norm = nullptr;
    Matrix query, key, value, output;
    const float* query_bias = nullptr;
    const float* key_bias = nullptr;
    const float* value_bias = nullptr;
    const float* output_bias = nullptr;
    const float* query_norm = nullptr;
    const float* key_norm = nullptr;
    const float* attention_post_norm = nullptr;
    int64_t window = 0;  // positions that a token sees, itself included; 0: all

    const float* ffn_norm = nullptr;
    const float* ffn_post_norm = nullptr;
    Ffn ffn;  // of the layer, or of its experts
    int64_t experts = 0;
    int64_t top_k = 0;
    bool renormalize = false;
    Matrix router;
    Ffn shared_expert;  // beside the experts; its down is empty where there is none
    const float* shared_expert_gate = nullptr;

    bool has_shared_expert() const { return shared_expert.down.data != nullptr; }
};

struct DecoderShape {
    int64_t width = 0;
    int64_t heads = 0;
    int64_t kv_heads = 0;
    int64_t head_width = 0;
    float norm_eps = 0;
    float attention_scale = 0;
    float soft_cap = 0;             // 0: none
    bool norm_all_heads = false;    // query and key norms see all heads at once
    bool rope_interleaved = false;  // rope rotates the pairs (2i, 2i + 1) and not (i, i + C/2)
    float rope_magnitude = 1;
    float embedding_scale = 1;
    float logit_scale = 1;
    std::vector<double> rope_frequencies;  // C/2 of them, in radians a position; none: no rope
    Matrix embedding;
    Matrix head;
    const float* norm = nullptr;
};

struct Scratch;
template <typename Number>
struct PromptScratch;
struct PromptScratches;

class Decoder {
   public:
    // How many sequences share a reading of the weights; more of them take turns.
    static constexpr int64_t MAX_BATCH = 16;
    // How many tokens of a prompt do; their sums stay in a core's own cache.
    static constexpr int64_t MAX_TOGETHER = 512;

    Decoder(DecoderShape shape, std::vector<Layer> layers);
    ~Decoder();
    Decoder(const Decoder&) = delete;
    Decoder& operator=(const Decoder&) = delete;

    // logits (B rows of V) after one more token of each of B different sequences, whose caches are extended.
    // Throws std::length_error where a context is full; nothing has changed then. One call at a time: others wait.
    void decode(Cache* const* caches, const int64_t* tokens, int64_t batch, float* logits);

    // Extends a sequence by `count` tokens; logits: V numbers, after the last of them, or null where none are wanted.
    // The layers' products are bf16 where the processor multiplies such numbers and the model is not fp32, else fp32;
    // the head's are those of a step. Throws like decode.
    void prefill(Cache& cache, const int64_t* tokens, int64_t count, float* logits);

    // Whether the model is one whose numbers stay fp32, those of its caches too: it depends on its first matrix.
    bool fp32() const { return layers_.front().query.type == Type::F32; }

   private:
    template <typename Number>
    void prefill_together(PromptScratch<Number>& scratch, Cache& cache, const int64_t* tokens, int64_t count,
                          float* logits);
    void check(const Cache& cache) const;
    void check(int64_t token) const;
    void decode_together(Cache* const* caches, const int64_t* tokens, int64_t batch, float* logits);

    std::mutex entry_;
    DecoderShape shape_;
    std::vector<Layer> layers_;
    std::vector<std::vector<float>> routers_;  // those that do not lie in memory as fp32
    std::unique_ptr<Scratch> scratch_;
    std::unique_ptr<PromptScratches> prompt_scratch_;
};

}  // namespace moekit
