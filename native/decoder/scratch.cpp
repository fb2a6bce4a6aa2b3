#include "decoder/scratch.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace moekit {

Sizes::Sizes(const std::vector<Layer>& layers) {
    for (const Layer& layer : layers) {
        experts = std::max(experts, layer.experts);
        assignments = std::max(assignments, Decoder::MAX_BATCH * layer.top_k);
        hidden = std::max(hidden, layer.ffn.hidden());
        shared_expert = std::max(shared_expert, layer.shared_expert.hidden());
    }
}

Scratch::Scratch(const DecoderShape& shape, const Sizes& sizes)
    : cosine(Decoder::MAX_BATCH * shape.rope_frequencies.size()),
      sine(cosine.size()),
      residual(Decoder::MAX_BATCH * shape.width),
      projected(Decoder::MAX_BATCH * (shape.heads + 2 * shape.kv_heads) * shape.head_width),
      added(Decoder::MAX_BATCH * shape.width),
      expert_added(sizes.assignments * shape.width),
      shared_added(Decoder::MAX_BATCH * shape.width),
      router_logits(Decoder::MAX_BATCH * sizes.experts),
      shared_expert_gate(Decoder::MAX_BATCH),
      normed(Decoder::MAX_BATCH, shape.width),
      attended(Decoder::MAX_BATCH, shape.heads * shape.head_width),
      routed(sizes.assignments, shape.width),
      hidden(sizes.assignments, sizes.hidden),
      shared_hidden(Decoder::MAX_BATCH, sizes.shared_expert) {
    routes.reserve(sizes.experts, sizes.assignments);
}

void Routes::reserve(int64_t most_experts, int64_t assignments) {
    experts.reserve(most_experts);
    sequence.reserve(assignments);
    weight.reserve(assignments);
    choices_.reserve(assignments);
    order_.reserve(most_experts);
}

void Routes::choose(float* logits, int64_t batch, const Layer& layer) {
    choices_.clear();
    for (int64_t b = 0; b < batch; ++b) {
        add_choices(logits + b * layer.experts, b, layer);
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

void Routes::add_choices(float* probability, int64_t of_sequence, const Layer& layer) {
    const float largest = *std::max_element(probability, probability + layer.experts);
    float total = 0;
    for (int64_t e = 0; e < layer.experts; ++e) {
        probability[e] = std::exp(probability[e] - largest);
        total += probability[e];
    }
    order_.resize(layer.experts);
    std::iota(order_.begin(), order_.end(), 0);
    std::partial_sort(order_.begin(), order_.begin() + layer.top_k, order_.end(), [&](int64_t a, int64_t b) {
        return probability[a] != probability[b] ? probability[a] > probability[b] : a < b;
    });
    float divisor = total;
    if (layer.renormalize) {
        divisor = 0;
        for (int64_t k = 0; k < layer.top_k; ++k) {
            divisor += probability[order_[k]];
        }
    }
    for (int64_t k = 0; k < layer.top_k; ++k) {
        choices_.push_back({order_[k], of_sequence, probability[order_[k]] / divisor});
    }
}

}  // namespace moekit
