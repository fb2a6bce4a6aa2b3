// A causal decoder that computes one token for each of several sequences, or many tokens of one, in a single parallel
// region.
//
// D model width, H query heads, G key-value heads, C head width, F hidden width, E experts, V vocabulary, B sequences.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "decoder/cache.h"
#include "decoder/model.h"
#include "streaming/prefetch_trial.h"

namespace moekit {

class BlockRing;
class ExpertStore;
class ExpertWaves;
class StreamedBlocks;
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

    // std::invalid_argument where the shapes of the model's parts do not fit each other.
    // With a store, experts come from there, with a ring, attention and ffns: of the matrices that are streamed, the
    // model's own bytes are not read.
    explicit Decoder(Model model, std::shared_ptr<ExpertStore> store = nullptr, Prefetch prefetch = Prefetch::Off,
                     std::shared_ptr<BlockRing> ring = nullptr);
    ~Decoder();
    Decoder(const Decoder&) = delete;
    Decoder& operator=(const Decoder&) = delete;

    // logits (B rows of V) after one more token of each of B different sequences, whose caches are extended.
    // Throws std::length_error where a context is full and ReadError where a file cannot be read; nothing has changed
    // then. One call at a time: others wait.
    void decode(Cache* const* caches, const int64_t* tokens, int64_t batch, float* logits);

    // Extends a sequence by `count` tokens; logits: V numbers, after the last of them, or null where none are wanted.
    // The layers' products are bf16 where the processor multiplies such numbers and the model is not fp32, else fp32;
    // the head's are those of a step. Throws like decode.
    void prefill(Cache& cache, const int64_t* tokens, int64_t count, float* logits);

    // Extends a sequence like prefill; log_probs: of each token's target after the tokens up to it, in nats.
    void score(Cache& cache, const int64_t* tokens, const int64_t* targets, int64_t count, double* log_probs);

    int64_t vocabulary() const { return model_.vocabulary; }
    // What caches of its sequences keep.
    const std::vector<CacheLayer>& cache_layers() const { return cache_layers_; }

    // Whether the model is one whose numbers stay fp32, those of its caches too: it depends on its first matrix.
    bool fp32() const { return model_.layers.front().attention.query.type == Type::F32; }

   private:
    // after(worker, prompt, begin, count): by every thread, after each run of tokens that are computed together.
    template <typename After>
    void read(Cache& cache, const int64_t* tokens, int64_t count, After after);
    template <typename Number, typename After>
    void read_together(PromptScratch<Number>& scratch, Cache& cache, const int64_t* tokens, int64_t begin,
                       int64_t count, After after);
    void check(const Cache& cache) const;
    void check(int64_t token) const;
    void check_reading();
    void check_streamed() const;
    void decode_together(Cache* const* caches, const int64_t* tokens, int64_t batch, float* logits);

    std::mutex entry_;
    Model model_;
    std::vector<CacheLayer> cache_layers_;
    std::vector<std::vector<float>> routers_;  // those that do not lie in memory as fp32
    std::shared_ptr<ExpertStore> store_;
    PrefetchTrial prefetch_;
    std::unique_ptr<ExpertWaves> waves_;
    std::unique_ptr<StreamedBlocks> blocks_;
    std::unique_ptr<Scratch> scratch_;
    std::unique_ptr<PromptScratches> prompt_scratch_;
    std::vector<float> scored_logits_;  // of as many tokens as share a reading of the head
};

}  // namespace moekit
