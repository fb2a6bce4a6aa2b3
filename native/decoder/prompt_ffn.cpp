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

// What one expert, or a dense ffn, makes of its tokens: act(gate(x)) * up(x). `expert` is 0 for the latter.
template <typename Number>
struct FfnPart {
    const Ffn& ffn;
    int64_t expert;
    ManyInput<Number> x;
    ManyBuffer<Number>& hidden;
    int64_t first_row, first_block;  // of the tokens in `hidden`

    // Hidden numbers `from` to `to` (a multiple of TILE_COLUMNS on), at most HIDDEN_ROWS.
    void activate(int64_t from, int64_t to, PieceSpace<Number>& space) const {
        in_bytes(ffn) ? activate_bytes(from, to, space) : activate_tiles(from, to, space);
    }

   private:
    void activate_tiles(int64_t from, int64_t to, PieceSpace<Number>& space) const;
    void activate_bytes(int64_t from, int64_t to, PieceSpace<Number>& space) const;
};

}  // namespace

bool in_bytes(const Ffn& ffn) { return (!ffn.gated() || in_bytes(ffn.gate)) && in_bytes(ffn.up) && in_bytes(ffn.down); }

ManyForms many_forms(const Ffn& ffn) {
    ManyForms forms;
    forms.add(in_bytes(ffn));
    return forms;
}

template <typename Number>
void FfnPart<Number>::activate_tiles(int64_t from, int64_t to, PieceSpace<Number>& space) const {
    const Tiles<Number>& tiles = x.tiles;
    const int64_t stride = sums_stride(tiles), first = expert * ffn.hidden;
    const int64_t rows = in_tiles(to - from);
    float* up = space.sums(ffn.up, first + from, first + to, tiles, HIDDEN_ROWS);
    // Zeros fill up the last tile.
    std::fill_n(up + (to - from) * stride, (rows - (to - from)) * stride, 0.0f);
    float* gate = ffn.gated() ? space.sums(ffn.gate, first + from, first + to, tiles) : nullptr;
    for (int64_t row = 0; row < to - from; ++row) {
        float* of_up = up + row * stride;
        const float* of_gate = gate ? gate + row * stride : of_up;
        vector_ops().activate(ffn.function, of_gate, gate ? of_up : nullptr, tiles.blocks * TILE_TOKENS, of_up);
    }
    const int64_t block_stride = tile_stride(ffn.hidden);
    for (int64_t block = 0; block < tiles.blocks; ++block) {
        tile_kernels<Number>().pack_sums(up + block * TILE_TOKENS, stride, rows,
                                         hidden.tiles() + (first_block + block) * block_stride + from * TILE_TOKENS);
    }
}

template <typename Number>
void FfnPart<Number>::activate_bytes(int64_t from, int64_t to, PieceSpace<Number>& space) const {
    const int64_t count = to - from, first = expert * ffn.hidden;
    float* up = space.numbers();
    float* gate = up + HIDDEN_ROWS * x.bytes.rows;
    const auto multiply = [&](const Matrix& matrix, float* y) {
        space.multiply(rows_of(matrix, first + from, first + to), 0, count, x.bytes, y, count);
    };
    multiply(ffn.up, up);
    if (ffn.gated()) {
        multiply(ffn.gate, gate);
    }
    for (int64_t token = 0; token < x.bytes.rows; ++token) {
        float* of_up = up + token * count;
        const float* of_gate = ffn.gated() ? gate + token * count : of_up;
        vector_ops().activate(ffn.function, of_gate, ffn.gated() ? of_up : nullptr, count, of_up);
        hidden.put_bytes(of_up, from, count, ffn.hidden, first_row + token);
    }
}

template <typename Number>
void Prompt<Number>::dense_ffn(Worker& worker, const Ffn& ffn, const ManyInput<Number>& x, ManyBuffer<Number>& hidden,
                               float* added) const {
    const int64_t all = ffn.hidden;
    PieceSpace<Number>& space = scratch_.spaces[worker.thread()];
    const FfnPart<Number> part{ffn, 0, x, hidden, 0, 0};
    const int64_t size = share_of(all, worker.threads(), HIDDEN_ROWS);
    worker.each(runs(all, size),
                [&](int64_t run) { part.activate(run * size, std::min(all, (run + 1) * size), space); });
    multiply_many(worker, space, hidden.input(tile_blocks(count_), count_, all, many_forms(ffn)), count_,
                  {{ffn.down, added, model_.width, nullptr}});
}

template <typename Number>
ManyInput<Number> Prompt<Number>::of_expert(const ManyInput<Number>& input, int64_t used) const {
    const Routes::Expert& expert = scratch_.routes.experts[used];
    return input.slice(expert.begin, expert.end, scratch_.blocks[used]);
}

template <typename Number>
void Prompt<Number>::moe_ffn(Worker& worker, int64_t index, const ManyInput<Number>& x) const {
    const Layer& layer = model_.layers[index];
    route(worker, index);
    const ManyInput<Number> routed = gather(worker, x, many_forms(layer.ffn));
    for (int64_t wave = 0; waves_.next(worker, wave); ++wave) {
        compute_experts(worker, layer, routed);
    }
    if (layer.moe.has_shared_expert()) {
        dense_ffn(worker, layer.moe.shared_expert, x, scratch_.shared_hidden, scratch_.shared_added.get(0));
    }
    worker.each(count_, [&](int64_t token) { combine(layer, token); });
}

template <typename Number>
void Prompt<Number>::compute_experts(Worker& worker, const Layer& layer, const ManyInput<Number>& routed) const {
    const Routes& routes = scratch_.routes;
    const std::vector<int64_t>& used = waves_.used();
    const auto count = static_cast<int64_t>(used.size()), width = model_.width, all = layer.ffn.hidden;
    PieceSpace<Number>& space = scratch_.spaces[worker.thread()];
    const int64_t size = share_of(count * all, worker.threads(), HIDDEN_ROWS), hidden_runs = runs(all, size);
    worker.each(count * hidden_runs, [&](int64_t task) {
        const int64_t i = used[task / hidden_runs], from = task % hidden_runs * size;
        const Routes::Expert& expert = routes.experts[i];
        const Ffn ffn = waves_.ffn(layer, expert.index);
        const FfnPart<Number> part{ffn,          expert.index,      of_expert(routed, i), scratch_.hidden,
                                   expert.begin, scratch_.blocks[i]};
        part.activate(from, std::min(all, from + size), space);
    });
    const int64_t down_size = share_of(count * width, worker.threads()), down_runs = runs(width, down_size);
    const ManyInput<Number> hidden = scratch_.hidden.input(0, routed.bytes.rows, all, many_forms(layer.ffn));
    worker.each(count * down_runs, [&](int64_t task) {
        const int64_t i = used[task / down_runs], from = task % down_runs * down_size;
        const Routes::Expert& expert = routes.experts[i];
        const Matrix down = waves_.ffn(layer, expert.index).down;
        const Matrix of_expert_rows = rows_of(down, expert.index * width, (expert.index + 1) * width);
        const ManyProduct product{of_expert_rows, scratch_.expert_added.get(0) + expert.begin * width, width, nullptr};
        multiply_share(space, of_expert(hidden, i), expert.end - expert.begin, product, from,
                       std::min(width, from + down_size));
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
ManyInput<Number> Prompt<Number>::gather(Worker& worker, const ManyInput<Number>& x, ManyForms forms) const {
    const Routes& routes = scratch_.routes;
    const auto assignments = static_cast<int64_t>(routes.sequence.size());
    const int64_t width = model_.width, stride = tile_stride(width);
    worker.each(static_cast<int64_t>(routes.experts.size()), [&](int64_t used) {
        const Routes::Expert& expert = routes.experts[used];
        for (int64_t at = expert.begin; forms.bytes && at < expert.end; ++at) {
            std::copy_n(x.bytes.blocks(routes.sequence[at]), x.bytes.stride, scratch_.routed.bytes(width, at));
        }
        for (int64_t at = expert.begin, block = scratch_.blocks[used]; forms.tiles && at < expert.end;
             at += TILE_TOKENS, ++block) {
            const float* rows[TILE_TOKENS];
            const int64_t count = std::min(TILE_TOKENS, expert.end - at);
            for (int64_t i = 0; i < count; ++i) {
                rows[i] = normed_ + routes.sequence[at + i] * width;
            }
            tile_kernels<Number>().pack(rows, count, width, scratch_.routed.tiles() + block * stride);
        }
    });
    return scratch_.routed.input(0, assignments, width, forms);
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

template void Prompt<float>::dense_ffn(Worker&, const Ffn&, const ManyInput<float>&, ManyBuffer<float>&, float*) const;
template void Prompt<uint16_t>::dense_ffn(Worker&, const Ffn&, const ManyInput<uint16_t>&, ManyBuffer<uint16_t>&,
                                          float*) const;
template void Prompt<float>::moe_ffn(Worker&, int64_t, const ManyInput<float>&) const;
template void Prompt<uint16_t>::moe_ffn(Worker&, int64_t, const ManyInput<uint16_t>&) const;

}  // namespace moekit
