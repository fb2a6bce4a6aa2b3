#include "streaming/policy.h"

#include <algorithm>
#include <cmath>

namespace moekit {

void Policy::use(const std::vector<int64_t>& experts) {
    ++pass_;
    for (const int64_t expert : experts) {
        worth_[expert] = worth(expert) + 1;
        last_[expert] = pass_;
    }
}

double Policy::worth(int64_t expert) const {
    if (last_[expert] < 0) {
        return 0;
    }
    switch (kind_) {
        case PolicyKind::Lfu:
            return worth_[expert];
        case PolicyKind::Lfru:
            return worth_[expert] * std::exp2(static_cast<double>(last_[expert] - pass_) / HALF_LIFE);
        default:
            return 0;
    }
}

int64_t Policy::victim(const std::vector<int64_t>& candidates) const {
    if (kind_ == PolicyKind::Static || candidates.empty()) {
        return NONE;
    }
    return *std::min_element(candidates.begin(), candidates.end(), [&](int64_t a, int64_t b) {
        const double of_a = worth(a), of_b = worth(b);
        if (of_a != of_b) {
            return of_a < of_b;
        }
        return last_[a] != last_[b] ? last_[a] < last_[b] : a < b;
    });
}

int64_t simulate_hits(PolicyKind kind, int64_t experts, int64_t places,
                      const std::vector<std::vector<int64_t>>& passes) {
    Policy policy(kind, experts);
    std::vector<int64_t> held, candidates;
    int64_t hits = 0;
    for (const std::vector<int64_t>& used : passes) {
        policy.use(used);
        const auto in = [](const std::vector<int64_t>& list, int64_t expert) {
            return std::find(list.begin(), list.end(), expert) != list.end();
        };
        std::vector<int64_t> missing;
        for (const int64_t expert : used) {
            if (in(held, expert)) {
                ++hits;
            } else {
                missing.push_back(expert);
            }
        }
        for (const int64_t expert : missing) {
            if (static_cast<int64_t>(held.size()) < places) {
                held.push_back(expert);
                continue;
            }
            candidates.clear();
            std::copy_if(held.begin(), held.end(), std::back_inserter(candidates),
                         [&](int64_t one) { return !in(used, one); });
            if (const int64_t victim = policy.victim(candidates); victim != Policy::NONE) {
                *std::find(held.begin(), held.end(), victim) = expert;
            }
        }
    }
    return hits;
}

}  // namespace moekit
