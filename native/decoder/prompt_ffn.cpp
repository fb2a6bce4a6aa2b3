// The feed-forward part of a prompt: a dense ffn, or a mixture of experts (MoE) with the tokens that are theirs.
#include <algorithm>

#include "decoder/prompt.h"
#include "decoder/step.h"
#include "kernels/kernels.h"

namespace moekit {
namespace {

// Gate and up share the memory of a thread's sums.
constexpr int64_t HIDDEN_ROWS = SHARE_ROWS / 2;
static_assert(HIDDEN_ROWS % TILE_COLUMNS == 0);

int64_t runs(int64_t rows, int64_t size) { return (rows + size - 1) / size; }

}  // namespace

template <typename Number>
void Prompt<Number>::activate(const Ffn& ffn, int64_t expert, const Tiles<Number>& x, int64_t from, int64_t to,
                              Number* hidden, PieceSpace<Number>& space) const {
    const int64_t stride = sums_stride(x), first = expert * ffn.hidden;
    const int64_t rows = in_tiles(to - from);
    float* up = space.sums(ffn.up, first + from, first + to, x, HIDDEN_ROWS);
    // Zeros fill up the last tile.
    std::fill_n(up + (to - from) * stride, (rows - (to - from)) * stride, 0.0f);
    float* gate = ffn.gated() ? space.sums(ffn.gate, first + from, first + to, x) : nullptr;
    for (int64_t row = 0; row < to - from; ++row) {
        float* of_up = up + row * stride;
        const float* of_gate = gate ? gate + row * stride : of_up;
        vector_ops().activate(ffn.function, of_gate, gate ? of_up : nullptr, x.blocks * TILE_TOKENS, of_up);
    }
    const int64_t block_stride = tile_stride(ffn.hidden);
    for (int64_t block = 0; block < x.blocks; ++block) {
        tile_kernels<Number>().pack_sums(up + block * TILE_TOKENS, stride, rows,
                                         hidden + block * block_stride + from * TILE_TOKENS);
    }
}

template <typename Number>
void Prompt<Number>::dense_ffn(Worker& worker, const Ffn& ffn, const Tiles<Number>& x, Aligned<Number>& memory,
                               float* added) const {
    const int64_t all = ffn.hidden;
    Number* hidden = memory.get(0);
    PieceSpace<Number>& space = scratch_.spaces[worker.thread()];
    const int64_t size = share_of(all, worker.threads(), HIDDEN_ROWS);
    worker.each(runs(all, size),
                [&](int64_t run) { activate(ffn, 0, x, run * size, std::min(all, (run + 1) * size), hidden, space); });
    multiply_many(worker, space, Tiles<Number>{hidden, all, x.blocks}, count_,
                  {{ffn.down, added, model_.width, nullptr}});
}

// The tiles of the `used`th of the experts that have tokens.
template <typename Number>
Tiles<Number> Prompt<Number>::expert_tiles(const Number* data, int64_t columns, int64_t used) const {
    const Routes::Expert& expert = scratch_.routes.experts[used];
    return Tiles<Number>{data, columns, 0}.from(scratch_.blocks[used], tile_blocks(expert.end - expert.begin));
}

template <typename Number>
void Prompt<Number>::moe_ffn(Worker& worker, int64_t index, const Tiles<Number>& x) const {
    const Layer& layer = model_.layers[index];
    route(worker, index);
    const Tiles<Number> routed = gather(worker);
    for (int64_t wave = 0; waves_.next(worker, wave); ++wave) {
        compute_experts(worker, layer, routed);
    }
    if (layer.moe.has_shared_expert()) {
        dense_ffn(worker, layer.moe.shared_expert, x, scratch_.shared_hidden, scratch_.shared_added.get(0));
    }
    worker.each(count_, [&](int64_t token) { combine(layer, token); });
}

template <typename Number>
void Prompt<Number>::compute_experts(Worker& worker, const Layer& layer, const Tiles<Number>& routed) const {
    const Routes& routes = scratch_.routes;
    const std::vector<int64_t>& used = waves_.used();
    const auto count = static_cast<int64_t>(used.size());
    PieceSpace<Number>& space = scratch_.spaces[worker.thread()];
    const int64_t all = layer.ffn.hidden;
    const int64_t size = share_of(count * all, worker.threads(), HIDDEN_ROWS), hidden_runs = runs(all, size);
    Number* hidden = scratch_.hidden.get(0);
    worker.each(count * hidden_runs, [&](int64_t task) {
        const int64_t i = used[task / hidden_runs], from = task % hidden_runs * size;
        const int64_t expert = routes.experts[i].index;
        activate(waves_.ffn(layer, expert), expert, expert_tiles(routed.data, routed.columns, i), from,
                 std::min(all, from + size), hidden + scratch_.blocks[i] * tile_stride(all), space);
    });
    const int64_t down_size = share_of(count * model_.width, worker.threads());
    const int64_t down_runs = runs(model_.width, down_size);
    worker.each(count * down_runs, [&](int64_t task) {
        const int64_t i = used[task / down_runs], from = task % down_runs * down_size;
        const Routes::Expert& expert = routes.experts[i];
        const Tiles<Number> of_expert = expert_tiles(hidden, all, i);
        const int64_t to = std::min(model_.width, from + down_size), first = expert.index * model_.width;
        const float* sums = space.sums(waves_.ffn(layer, expert.index).down, first + from, first + to, of_expert);
        for (int64_t at = expert.begin; at < expert.end; at += TILE_TOKENS) {
            tile_kernels<Number>().unpack(sums + at - expert.begin, sums_stride(of_expert), to - from,
                                          std::min(TILE_TOKENS, expert.end - at),
                                          scratch_.expert_added.get(0) + at * model_.width + from, model_.width);
        }
    });
}

template <typename Number>
void Prompt<Number>::route(Worker& worker, int64_t index) const {
    const Layer& layer = model_.layers[index];
    const Matrix gate = shared_gate_of(layer.moe, model_.width);
    // In fp32, as a step does.
    constexpr int64_t TOGETHER = 8;
    float* logits = scratch_.router_logits.get(0);
    worker.each(runs(count_, TOGETHER), [&](int64_t run) {
        const int64_t begin = run * TOGETHER, count = std::min(TOGETHER, count_ - begin);
        const Activations x{Form::F32, count, model_.width, normed_ + begin * model_.width, model_.width};
        multiply_rows(layer.moe.router, x, 0, layer.moe.experts, logits + begin * layer.moe.experts, layer.moe.experts);
        if (gate.rows) {
            multiply_rows(gate, x, 0, 1, scratch_.shared_expert_gate.get(0) + begin, 1);
        }
    });
    if (worker.thread() == 0) {
        scratch_.routes.choose(logits, count_, layer.moe);
        place(layer);
        waves_.begin(index, scratch_.routes.experts, true);
    }
    worker.barrier();
}

template <typename Number>
void Prompt<Number>::place(const Layer& layer) const {
    const Routes& routes = scratch_.routes;
    scratch_.blocks.clear();
    int64_t blocks = 0;
    for (const Routes::Expert& expert : routes.experts) {
        scratch_.blocks.push_back(blocks);
        blocks += tile_blocks(expert.end - expert.begin);
    }
    scratch_.placed.assign(count_, 0);
    for (size_t i = 0; i < routes.sequence.size(); ++i) {
        const int64_t token = routes.sequence[i];
        scratch_.places[token * layer.moe.top_k + scratch_.placed[token]++] = static_cast<int64_t>(i);
    }
}

template <typename Number>
Tiles<Number> Prompt<Number>::gather(Worker& worker) const {
    const Routes& routes = scratch_.routes;
    const int64_t stride = tile_stride(model_.width);
    Number* tiles = scratch_.routed.get(0);
    worker.each(static_cast<int64_t>(routes.experts.size()), [&](int64_t used) {
        const Routes::Expert& expert = routes.experts[used];
        Number* to = tiles + scratch_.blocks[used] * stride;
        for (int64_t at = expert.begin; at < expert.end; at += TILE_TOKENS, to += stride) {
            const float* rows[TILE_TOKENS];
            const int64_t count = std::min(TILE_TOKENS, expert.end - at);
            for (int64_t i = 0; i < count; ++i) {
                rows[i] = normed_ + routes.sequence[at + i] * model_.width;
            }
            tile_kernels<Number>().pack(rows, count, model_.width, to);
        }
    });
    return {tiles, model_.width, 0};
}

template <typename Number>
void Prompt<Number>::combine(const Layer& layer, int64_t token) const {
    float* added = added_ + token * model_.width;
    std::fill_n(added, model_.width, 0.0f);
    const auto add = [&](float weight, const float* part) {
        for (int64_t i = 0; i < model_.width; ++i) {
            added[i] += weight * part[i];
        }
    };
    for (int64_t k = 0; k < layer.moe.top_k; ++k) {
        const int64_t place = scratch_.places[token * layer.moe.top_k + k];
        add(scratch_.routes.weight[place], scratch_.expert_added.get(0) + place * model_.width);
    }
    if (layer.moe.has_shared_expert()) {
        add(shared_expert_weight(layer.moe, scratch_.shared_expert_gate.get(0) + token),
            scratch_.shared_added.get(0) + token * model_.width);
    }
}

template void Prompt<float>::dense_ffn(Worker&, const Ffn&, const Tiles<float>&, Aligned<float>&, float*) const;
template void Prompt<uint16_t>::dense_ffn(Worker&, const Ffn&, const Tiles<uint16_t>&, Aligned<uint16_t>&,
                                          float*) const;
template void Prompt<float>::moe_ffn(Worker&, int64_t, const Tiles<float>&) const;
template void Prompt<uint16_t>::moe_ffn(Worker&, int64_t, const Tiles<uint16_t>&) const;

}  // namespace moekit
