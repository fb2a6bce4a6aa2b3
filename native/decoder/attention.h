// The key-value cache of one sequence, and attention over it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/vector_ops.h"

namespace moekit {

struct CacheShape {
    CacheKind kind = CacheKind::F32;
    int64_t layers = 0;
    int64_t kv_heads = 0;
    int64_t head_width = 0;

    int64_t padded_width() const;  // whole lanes
    int64_t scales() const;        // of a position
    size_t run_bytes() const;      // of PAGE positions of one head's keys or values
};

// Keys and values of all layers. Memory comes in pages of PAGE positions, taken when the first of them is written and
// given back by truncate; nothing ever moves.
class Cache {
   public:
    static constexpr int64_t PAGE = 256;
    static constexpr int64_t MAX_HEAD_WIDTH = 1024;

    Cache(const CacheShape& shape, int64_t context);
    Cache(const Cache&) = delete;
    Cache& operator=(const Cache&) = delete;

    const CacheShape& shape() const { return shape_; }
    int64_t context() const { return context_; }
    int64_t length() const { return length_; }
    size_t bytes() const;  // that the pages take

    // Makes room for `count` positions after the length; std::length_error where the context is full.
    void reserve(int64_t count);
    // The positions after the length, for which room is reserved and which are written in all layers, belong to the
    // sequence now.
    void extend(int64_t count);
    // The first `count` positions as they are kept: of each head and position `head_width` numbers.
    // row: 2 * layer for keys, 2 * layer + 1 for values.
    void read(int64_t row, int64_t count, float* to) const;
    // Forgets what comes after the first `length` positions.
    void truncate(int64_t length);

    // Where the entries of a page lie; positions count from its beginning.
    CacheEntries keys(int64_t layer, int64_t head, int64_t page) const { return entries(2 * layer, head, page); }
    CacheEntries values(int64_t layer, int64_t head, int64_t page) const { return entries(2 * layer + 1, head, page); }

   private:
    struct Free {
        void operator()(uint8_t* memory) const;
    };
    using Page = std::unique_ptr<uint8_t[], Free>;

    CacheEntries entries(int64_t row, int64_t head, int64_t page) const;

    CacheShape shape_;
    int64_t context_;
    int64_t length_ = 0;
    std::vector<Page> pages_;
};

// The online softmax of `heads` heads of `width` in one run of floats, of which it takes softmax_floats.
inline int64_t softmax_floats(int64_t heads, int64_t width) { return heads * (2 + width); }
inline OnlineSoftmax softmax_at(float* memory, int64_t heads) {
    return {memory, memory + heads, memory + 2 * heads, heads};
}

// What `heads` queries, which share key head `head`, see of the positions begin to end: see VectorOps::attend.
void attend_positions(const Cache& cache, int64_t layer, int64_t head, int64_t begin, int64_t end, const float* queries,
                      float soft_cap, const OnlineSoftmax& softmax);

// y = what the states of `parts` online softmaxes, `stride` floats apart in memory, have seen together: `head_width`
// numbers for each head, without the padding.
void combine(float* memory, int64_t parts, int64_t stride, int64_t heads, const CacheShape& shape, float* y);

}  // namespace moekit
