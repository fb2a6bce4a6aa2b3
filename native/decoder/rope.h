// Rotary positions (rope): the angles of a position, and their application to a head.
#pragma once

#include <cstdint>
#include <vector>

#include "decoder/model.h"

namespace moekit {

// Cosines and sines of one position's angles, one for each pair of a head's numbers; of no pairs where there is no
// rope.
struct RopeAngles {
    const float* cosine = nullptr;
    const float* sine = nullptr;
    int64_t pairs = 0;
    bool interleaved = false;
};

// Rotates the pairs of a head in place.
void apply_rope(const RopeAngles& angles, float* head);

// The angles of some positions for all ropes of a model, made once a step or prompt for all layers.
class RopeTable {
   public:
    explicit RopeTable(const std::vector<Rope>& ropes);

    // Takes memory for so many positions.
    void reserve(int64_t positions);
    // Place `index` of the table becomes that of `position`.
    void set(int64_t index, int64_t position);
    // rope: as Attention has it, NO_ROPE included.
    RopeAngles at(int64_t index, int64_t rope) const;

   private:
    const std::vector<Rope>& ropes_;
    std::vector<int64_t> offsets_;  // of each rope's pairs among those of a position
    int64_t pairs_ = 0;             // of all ropes
    std::vector<float> cosine_, sine_;
};

}  // namespace moekit
