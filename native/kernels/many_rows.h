// Products of matrices with the activations of many tokens, as a prompt brings them.
//
// Packed weights are multiplied as whole numbers where the processor is fast at that (panels.h): the bits are those of
// a step's products. Of all else, a piece of the matrix that stays in a core's own cache is dequantised and multiplied
// with all tokens before the next: nothing unpacked goes to memory. Numbers are then bf16 (uint16_t) or fp32 (float),
// sums fp32.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "kernels/activations.h"
#include "kernels/matrix.h"
#include "kernels/panel_block.h"
#include "kernels/tiles.h"
#include "kernels/worker.h"

namespace moekit {

// Whether the processor multiplies bf16 numbers: where it does not, products in fp32 are faster, and exact.
bool multiplies_bf16();

// The most rows of a matrix that a thread takes at a time: each reading of the activations serves so many.
constexpr int64_t SHARE_ROWS = 256;

// How many of `rows` it takes so that every thread has some turns, whole tiles of them and at most `most`.
int64_t share_of(int64_t rows, int threads, int64_t most = SHARE_ROWS);

// From a row of sums to the next: some more than its numbers, so that rows do not compete for the same places of the
// first cache.
template <typename Number>
int64_t sums_stride(const Tiles<Number>& x) {
    return (x.blocks + 1) * TILE_TOKENS;
}

// Which form many tokens meet matrices in: 8-bit blocks, or tiles.
bool in_bytes(const Matrix& matrix);

// Those that the matrices of a phase need.
struct ManyForms {
    bool tiles = false;
    bool bytes = false;

    void add(bool is_bytes) { (is_bytes ? bytes : tiles) = true; }
};
ManyForms many_forms(std::initializer_list<const Matrix*> matrices);

// Activations of many tokens, in the forms that they are needed in: the other is empty.
template <typename Number>
struct ManyInput {
    Tiles<Number> tiles;
    Activations bytes;

    // Tokens begin to end, whose tiles have blocks of their own from `block` on.
    ManyInput slice(int64_t begin, int64_t end, int64_t block) const {
        return {tiles.data ? tiles.from(block, tile_blocks(end - begin)) : tiles,
                bytes.data ? bytes.slice(begin, end) : bytes};
    }
};

// The memory of such an input.
template <typename Number>
class ManyBuffer {
   public:
    // For so many blocks of tiles, or rows. What it held is lost where it grows.
    void reserve(int64_t blocks, int64_t rows, int64_t columns, ManyForms forms);

    // What it holds, or will.
    ManyInput<Number> input(int64_t blocks, int64_t rows, int64_t columns, ManyForms forms);

    // Up to 16 rows of fp32 numbers, to block `block` of the tiles and to rows from `row` on of the bytes.
    void put(const float* const* rows, int64_t count, int64_t columns, ManyForms forms, int64_t block, int64_t row);
    // Columns from `from` on (a multiple of 32) of row `row` of the bytes.
    void put_bytes(const float* numbers, int64_t from, int64_t count, int64_t columns, int64_t row);

    Number* tiles() { return tiles_.get(0); }
    ActivationBlock* bytes(int64_t columns, int64_t row) { return bytes_.get(0) + row * activation_blocks(columns); }

   private:
    Aligned<Number> tiles_;
    Aligned<ActivationBlock> bytes_;
};

// A thread's own memory for such products.
template <typename Number>
class PieceSpace {
   public:
    // Takes the memory for activations of so many tokens, and for rows of packed weights of so many columns; what
    // computes takes none.
    void reserve(int64_t tokens, int64_t packed_columns);

    // Sums of rows begin to end (at most SHARE_ROWS), for each of them sums_stride(x) numbers, of which 16 a block of x
    // count. They lie from row `first` (a multiple of 16) of the memory on, which keeps what it holds in other rows.
    float* sums(const Matrix& matrix, int64_t begin, int64_t end, const Tiles<Number>& x, int64_t first = 0);

    // y[token * y_stride + row] = matrix[row] . x[token] for rows begin to end, of packed weights.
    void multiply(const Matrix& matrix, int64_t begin, int64_t end, const Activations& x, float* y, int64_t y_stride);

    // The memory of sums, for something else: SHARE_ROWS numbers of each token.
    float* numbers() { return sums_.get(0); }

   private:
    Aligned<Number> weights_;
    Aligned<float> sums_;
    Aligned<PanelBlock> panels_;
};

// y[token * y_stride + row] = matrix[row] . x[token] + bias[row]; bias may be null.
struct ManyProduct {
    const Matrix& matrix;
    float* y;
    int64_t y_stride;
    const float* bias;
};

// By a thread: rows begin to end (at most SHARE_ROWS) of a product for the first `tokens` tokens.
template <typename Number>
void multiply_share(PieceSpace<Number>& space, const ManyInput<Number>& x, int64_t tokens, const ManyProduct& product,
                    int64_t begin, int64_t end);

// By every thread of a region: products of the same x for the first `tokens` tokens, then a barrier.
template <typename Number>
void multiply_many(Worker& worker, PieceSpace<Number>& space, const ManyInput<Number>& x, int64_t tokens,
                   std::initializer_list<ManyProduct> products);

// Rows of fp32 numbers, row(token) of each token, in those forms, by every thread, then a barrier.
template <typename Number, typename Row>
ManyInput<Number> put_many(Worker& worker, int64_t tokens, int64_t columns, ManyForms forms, ManyBuffer<Number>& buffer,
                           Row row) {
    const int64_t blocks = tile_blocks(tokens);
    worker.each(blocks, [&](int64_t block) {
        const float* rows[TILE_TOKENS];
        const int64_t begin = block * TILE_TOKENS, count = tokens - begin < TILE_TOKENS ? tokens - begin : TILE_TOKENS;
        for (int64_t i = 0; i < count; ++i) {
            rows[i] = row(begin + i);
        }
        buffer.put(rows, count, columns, forms, block, begin);
    });
    return buffer.input(blocks, tokens, columns, forms);
}

}  // namespace moekit
