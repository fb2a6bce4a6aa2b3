// Products of packed weights with many rows of activations: what a prompt brings, or an expert of a large batch.
//
// A panel is 16 rows of weights with their bits as bytes, laid down so that a vector has four columns of each row. Four
// columns of a row of activations, spread over a vector, meet them in one instruction, and every lane is a result.
// Unpacking is paid once for all rows of activations. The bits of a result are those of products.h: sums of a block are
// exact, and scales come to them in the same order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/activations.h"
#include "kernels/formats.h"
#include "kernels/matrix.h"
#include "kernels/panel_block.h"
#include "kernels/prefetch.h"
#include "kernels/products.h"
#include "kernels/some_numbers.h"
#include "simd/isa.h"

#include MOEKIT_VECTORS

namespace moekit::MOEKIT_ISA {

inline Bytes as_bytes(Floats v) {
    Bytes bytes;
    memcpy(&bytes, &v, sizeof bytes);
    return bytes;
}

// Four vectors, each of four rows' even or odd blocks: words of one block, of all 16 rows in their order, come
// together.
inline void store_transposed(Bytes (&v)[4], PanelBlock* blocks, int64_t offset) {
    transpose(v);
#pragma GCC unroll 4
    for (int lane = 0; lane < 4; ++lane) {
        store_bytes(reinterpret_cast<uint8_t*>(blocks + lane) + offset, v[lane]);
    }
}

// The even or the odd blocks of 256 columns of 16 rows, `distance` bytes apart.
template <typename Format, int ODD>
MOEKIT_INLINE void unpack_blocks(const uint8_t* p, int64_t distance, const Scales (&scales)[4], PanelBlock* blocks) {
    constexpr int64_t SCALES = offsetof(PanelBlock, scales), SECOND = offsetof(PanelBlock, second);
    Bytes w[4][8];
#pragma GCC unroll 4
    for (int row = 0; row < 4; ++row) {
        Format::template bits<ODD>(Rows{p + row * distance, 4 * distance}, w[row]);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
        Bytes v[4] = {w[0][i], w[1][i], w[2][i], w[3][i]};
        store_transposed(v, blocks, 64 * i);
    }
    Bytes v[4] = {as_bytes(scales[0].of[ODD]), as_bytes(scales[1].of[ODD]), as_bytes(scales[2].of[ODD]),
                  as_bytes(scales[3].of[ODD])};
    store_transposed(v, blocks, SCALES);
    if constexpr (Format::HALVES || Format::MINIMUMS) {
        Bytes second[4] = {as_bytes(scales[0].second[ODD]), as_bytes(scales[1].second[ODD]),
                           as_bytes(scales[2].second[ODD]), as_bytes(scales[3].second[ODD])};
        store_transposed(second, blocks, SECOND);
    }
}

// 256 columns of 16 rows.
template <typename Format>
inline void unpack_chunk(const uint8_t* p, int64_t distance, PanelBlock* blocks) {
    Scales scales[4];
#pragma GCC unroll 4
    for (int row = 0; row < 4; ++row) {
        scales[row] = Format::scales(Rows{p + row * distance, 4 * distance});
    }
    unpack_blocks<Format, 0>(p, distance, scales, blocks);
    unpack_blocks<Format, 1>(p, distance, scales, blocks + 4);
}

// Rows `row` to `row` + 16 of a matrix; those that it does not have are zeros.
template <typename Format>
inline void unpack_panel(const Matrix& matrix, int64_t row, PanelBlock* panel) {
    constexpr int STEP = ActivationBlock::NUMBERS / Format::BLOCK * Format::BYTES;
    // Vectors may begin before the first row, though nothing there is loaded, and end behind the last.
    constexpr int AROUND = 64;
    const int64_t row_bytes = matrix.row_bytes(), rows = matrix.rows - row < 16 ? matrix.rows - row : 16;
    const uint8_t* p = matrix.row(row);
    for (int64_t at = 0; at < row_bytes; at += STEP, panel += 8) {
        const int64_t bytes = row_bytes - at < STEP ? row_bytes - at : STEP;
        if (rows == 16 && bytes == STEP) {
            unpack_chunk<Format>(p + at, row_bytes, panel);
            continue;
        }
        uint8_t padded[AROUND + 16 * STEP + AROUND] = {};
        for (int64_t r = 0; r < rows; ++r) {
            memcpy(padded + AROUND + r * STEP, p + r * row_bytes + at, static_cast<size_t>(bytes));
        }
        unpack_chunk<Format>(padded + AROUND, STEP, panel);
    }
}

// PANELS panels with PANEL_TOKENS rows of activations.
template <typename Format>
struct PanelSums {
    static constexpr int V = PANELS, T = PANEL_TOKENS;
    Floats lanes[4][V][T];

    // A block of each.
    MOEKIT_INLINE void add(const PanelBlock* const (&panels)[V], const ActivationBlock* const (&x)[T], int place) {
        constexpr int PARTS = Format::HALVES ? 2 : 1, VECTORS = 8 / PARTS;
        Floats(&sums)[V][T] = lanes[place % 4];
#pragma GCC unroll 2
        for (int part = 0; part < PARTS; ++part) {
            Dot<Format::MOST> dots[V][T];
#pragma GCC unroll 8
            for (int t = 0; t < T; ++t) {
                const int32_t* offsets = Format::offsets(*x[t], part);
                const Ints offset = set_ints(offsets ? offsets[place] : 0);
#pragma GCC unroll 2
                for (int v = 0; v < V; ++v) {
                    dots[v][t].start(offset);
                }
            }
#pragma GCC unroll 8
            for (int i = part * VECTORS; i < (part + 1) * VECTORS; ++i) {
                Bytes w[V];
#pragma GCC unroll 2
                for (int v = 0; v < V; ++v) {
                    w[v] = load_bytes(panels[v]->numbers + 64 * i);
                }
#pragma GCC unroll 8
                for (int t = 0; t < T; ++t) {
                    const Bytes four = spread_word(x[t]->numbers + place / 4 * 128 + place % 4 * 4 + 16 * i);
#pragma GCC unroll 2
                    for (int v = 0; v < V; ++v) {
                        dots[v][t].add(w[v], four);
                    }
                }
            }
#pragma GCC unroll 2
            for (int v = 0; v < V; ++v) {
                const Floats scale = load(part ? panels[v]->second : panels[v]->scales);
#pragma GCC unroll 8
                for (int t = 0; t < T; ++t) {
                    const Floats scaled = multiply(to_floats(dots[v][t].sum()), set(x[t]->scales[place]));
                    sums[v][t] = fused(scaled, scale, sums[v][t]);
                    if constexpr (Format::MINIMUMS) {
                        sums[v][t] = fused(load(panels[v]->second), set(x[t]->minus_sums[place]), sums[v][t]);
                    }
                }
            }
        }
    }

    // row_sum
    inline Floats total(int v, int t) const {
        using moekit::MOEKIT_ISA::add;
        return add(add(lanes[0][v][t], lanes[2][v][t]), add(lanes[1][v][t], lanes[3][v][t]));
    }
};

// The bytes of the panels that come next, asked for bit by bit while these are multiplied: unpacking reads 16 rows side
// by side, and memory is slow at that.
class NextPanels {
   public:
    // In so many steps.
    NextPanels(const uint8_t* begin, const uint8_t* end, int64_t steps)
        : at_(begin), end_(end), step_bytes_((end - begin) / steps + LINE) {}

    inline void step() {
        const uint8_t* to = end_ - at_ < step_bytes_ ? end_ : at_ + step_bytes_;
        for (; at_ < to; at_ += LINE) {
            __builtin_prefetch(at_, 0, SECOND_CACHE);
        }
    }

   private:
    static constexpr int64_t LINE = 64;
    const uint8_t* at_;
    const uint8_t* end_;
    int64_t step_bytes_;
};

// `rows` unpacked rows with up to PANEL_TOKENS rows of activations, from `first` on. What is missing of either,
// something else stands for, and is not kept.
template <typename Format>
static void multiply_panels_of(const PanelBlock* panel, int64_t rows, const Activations& x, int64_t first,
                               NextPanels& next, float* y, int64_t y_stride) {
    constexpr int V = PANELS, T = PANEL_TOKENS;
    const int64_t blocks = x.columns / 32, of_panel = panel_blocks(x.columns);
    const int64_t tokens = x.rows - first < T ? x.rows - first : T;
    PanelSums<Format> sums;
    for (auto& lane : sums.lanes) {
        clear(lane);
    }
    for (int64_t chunk = 0; chunk * 8 < blocks; ++chunk) {
        const ActivationBlock* rows_of_x[T];
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) {
            rows_of_x[t] = x.blocks(first + (t < tokens ? t : 0)) + chunk;
        }
        next.step();
        for (int place = 0; place < 8; ++place) {
            if (chunk * 8 + place % 4 * 2 + place / 4 >= blocks) {
                continue;  // behind the last column
            }
            const PanelBlock* at[V];
#pragma GCC unroll 2
            for (int v = 0; v < V; ++v) {
                at[v] = panel + (16 * v < rows ? v : 0) * of_panel + chunk * 8 + place;
            }
            sums.add(at, rows_of_x, place);
        }
    }
    for (int64_t t = 0; t < tokens; ++t) {
        for (int v = 0; v < V && 16 * v < rows; ++v) {
            store_some(y + (first + t) * y_stride + 16 * v, sums.total(v, static_cast<int>(t)), rows - 16 * v);
        }
    }
}

template <typename Format>
static void multiply_format(const Matrix& matrix, const Activations& x, int64_t begin, int64_t end, PanelBlock* memory,
                            float* y, int64_t y_stride) {
    constexpr int64_t ROWS = 16 * PANELS;
    const int64_t of_panel = panel_blocks(matrix.columns);
    const int64_t steps = (x.rows + PANEL_TOKENS - 1) / PANEL_TOKENS * activation_blocks(matrix.columns);
    const Matrix upto{matrix.data, matrix.type, end, matrix.columns};
    for (int64_t row = begin; row < end; row += ROWS) {
        const int64_t rows = end - row < ROWS ? end - row : ROWS;
        for (int64_t v = 0; 16 * v < rows; ++v) {
            unpack_panel<Format>(upto, row + 16 * v, memory + v * of_panel);
        }
        NextPanels next(matrix.row(row + rows), matrix.row(end - row < 2 * ROWS ? end : row + 2 * ROWS), steps);
        for (int64_t first = 0; first < x.rows; first += PANEL_TOKENS) {
            multiply_panels_of<Format>(memory, rows, x, first, next, y + row, y_stride);
        }
    }
}

inline void multiply_packed(const Matrix& matrix, const Activations& x, int64_t begin, int64_t end, PanelBlock* memory,
                            float* y, int64_t y_stride) {
    switch (matrix.type) {
        case Type::Q4_0:
            return multiply_format<Q4_0>(matrix, x, begin, end, memory, y, y_stride);
        case Type::Q8_0:
            return multiply_format<Q8_0>(matrix, x, begin, end, memory, y, y_stride);
        case Type::Q4_K:
            return multiply_format<Q4_K>(matrix, x, begin, end, memory, y, y_stride);
        case Type::Q6_K:
            return multiply_format<Q6_K>(matrix, x, begin, end, memory, y, y_stride);
        case Type::F32:
        case Type::F16:
        case Type::BF16:
            return;
    }
}

}  // namespace moekit::MOEKIT_ISA
