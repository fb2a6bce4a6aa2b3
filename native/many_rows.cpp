#include "many_rows.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>

#include "kernels.h"
#include "pool.h"

#if defined(MOEKIT_X86)
#include <cpuid.h>
#endif

namespace moekit {
namespace {

// A thread takes ROWS rows at a time and dequantises WIDTH columns of them (64 KB), which it multiplies with NEAR rows
// of activations (384 KB) after NEAR rows: all this stays in its second cache. The sums of up to TOKENS are kept.
constexpr int64_t ROWS = 32;
constexpr int64_t WIDTH = 1024;
constexpr int64_t NEAR = 192;
constexpr int64_t TOKENS = 576;

struct alignas(64) Workspace {
    uint16_t weights[ROWS * WIDTH];
    float sums[TOKENS * ROWS];
};

int64_t in_32s(int64_t columns) { return (columns + 31) / 32 * 32; }

// `width` columns from `column` on of rows `begin` to `end`, zeros behind them.
void dequantize_piece(const Matrix& matrix, int64_t begin, int64_t end, int64_t column, int64_t width,
                      uint16_t* weights) {
    if (end - begin < ROWS || width % 32) {
        std::memset(weights, 0, sizeof(uint16_t) * ROWS * WIDTH);
    }
    kernels().dequantize_bf16(matrix, begin, end, column, width, weights, WIDTH);
}

void put_rounded(const float* sums, int64_t tokens, int64_t rows, uint16_t* y, int64_t y_stride) {
    uint16_t rounded[ROWS];
    for (int64_t token = 0; token < tokens; ++token) {
        kernels().round(sums + token * ROWS, ROWS, rounded);
        std::memcpy(y + token * y_stride, rounded, sizeof(uint16_t) * static_cast<size_t>(rows));
    }
}

void multiply_chunk(const Matrix& matrix, int64_t begin, int64_t end, const uint16_t* x, int64_t x_stride,
                    int64_t tokens, uint16_t* y, int64_t y_stride, Workspace& space) {
    std::fill_n(space.sums, tokens * ROWS, 0.0f);
    for (int64_t column = 0; column < matrix.columns; column += WIDTH) {
        const int64_t width = std::min(WIDTH, matrix.columns - column);
        dequantize_piece(matrix, begin, end, column, width, space.weights);
        for (int64_t token = 0; token < tokens; token += NEAR) {
            kernels().multiply_bf16(space.weights, WIDTH, ROWS, x + token * x_stride + column, x_stride,
                                    std::min(NEAR, tokens - token), in_32s(width), space.sums + token * ROWS, ROWS);
        }
    }
    put_rounded(space.sums, tokens, end - begin, y + begin, y_stride);
}

}  // namespace

bool can_multiply_many() { return kernels().multiply_bf16 != nullptr; }

bool multiplies_many() {
    if (!can_multiply_many()) {
        return false;
    }
#if defined(MOEKIT_X86)
    constexpr unsigned AMX_BF16 = 1u << 22;
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & AMX_BF16)) {
        return false;
    }
#endif
    return true;
}

void multiply_many(const Matrix& matrix, const uint16_t* x, int64_t x_stride, int64_t tokens, uint16_t* y,
                   int64_t y_stride) {
    for (int64_t first = 0; first < tokens; first += TOKENS) {
        const int64_t count = std::min(TOKENS, tokens - first);
        const uint16_t* from = x + first * x_stride;
        uint16_t* to = y + first * y_stride;
        std::atomic<int64_t> next{0};
        Pool::shared().run([&](int, int) {
            const auto space = std::make_unique<Workspace>();
            for (int64_t begin = next.fetch_add(ROWS); begin < matrix.rows; begin = next.fetch_add(ROWS)) {
                multiply_chunk(matrix, begin, std::min(matrix.rows, begin + ROWS), from, x_stride, count, to, y_stride,
                               *space);
            }
        });
    }
}

}  // namespace moekit
