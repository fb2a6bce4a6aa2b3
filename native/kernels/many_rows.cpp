#include "kernels/many_rows.h"

#include <algorithm>
#include <type_traits>

#include "kernels/activations.h"
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

}  // namespace

bool multiplies_bf16() { return kernels().bf16_tiles != nullptr; }

int64_t share_of(int64_t rows, int threads, int64_t most) {
    constexpr int64_t TURNS = 4;
    return std::clamp(in_tiles(rows / (threads * TURNS)), TILE_COLUMNS, most);
}

bool in_bytes(const Matrix& matrix) { return kernels().prefers_panels && form_for(matrix.type) == Form::Q8; }

ManyForms many_forms(std::initializer_list<const Matrix*> matrices) {
    ManyForms forms;
    for (const Matrix* matrix : matrices) {
        forms.add(in_bytes(*matrix));
    }
    return forms;
}

template <typename Number>
void ManyBuffer<Number>::reserve(int64_t blocks, int64_t rows, int64_t columns, ManyForms forms) {
    tiles_.get(forms.tiles ? blocks * tile_stride(columns) : 0);
    bytes_.get(forms.bytes ? rows * activation_blocks(columns) : 0);
}

template <typename Number>
ManyInput<Number> ManyBuffer<Number>::input(int64_t blocks, int64_t rows, int64_t columns, ManyForms forms) {
    ManyInput<Number> input;
    if (forms.tiles) {
        input.tiles = {tiles_.get(0), columns, blocks};
    }
    if (forms.bytes) {
        input.bytes = {Form::Q8, rows, columns, bytes_.get(0), activation_blocks(columns)};
    }
    return input;
}

template <typename Number>
void ManyBuffer<Number>::put_bytes(const float* numbers, int64_t from, int64_t count, int64_t columns, int64_t row) {
    kernels().quantize(numbers, from, from + count, columns, bytes(columns, row));
}

template <typename Number>
void ManyBuffer<Number>::put(const float* const* rows, int64_t count, int64_t columns, ManyForms forms, int64_t block,
                             int64_t row) {
    if (forms.tiles) {
        tile_kernels<Number>().pack(rows, count, columns, tiles() + block * tile_stride(columns));
    }
    for (int64_t i = 0; forms.bytes && i < count; ++i) {
        put_bytes(rows[i], 0, columns, columns, row + i);
    }
}

template <typename Number>
void PieceSpace<Number>::reserve(int64_t tokens, int64_t packed_columns) {
    weights_.get(Piece<Number>::HEIGHT * Piece<Number>::STRIDE);
    sums_.get(SHARE_ROWS * (tile_blocks(tokens) + 1) * TILE_TOKENS);
    panels_.get(MAX_PANELS * panel_blocks(packed_columns));
}

template <typename Number>
void PieceSpace<Number>::multiply(const Matrix& matrix, int64_t begin, int64_t end, const Activations& x, float* y,
                                  int64_t y_stride) {
    // Unpacking takes as long as so many rows of activations do.
    constexpr int64_t FEW = 12;
    if (x.rows <= FEW) {
        multiply_rows(matrix, x, begin, end, y, y_stride);
    } else {
        kernels().multiply_panels(matrix, x, begin, end, panels_.get(0), y, y_stride);
    }
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
void multiply_share(PieceSpace<Number>& space, const ManyInput<Number>& x, int64_t tokens, const ManyProduct& product,
                    int64_t begin, int64_t end) {
    const Matrix& matrix = product.matrix;
    if (x.bytes.data && in_bytes(matrix)) {
        space.multiply(matrix, begin, end, x.bytes.slice(0, tokens), product.y, product.y_stride);
    } else {
        const float* sums = space.sums(matrix, begin, end, x.tiles);
        for (int64_t token = 0; token < tokens; token += TILE_TOKENS) {
            tile_kernels<Number>().unpack(sums + token, sums_stride(x.tiles), end - begin,
                                          std::min(TILE_TOKENS, tokens - token),
                                          product.y + token * product.y_stride + begin, product.y_stride);
        }
    }
    for (int64_t token = 0; product.bias && token < tokens; ++token) {
        for (int64_t row = begin; row < end; ++row) {
            product.y[token * product.y_stride + row] += product.bias[row];
        }
    }
}

template <typename Number>
void multiply_many(Worker& worker, PieceSpace<Number>& space, const ManyInput<Number>& x, int64_t tokens,
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
        const int64_t begin = chunk * size;
        multiply_share(space, x, tokens, *product, begin, std::min(begin + size, product->matrix.rows));
    });
}

template class ManyBuffer<float>;
template class ManyBuffer<uint16_t>;
template class PieceSpace<float>;
template class PieceSpace<uint16_t>;
template void multiply_share(PieceSpace<float>&, const ManyInput<float>&, int64_t, const ManyProduct&, int64_t,
                             int64_t);
template void multiply_share(PieceSpace<uint16_t>&, const ManyInput<uint16_t>&, int64_t, const ManyProduct&, int64_t,
                             int64_t);
template void multiply_many(Worker&, PieceSpace<float>&, const ManyInput<float>&, int64_t,
                            std::initializer_list<ManyProduct>);
template void multiply_many(Worker&, PieceSpace<uint16_t>&, const ManyInput<uint16_t>&, int64_t,
                            std::initializer_list<ManyProduct>);

}  // namespace moekit
