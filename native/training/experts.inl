// The functions of ExpertsTable.

#include "training/experts.h"

#include <cstdint>
#include <cstring>

#include "simd/isa.h"
#include "simd/lanes.h"
#include "training/activation_functions.h"
#include "training/numbers.h"
#include "training/pairs.h"
#include "training/tile_products.h"

namespace moekit::MOEKIT_ISA {
namespace lanes {

// How the columns of a product lie in panels: gate and up in turns, so that a tile has both of a hidden number.
static MOEKIT_INLINE Panels panels_of(int64_t columns) { return {vectors_of(columns), TILE_VECTORS}; }
static MOEKIT_INLINE Panels gate_up_panels(const ExpertShape& shape) {
    const int64_t vectors = vectors_of(shape.hidden);
    return shape.gated ? Panels{2 * vectors, TILE_VECTORS, 2} : Panels{vectors, TILE_VECTORS};
}
static MOEKIT_INLINE Panels gradient_panels(int64_t columns) { return {vectors_of(columns), GRADIENT_VECTORS}; }

static int64_t right_words(int64_t inner, int64_t columns, bool gated) {
    const int64_t vectors = gated ? 2 * vectors_of(columns / 2) : vectors_of(columns);
    return (inner + 1) / 2 * vectors * LANES;
}

static int64_t left_words(int64_t rows, int64_t columns) {
    return (rows + 1) / 2 * ((columns + GROUP - 1) / GROUP) * GROUP;
}

// use(pointer) with a pointer to the parameters' numbers.
template <typename Use>
static MOEKIT_INLINE void with_numbers(Parameters parameters, Use use) {
    if (parameters.fp32) {
        use(static_cast<float*>(parameters.data));
    } else {
        use(static_cast<uint16_t*>(parameters.data));
    }
}

// A piece is a panel: first those of gate_up, then those of down.
static int64_t forward_pieces(const ExpertShape& shape) {
    return gate_up_panels(shape).count() + panels_of(shape.width).count();
}

static void pack_forward(const ExpertShape& shape, Parameters gate_up, Parameters down, int64_t piece,
                         const ExpertRight& right) {
    const Panels panels = gate_up_panels(shape);
    if (piece < panels.count()) {
        with_numbers(gate_up, [=](const auto* numbers) MOEKIT_INLINED {
            pack_transposed(numbers, shape.gate_up(), shape.width, shape.gated, panels, piece, piece + 1,
                            right.gate_up);
        });
    } else {
        const int64_t panel = piece - panels.count();
        with_numbers(down, [=](const auto* numbers) MOEKIT_INLINED {
            pack_transposed(numbers, shape.width, shape.hidden, false, panels_of(shape.width), panel, panel + 1,
                            right.down);
        });
    }
}

// A piece is so many pairs of rows: first those of down, then those of gate_up.
constexpr int64_t PAIRS_OF_PIECE = 32;
static MOEKIT_INLINE int64_t pieces_of(int64_t rows) { return (rows / 2 + PAIRS_OF_PIECE - 1) / PAIRS_OF_PIECE; }

static int64_t backward_pieces(const ExpertShape& shape) { return pieces_of(shape.width) + pieces_of(shape.gate_up()); }

static MOEKIT_INLINE void pack_piece(Parameters weights, int64_t rows, int64_t columns, int64_t piece, uint32_t* out) {
    const int64_t begin = piece * PAIRS_OF_PIECE, pairs = rows / 2;
    const int64_t end = begin + PAIRS_OF_PIECE < pairs ? begin + PAIRS_OF_PIECE : pairs;
    with_numbers(weights, [=](const auto* numbers) MOEKIT_INLINED {
        pack_right([=](int64_t row) MOEKIT_INLINED { return numbers + row * columns; }, columns, panels_of(columns),
                   pairs, begin, end, out);
    });
}

static void pack_backward(const ExpertShape& shape, Parameters gate_up, Parameters down, int64_t piece,
                          const ExpertRight& right) {
    const int64_t first = pieces_of(shape.width);
    if (piece < first) {
        pack_piece(down, shape.width, shape.hidden, piece, right.down);
    } else {
        pack_piece(gate_up, shape.gate_up(), shape.width, piece - first, right.gate_up);
    }
}

static MOEKIT_INLINE int64_t at_most(int64_t count) { return count < LANES ? count : LANES; }

// Of a tile of the first product: keeps what backward needs, and writes hidden rows, of which the first is `begin`.
template <typename Function, bool GATED>
static MOEKIT_INLINE void activate_tile(const ForwardRows& expert, const TileSums& sums, int64_t begin, int64_t row,
                                        int64_t rows, int64_t first, int64_t vectors, uint16_t* hidden) {
    constexpr int64_t STEP = GATED ? 2 : 1;
    const int64_t width = expert.shape.hidden, columns = expert.shape.gate_up();
    for (int64_t i = 0; i < rows; ++i) {
        for (int64_t vector = 0; vector < vectors; vector += STEP) {
            const int64_t column = (first + vector) / STEP * LANES, count = at_most(width - column);
            Lanes gate = load(sums.row(i, vector));
            if (expert.gate_up_bias) {
                gate += read_up_to(expert.gate_up_bias + column, count);
            }
            uint16_t* kept = expert.gate_up ? expert.gate_up + (row + i) * columns + column : nullptr;
            if (kept) {
                write_up_to(gate, kept, count);
            }
            Lanes y = Function::at(gate).value;
            if constexpr (GATED) {
                Lanes up = load(sums.row(i, vector + 1));
                if (expert.gate_up_bias) {
                    up += read_up_to(expert.gate_up_bias + width + column, count);
                }
                if (kept) {
                    write_up_to(up, kept + width, count);
                }
                y *= up;
            }
            write_up_to(y, hidden + (row + i - begin) * width + column, count);
        }
    }
}

static void forward_rows(const ForwardRows& expert, int64_t begin, int64_t end, uint16_t* room) {
    const ExpertShape shape = expert.shape;
    const int64_t width = shape.width;
    multiply_rows(
        [&](int64_t row) MOEKIT_INLINED { return expert.x + (expert.token ? expert.token[row] : row) * width; }, begin,
        end, expert.weights.gate_up, width / 2, gate_up_panels(shape),
        [&](const TileSums& sums, int64_t row, int64_t rows, int64_t first, int64_t vectors) MOEKIT_INLINED {
            with_function(shape.function, [&](auto function) MOEKIT_INLINED {
                if (shape.gated) {
                    activate_tile<decltype(function), true>(expert, sums, begin, row, rows, first, vectors, room);
                } else {
                    activate_tile<decltype(function), false>(expert, sums, begin, row, rows, first, vectors, room);
                }
            });
        });
    multiply_rows([&](int64_t row) MOEKIT_INLINED { return room + (row - begin) * shape.hidden; }, begin, end,
                  expert.weights.down, shape.hidden / 2, panels_of(width),
                  [&](const TileSums& sums, int64_t row, int64_t rows, int64_t first, int64_t vectors) MOEKIT_INLINED {
                      for (int64_t i = 0; i < rows; ++i) {
                          const float weight = expert.weight ? expert.weight[row + i] : 1.0f;
                          for (int64_t vector = 0; vector < vectors; ++vector) {
                              const int64_t column = (first + vector) * LANES, count = at_most(width - column);
                              Lanes y = load(sums.row(i, vector));
                              if (expert.down_bias) {
                                  y += read_up_to(expert.down_bias + column, count);
                              }
                              write_up_to(y * weight, expert.y + (row + i) * width + column, count);
                          }
                      }
                  });
}

// The room of a block of rows in backward: weighted hidden rows, gradients of gate and up, and what a row's gradient of
// its output and its hidden numbers have as a product.
struct BackwardRoom {
    uint16_t* hidden;
    uint16_t* grad_gate_up;
    float* dots;
};

template <typename Function, bool GATED>
static MOEKIT_INLINE void differentiate_tile(const BackwardRows& expert, const TileSums& sums, int64_t begin,
                                             int64_t row, int64_t rows, int64_t first, int64_t vectors,
                                             const BackwardRoom& room) {
    const int64_t width = expert.shape.hidden, columns = expert.shape.gate_up();
    for (int64_t i = 0; i < rows; ++i) {
        const float weight = expert.weight ? expert.weight[row + i] : 1.0f;
        const int64_t place = row + i - begin;
        Lanes products = {};
        for (int64_t vector = 0; vector < vectors; ++vector) {
            const int64_t column = (first + vector) * LANES, count = at_most(width - column);
            const uint16_t* gate = expert.gate_up + (row + i) * columns + column;
            uint16_t* grad_gate = room.grad_gate_up + place * columns + column;
            const Lanes grad = load(sums.row(i, vector));
            const ValueAndSlope at = Function::at(read_up_to(gate, count));
            const Lanes weighted = grad * weight;
            Lanes hidden = at.value;
            if constexpr (GATED) {
                const Lanes up = read_up_to(gate + width, count);
                hidden *= up;
                write_up_to(weighted * at.value, grad_gate + width, count);
                write_up_to(weighted * up * at.slope, grad_gate, count);
            } else {
                write_up_to(weighted * at.slope, grad_gate, count);
            }
            products += grad * hidden;  // 0 beyond the last column, where the sums are
            write_up_to(hidden * weight, room.hidden + place * width + column, count);
        }
        room.dots[place] += sum(products);
    }
}

// One more column of a right side: numbers of the rows from 2 begin to `end`, each rounded to bf16.
template <typename NumberAt>
static MOEKIT_INLINE void pack_column(NumberAt number_at, int64_t column, Panels panels, int64_t pairs, int64_t begin,
                                      int64_t end, uint32_t* out) {
    for (int64_t row = begin; row < end; row += 2) {
        const float numbers[2] = {number_at(row), row + 1 < end ? number_at(row + 1) : 0.0f};
        const UnsignedLanes words = bf16_words(numbers, 2);
        out[place_of(column, panels, pairs, row / 2)] = words[0] | words[1] << 16;
    }
}

static MOEKIT_INLINE void pack_sides(const BackwardRows& expert, int64_t begin, int64_t end, const BackwardRoom& room) {
    const ExpertShape shape = expert.shape;
    const int64_t pairs = (expert.rows + 1) / 2, first = begin / 2, last = (end + 1) / 2;
    const auto gathered = [&](const uint16_t* of, int64_t row) MOEKIT_INLINED {
        return row < end ? of + (expert.token ? expert.token[row] : row) * shape.width : nullptr;
    };
    const auto own = [=](const uint16_t* of, int64_t row, int64_t width)
                         MOEKIT_INLINED { return row < end ? of + (row - begin) * width : nullptr; };
    const Panels of_x = gradient_panels(shape.width + expert.grad_gate_up_bias);
    const Panels of_hidden = gradient_panels(shape.hidden + expert.grad_down_bias);
    const GradientSides& sides = expert.sides;
    pack_left([&](int64_t row) MOEKIT_INLINED { return own(room.grad_gate_up, row, shape.gate_up()); }, shape.gate_up(),
              pairs, first, last, sides.gate_up_left);
    pack_right([&](int64_t row) MOEKIT_INLINED { return gathered(expert.x, row); }, shape.width, of_x, pairs, first,
               last, sides.gate_up_right);
    pack_left([&](int64_t row) MOEKIT_INLINED { return gathered(expert.grad_y, row); }, shape.width, pairs, first, last,
              sides.down_left);
    pack_right([&](int64_t row) MOEKIT_INLINED { return own(room.hidden, row, shape.hidden); }, shape.hidden, of_hidden,
               pairs, first, last, sides.down_right);
    if (expert.grad_gate_up_bias) {
        pack_column([](int64_t) MOEKIT_INLINED { return 1.0f; }, shape.width, of_x, pairs, begin, end,
                    sides.gate_up_right);
    }
    if (expert.grad_down_bias) {
        pack_column([&](int64_t row) MOEKIT_INLINED { return expert.weight ? expert.weight[row] : 1.0f; }, shape.hidden,
                    of_hidden, pairs, begin, end, sides.down_right);
    }
}

static void backward_rows(const BackwardRows& expert, int64_t begin, int64_t end, uint16_t* room) {
    const ExpertShape shape = expert.shape;
    const int64_t width = shape.width, rows = end - begin;
    BackwardRoom own = {room + 2 * rows, room + 2 * rows + rows * shape.hidden, reinterpret_cast<float*>(room)};
    const auto grad_y_at = [&](int64_t row) MOEKIT_INLINED {
        return expert.grad_y + (expert.token ? expert.token[row] : row) * width;
    };
    for (int64_t i = 0; i < rows; ++i) {
        own.dots[i] = 0.0f;
    }
    multiply_rows(
        grad_y_at, begin, end, expert.weights.down, width / 2, panels_of(shape.hidden),
        [&](const TileSums& sums, int64_t row, int64_t count, int64_t first, int64_t vectors) MOEKIT_INLINED {
            with_function(shape.function, [&](auto function) MOEKIT_INLINED {
                if (shape.gated) {
                    differentiate_tile<decltype(function), true>(expert, sums, begin, row, count, first, vectors, own);
                } else {
                    differentiate_tile<decltype(function), false>(expert, sums, begin, row, count, first, vectors, own);
                }
            });
        });
    if (expert.grad_weight) {
        for (int64_t row = begin; row < end; ++row) {
            Lanes products = {};
            if (expert.down_bias) {
                const uint16_t* grad_y = grad_y_at(row);
                each_lanes(width, [&](int64_t i, int64_t count) MOEKIT_INLINED {
                    products += read_up_to(grad_y + i, count) * read_up_to(expert.down_bias + i, count);
                });
            }
            expert.grad_weight[row] = own.dots[row - begin] + sum(products);
        }
    }
    if (expert.grad_x) {
        multiply_rows([&](int64_t row) MOEKIT_INLINED { return own.grad_gate_up + (row - begin) * shape.gate_up(); },
                      begin, end, expert.weights.gate_up, shape.gate_up() / 2, panels_of(width),
                      [&](const TileSums& sums, int64_t row, int64_t count, int64_t first, int64_t vectors)
                          MOEKIT_INLINED {
                              for (int64_t i = 0; i < count; ++i) {
                                  for (int64_t vector = 0; vector < vectors; ++vector) {
                                      const int64_t column = (first + vector) * LANES;
                                      write_up_to(load(sums.row(i, vector)), expert.grad_x + (row + i) * width + column,
                                                  at_most(width - column));
                                  }
                              }
                          });
    }
    if (expert.sides.gate_up_left) {
        pack_sides(expert, begin, end, own);
    }
}

static void weight_gradient(const WeightGradient& of, int64_t begin, int64_t end) {
    const Panels panels = gradient_panels(of.columns + (of.bias ? 1 : 0));
    with_numbers(of.gradient, [&](auto* out) MOEKIT_INLINED {
        multiply_groups(of.left, begin, end, of.right, of.pairs, panels,
                        [&](const TileSums& sums, int64_t row, int64_t first, int64_t vectors) MOEKIT_INLINED {
                            const int64_t rows = of.rows - row < GROUP ? of.rows - row : GROUP;
                            for (int64_t i = 0; i < rows; ++i) {
                                for (int64_t vector = 0; vector < vectors; ++vector) {
                                    const int64_t column = (first + vector) * LANES;
                                    if (column < of.columns) {
                                        write_up_to(load(sums.row(i, vector)), out + (row + i) * of.columns + column,
                                                    at_most(of.columns - column));
                                    }
                                    if (of.bias && column <= of.columns && of.columns < column + LANES) {
                                        of.bias[row + i] = sums.row(i, vector)[of.columns - column];
                                    }
                                }
                            }
                        });
    });
}

static void sum_by_token(const uint16_t* rows, int64_t width, const int64_t* slot, int64_t slots, const int64_t* offset,
                         int64_t tokens, int64_t begin, int64_t end, uint16_t* sums) {
    for (int64_t token = begin; token < end; ++token) {
        const int64_t first = offset[token], last = token + 1 < tokens ? offset[token + 1] : slots;
        each_lanes(width, [=](int64_t column, int64_t count) MOEKIT_INLINED {
            Lanes total = {};
            for (int64_t i = first; i < last; ++i) {
                total += read_up_to(rows + slot[i] * width + column, count);
            }
            write_up_to(total, sums + token * width + column, count);
        });
    }
}

}  // namespace lanes

const ExpertsTable EXPERTS = {lanes::right_words,     lanes::left_words,    lanes::forward_pieces, lanes::pack_forward,
                              lanes::backward_pieces, lanes::pack_backward, lanes::forward_rows,   lanes::backward_rows,
                              lanes::weight_gradient, lanes::sum_by_token};

}  // namespace moekit::MOEKIT_ISA
