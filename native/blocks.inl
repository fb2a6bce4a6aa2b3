// Products of many rows of activations with a block of rows, both bf16, for processors that have such products.
//
// Both are read along their rows: a tile of 6 rows of activations and 4 of weights keeps 24 vectors of sums, and loads
// 10 vectors for 24 products. What it reads stays in the first cache: 6 and 4 rows of at most `columns` numbers.

constexpr int BLOCK_ROWS = 4;

template <int T>
inline void block_tile(const uint16_t* w, int64_t w_stride, const uint16_t* x, int64_t x_stride, int64_t columns,
                       float* y, int64_t y_stride) {
    Floats sums[T][BLOCK_ROWS];
    clear(sums);
    for (int64_t at = 0; at < columns; at += 32) {
        Bytes weights[BLOCK_ROWS];
#pragma GCC unroll 4
        for (int r = 0; r < BLOCK_ROWS; ++r) {
            weights[r] = load_bytes(w + r * w_stride + at);
        }
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) {
            const Bytes a = load_bytes(x + t * x_stride + at);
#pragma GCC unroll 4
            for (int r = 0; r < BLOCK_ROWS; ++r) {
                sums[t][r] = dot_bf16(sums[t][r], weights[r], a);
            }
        }
    }
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
        add_four_sums(y + t * y_stride, sums[t][0], sums[t][1], sums[t][2], sums[t][3]);
    }
}

template <int T>
inline void block_rows(const uint16_t* w, int64_t w_stride, const uint16_t* x, int64_t x_stride, int64_t tokens,
                       int64_t columns, float* y, int64_t y_stride) {
    for (; tokens >= T; tokens -= T, x += T * x_stride, y += T * y_stride) {
        block_tile<T>(w, w_stride, x, x_stride, columns, y, y_stride);
    }
    if constexpr (T > 1) {
        block_rows<T - 1>(w, w_stride, x, x_stride, tokens, columns, y, y_stride);
    }
}

inline void multiply_block(const uint16_t* w, int64_t w_stride, int64_t rows, const uint16_t* x, int64_t x_stride,
                           int64_t tokens, int64_t columns, float* y, int64_t y_stride) {
    for (int64_t row = 0; row < rows; row += BLOCK_ROWS) {
        block_rows<6>(w + row * w_stride, w_stride, x, x_stride, tokens, columns, y + row, y_stride);
    }
}
