#include "training/experts.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "kernels/pool.h"
#include "kernels/tiles.h"
#include "kernels/worker.h"

namespace moekit {
namespace {

// Rows that go through all products of an expert before the next: what is between the products stays in a core's cache.
constexpr int64_t MOST_ROWS = 96;
// Blocks are of whole tiles and whole pairs.
constexpr int64_t STEP = 12;
constexpr int64_t TOKENS_TOGETHER = 256;

int64_t parts(int64_t count, int64_t together) { return (count + together - 1) / together; }

// Memory that calls use one after the other, inside a region of the pool: what is new to a process costs more to get
// than to fill.
struct Scratch {
    Aligned<uint32_t> words;
    Aligned<uint16_t> rooms;
    std::vector<int64_t> busy;  // experts with rows
    TaskCounters counters;
};
Scratch& scratch() {
    static Scratch* kept = new Scratch;  // as long as the pool
    return *kept;
}

// How one expert's rows are shared out.
struct Blocks {
    int64_t rows;
    int64_t together;

    Blocks(int64_t rows, int threads) : rows(rows) {
        const int64_t fair = threads == 1 ? MOST_ROWS : parts(parts(rows, 4 * threads), STEP) * STEP;
        together = std::min(fair, MOST_ROWS);
    }
    int64_t count() const { return parts(rows, together); }
    int64_t begin(int64_t block) const { return block * together; }
    int64_t end(int64_t block) const { return std::min(rows, (block + 1) * together); }
};

template <typename Number>
Number* after(Number* first, int64_t count) {
    return first ? first + count : nullptr;
}

// What both directions have in common: experts one after the other, the weights of the next packed while the rows of
// one are computed.
template <typename Layer>
struct Schedule {
    const Layer& layer;
    const ExpertsTable& table;
    const std::vector<int64_t>& busy;
    ExpertRight weights[2];

    int64_t rows(int64_t expert) const { return layer.offsets[expert + 1] - layer.offsets[expert]; }

    // pack(expert, piece, into) for the first, then all(index, into, weights) for the blocks of each.
    template <typename Pack, typename Rows, typename Afterwards>
    void run(Worker& worker, int64_t pieces, Pack pack, Rows rows_of, Afterwards afterwards) const {
        const auto count = static_cast<int64_t>(busy.size());
        if (count == 0) {
            return;
        }
        worker.each(pieces, [&](int64_t piece) { pack(busy[0], piece, weights[0]); });
        for (int64_t i = 0; i < count; ++i) {
            const int64_t expert = busy[i];
            const Blocks blocks(rows(expert), worker.threads());
            const int64_t ahead = i + 1 < count ? pieces : 0;
            worker.each(blocks.count() + ahead, [&](int64_t task) {
                if (task < blocks.count()) {
                    rows_of(i, expert, blocks.begin(task), blocks.end(task), weights[i % 2]);
                } else {
                    pack(busy[i + 1], task - blocks.count(), weights[(i + 1) % 2]);
                }
            });
            afterwards(i, expert);
        }
    }
};

void find_busy(int64_t experts, const int64_t* offsets, std::vector<int64_t>& busy) {
    busy.clear();
    for (int64_t expert = 0; expert < experts; ++expert) {
        if (offsets[expert] < offsets[expert + 1]) {
            busy.push_back(expert);
        }
    }
}

void sum_tokens(Worker& worker, const ExpertsTable& table, const uint16_t* rows, int64_t width, const int64_t* slot,
                int64_t slots, const int64_t* offset, int64_t tokens, uint16_t* sums) {
    worker.share(parts(tokens, TOKENS_TOGETHER), [&](int64_t part) {
        table.sum_by_token(rows, width, slot, slots, offset, tokens, part * TOKENS_TOGETHER,
                           std::min(tokens, (part + 1) * TOKENS_TOGETHER), sums);
    });
}

void zero(Parameters parameters, int64_t count) { std::memset(parameters.data, 0, count * (parameters.fp32 ? 4 : 2)); }

}  // namespace

void run_forward(const LayerForward& layer) {
    const ExpertsTable& table = training_table<ExpertsTable>();
    const ExpertShape shape = layer.shape;
    const int64_t width = shape.width, columns = shape.gate_up(), of_matrix = width * columns,
                  of_down = width * shape.hidden;
    const int64_t gate_up_words = table.right_words(width, columns, shape.gated);
    const int64_t down_words = table.right_words(shape.hidden, width, false);
    const int64_t room = MOST_ROWS * shape.hidden;
    Pool& pool = Pool::shared();
    pool.run(
        [&](int threads) {
            Scratch& memory = scratch();
            memory.words.get(2 * (gate_up_words + down_words));
            memory.rooms.get(threads * room);
            memory.counters.reset();
            find_busy(layer.experts, layer.offsets, memory.busy);
        },
        [&](int thread, int threads) {
            Scratch& memory = scratch();
            Worker worker(pool, memory.counters, thread, threads);
            uint32_t* words = memory.words.get(0);
            uint16_t* own_room = memory.rooms.get(0) + thread * room;
            const Schedule<LayerForward> schedule = {
                layer,
                table,
                memory.busy,
                {{words, words + gate_up_words},
                 {words + gate_up_words + down_words, words + 2 * gate_up_words + down_words}}};
            schedule.run(
                worker, table.forward_pieces(shape),
                [&](int64_t expert, int64_t piece, const ExpertRight& into) {
                    table.pack_forward(shape, layer.gate_up.from(expert * of_matrix), layer.down.from(expert * of_down),
                                       piece, into);
                },
                [&](int64_t, int64_t expert, int64_t begin, int64_t end, const ExpertRight& weights) {
                    const int64_t first = layer.offsets[expert];
                    table.forward({shape, weights, after(layer.gate_up_bias, expert * columns),
                                   after(layer.down_bias, expert * width), layer.x, after(layer.token, first),
                                   after(layer.weight, first), after(layer.saved_gate_up, first * columns),
                                   layer.rows + first * width},
                                  begin, end, own_room);
                },
                [](int64_t, int64_t) {});
            if (layer.sums_tokens) {
                sum_tokens(worker, table, layer.rows, width, layer.slot, layer.offsets[layer.experts],
                           layer.token_offset, layer.tokens, layer.y);
            }
        });
}

void run_backward(const LayerBackward& layer) {
    const ExpertsTable& table = training_table<ExpertsTable>();
    const ExpertShape shape = layer.shape;
    const int64_t width = shape.width, hidden = shape.hidden, columns = shape.gate_up(), of_matrix = width * columns,
                  of_down = width * hidden;
    const int64_t gate_up_words = table.right_words(columns, width, false);
    const int64_t down_words = table.right_words(width, hidden, false);
    const bool gate_up_bias = layer.grad_gate_up_bias != nullptr, down_bias = layer.grad_down_bias != nullptr;
    const bool sides_wanted = layer.grad_gate_up.data != nullptr;
    const int64_t room = MOST_ROWS * (2 + hidden + columns);
    int64_t most = 0;
    for (int64_t expert = 0; expert < layer.experts; ++expert) {
        most = std::max(most, layer.offsets[expert + 1] - layer.offsets[expert]);
    }
    const int64_t side_words[4] = {table.left_words(most, columns),
                                   table.right_words(most, width + gate_up_bias, false), table.left_words(most, width),
                                   table.right_words(most, hidden + down_bias, false)};
    const int64_t sides_words = sides_wanted ? side_words[0] + side_words[1] + side_words[2] + side_words[3] : 0;
    const int64_t weight_words = 2 * (gate_up_words + down_words);
    Pool& pool = Pool::shared();
    pool.run(
        [&](int threads) {
            Scratch& memory = scratch();
            memory.words.get(weight_words + (threads == 1 ? 1 : 2) * sides_words);
            memory.rooms.get(threads * room);
            memory.counters.reset();
            find_busy(layer.experts, layer.offsets, memory.busy);
        },
        [&](int thread, int threads) {
            Scratch& memory = scratch();
            Worker worker(pool, memory.counters, thread, threads);
            uint32_t* words = memory.words.get(0);
            uint16_t* own_room = memory.rooms.get(0) + thread * room;
            // Where there are several threads, one expert's gradients are computed while others begin the next.
            const auto sides_of = [&](int64_t i) -> GradientSides {
                if (!sides_wanted) {
                    return {nullptr, nullptr, nullptr, nullptr};
                }
                uint32_t* first = words + weight_words + (threads == 1 ? 0 : i % 2) * sides_words;
                return {first, first + side_words[0], first + side_words[0] + side_words[1],
                        first + sides_words - side_words[3]};
            };
            const Schedule<LayerBackward> schedule = {
                layer,
                table,
                memory.busy,
                {{words, words + gate_up_words},
                 {words + gate_up_words + down_words, words + 2 * gate_up_words + down_words}}};
            if (sides_wanted) {
                worker.each(layer.experts, [&](int64_t expert) {
                    if (layer.offsets[expert] == layer.offsets[expert + 1]) {
                        zero(layer.grad_gate_up.from(expert * of_matrix), of_matrix);
                        zero(layer.grad_down.from(expert * of_down), of_down);
                        if (layer.grad_gate_up_bias) {
                            zero({layer.grad_gate_up_bias + expert * columns, true}, columns);
                        }
                        if (layer.grad_down_bias) {
                            zero({layer.grad_down_bias + expert * width, true}, width);
                        }
                    }
                });
            }
            schedule.run(
                worker, table.backward_pieces(shape),
                [&](int64_t expert, int64_t piece, const ExpertRight& into) {
                    table.pack_backward(shape, layer.gate_up.from(expert * of_matrix),
                                        layer.down.from(expert * of_down), piece, into);
                },
                [&](int64_t i, int64_t expert, int64_t begin, int64_t end, const ExpertRight& weights) {
                    const int64_t first = layer.offsets[expert];
                    table.backward(
                        {shape, weights, after(layer.down_bias, expert * width), layer.grad_y, layer.x,
                         after(layer.token, first), after(layer.weight, first), layer.saved_gate_up + first * columns,
                         schedule.rows(expert), after(layer.grad_weight, first), after(layer.grad_rows, first * width),
                         gate_up_bias, down_bias, sides_of(i)},
                        begin, end, own_room);
                },
                [&](int64_t i, int64_t expert) {
                    if (!sides_wanted) {
                        return;
                    }
                    const GradientSides sides = sides_of(i);
                    const int64_t pairs = (schedule.rows(expert) + 1) / 2;
                    const WeightGradient gradients[2] = {
                        {sides.gate_up_left, sides.gate_up_right, pairs, columns, width,
                         layer.grad_gate_up.from(expert * of_matrix), after(layer.grad_gate_up_bias, expert * columns)},
                        {sides.down_left, sides.down_right, pairs, width, hidden,
                         layer.grad_down.from(expert * of_down), after(layer.grad_down_bias, expert * width)}};
                    const int64_t pieces = threads == 1 ? 1 : 4 * threads;
                    worker.share(2 * pieces, [&](int64_t task) {
                        const WeightGradient& one = gradients[task / pieces];
                        const int64_t groups = parts(one.rows, 8), piece = task % pieces;
                        table.weight_gradient(one, groups * piece / pieces, groups * (piece + 1) / pieces);
                    });
                });
            if (layer.grad_x && layer.sums_tokens) {
                sum_tokens(worker, table, layer.grad_rows, width, layer.slot, layer.offsets[layer.experts],
                           layer.token_offset, layer.tokens, layer.grad_x);
            }
        });
}

}  // namespace moekit
