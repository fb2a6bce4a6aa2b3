#include "decoder/scratch.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace moekit {

Sizes::Sizes(const Model& model) {
    for (const Layer& layer : model.layers) {
        projected = std::max(projected, layer.attention.projected_rows());
        attended = std::max(attended, layer.attention.query_rows());
        experts = std::max(experts, layer.moe.experts);
        assignments = std::max(assignments, Decoder::MAX_BATCH * layer.moe.top_k);
        hidden = std::max(hidden, layer.ffn.hidden);
        shared_expert = std::max(shared_expert, layer.moe.shared_expert.hidden);
    }
}

Scratch::Scratch(const Model& model) : Scratch(model, Sizes(model)) {}

Scratch::Scratch(const Model& model, const Sizes& sizes)
    : rope(model.ropes),
      residual(Decoder::MAX_BATCH * model.width),
      projected(Decoder::MAX_BATCH * sizes.projected),
      added(Decoder::MAX_BATCH * model.width),
      expert_added(sizes.assignments * model.width),
      shared_added(Decoder::MAX_BATCH * model.width),
      router_logits(Decoder::MAX_BATCH * sizes.experts),
      shared_expert_gate(Decoder::MAX_BATCH),
      normed(Decoder::MAX_BATCH, model.width),
      attended(Decoder::MAX_BATCH, sizes.attended),
      routed(sizes.assignments, model.width),
      hidden(sizes.assignments, sizes.hidden),
      shared_hidden(Decoder::MAX_BATCH, sizes.shared_expert),
      foreseen(Decoder::MAX_BATCH * model.width),
      foreseen_logits(Decoder::MAX_BATCH * sizes.experts) {
    rope.reserve(Decoder::MAX_BATCH);
    routes.reserve(sizes.experts, sizes.assignments);
    foreseen_routes.reserve(sizes.experts, sizes.assignments);
}

void Routes::reserve(int64_t most_experts, int64_t assignments) {
    experts.reserve(most_experts);
    sequence.reserve(assignments);
    weight.reserve(assignments);
    choices_.reserve(assignments);
    order_.reserve(most_experts);
}

void Routes::choose(float* logits, int64_t batch, const Moe& moe) {
    choices_.clear();
    for (int64_t b = 0; b < batch; ++b) {
        add_choices(logits + b * moe.experts, b, moe);
    }
    std::sort(choices_.begin(), choices_.end(), [](const Choice& a, const Choice& b) {
        return a.expert != b.expert ? a.expert < b.expert : a.sequence < b.sequence;
    });
    experts.clear();
    sequence.clear();
    weight.clear();
    for (const Choice& choice : choices_) {
        const auto at = static_cast<int64_t>(sequence.size());
        if (experts.empty() || experts.back().index != choice.expert) {
            experts.push_back({choice.expert, at, at});
        }
        experts.back().end = at + 1;
        sequence.push_back(choice.sequence);
        weight.push_back(choice.weight);
    }
}

void Routes::add_choices(float* probability, int64_t of_sequence, const Moe& moe) {
    const float largest = *std::max_element(probability, probability + moe.experts);
    float total = 0;
    for (int64_t e = 0; e < moe.experts; ++e) {
        probability[e] = std::exp(probability[e] - largest);
        total += probability[e];
    }
    order_.resize(moe.experts);
    std::iota(order_.begin(), order_.end(), 0);
    std::partial_sort(order_.begin(), order_.begin() + moe.top_k, order_.end(), [&](int64_t a, int64_t b) {
        return probability[a] != probability[b] ? probability[a] > probability[b] : a < b;
    });
    float divisor = total;
    if (moe.renormalize) {
        divisor = 0;
        for (int64_t k = 0; k < moe.top_k; ++k) {
            divisor += probability[order_[k]];
        }
    }
    for (int64_t k = 0; k < moe.top_k; ++k) {
        choices_.push_back({order_[k], of_sequence, probability[order_[k]] / divisor});
    }
}

}  // namespace moekit
