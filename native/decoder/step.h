// One token for each of several sequences: what every thread of the parallel region runs, phase by phase.
#pragma once

#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <vector>

#include "decoder/decoder.h"
#include "decoder/expert_waves.h"
#include "decoder/model.h"
#include "decoder/scratch.h"
#include "decoder/streamed_blocks.h"
#include "kernels/worker.h"

namespace moekit {

// y[b * y_stride + row] = (matrix[row] . x[b] + bias[row]) * scale. The rows of a sequence may lie in a wider one.
struct Product {
    const Matrix& matrix;
    const Activations& x;
    float* y;
    int64_t y_stride;
    const float* bias = nullptr;
    float scale = 1;

    void compute(int64_t begin, int64_t end) const;
};

// By every thread: products, then a barrier.
void multiply(Worker& worker, std::initializer_list<Product> products);

// The end of a step and of a prompt: logits (`batch` rows of V) from what the last norm has made of each token. By
// every thread, after a barrier.
void multiply_head(Worker& worker, const Model& model, Input& normed, int64_t batch, float* logits);

// Rows `begin` to `end` of a matrix as a matrix.
inline Matrix rows_of(const Matrix& matrix, int64_t begin, int64_t end) {
    return {matrix.row(begin), matrix.type, end - begin, matrix.columns};
}

// The gate of a shared expert as a matrix of one row; of none where it has no gate.
inline Matrix shared_gate_of(const Moe& moe, int64_t width) {
    const Vector& gate = moe.shared_expert_gate;
    return {reinterpret_cast<const uint8_t*>(gate.data), Type::F32, gate.data ? 1 : 0, width};
}

// What the shared expert counts for: all of it, or what its gate says of a token.
inline float shared_expert_weight(const Moe& moe, const float* gate) {
    return moe.shared_expert_gate.data ? 1 / (1 + std::exp(-*gate)) : 1.0f;
}

// How rows of `row_bytes` are cut into tasks: the first three quarters into long ones, since every task begins with
// waiting for memory; the last into short ones, so that no thread waits long for another's last.
class Chunks {
   public:
    static constexpr int64_t MAX_ROWS = 256;

    Chunks(int64_t rows, int64_t row_bytes, int threads);

    int64_t count() const { return long_count_ + (rows_ - long_count_ * long_ + short_ - 1) / short_; }
    int64_t begin(int64_t chunk) const {
        return chunk < long_count_ ? chunk * long_ : long_count_ * long_ + (chunk - long_count_) * short_;
    }
    int64_t end(int64_t chunk) const {
        const int64_t end = begin(chunk) + (chunk < long_count_ ? long_ : short_);
        return end < rows_ ? end : rows_;
    }

   private:
    int64_t rows_;
    int64_t long_;
    int64_t short_;
    int64_t long_count_;
};

// Shared by the threads; what changes lies in the scratch.
class Step {
   public:
    Step(const Model& model, Scratch& scratch, ExpertWaves& waves, StreamedBlocks& blocks, Cache* const* caches,
         const int64_t* tokens, int64_t batch, float* logits, bool reads_ahead);

    // By every thread.
    void run(Worker& worker) const;

   private:
    // The residual stream, with what the block before added to it, normed and prepared in those forms for a block of
    // layer `index`.
    Prepared norm(Worker& worker, const Norm& post_norm, int64_t index, BlockKind kind, Forms forms) const;
    // The same, not prepared yet.
    void norm_rows(Worker& worker, const Norm& post_norm, const Norm& norm) const;

    void attention(Worker& worker, int64_t index, const Prepared& x) const;
    // A task is the part of the positions that `sequence` sees at key head `head`; `memory` has room for task_floats.
    void attend(int64_t index, int64_t sequence, int64_t head, int64_t part, float* memory) const;
    // Joins the online softmaxes of sequences with several parts.
    void join(Worker& worker, const Attention& attention) const;
    int64_t parts(int64_t sequence, int64_t window) const;
    float* attended(const Attention& attention, int64_t sequence, int64_t head) const;

    // The feed-forward networks write what they add to the residual stream into `added`.
    Forms forms_of_ffn(const Layer& layer) const;
    void dense_ffn(Worker& worker, const Layer& layer, const Prepared& x) const;
    void moe_ffn(Worker& worker, int64_t index, const Prepared& x) const;
    void route(Worker& worker, int64_t index, const Prepared& x) const;
    // Lets the store read what the router of layer `index` would choose for the residual stream as it is now. By one
    // thread.
    void foresee(int64_t index) const;
    Prepared gather(Worker& worker, const Layer& layer) const;
    // Of the experts that are in memory now.
    void activate_experts(Worker& worker, const Layer& layer, const Prepared& x) const;
    Prepared prepare_hidden(Worker& worker, const Layer& layer) const;
    // What they add, and beside the first of them what the shared expert does.
    void add_experts(Worker& worker, const Layer& layer, const Prepared& hidden, const Prepared* shared_expert) const;
    // Columns `from` to `to` of what the experts and the shared expert add together, for all sequences.
    void sum_experts(const Layer& layer, int64_t from, int64_t to) const;

    // Whether every product has a single row.
    bool alone() const { return batch_ == 1; }

    const Model& model_;
    Scratch& scratch_;
    ExpertWaves& waves_;
    StreamedBlocks& blocks_;
    Cache* const* caches_;
    const int64_t* tokens_;
    int64_t batch_;
    float* logits_;
    bool reads_ahead_;
};

}  // namespace moekit
