// What each instruction set's file provides, and which of them this machine runs.
#pragma once

#include <cstdint>

#include "kernels/activations.h"
#include "kernels/matrix.h"
#include "kernels/panel_block.h"
#include "kernels/tiles.h"
#include "kernels/vector_ops.h"

namespace moekit {

struct Kernels {
    const char* name;
    void (*multiply_rows)(const Matrix&, const Activations&, int64_t begin, int64_t end, float* y, int64_t y_stride);
    // `columns` columns from `column` on (both whole blocks) of rows begin to end, which come to lie `stride` apart.
    void (*dequantize)(const Matrix&, int64_t begin, int64_t end, int64_t column, int64_t columns, float* out,
                       int64_t stride);
    void (*dequantize_bf16)(const Matrix&, int64_t begin, int64_t end, int64_t column, int64_t columns, uint16_t* out,
                            int64_t stride);
    // Columns begin to end of a row that has `columns`, of which x has those; out is the row's. begin is a multiple of
    // 32, and so is end, unless it is the last: zeros follow it then, up to a multiple of 256.
    void (*quantize)(const float* x, int64_t begin, int64_t end, int64_t columns, ActivationBlock* out);
    // To bf16, followed by zeros up to a multiple of 32.
    void (*round)(const float* x, int64_t count, uint16_t* out);
    // The same of packed weights with many rows of 8-bit blocks, to the same bits. memory: panel_blocks of the columns
    // for each of MAX_PANELS.
    void (*multiply_panels)(const Matrix&, const Activations&, int64_t begin, int64_t end, PanelBlock* memory, float* y,
                            int64_t y_stride);
    // Whether that is faster than tiles.
    bool prefers_panels;
    // Products of many tokens. In bf16 null where the processor has no products of bf16 numbers: fp32 is faster then.
    const TileKernels<float>* fp32_tiles;
    const TileKernels<uint16_t>* bf16_tiles;
    // What stands between the products.
    const VectorOps* vectors;
};

// The best that this processor and its operating system run, unless another was selected.
const Kernels& kernels();

template <typename Number>
const TileKernels<Number>& tile_kernels();
template <>
inline const TileKernels<float>& tile_kernels() {
    return *kernels().fp32_tiles;
}
template <>
inline const TileKernels<uint16_t>& tile_kernels() {
    return *kernels().bf16_tiles;
}

// For tests and measurements: by name; false where this machine does not have it.
bool select_kernels(const char* name);

// Names of those that this machine runs, the best last; ends with nullptr.
const char* const* available_kernels();

namespace portable {
extern const Kernels KERNELS;
}
#if defined(MOEKIT_X86)
namespace avx2 {
extern const Kernels KERNELS;
}
namespace avx512 {
extern const Kernels KERNELS;
void multiply_rows(const Matrix&, const Activations&, int64_t begin, int64_t end, float* y, int64_t y_stride);
void dequantize_fp32(const Matrix&, int64_t begin, int64_t end, int64_t column, int64_t columns, float* out,
                     int64_t stride);
void quantize(const float* x, int64_t begin, int64_t end, int64_t columns, ActivationBlock* out);
void multiply_panels(const Matrix&, const Activations&, int64_t begin, int64_t end, PanelBlock* memory, float* y,
                     int64_t y_stride);
void round_to_bf16(const float* x, int64_t count, uint16_t* out);
extern const TileKernels<float> FP32_TILES;
}  // namespace avx512
namespace avx512_bf16 {
extern const Kernels KERNELS;
}
namespace amx {  // on Linux
const Kernels& table();
}
#endif

}  // namespace moekit
