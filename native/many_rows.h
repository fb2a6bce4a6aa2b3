// Products of packed matrices with many rows of activations, as a prompt brings them.
#pragma once

#include <cstdint>

#include "matrix.h"

namespace moekit {

// Whether this processor is best served by multiply_many: it has products of bf16 numbers, but no unit for whole tiles
// of them (AMX), which a library for matrix products makes more of.
bool multiplies_many();

// Whether it can be called at all.
bool can_multiply_many();

// y (tokens, rows) = x (tokens, columns) @ matrix^T, both bf16, sums in fp32. Rows of x end with zeros up to a multiple
// of 32 columns. Uses the pool.
void multiply_many(const Matrix& matrix, const uint16_t* x, int64_t x_stride, int64_t tokens, uint16_t* y,
                   int64_t y_stride);

}  // namespace moekit
