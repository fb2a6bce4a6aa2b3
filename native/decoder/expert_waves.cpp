#include "decoder/expert_waves.h"

#include <numeric>

namespace moekit {

void ExpertWaves::begin(int64_t layer, const std::vector<Routes::Expert>& experts, bool read_on) {
    layer_ = layer;
    read_on_ = read_on && streamed(layer + 1);
    streamed_ = streamed(layer);
    if (!streamed_) {
        all_.resize(experts.size());
        std::iota(all_.begin(), all_.end(), 0);
        return;
    }
    experts_.clear();
    for (const Routes::Expert& expert : experts) {
        experts_.push_back(expert.index);
    }
    store_->begin(layer, experts_);
}

void ExpertWaves::foresee(int64_t layer, const std::vector<Routes::Expert>& experts) {
    foreseen_.clear();
    for (const Routes::Expert& expert : experts) {
        foreseen_.push_back(expert.index);
    }
    store_->foresee(layer, foreseen_);
}

bool ExpertWaves::next(Worker& worker, int64_t wave) {
    if (!streamed_) {
        return wave == 0;
    }
    if (worker.thread() == 0) {
        store_->next();
        if (read_on_ && store_->all_given()) {
            read_on_ = false;
            store_->foresee_all(layer_ + 1);
        }
    }
    worker.barrier();
    return !used().empty();
}

Ffn ExpertWaves::ffn(const Layer& layer, int64_t expert) const {
    Ffn ffn = layer.ffn;
    if (!streamed_) {
        return ffn;
    }
    // Rows are numbered through all experts; those of this one stand where they were read to.
    const auto place = [&](Matrix& matrix, int which) {
        if (matrix.data) {
            const int64_t rows = matrix.rows / layer.moe.experts;
            matrix.data = store_->matrix(expert, which) - expert * rows * matrix.row_bytes();
        }
    };
    place(ffn.gate, 0);
    place(ffn.up, 1);
    place(ffn.down, 2);
    return ffn;
}

}  // namespace moekit
