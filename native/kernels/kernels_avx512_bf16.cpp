// AVX-512 with products of bf16 numbers by the processor; the rest is that of kernels_avx512.cpp.
#define MOEKIT_ISA avx512_bf16
#define MOEKIT_VECTORS "simd/avx512.h"

#include <cstdint>

#include "kernels/activations.h"
#include "kernels/dequantize.h"
#include "kernels/kernels.h"
#include "kernels/matrix.h"
#include "kernels/products.h"
#include "kernels/tiles_bf16.h"

namespace moekit::avx512_bf16 {

static void multiply_rows(const Matrix& matrix, const Activations& x, int64_t begin, int64_t end, float* y,
                          int64_t y_stride) {
    if (matrix.type == Type::BF16) {
        multiply_kind<Floating<Bf16Pairs>>(matrix, x, begin, end, y, y_stride);
    } else {
        avx512::multiply_rows(matrix, x, begin, end, y, y_stride);
    }
}

static void dequantize_bf16(const Matrix& matrix, int64_t begin, int64_t end, int64_t column, int64_t columns,
                            uint16_t* out, int64_t stride) {
    dequantize(matrix, begin, end, column, columns, out, stride);
}

const Kernels KERNELS = {"avx512_bf16",
                         multiply_rows,
                         avx512::dequantize_fp32,
                         dequantize_bf16,
                         avx512::quantize,
                         avx512::round_to_bf16,
                         avx512::multiply_panels,
                         true,
                         &avx512::FP32_TILES,
                         &TILES,
                         &avx512::OPS};

}  // namespace moekit::avx512_bf16
