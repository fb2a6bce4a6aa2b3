// The key-value cache of one sequence.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/aligned_bytes.h"
#include "kernels/vector_ops.h"

namespace moekit {

// What a layer keeps of a position: keys and values of each of its key heads.
struct CacheLayer {
    int64_t kv_heads = 0;
    int64_t head_width = 0;

    int64_t padded_width() const;  // whole lanes
    bool operator==(const CacheLayer& other) const {
        return kv_heads == other.kv_heads && head_width == other.head_width;
    }
};

// Keys and values of all layers. Memory comes in pages of PAGE positions, taken when the first of them is written and
// given back by truncate; nothing ever moves.
class Cache {
   public:
    static constexpr int64_t PAGE = 256;
    static constexpr int64_t MAX_HEAD_WIDTH = 1024;

    Cache(CacheKind kind, std::vector<CacheLayer> layers, int64_t context);
    Cache(const Cache&) = delete;
    Cache& operator=(const Cache&) = delete;

    const std::vector<CacheLayer>& layers() const { return layers_; }
    // std::out_of_range where there is no such layer.
    const CacheLayer& layer(int64_t index) const;
    int64_t context() const { return context_; }
    int64_t length() const { return length_; }
    size_t bytes() const { return pages_.size() * page_bytes_; }  // that the pages take

    // Makes room for `count` positions after the length; std::length_error where the context is full.
    void reserve(int64_t count);
    // The positions after the length, for which room is reserved and which are written in all layers, belong to the
    // sequence now.
    void extend(int64_t count);
    // The first `count` positions as they are kept: of each head and position `head_width` numbers.
    // std::out_of_range where it has no such layer or positions.
    void read_keys(int64_t layer, int64_t count, float* to) const { read(layer, 0, count, to); }
    void read_values(int64_t layer, int64_t count, float* to) const { read(layer, 1, count, to); }
    // Forgets what comes after the first `length` positions.
    void truncate(int64_t length);

    // Where the entries of a page lie; positions count from its beginning.
    CacheEntries keys(int64_t layer, int64_t head, int64_t page) const { return entries(layer, head, page); }
    CacheEntries values(int64_t layer, int64_t head, int64_t page) const {
        return entries(layer, layers_[layer].kv_heads + head, page);
    }

   private:
    // Where a layer's runs lie in a page: PAGE positions of one head's keys each, then of its values.
    struct Place {
        size_t offset;
        size_t run_bytes;
        int64_t width;   // padded
        int64_t scales;  // of a position
    };

    Place place(const CacheLayer& layer, size_t offset) const;
    // Run `run` of a layer: its key heads, then its value heads.
    CacheEntries entries(int64_t layer, int64_t run, int64_t page) const;
    void read(int64_t layer, int64_t values, int64_t count, float* to) const;

    CacheKind kind_;
    std::vector<CacheLayer> layers_;
    std::vector<Place> places_;
    size_t page_bytes_ = 0;
    int64_t context_;
    int64_t length_ = 0;
    std::vector<AlignedBytes> pages_;
};

}  // namespace moekit
