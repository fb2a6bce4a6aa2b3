// Products of packed matrices with the activations of many tokens, as a prompt brings them.
//
// A piece of the matrix that stays in a core's own cache is dequantised and multiplied with all tokens before the next:
// nothing unpacked goes to memory. Numbers are bf16 (uint16_t) or fp32 (float), sums fp32.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "kernels/matrix.h"
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

// A thread's own memory for such products.
template <typename Number>
class PieceSpace {
   public:
    // Takes the memory for activations of so many tokens; `sums` takes none.
    void reserve(int64_t tokens);

    // Sums of rows begin to end (at most SHARE_ROWS), for each of them sums_stride(x) numbers, of which 16 a block of x
    // count. They lie from row `first` (a multiple of 16) of the memory on, which keeps what it holds in other rows.
    float* sums(const Matrix& matrix, int64_t begin, int64_t end, const Tiles<Number>& x, int64_t first = 0);

   private:
    Aligned<Number> weights_;
    Aligned<float> sums_;
};

// y[token * y_stride + row] = matrix[row] . x[token] + bias[row]; bias may be null.
struct ManyProduct {
    const Matrix& matrix;
    float* y;
    int64_t y_stride;
    const float* bias;
};

// By every thread of a region: products of the same x for the first `tokens` tokens, then a barrier.
template <typename Number>
void multiply_many(Worker& worker, PieceSpace<Number>& space, const Tiles<Number>& x, int64_t tokens,
                   std::initializer_list<ManyProduct> products);

// Rows of fp32 numbers (tokens, columns) as tiles, by every thread, then a barrier. tiles: tile_blocks(tokens) blocks.
template <typename Number>
Tiles<Number> pack_many(Worker& worker, const float* x, int64_t tokens, int64_t columns, Number* tiles);

}  // namespace moekit
