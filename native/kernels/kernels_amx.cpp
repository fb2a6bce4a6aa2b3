// Products of whole tiles by the processor (AMX); the rest is that of kernels_avx512_bf16.cpp.
#include <immintrin.h>

#include <cstdint>

#include "kernels/kernels.h"
#include "kernels/tiles.h"

namespace moekit::amx {
namespace {

// Which rows and bytes of the eight registers count: all, for 16 rows of 32 bf16 or 16 fp32 numbers.
struct alignas(64) Configuration {
    uint8_t palette = 1;
    uint8_t start = 0;
    uint8_t reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// What it reads and writes, the compiler does not see in the instructions.
inline void memory_changes() { __asm__ volatile("" ::: "memory"); }

// R times 16 rows of weights (registers 4 and 5) with B blocks (6 and 7); sums in 0 to 3.
template <int R, int B>
inline void multiply_block(const uint16_t* weights, int64_t stride, const uint16_t* tiles, int64_t block_stride,
                           int64_t columns, bool add, float* sums, int64_t sums_stride) {
    const int64_t bytes = stride * 2, sums_bytes = sums_stride * 4;
    float* below = sums + 16 * sums_stride;
    if (add) {
        _tile_loadd(0, sums, sums_bytes);
        if constexpr (B > 1) _tile_loadd(1, sums + TILE_TOKENS, sums_bytes);
        if constexpr (R > 1) _tile_loadd(2, below, sums_bytes);
        if constexpr (R > 1 && B > 1) _tile_loadd(3, below + TILE_TOKENS, sums_bytes);
    } else {
        _tile_zero(0);
        if constexpr (B > 1) _tile_zero(1);
        if constexpr (R > 1) _tile_zero(2);
        if constexpr (R > 1 && B > 1) _tile_zero(3);
    }
    for (int64_t column = 0; column < columns; column += TILE_COLUMNS, tiles += TILE_NUMBERS) {
        _tile_loadd(4, weights + column, bytes);
        _tile_loadd(6, tiles, 64);
        _tile_dpbf16ps(0, 4, 6);
        if constexpr (B > 1) {
            _tile_loadd(7, tiles + block_stride, 64);
            _tile_dpbf16ps(1, 4, 7);
        }
        if constexpr (R > 1) {
            _tile_loadd(5, weights + 16 * stride + column, bytes);
            _tile_dpbf16ps(2, 5, 6);
            if constexpr (B > 1) _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, sums, sums_bytes);
    if constexpr (B > 1) _tile_stored(1, sums + TILE_TOKENS, sums_bytes);
    if constexpr (R > 1) _tile_stored(2, below, sums_bytes);
    if constexpr (R > 1 && B > 1) _tile_stored(3, below + TILE_TOKENS, sums_bytes);
}

template <int R>
inline void multiply_rows(const uint16_t* weights, int64_t stride, const uint16_t* tiles, int64_t block_stride,
                          int64_t blocks, int64_t columns, bool add, float* sums, int64_t sums_stride) {
    int64_t block = 0;
    for (; block + 2 <= blocks; block += 2) {
        multiply_block<R, 2>(weights, stride, tiles + block * block_stride, block_stride, columns, add,
                             sums + block * TILE_TOKENS, sums_stride);
    }
    if (block < blocks) {
        multiply_block<R, 1>(weights, stride, tiles + block * block_stride, block_stride, columns, add,
                             sums + block * TILE_TOKENS, sums_stride);
    }
}

void multiply_tiles(const uint16_t* weights, int64_t stride, int64_t rows, const uint16_t* tiles, int64_t block_stride,
                    int64_t blocks, int64_t columns, bool add, float* sums, int64_t sums_stride) {
    static const Configuration configuration;
    memory_changes();
    _tile_loadconfig(&configuration);
    int64_t row = 0;
    for (; row + 32 <= rows; row += 32) {
        multiply_rows<2>(weights + row * stride, stride, tiles, block_stride, blocks, columns, add,
                         sums + row * sums_stride, sums_stride);
    }
    if (row < rows) {
        multiply_rows<1>(weights + row * stride, stride, tiles, block_stride, blocks, columns, add,
                         sums + row * sums_stride, sums_stride);
    }
    _tile_release();
    memory_changes();
}

const TileKernels<uint16_t>& tiles() {
    static const TileKernels<uint16_t> kernels = [] {
        TileKernels<uint16_t> all = *avx512_bf16::KERNELS.bf16_tiles;
        all.multiply = multiply_tiles;
        return all;
    }();
    return kernels;
}

}  // namespace

const Kernels& table() {
    static const Kernels kernels = [] {
        Kernels all = avx512_bf16::KERNELS;
        all.name = "amx";
        all.bf16_tiles = &tiles();
        // A tile register's sums would have to leave it for every block of 32 columns, for their scales.
        all.prefers_panels = false;
        return all;
    }();
    return kernels;
}

}  // namespace moekit::amx
