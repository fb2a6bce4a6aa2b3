// The experts that a pass over a layer uses, in groups that are in memory at the same time.
#pragma once

#include <cstdint>
#include <vector>

#include "decoder/model.h"
#include "decoder/scratch.h"
#include "kernels/worker.h"
#include "streaming/expert_store.h"

namespace moekit {

// Of a layer that is not streamed, the one group has all of them:
//
//     for (int64_t wave = 0; waves.next(worker, wave); ++wave)
class ExpertWaves {
   public:
    explicit ExpertWaves(ExpertStore* store) : store_(store) {}

    // By one thread, before the barrier that next() is called after. `read_on`: once all of them are read, the next
    // layer's are, if this pass uses half of its experts or more.
    void begin(int64_t layer, const std::vector<Routes::Expert>& experts, bool read_on);

    // Whether there is such a group; by every thread. Of the group before, nothing is used any more.
    bool next(Worker& worker, int64_t wave);

    // The group, as indices into the list of experts.
    const std::vector<int64_t>& used() const { return streamed_ ? store_->given() : all_; }

    // Whether there is such a layer, and its experts come from the store.
    bool streamed(int64_t layer) const { return store_ && store_->streamed(layer); }
    // Experts that a pass over that layer will probably use. By one thread, after begin().
    void foresee(int64_t layer, const std::vector<Routes::Expert>& experts);

    // A layer's ffn, of which the rows of that expert may be read.
    Ffn ffn(const Layer& layer, int64_t expert) const;

   private:
    ExpertStore* store_;
    int64_t layer_ = 0;  // of the pass
    bool streamed_ = false;
    bool read_on_ = false;
    std::vector<int64_t> all_, experts_, foreseen_;
};

}  // namespace moekit
