// The feed-forward part of a step: a dense ffn, or a mixture of experts (MoE).
#include <algorithm>

#include "decoder/heads.h"
#include "decoder/step.h"

namespace moekit {
namespace {

// What one expert, or a dense ffn, multiplies its rows with; `expert` is 0 for the latter.
struct FfnTask {
    const Ffn& ffn;
    int64_t expert;
    const Prepared& x;
    int64_t begin;  // rows of x
    int64_t end;
};

Chunks hidden_chunks(const Ffn& ffn, int threads) {
    const int64_t gate_bytes = ffn.gated() ? ffn.gate.row_bytes() : 0;
    return {ffn.hidden, gate_bytes + ffn.up.row_bytes(), threads};
}

// Columns `from` to `to` of act(gate(x)) * up(x), for rows of x that come to stand in as many rows of `hidden`.
void activate_columns(const FfnTask& task, int64_t from, int64_t to, float* hidden) {
    const Ffn& ffn = task.ffn;
    const int64_t rows = task.end - task.begin, columns = to - from, all = ffn.hidden;
    float gate[Decoder::MAX_BATCH * Chunks::MAX_ROWS], up[Decoder::MAX_BATCH * Chunks::MAX_ROWS];
    const auto multiply = [&](const Matrix& matrix, float* y) {
        const Matrix part = rows_of(matrix, task.expert * all + from, task.expert * all + to);
        multiply_rows(part, task.x.of(matrix).slice(task.begin, task.end), 0, columns, y, columns);
    };
    if (ffn.gated()) {
        multiply(ffn.gate, gate);
    }
    multiply(ffn.up, up);
    for (int64_t row = 0; row < rows; ++row) {
        const float* first = (ffn.gated() ? gate : up) + row * columns;
        const float* second = ffn.gated() ? up + row * columns : nullptr;
        vector_ops().activate(ffn.function, first, second, columns, hidden + row * all + from);
    }
}

}  // namespace

Forms Step::forms_of_ffn(const Layer& layer) const {
    const Forms ffn = forms_of(layer.ffn.gate) | forms_of(layer.ffn.up);
    if (!layer.is_moe()) {
        return ffn;
    }
    // Of several sequences, each expert has its own choice side by side.
    const Forms beside =
        forms_of(layer.moe.router) | forms_of(layer.moe.shared_expert.gate) | forms_of(layer.moe.shared_expert.up);
    return alone() ? beside | ffn : beside;
}

void Step::dense_ffn(Worker& worker, const Layer& layer, const Prepared& x) const {
    const Ffn& ffn = layer.ffn;
    const Chunks chunks = hidden_chunks(ffn, worker.threads());
    worker.each(chunks.count(), [&](int64_t chunk) {
        const FfnTask task{ffn, 0, x, 0, batch_};
        activate_columns(task, chunks.begin(chunk), chunks.end(chunk), scratch_.hidden.numbers());
    });
    const Prepared hidden =
        scratch_.hidden.prepare(0, batch_, ffn.hidden, forms_of(ffn.down), worker.thread(), worker.threads());
    worker.barrier();
    multiply(worker, {{ffn.down, hidden.of(ffn.down), scratch_.added.data(), model_.width}});
}

void Step::moe_ffn(Worker& worker, int64_t index, const Prepared& x) const {
    const Layer& layer = model_.layers[index];
    route(worker, index, x);
    const Prepared rows = alone() ? x : gather(worker, layer);
    Prepared shared_expert;
    if (layer.moe.has_shared_expert()) {
        shared_expert =
            scratch_.shared_hidden.prepare(0, batch_, layer.moe.shared_expert.hidden,
                                           forms_of(layer.moe.shared_expert.down), worker.thread(), worker.threads());
    }
    for (int64_t wave = 0; waves_.next(worker, wave); ++wave) {
        activate_experts(worker, layer, rows);
        const Prepared hidden = prepare_hidden(worker, layer);
        worker.barrier();
        add_experts(worker, layer, hidden, wave == 0 ? &shared_expert : nullptr);
    }
    constexpr int64_t RUN = 256;
    worker.each((model_.width + RUN - 1) / RUN,
                [&](int64_t run) { sum_experts(layer, run * RUN, std::min(model_.width, (run + 1) * RUN)); });
}

void Step::route(Worker& worker, int64_t index, const Prepared& x) const {
    const Layer& layer = model_.layers[index];
    const Matrix gate = shared_gate_of(layer.moe, model_.width);
    multiply(worker, {{layer.moe.router, x.of(layer.moe.router), scratch_.router_logits.data(), layer.moe.experts},
                      {gate, x.of(gate), scratch_.shared_expert_gate.data(), 1}});
    if (worker.thread() == 0) {
        scratch_.routes.choose(scratch_.router_logits.data(), batch_, layer.moe);
        waves_.begin(index, scratch_.routes.experts, false);
        if (reads_ahead_ && waves_.streamed(index + 1)) {
            foresee(index + 1);
        }
    }
    // The shared expert does not wait for the choice.
    const Chunks chunks =
        layer.moe.has_shared_expert() ? hidden_chunks(layer.moe.shared_expert, worker.threads()) : Chunks(0, 1, 1);
    worker.each(chunks.count(), [&](int64_t chunk) {
        const FfnTask task{layer.moe.shared_expert, 0, x, 0, batch_};
        activate_columns(task, chunks.begin(chunk), chunks.end(chunk), scratch_.shared_hidden.numbers());
    });
}

void Step::foresee(int64_t index) const {
    const Layer& layer = model_.layers[index];
    const int64_t width = model_.width, experts = layer.moe.experts;
    for (int64_t b = 0; b < batch_; ++b) {
        rms_norm(layer.ffn_norm, scratch_.residual.data() + b * width, width, scratch_.foreseen.data() + b * width);
    }
    const Activations x{Form::F32, batch_, width, scratch_.foreseen.data(), width};
    multiply_rows(layer.moe.router, x, 0, experts, scratch_.foreseen_logits.data(), experts);
    scratch_.foreseen_routes.choose(scratch_.foreseen_logits.data(), batch_, layer.moe);
    waves_.foresee(index, scratch_.foreseen_routes.experts);
}

Prepared Step::gather(Worker& worker, const Layer& layer) const {
    const std::vector<int64_t>& sequence = scratch_.routes.sequence;
    const auto assignments = static_cast<int64_t>(sequence.size());
    const int64_t width = model_.width;
    const Ffn& ffn = layer.ffn;
    worker.each(assignments, [&](int64_t i) {
        std::copy_n(scratch_.normed.numbers() + sequence[i] * width, width, scratch_.routed.numbers() + i * width);
    });
    const Prepared prepared = scratch_.routed.prepare(0, assignments, width, forms_of(ffn.gate) | forms_of(ffn.up),
                                                      worker.thread(), worker.threads());
    worker.barrier();
    return prepared;
}

void Step::activate_experts(Worker& worker, const Layer& layer, const Prepared& x) const {
    const Chunks chunks = hidden_chunks(layer.ffn, worker.threads());
    const std::vector<int64_t>& used = waves_.used();
    const auto count = static_cast<int64_t>(used.size());
    worker.each(count * chunks.count(), [&](int64_t task) {
        // The short chunks of all experts come last.
        const Routes::Expert& expert = scratch_.routes.experts[used[task % count]];
        const int64_t chunk = task / count;
        // A sequence that is alone has one row for all its experts.
        const int64_t begin = alone() ? 0 : expert.begin, end = alone() ? 1 : expert.end;
        const Ffn ffn = waves_.ffn(layer, expert.index);
        activate_columns({ffn, expert.index, x, begin, end}, chunks.begin(chunk), chunks.end(chunk),
                         scratch_.hidden.numbers() + expert.begin * layer.ffn.hidden);
    });
}

Prepared Step::prepare_hidden(Worker& worker, const Layer& layer) const {
    const std::vector<Routes::Expert>& experts = scratch_.routes.experts;
    const std::vector<int64_t>& used = waves_.used();
    Prepared prepared;
    for (size_t first = 0, next = 0; first < used.size(); first = next) {
        // Neighbours together.
        for (next = first + 1; next < used.size() && used[next] == used[next - 1] + 1;) {
            ++next;
        }
        prepared = scratch_.hidden.prepare(experts[used[first]].begin, experts[used[next - 1]].end, layer.ffn.hidden,
                                           forms_of(layer.ffn.down), worker.thread(), worker.threads());
    }
    return prepared;
}

void Step::add_experts(Worker& worker, const Layer& layer, const Prepared& hidden,
                       const Prepared* shared_expert) const {
    const std::vector<int64_t>& used = waves_.used();
    const int64_t width = model_.width;
    const auto count = static_cast<int64_t>(used.size());
    const Chunks chunks(width, layer.ffn.down.row_bytes(), worker.threads());
    const Chunks of_shared = shared_expert && layer.moe.has_shared_expert()
                                 ? Chunks(width, layer.moe.shared_expert.down.row_bytes(), worker.threads())
                                 : Chunks(0, 1, 1);
    worker.each(of_shared.count() + count * chunks.count(), [&](int64_t task) {
        if (task < of_shared.count()) {
            const Product product{layer.moe.shared_expert.down, shared_expert->of(layer.moe.shared_expert.down),
                                  scratch_.shared_added.data(), width};
            return product.compute(of_shared.begin(task), of_shared.end(task));
        }
        // The short chunks of all experts come last.
        const Routes::Expert& expert = scratch_.routes.experts[used[(task - of_shared.count()) % count]];
        const int64_t chunk = (task - of_shared.count()) / count;
        const Matrix down = waves_.ffn(layer, expert.index).down;
        multiply_rows(rows_of(down, expert.index * width, (expert.index + 1) * width),
                      hidden.of(down).slice(expert.begin, expert.end), chunks.begin(chunk), chunks.end(chunk),
                      scratch_.expert_added.data() + expert.begin * width, width);
    });
}

void Step::sum_experts(const Layer& layer, int64_t from, int64_t to) const {
    const Routes& routes = scratch_.routes;
    const int64_t width = model_.width;
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
    if (layer.moe.has_shared_expert()) {
        for (int64_t b = 0; b < batch_; ++b) {
            add(b, shared_expert_weight(layer.moe, &scratch_.shared_expert_gate[b]),
                scratch_.shared_added.data() + b * width);
        }
    }
}

}  // namespace moekit
