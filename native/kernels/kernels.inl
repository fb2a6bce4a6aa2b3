// The kernels of one instruction set. A source file defines MOEKIT_ISA and MOEKIT_VECTORS and includes this.

#include <cstdint>

#include "kernels/activations.h"
#include "kernels/dequantize.h"
#include "kernels/kernels.h"
#include "kernels/matrix.h"
#include "kernels/panels.h"
#include "kernels/products.h"
#include "kernels/rounding.h"
#include "kernels/tiles_fp32.h"
#include "simd/isa.h"

#define MOEKIT_QUOTED(name) #name
#define MOEKIT_NAME_OF(name) MOEKIT_QUOTED(name)

namespace moekit::MOEKIT_ISA {

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

void quantize(const float* x, int64_t begin, int64_t end, int64_t columns, ActivationBlock* out) {
    quantize_numbers(x, begin, end, columns, out);
}

void multiply_panels(const Matrix& matrix, const Activations& x, int64_t begin, int64_t end, PanelBlock* memory,
                     float* y, int64_t y_stride) {
    multiply_packed(matrix, x, begin, end, memory, y, y_stride);
}

void round_to_bf16(const float* x, int64_t count, uint16_t* out) { round_numbers(x, count, out); }

const Kernels KERNELS = {MOEKIT_NAME_OF(MOEKIT_ISA),
                         multiply_rows,
                         dequantize_fp32,
                         dequantize_bf16,
                         quantize,
                         round_to_bf16,
                         multiply_panels,
                         true,
                         &FP32_TILES,
                         nullptr,
                         &OPS};

}  // namespace moekit::MOEKIT_ISA
