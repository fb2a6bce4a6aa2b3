#include "kernels/many_rows.h"

#include <algorithm>
#include <type_traits>

#include "kernels/kernels.h"

namespace moekit {
namespace {

// What is dequantised at a time, 32 KB: it stays in the first cache while all tokens meet it one after another.
template <typename Number>
struct Piece {
    static constexpr int64_t WIDTH = 1024 / sizeof(Number);
    static constexpr int64_t HEIGHT = 32;
    // Some more than the numbers of a row, so that rows do not compete for the same places of that cache.
    static constexpr int64_t STRIDE = WIDTH + TILE_COLUMNS;
};

int64_t chunks(const Matrix& matrix, int64_t size) { return (matrix.rows + size - 1) / size; }

// `width` columns from `column` on of some rows, zeros behind them and below.
template <typename Number>
void dequantize_piece(const Matrix& matrix, int64_t begin, int64_t end, int64_t column, int64_t width,
                      Number* weights) {
    constexpr int64_t STRIDE = Piece<Number>::STRIDE;
    if ((end - begin) % 16 || width % TILE_COLUMNS) {
        std::fill_n(weights, in_16s(end - begin) * STRIDE, Number{0});
    }
    if constexpr (std::is_same_v<Number, float>) {
        kernels().dequantize(matrix, begin, end, column, width, weights, STRIDE);
    } else {
        kernels().dequantize_bf16(matrix, begin, end, column, width, weights, STRIDE);
    }
}

// y[token * y_stride + row] = sums[row * stride + token]
template <typename Number>
void put_sums(const float* sums, int64_t stride, int64_t rows, int64_t tokens, float* y, int64_t y_stride) {
    for (int64_t token = 0; token < tokens; token += TILE_TOKENS) {
        tile_kernels<Number>().unpack(sums + token, stride, rows, std::min(TILE_TOKENS, tokens - token),
                                      y + token * y_stride, y_stride);
    }
}

}  // namespace

bool multiplies_bf16() { return kernels().bf16_tiles != nullptr; }

int64_t share_of(int64_t rows, int threads, int64_t most) {
    constexpr int64_t TURNS = 4;
    return std::clamp(in_tiles(rows / (threads * TURNS)), TILE_COLUMNS, most);
}

template <typename Number>
void PieceSpace<Number>::reserve(int64_t tokens) {
    weights_.get(Piece<Number>::HEIGHT * Piece<Number>::STRIDE);
    sums_.get(SHARE_ROWS * (tile_blocks(tokens) + 1) * TILE_TOKENS);
}

template <typename Number>
float* PieceSpace<Number>::sums(const Matrix& matrix, int64_t begin, int64_t end, const Tiles<Number>& x,
                                int64_t first) {
    constexpr int64_t WIDTH = Piece<Number>::WIDTH, HEIGHT = Piece<Number>::HEIGHT, STRIDE = Piece<Number>::STRIDE;
    Number* weights = weights_.get(0);
    const int64_t stride = sums_stride(x);
    float* sums = sums_.get(0) + first * stride;
    for (int64_t column = 0; column < matrix.columns; column += WIDTH) {
        const int64_t width = std::min(WIDTH, matrix.columns - column);
        for (int64_t row = begin; row < end; row += HEIGHT) {
            const int64_t to = std::min(end, row + HEIGHT);
            dequantize_piece(matrix, row, to, column, width, weights);
            tile_kernels<Number>().multiply(weights, STRIDE, in_16s(to - row), x.data + column * TILE_TOKENS,
                                            x.block_stride(), x.blocks, in_tiles(width), column > 0,
                                            sums + (row - begin) * stride, stride);
        }
    }
    return sums;
}

template <typename Number>
void multiply_many(Worker& worker, PieceSpace<Number>& space, const Tiles<Number>& x, int64_t tokens,
                   std::initializer_list<ManyProduct> products) {
    int64_t rows = 0, tasks = 0;
    for (const ManyProduct& product : products) {
        rows += product.matrix.rows;
    }
    const int64_t size = share_of(rows, worker.threads());
    for (const ManyProduct& product : products) {
        tasks += chunks(product.matrix, size);
    }
    worker.each(tasks, [&](int64_t chunk) {
        const ManyProduct* product = products.begin();
        for (; chunk >= chunks(product->matrix, size); ++product) {
            chunk -= chunks(product->matrix, size);
        }
        const int64_t begin = chunk * size, end = std::min(begin + size, product->matrix.rows);
        float* sums = space.sums(product->matrix, begin, end, x);
        const int64_t stride = sums_stride(x);
        if (product->bias) {
            for (int64_t row = begin; row < end; ++row) {
                float* of_row = sums + (row - begin) * stride;
                for (int64_t token = 0; token < tokens; ++token) {
                    of_row[token] += product->bias[row];
                }
            }
        }
        put_sums<Number>(sums, stride, end - begin, tokens, product->y + begin, product->y_stride);
    });
}

template <typename Number>
Tiles<Number> pack_many(Worker& worker, const float* x, int64_t tokens, int64_t columns, Number* tiles) {
    const Tiles<Number> all{tiles, columns, tile_blocks(tokens)};
    worker.each(all.blocks, [&](int64_t block) {
        const float* rows[TILE_TOKENS];
        const int64_t count = std::min(TILE_TOKENS, tokens - block * TILE_TOKENS);
        for (int64_t i = 0; i < count; ++i) {
            rows[i] = x + (block * TILE_TOKENS + i) * columns;
        }
        tile_kernels<Number>().pack(rows, count, columns, tiles + block * all.block_stride());
    });
    return all;
}

template class PieceSpace<float>;
template class PieceSpace<uint16_t>;
template void multiply_many(Worker&, PieceSpace<float>&, const Tiles<float>&, int64_t,
                            std::initializer_list<ManyProduct>);
template void multiply_many(Worker&, PieceSpace<uint16_t>&, const Tiles<uint16_t>&, int64_t,
                            std::initializer_list<ManyProduct>);
template Tiles<float> pack_many(Worker&, const float*, int64_t, int64_t, float*);
template Tiles<uint16_t> pack_many(Worker&, const float*, int64_t, int64_t, uint16_t*);

}  // namespace moekit
