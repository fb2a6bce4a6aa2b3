// Weight matrices as they lie in a file, and their products with a few rows of activations.
//
// A matrix has `rows` rows of `columns` numbers, stored row after row in blocks of its type (GGUF's layouts), at any
// alignment. Rows are split between threads by whoever calls: nothing here starts a thread.
#pragma once

#include <cstddef>
#include <cstdint>

namespace moekit {

// The numbers are those of the GGUF format.
enum class Type : int { F32 = 0, F16 = 1, Q4_0 = 2, Q8_0 = 8, Q4_K = 12, Q6_K = 14, BF16 = 30 };

// How many numbers a block of that type holds, and in how many bytes.
int64_t block_numbers(Type type);
int64_t block_bytes(Type type);

struct Matrix {
    const uint8_t* data = nullptr;
    Type type = Type::F32;
    int64_t rows = 0;
    int64_t columns = 0;

    int64_t row_bytes() const;
    const uint8_t* row(int64_t index) const { return data + index * row_bytes(); }
};

// Activations of up to `batch` rows in the forms that products need, made once for all matrices that they meet.
// A form is made for a type of weights: fp32 as it came, bf16, or 8-bit blocks with their scales and sums.
struct Activations;  // defined in activations.h

// y[b * y_stride + row] = matrix[row] . x[b] for begin <= row < end and every b of the batch.
// The activations must have been prepared for the matrix's type.
void multiply_rows(const Matrix& matrix, const Activations& x, int64_t begin, int64_t end, float* y, int64_t y_stride);

// Rows begin to end as numbers; out has (end - begin) * columns of them.
void dequantize_rows(const Matrix& matrix, int64_t begin, int64_t end, float* out);
void dequantize_rows_bf16(const Matrix& matrix, int64_t begin, int64_t end, uint16_t* out);

}  // namespace moekit
