#include "decoder/rope.h"

#include <algorithm>
#include <cmath>

namespace moekit {

void apply_rope(const RopeAngles& angles, float* head) {
    const int64_t step = angles.interleaved ? 2 : 1, apart = angles.interleaved ? 1 : angles.pairs;
    for (int64_t i = 0; i < angles.pairs; ++i) {
        float& x = head[i * step];
        float& y = head[i * step + apart];
        const float rotated = x * angles.cosine[i] - y * angles.sine[i];
        y = y * angles.cosine[i] + x * angles.sine[i];
        x = rotated;
    }
}

RopeTable::RopeTable(const std::vector<Rope>& ropes) : ropes_(ropes) {
    for (const Rope& rope : ropes) {
        offsets_.push_back(pairs_);
        pairs_ += rope.pairs();
    }
}

void RopeTable::reserve(int64_t positions) {
    const auto count = static_cast<size_t>(positions * pairs_);
    cosine_.resize(std::max(cosine_.size(), count));
    sine_.resize(std::max(sine_.size(), count));
}

void RopeTable::set(int64_t index, int64_t position) {
    for (size_t r = 0; r < ropes_.size(); ++r) {
        const Rope& rope = ropes_[r];
        float* cosine = cosine_.data() + index * pairs_ + offsets_[r];
        float* sine = sine_.data() + index * pairs_ + offsets_[r];
        for (int64_t i = 0; i < rope.pairs(); ++i) {
            const double angle = static_cast<double>(position) * rope.frequencies[i];
            cosine[i] = static_cast<float>(std::cos(angle) * rope.magnitude);
            sine[i] = static_cast<float>(std::sin(angle) * rope.magnitude);
        }
    }
}

RopeAngles RopeTable::at(int64_t index, int64_t rope) const {
    if (rope == Attention::NO_ROPE) {
        return {};
    }
    const int64_t at = index * pairs_ + offsets_[rope];
    return {cosine_.data() + at, sine_.data() + at, ropes_[rope].pairs(), ropes_[rope].interleaved};
}

}  // namespace moekit
