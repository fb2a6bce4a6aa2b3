// The kernels of one instruction set, from the vectors that the file which includes this one has defined.

#include "kernels/formats.inl"
// what formats.inl unpacks
#include "kernels/dequantize.inl"
#include "kernels/products.inl"
#include "kernels/rounding.inl"
#include "kernels/tiles_fp32.inl"

void multiply_rows(const Matrix& matrix, const Activations& x, int64_t begin, int64_t end, float* y, int64_t y_stride) {
    multiply_matrix(matrix, x, begin, end, y, y_stride);
}

void dequantize_fp32(const Matrix& matrix, int64_t begin, int64_t end, int64_t column, int64_t columns, float* out,
                     int64_t stride) {
    dequantize(matrix, begin, end, column, columns, out, stride);
}

void dequantize_bf16(const Matrix& matrix, int64_t begin, int64_t end, int64_t column, int64_t columns, uint16_t* out,
                     int64_t stride) {
    dequantize(matrix, begin, end, column, columns, out, stride);
}

const Kernels KERNELS = {MOEKIT_KERNELS_NAME, multiply_rows, dequantize_fp32, dequantize_bf16,
                         quantize,            round_to_bf16, &FP32_TILES,     nullptr,         &OPS};
