// The feed-forward part of a step: dense networks and mixtures of experts.
#include <algorithm>

#include "decoder/step.h"

namespace moekit {
namespace {

// What one expert, or a dense network, multiplies its rows with; `expert` is 0 for the latter.
struct NetworkTask {
    const Network& network;
    int64_t expert;
    const Prepared& x;
    int64_t begin;  // rows of x
    int64_t end;
};

Chunks hidden_chunks(const Network& network, int threads) {
    const int64_t gate_bytes = network.gated() ? network.gate.row_bytes() : 0;
    return {network.hidden(), gate_bytes + network.up.row_bytes(), threads};
}

// Columns `from` to `to` of act(gate(x)) * up(x), for rows of x that come to stand in as many rows of `hidden`.
void activate_columns(const NetworkTask& task, int64_t from, int64_t to, float* hidden) {
    const Network& network = task.network;
    const int64_t rows = task.end - task.begin, columns = to - from, all = network.hidden();
    float gate[Decoder::MAX_BATCH * Chunks::MAX_ROWS], up[Decoder::MAX_BATCH * Chunks::MAX_ROWS];
    const auto multiply = [&](const Matrix& matrix, float* y) {
        const Matrix part = rows_of(matrix, task.expert * all + from, task.expert * all + to);
        multiply_rows(part, task.x.of(matrix).slice(task.begin, task.end), 0, columns, y, columns);
    };
    if (network.gated()) {
        multiply(network.gate, gate);
    }
    multiply(network.up, up);
    for (int64_t row = 0; row < rows; ++row) {
        const float* first = (network.gated() ? gate : up) + row * columns;
        const float* second = network.gated() ? up + row * columns : nullptr;
        vector_ops().activate(network.function, first, second, columns, hidden + row * all + from);
    }
}

}  // namespace

Forms Step::forms_of_feed_forward(const Layer& layer) const {
    const Forms network = forms_of(layer.network.gate) | forms_of(layer.network.up);
    if (layer.experts == 0) {
        return network;
    }
    // Of several sequences, each expert has its own choice side by side.
    const Forms beside = forms_of(layer.router) | forms_of(layer.branch.gate) | forms_of(layer.branch.up);
    return alone() ? beside | network : beside;
}

void Step::dense(Worker& worker, const Layer& layer, const Prepared& x) const {
    const Network& network = layer.network;
    const Chunks chunks = hidden_chunks(network, worker.threads());
    worker.each(chunks.count(), [&](int64_t chunk) {
        const NetworkTask task{network, 0, x, 0, batch_};
        activate_columns(task, chunks.begin(chunk), chunks.end(chunk), scratch_.hidden.numbers());
    });
    const Prepared hidden =
        scratch_.hidden.prepare(batch_, network.hidden(), forms_of(network.down), worker.thread(), worker.threads());
    worker.barrier();
    multiply(worker, {{network.down, hidden.of(network.down), scratch_.added.data(), shape_.width}});
}

void Step::mixture(Worker& worker, const Layer& layer, const Prepared& x) const {
    route(worker, layer, x);
    activate_experts(worker, layer, alone() ? x : gather(worker, layer));
    const auto assignments = static_cast<int64_t>(scratch_.routes.sequence.size());
    const Prepared hidden = scratch_.hidden.prepare(assignments, layer.network.hidden(), forms_of(layer.network.down),
                                                    worker.thread(), worker.threads());
    Prepared branch;
    if (layer.has_branch()) {
        branch = scratch_.branch_hidden.prepare(batch_, layer.branch.hidden(), forms_of(layer.branch.down),
                                                worker.thread(), worker.threads());
    }
    worker.barrier();
    add_experts(worker, layer, hidden, branch);
}

void Step::route(Worker& worker, const Layer& layer, const Prepared& x) const {
    const Matrix gate{reinterpret_cast<const uint8_t*>(layer.branch_gate), Type::F32, layer.branch_gate ? 1 : 0,
                      shape_.width};
    multiply(worker, {{layer.router, x.of(layer.router), scratch_.router_logits.data(), layer.experts},
                      {gate, x.of(gate), scratch_.branch_gate.data(), 1}});
    if (worker.thread() == 0) {
        scratch_.routes.choose(scratch_.router_logits.data(), batch_, layer);
    }
    // The branch does not wait for the choice.
    const Chunks chunks = layer.has_branch() ? hidden_chunks(layer.branch, worker.threads()) : Chunks(0, 1, 1);
    worker.each(chunks.count(), [&](int64_t chunk) {
        const NetworkTask task{layer.branch, 0, x, 0, batch_};
        activate_columns(task, chunks.begin(chunk), chunks.end(chunk), scratch_.branch_hidden.numbers());
    });
}

Prepared Step::gather(Worker& worker, const Layer& layer) const {
    const std::vector<int64_t>& sequence = scratch_.routes.sequence;
    const auto assignments = static_cast<int64_t>(sequence.size());
    const int64_t width = shape_.width;
    const Network& network = layer.network;
    worker.each(assignments, [&](int64_t i) {
        std::copy_n(scratch_.normed.numbers() + sequence[i] * width, width, scratch_.routed.numbers() + i * width);
    });
    const Prepared prepared = scratch_.routed.prepare(assignments, width, forms_of(network.gate) | forms_of(network.up),
                                                      worker.thread(), worker.threads());
    worker.barrier();
    return prepared;
}

void Step::activate_experts(Worker& worker, const Layer& layer, const Prepared& x) const {
    const Chunks chunks = hidden_chunks(layer.network, worker.threads());
    const std::vector<Routes::Expert>& experts = scratch_.routes.experts;
    worker.each(static_cast<int64_t>(experts.size()) * chunks.count(), [&](int64_t task) {
        // The short chunks of all experts come last.
        const auto used = static_cast<int64_t>(experts.size());
        const Routes::Expert& expert = experts[task % used];
        const int64_t chunk = task / used;
        // A sequence that is alone has one row for all its experts.
        const int64_t begin = alone() ? 0 : expert.begin, end = alone() ? 1 : expert.end;
        activate_columns({layer.network, expert.index, x, begin, end}, chunks.begin(chunk), chunks.end(chunk),
                         scratch_.hidden.numbers() + expert.begin * layer.network.hidden());
    });
}

void Step::add_experts(Worker& worker, const Layer& layer, const Prepared& hidden, const Prepared& branch) const {
    const std::vector<Routes::Expert>& experts = scratch_.routes.experts;
    const Matrix& down = layer.network.down;
    const int64_t width = shape_.width;
    const auto used = static_cast<int64_t>(experts.size());
    const Chunks chunks(width, down.row_bytes(), worker.threads());
    const Chunks of_branch =
        layer.has_branch() ? Chunks(width, layer.branch.down.row_bytes(), worker.threads()) : Chunks(0, 1, 1);
    worker.each(of_branch.count() + used * chunks.count(), [&](int64_t task) {
        if (task < of_branch.count()) {
            const Product product{layer.branch.down, branch.of(layer.branch.down), scratch_.branch_added.data(), width};
            return product.compute(of_branch.begin(task), of_branch.end(task));
        }
        // The short chunks of all experts come last.
        const Routes::Expert& expert = experts[(task - of_branch.count()) % used];
        const int64_t chunk = (task - of_branch.count()) / used;
        multiply_rows(rows_of(down, expert.index * width, (expert.index + 1) * width),
                      hidden.of(down).slice(expert.begin, expert.end), chunks.begin(chunk), chunks.end(chunk),
                      scratch_.expert_added.data() + expert.begin * width, width);
    });
    constexpr int64_t RUN = 256;
    worker.each((width + RUN - 1) / RUN,
                [&](int64_t run) { sum_experts(layer, run * RUN, std::min(width, (run + 1) * RUN)); });
}

void Step::sum_experts(const Layer& layer, int64_t from, int64_t to) const {
    const Routes& routes = scratch_.routes;
    const int64_t width = shape_.width;
    for (int64_t b = 0; b < batch_; ++b) {
        std::fill(scratch_.added.data() + b * width + from, scratch_.added.data() + b * width + to, 0.0f);
    }
    const auto add = [&](int64_t sequence, float weight, const float* part) {
        float* added = scratch_.added.data() + sequence * width;
        for (int64_t i = from; i < to; ++i) {
            added[i] += weight * part[i];
        }
    };
    for (size_t i = 0; i < routes.sequence.size(); ++i) {
        add(routes.sequence[i], routes.weight[i], scratch_.expert_added.data() + i * width);
    }
    if (layer.has_branch()) {
        for (int64_t b = 0; b < batch_; ++b) {
            add(b, branch_share(layer, &scratch_.branch_gate[b]), scratch_.branch_added.data() + b * width);
        }
    }
}

}  // namespace moekit
