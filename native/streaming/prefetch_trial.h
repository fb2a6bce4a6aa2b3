// Whether it pays to read experts before they are asked for.
#pragma once

#include <cstdint>
#include <vector>

namespace moekit {

enum class Prefetch { Off, On, Measured };

// Wrong guesses keep a busy disk from what is needed, so that what helps on one machine is a loss on another. Measured:
// steps with and without take turns, and the faster way is kept until the next trial.
class PrefetchTrial {
   public:
    static constexpr int64_t TURN = 8;     // steps; the first of a turn pays for the turn before, and does not count
    static constexpr int64_t TURNS = 8;    // of a trial
    static constexpr int64_t KEPT = 1024;  // steps from a trial to the next

    explicit PrefetchTrial(Prefetch prefetch) : prefetch_(prefetch), on_(prefetch == Prefetch::On) {}

    // Whether the next step reads ahead.
    bool on() const { return on_; }
    // What a step took.
    void took(double seconds);

   private:
    Prefetch prefetch_;
    bool on_;
    int64_t step_ = 0;
    std::vector<double> seconds_[2];  // of steps without and with
};

}  // namespace moekit
