#include "decoder/attention.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <new>
#include <stdexcept>
#include <string>

#include "kernels/kernels.h"

namespace moekit {

namespace {
constexpr int64_t ALIGNMENT = 64;
constexpr int64_t PADDING = 16;  // floats of one vector

int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }
}  // namespace

int64_t CacheShape::padded_width() const { return round_up(head_width, PADDING); }

int64_t CacheShape::scales() const {
    return kind == CacheKind::Q8 ? round_up(head_width, SCALE_BLOCK) / SCALE_BLOCK : 0;
}

size_t CacheShape::run_bytes() const {
    const int64_t number = kind == CacheKind::F32 ? 4 : kind == CacheKind::Bf16 ? 2 : 1;
    const int64_t entry = padded_width() * number + scales() * static_cast<int64_t>(sizeof(float));
    return static_cast<size_t>(round_up(entry * Cache::PAGE, ALIGNMENT));
}

void Cache::Free::operator()(uint8_t* memory) const { std::free(memory); }

Cache::Cache(const CacheShape& shape, int64_t context) : shape_(shape), context_(context) {
    if (shape.head_width > MAX_HEAD_WIDTH) {
        throw std::invalid_argument("heads wider than " + std::to_string(MAX_HEAD_WIDTH) + " have no cache");
    }
}

size_t Cache::bytes() const { return pages_.size() * 2 * shape_.layers * shape_.kv_heads * shape_.run_bytes(); }

void Cache::reserve(int64_t count) {
    const int64_t end = length_ + count;
    if (end > context_) {
        throw std::length_error(std::to_string(end) + " positions do not fit a context of " + std::to_string(context_));
    }
    const size_t page_bytes = 2 * shape_.layers * shape_.kv_heads * shape_.run_bytes();
    while (static_cast<int64_t>(pages_.size()) * PAGE < end) {
        Page page(static_cast<uint8_t*>(std::aligned_alloc(ALIGNMENT, page_bytes)));
        if (!page) {
            throw std::bad_alloc();
        }
        pages_.push_back(std::move(page));
    }
}

void Cache::read(int64_t row, int64_t count, float* to) const {
    if (count < 0 || count > length_) {
        throw std::out_of_range("the cache does not hold " + std::to_string(count) + " positions");
    }
    for (int64_t i = 0; i < shape_.kv_heads * count; ++i) {
        const int64_t head = i / count, position = i % count;
        float x[MAX_HEAD_WIDTH];
        vector_ops().read_entry(entries(row, head, position / PAGE), position % PAGE, x);
        std::copy_n(x, shape_.head_width, to + i * shape_.head_width);
    }
}

void Cache::extend(int64_t count) { length_ += count; }

void Cache::truncate(int64_t length) {
    length_ = std::clamp<int64_t>(length, 0, length_);
    pages_.resize(round_up(length_, PAGE) / PAGE);
}

CacheEntries Cache::entries(int64_t row, int64_t head, int64_t page) const {
    uint8_t* data = pages_[page].get() + (row * shape_.kv_heads + head) * shape_.run_bytes();
    const int64_t width = shape_.padded_width();
    float* scale = shape_.kind == CacheKind::Q8 ? reinterpret_cast<float*>(data + PAGE * width) : nullptr;
    return {data, scale, shape_.kind, width, shape_.scales()};
}

void attend_positions(const Cache& cache, int64_t layer, int64_t head, int64_t begin, int64_t end, const float* queries,
                      float soft_cap, const OnlineSoftmax& softmax) {
    std::fill_n(softmax.running_max, softmax.heads, -std::numeric_limits<float>::infinity());
    std::fill_n(softmax.running_sum, softmax.heads, 0.0f);
    std::fill_n(softmax.weighted, softmax.heads * cache.shape().padded_width(), 0.0f);
    while (begin < end) {
        const int64_t page = begin / Cache::PAGE, start = page * Cache::PAGE;
        const int64_t stop = std::min(end, start + Cache::PAGE);
        vector_ops().attend(queries, cache.keys(layer, head, page), cache.values(layer, head, page), begin - start,
                            stop - start, soft_cap, softmax);
        begin = stop;
    }
}

void combine(float* memory, int64_t parts, int64_t stride, int64_t heads, const CacheShape& shape, float* y) {
    const int64_t width = shape.padded_width();
    for (int64_t head = 0; head < heads; ++head) {
        float running_max = -std::numeric_limits<float>::infinity(), running_sum = 0;
        for (int64_t part = 0; part < parts; ++part)
            running_max = std::max(running_max, softmax_at(memory + part * stride, heads).running_max[head]);
        float* to = y + head * shape.head_width;
        std::fill_n(to, shape.head_width, 0.0f);
        for (int64_t part = 0; part < parts; ++part) {
            const OnlineSoftmax softmax = softmax_at(memory + part * stride, heads);
            const float share = std::exp(softmax.running_max[head] - running_max);
            running_sum += share * softmax.running_sum[head];
            const float* weighted = softmax.weighted + head * width;
            for (int64_t c = 0; c < shape.head_width; ++c) {
                to[c] += share * weighted[c];
            }
        }
        for (int64_t c = 0; c < shape.head_width; ++c) {
            to[c] /= running_sum;
        }
    }
}

}  // namespace moekit
