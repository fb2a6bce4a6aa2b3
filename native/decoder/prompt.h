// Many tokens of one sequence at once, as a prompt brings them: what every thread of the parallel region runs.
//
// T tokens; the matrix products are those of many_rows.h, of bf16 or fp32 numbers, and so are those of attention.
// Tokens see those in the cache, and those before themselves.
#pragma once

#include <cstdint>
#include <vector>

#include "decoder/decoder.h"
#include "decoder/expert_waves.h"
#include "decoder/model.h"
#include "decoder/rope.h"
#include "decoder/scratch.h"
#include "decoder/streamed_blocks.h"
#include "kernels/many_rows.h"
#include "kernels/worker.h"

namespace moekit {

// The memory of prompts; grows with the longest run of tokens.
template <typename Number>
struct PromptScratch {
    explicit PromptScratch(const Model& model) : sizes(model), rope(model.ropes) {}

    const Sizes sizes;
    TaskCounters counters;
    std::vector<PieceSpace<Number>> spaces;  // of each thread
    RopeTable rope;                          // of each token's position
    struct Forms {
        ManyForms attention, attended, ffn;  // of their inputs
    };
    // Of each layer; looked up before the region, within which the pointers of streamed matrices change.
    std::vector<Forms> forms;
    Aligned<float> residual, normed, added, projected, attended;
    ManyBuffer<Number> rows;                // that all products of a phase share
    Aligned<Number> keys;                   // of a layer, for each key head (positions, width)
    Aligned<Number> values;                 // the same transposed: (width, positions)
    std::vector<Aligned<float>> attention;  // of each thread
    std::vector<Aligned<Number>> queries;   // of each thread
    ManyBuffer<Number> routed, hidden, shared_hidden;
    Aligned<float> expert_added, shared_added, router_logits, shared_expert_gate;
    Routes routes;
    std::vector<int64_t> blocks;  // where the tiles of each expert that has any begin
    std::vector<int64_t> places;  // of each token: where its experts' rows stand, top_k of them
    std::vector<int64_t> placed;  // how many of them are known
};

// Whether all matrices of an ffn are multiplied in bytes; its other form is tiles.
bool in_bytes(const Ffn& ffn);
ManyForms many_forms(const Ffn& ffn);

template <typename Number>
class Prompt {
   public:
    Prompt(const Model& model, PromptScratch<Number>& scratch, ExpertWaves& waves, StreamedBlocks& blocks, Cache& cache,
           const int64_t* tokens, int64_t count);

    // Takes all memory, before the region.
    void reserve(int threads) const;

    // By every thread. Room in the cache is reserved for the tokens, which are not counted yet.
    void run(Worker& worker) const;
    // The residual stream of some of its tokens after the model's last norm, `width` numbers each. By every thread,
    // after run; once for each token.
    void norm_tokens(Worker& worker, int64_t begin, int64_t count, float* normed) const;

   private:
    // The residual stream, with what the block before added to it, normed for a block of layer `index`.
    ManyInput<Number> norm(Worker& worker, const Norm& post_norm, int64_t index, BlockKind kind) const;

    void reserve_attention(int threads) const;
    void attention(Worker& worker, int64_t index, const ManyInput<Number>& x) const;
    void write_cache(int64_t index, int64_t token) const;
    void gather_cache(Worker& worker, int64_t index) const;
    // `group` is some tokens that look at the cache together.
    void attend(int64_t index, int64_t head, int64_t group, int thread) const;
    Tiles<Number> load_queries(const Attention& attention, int64_t head, int64_t first, int64_t count,
                               int thread) const;

    void dense_ffn(Worker& worker, const Ffn& ffn, const ManyInput<Number>& x, ManyBuffer<Number>& hidden,
                   float* added) const;
    void moe_ffn(Worker& worker, int64_t index, const ManyInput<Number>& x) const;
    void route(Worker& worker, int64_t index) const;
    // Of the experts that are in memory now.
    void compute_experts(Worker& worker, const Layer& layer, const ManyInput<Number>& routed) const;
    void place(const Layer& layer) const;
    ManyInput<Number> gather(Worker& worker, const ManyInput<Number>& x, ManyForms forms) const;
    void combine(const Layer& layer, int64_t token) const;
    // The part of an input that is the `used`th expert's of those that have tokens.
    ManyInput<Number> of_expert(const ManyInput<Number>& input, int64_t used) const;

    int64_t seen() const { return start_ + count_; }

    const Model& model_;
    PromptScratch<Number>& scratch_;
    ExpertWaves& waves_;
    StreamedBlocks& blocks_;
    Cache& cache_;
    const int64_t* tokens_;
    int64_t count_;
    int64_t start_;  // of the tokens, in the cache
    float *residual_, *normed_, *added_, *projected_, *attended_;
};

// Both kinds' memory, of which a decoder fills what it uses.
struct PromptScratches {
    explicit PromptScratches(const Model& model) : fp32(model), bf16(model) {}

    PromptScratch<float> fp32;
    PromptScratch<uint16_t> bf16;
};

}  // namespace moekit
