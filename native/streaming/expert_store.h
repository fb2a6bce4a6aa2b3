// The experts of a mixture that lies on disk: some in memory, the others read when a layer needs them.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/aligned_bytes.h"
#include "streaming/direct_file.h"
#include "streaming/policy.h"
#include "streaming/reader.h"

namespace moekit {

// Where a layer's experts lie in the files, and how many of them have a place in memory.
struct StreamedLayer {
    static constexpr int MATRICES = 3;  // gate, up, down; a matrix that there is not has no bytes
    using Expert = std::array<Span, MATRICES>;

    std::vector<Expert> experts;  // none where the layer is not streamed
    int64_t places = 0;

    bool streamed() const { return !experts.empty(); }
};

struct StoreOptions {
    PolicyKind policy = PolicyKind::Lru;
    // Places that all layers share, for experts that pass through: one is computed with while another is read.
    int64_t passing = 2;
    int threads = 4;  // that read
    bool direct = true;
};

// Counted since the store was made.
struct StoreCounts {
    int64_t hits = 0;           // uses that found their expert in memory
    int64_t misses = 0;         // those that had to wait for the disk, wholly or in part
    int64_t foreseen = 0;       // experts that were read before they were asked for
    int64_t foreseen_used = 0;  // and then were asked for by the next pass over their layer
    int64_t bytes = 0;
    double busy_seconds = 0;   // of the disk
    double stall_seconds = 0;  // in which nothing could be computed
};

// All but the constructor is called by one thread at a time. Nothing throws where reading fails, since threads that
// compute cannot: experts then have zeros, until take_error() says why.
class ExpertStore {
   public:
    // Throws ReadError, std::bad_alloc, and std::invalid_argument where an expert lies beyond its file.
    ExpertStore(const std::vector<std::string>& paths, std::vector<StreamedLayer> layers, const StoreOptions& options);

    const StreamedLayer& layer(int64_t index) const { return layers_[index].plan; }
    int64_t layers() const { return static_cast<int64_t>(layers_.size()); }
    bool streamed(int64_t layer) const {
        return layer < static_cast<int64_t>(layers_.size()) && layers_[layer].plan.streamed();
    }

    // A pass over a layer: the experts that it uses, ascending. Then next() until it gives none.
    void begin(int64_t layer, const std::vector<int64_t>& experts);
    // Finds which of them (as indices into the list, ascending) are in memory and were not given before, and waits for
    // one at least; those given before are no longer needed.
    void next();
    const std::vector<int64_t>& given() const { return given_; }
    bool all_given() const { return waiting_.empty(); }

    // Where a matrix of an expert stands that next() gave last.
    const uint8_t* matrix(int64_t expert, int which) const;

    // Starts reading experts that the next pass over the layer will probably use.
    void foresee(int64_t layer, const std::vector<int64_t>& experts);
    // The same for all experts of a layer, as far as there are places that are free or for passing, if the present pass
    // uses half of its layer's or more.
    void foresee_all(int64_t layer);

    // Why experts have had zeros since the last call; empty where none have.
    std::string take_error();

    StoreCounts counts() const;

   private:
    struct Place {
        uint8_t* memory = nullptr;
        int64_t layer = -1, expert = -1;  // whose; -1: nobody's
        bool in_use = false;
        bool foreseen = false;  // and not asked for yet
        Load load;
    };
    struct Layer {
        StreamedLayer plan;
        Policy policy;
        std::vector<Place*> own;
        std::vector<Place*> of_expert;  // null where an expert has none
        std::vector<char> used;         // by the pass
    };

    // What the largest of a layer's experts takes, in whole blocks.
    static int64_t place_bytes(const StreamedLayer& layer);
    void read_missing();
    // Puts those that are in memory into given_, and all that are or will be into loads_.
    bool find_ready();
    bool read(int64_t layer, int64_t expert, bool urgent, bool keep);
    Place* free_place(Layer& layer, bool keep);
    bool foresee(int64_t layer, int64_t expert, bool keep);
    void vacate(Place& place);
    void fail(Place& place);
    void check(const StreamedLayer& layer) const;
    bool reading(const Place& place) const { return reader_->state(place.load) == Load::State::Reading; }

    std::vector<std::unique_ptr<DirectFile>> files_;
    std::vector<Layer> layers_;
    AlignedBytes memory_;
    int64_t bytes_ = 0;
    std::vector<std::unique_ptr<Place>> places_;
    std::vector<Place*> passing_;  // those that were taken longest ago come first
    std::unique_ptr<Reader> reader_;

    // Of the pass.
    int64_t layer_ = -1;
    std::vector<int64_t> experts_;
    std::vector<int64_t> waiting_;  // indices that were not given yet
    std::vector<int64_t> given_;
    std::vector<Load*> loads_;
    std::vector<int64_t> candidates_;
    bool failed_ = false;
    StoreCounts counts_;
};

}  // namespace moekit
