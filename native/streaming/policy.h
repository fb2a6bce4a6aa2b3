// Which experts of a layer stay in memory.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

namespace moekit {

enum class PolicyKind {
    // The one that was used longest ago goes (least recently used).
    Lru,
    // The one that was used least often goes (least frequently used); the longest ago of equals.
    Lfu,
    // The same, but a use counts for half after as many steps as HALF_LIFE (least frequently and recently used).
    Lfru,
    // Those that came first stay for good, and others only pass through.
    Static,
};

// Of one layer's experts.
class Policy {
   public:
    // Passes over the layer.
    static constexpr double HALF_LIFE = 64;

    Policy(PolicyKind kind, int64_t experts) : kind_(kind), worth_(experts), last_(experts, -1) {}

    // A pass over the layer (one token of each sequence, or a chunk of a prompt) uses these experts.
    void use(const std::vector<int64_t>& experts);

    // Which of those that lie in memory, and that the pass does not use, goes to make room; NONE where none of them
    // does.
    int64_t victim(const std::vector<int64_t>& candidates) const;
    static constexpr int64_t NONE = -1;

   private:
    double worth(int64_t expert) const;

    PolicyKind kind_;
    int64_t pass_ = 0;
    std::vector<double> worth_;  // of each expert, at its last use
    std::vector<int64_t> last_;  // the pass of it; -1: never
};

// How many of a layer's uses find their expert in memory, if it has that many places: `passes` are the experts that
// each pass uses, without repetition. The decisions are those of a store, which finds a few more in places for passing.
int64_t simulate_hits(PolicyKind kind, int64_t experts, int64_t places,
                      const std::vector<std::vector<int64_t>>& passes);

}  // namespace moekit
