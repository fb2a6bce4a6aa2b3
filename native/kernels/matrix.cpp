#include "kernels/matrix.h"

#include <algorithm>

#include "kernels/activations.h"
#include "kernels/kernels.h"

namespace moekit {
namespace {

constexpr int64_t ALIGNMENT = 64;

int64_t round_up(int64_t number, int64_t multiple) { return (number + multiple - 1) / multiple * multiple; }

}  // namespace

int64_t block_numbers(Type type) {
    switch (type) {
        case Type::Q4_0:
        case Type::Q8_0:
            return 32;
        case Type::Q4_K:
        case Type::Q6_K:
            return 256;
        case Type::F32:
        case Type::F16:
        case Type::BF16:
            break;
    }
    return 1;
}

int64_t block_bytes(Type type) {
    switch (type) {
        case Type::F32:
            return 4;
        case Type::Q4_0:
            return 18;
        case Type::Q8_0:
            return 34;
        case Type::Q4_K:
            return 144;
        case Type::Q6_K:
            return 210;
        case Type::F16:
        case Type::BF16:
            break;
    }
    return 2;
}

int64_t Matrix::row_bytes() const { return columns / block_numbers(type) * block_bytes(type); }

Form form_for(Type type) {
    switch (type) {
        case Type::F32:
        case Type::F16:
            return Form::F32;
        case Type::BF16:
            return Form::BF16;
        case Type::Q4_0:
        case Type::Q8_0:
        case Type::Q4_K:
        case Type::Q6_K:
            break;
    }
    return Form::Q8;
}

Activations Activations::slice(int64_t begin, int64_t end) const {
    const int64_t size = form == Form::F32    ? static_cast<int64_t>(sizeof(float))
                         : form == Form::BF16 ? static_cast<int64_t>(sizeof(uint16_t))
                                              : static_cast<int64_t>(sizeof(ActivationBlock));
    Activations part = *this;
    part.rows = end - begin;
    part.data = static_cast<const uint8_t*>(data) + begin * stride * size;
    return part;
}

ActivationBuffer::ActivationBuffer(int64_t max_rows, int64_t max_columns)
    : max_rows_(max_rows), max_columns_(max_columns) {
    const int64_t quantized = activation_blocks(max_columns) * static_cast<int64_t>(sizeof(ActivationBlock));
    const int64_t rounded = round_up(max_columns * 2, ALIGNMENT);
    const int64_t bytes = std::max<int64_t>(ALIGNMENT, max_rows * std::max(quantized, rounded));
    memory_ = aligned_bytes(bytes, ALIGNMENT);
}

Activations ActivationBuffer::prepare(const float* x, int64_t x_stride, int64_t from, int64_t to, int64_t columns,
                                      Form form, int thread, int threads) {
    Activations prepared;
    prepared.form = form;
    prepared.rows = to;
    prepared.columns = columns;
    if (form == Form::F32) {
        prepared.data = x;
        prepared.stride = x_stride;
        return prepared;
    }
    prepared.data = memory_.get();
    // Shares are whole 256s, counted through all rows, so that one wide row is split as well as many narrow ones.
    const int64_t blocks = activation_blocks(columns);
    prepared.stride = form == Form::Q8 ? blocks : round_up(columns, ALIGNMENT / 2);
    const int64_t all = (to - from) * blocks;
    const int64_t begin = from * blocks + all * thread / threads;
    const int64_t end = from * blocks + all * (thread + 1) / threads;
    for (int64_t at = begin; at < end;) {
        const int64_t row = at / blocks;
        const int64_t first = at % blocks;
        const int64_t last = std::min(blocks, first + end - at);
        const int64_t column = first * ActivationBlock::NUMBERS;
        const int64_t to_column = std::min(columns, last * ActivationBlock::NUMBERS);
        const float* source = x + row * x_stride + column;
        if (form == Form::Q8) {
            kernels().quantize(source, column, to_column, columns,
                               reinterpret_cast<ActivationBlock*>(memory_.get()) + row * prepared.stride);
        } else {
            kernels().round(source, to_column - column,
                            reinterpret_cast<uint16_t*>(memory_.get()) + row * prepared.stride + column);
        }
        at += last - first;
    }
    return prepared;
}

void multiply_rows(const Matrix& matrix, const Activations& x, int64_t begin, int64_t end, float* y, int64_t y_stride) {
    kernels().multiply_rows(matrix, x, begin, end, y, y_stride);
}

void dequantize_rows(const Matrix& matrix, int64_t begin, int64_t end, float* out) {
    kernels().dequantize(matrix, begin, end, 0, matrix.columns, out, matrix.columns);
}

void dequantize_rows_bf16(const Matrix& matrix, int64_t begin, int64_t end, uint16_t* out) {
    kernels().dequantize_bf16(matrix, begin, end, 0, matrix.columns, out, matrix.columns);
}

}  // namespace moekit
