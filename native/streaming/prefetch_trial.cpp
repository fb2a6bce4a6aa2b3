#include "streaming/prefetch_trial.h"

#include <algorithm>

namespace moekit {
namespace {

double median(std::vector<double> numbers) {
    const auto middle = numbers.begin() + static_cast<int64_t>(numbers.size()) / 2;
    std::nth_element(numbers.begin(), middle, numbers.end());
    return *middle;
}

}  // namespace

void PrefetchTrial::took(double seconds) {
    if (prefetch_ != Prefetch::Measured) {
        return;
    }
    const int64_t step = step_++ % (TURN * TURNS + KEPT);
    if (step >= TURN * TURNS) {
        return;
    }
    if (step % TURN) {
        seconds_[on_].push_back(seconds);
    }
    if (step + 1 == TURN * TURNS) {
        on_ = median(seconds_[true]) < median(seconds_[false]);
        seconds_[false].clear();
        seconds_[true].clear();
    } else if ((step + 1) % TURN == 0) {
        on_ = !on_;
    }
}

}  // namespace moekit
