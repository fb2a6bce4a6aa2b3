// Activations of many tokens, laid down as products of whole tiles read them.
//
// Numbers are bf16 (uint16_t) or fp32 (float). A tile holds 32 columns of 16 tokens: in bf16 in 16 rows of a pair of
// columns each, one token after another, in fp32 in 32 rows of a column each. What a product of weights (rows, columns)
// with tiles gives are sums (rows, tokens) in fp32: their rows, or pairs of them, are rows of tiles again, so that one
// product leads to the next without transposing anything.
#pragma once

#include <cstdint>
#include <memory>
#include <new>

namespace moekit {

constexpr int64_t TILE_TOKENS = 16;
constexpr int64_t TILE_COLUMNS = 32;
constexpr int64_t TILE_NUMBERS = TILE_TOKENS * TILE_COLUMNS;

inline int64_t tile_blocks(int64_t tokens) { return (tokens + TILE_TOKENS - 1) / TILE_TOKENS; }
inline int64_t in_16s(int64_t rows) { return (rows + 15) / 16 * 16; }
inline int64_t in_tiles(int64_t columns) { return (columns + TILE_COLUMNS - 1) / TILE_COLUMNS * TILE_COLUMNS; }

// From a block of tiles to the next: some more than its numbers, so that blocks do not compete for the same places of a
// core's caches where rows are a power of 2 long.
inline int64_t tile_stride(int64_t columns) { return (in_tiles(columns) + TILE_COLUMNS) * TILE_TOKENS; }

template <typename Number>
struct TileKernels {
    // A block of tiles, one after another, from `count` (at most 16) rows of fp32 numbers; zeros fill it up.
    void (*pack)(const float* const* rows, int64_t count, int64_t columns, Number* tiles);
    // The same from sums: `columns` (a multiple of 32) rows, `stride` apart, of 16 tokens.
    void (*pack_sums)(const float* sums, int64_t stride, int64_t columns, Number* tiles);
    // sums (rows, 16 tokens for each of `blocks` blocks) = or += weights (rows, columns) . tiles. Whole numbers of 16
    // rows and 32 columns. block_stride: numbers from a block of tiles to the next.
    void (*multiply)(const Number* weights, int64_t stride, int64_t rows, const Number* tiles, int64_t block_stride,
                     int64_t blocks, int64_t columns, bool add, float* sums, int64_t sums_stride);
    // out[token * out_stride + row] = sums[row * stride + token] for up to 16 tokens and any number of rows.
    void (*unpack)(const float* sums, int64_t stride, int64_t rows, int64_t tokens, float* out, int64_t out_stride);
};

// Blocks of tiles, tile_stride(columns) apart.
template <typename Number>
struct Tiles {
    const Number* data = nullptr;
    int64_t columns = 0;
    int64_t blocks = 0;

    int64_t block_stride() const { return tile_stride(columns); }
    Tiles from(int64_t block, int64_t count) const { return {data + block * block_stride(), columns, count}; }
};

// Memory that starts at a cache line and is not filled with anything.
template <typename Number>
class Aligned {
   public:
    // What it held is lost where it grows.
    Number* get(int64_t count) {
        if (count > count_) {
            memory_.reset(static_cast<Number*>(::operator new(count * sizeof(Number), ALIGNMENT)));
            count_ = count;
        }
        return memory_.get();
    }

   private:
    static constexpr std::align_val_t ALIGNMENT{64};
    struct Free {
        void operator()(Number* memory) const { ::operator delete(memory, ALIGNMENT); }
    };
    std::unique_ptr<Number, Free> memory_;
    int64_t count_ = 0;
};

}  // namespace moekit
