#include "decoder/cache.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

namespace moekit {
namespace {

constexpr int64_t ALIGNMENT = 64;
constexpr int64_t LANES = 16;  // floats of one vector

int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

}  // namespace

int64_t CacheLayer::padded_width() const { return round_up(head_width, LANES); }

Cache::Cache(CacheKind kind, std::vector<CacheLayer> layers, int64_t context)
    : kind_(kind), layers_(std::move(layers)), context_(context) {
    for (const CacheLayer& layer : layers_) {
        if (layer.head_width > MAX_HEAD_WIDTH) {
            throw std::invalid_argument("heads wider than " + std::to_string(MAX_HEAD_WIDTH) + " have no cache");
        }
        places_.push_back(place(layer, page_bytes_));
        page_bytes_ += 2 * static_cast<size_t>(layer.kv_heads) * places_.back().run_bytes;
    }
}

Cache::Place Cache::place(const CacheLayer& layer, size_t offset) const {
    const int64_t number = kind_ == CacheKind::F32 ? 4 : kind_ == CacheKind::Bf16 ? 2 : 1;
    const int64_t scales = kind_ == CacheKind::Q8 ? round_up(layer.head_width, SCALE_BLOCK) / SCALE_BLOCK : 0;
    const int64_t entry = layer.padded_width() * number + scales * static_cast<int64_t>(sizeof(float));
    return {offset, static_cast<size_t>(round_up(entry * PAGE, ALIGNMENT)), layer.padded_width(), scales};
}

const CacheLayer& Cache::layer(int64_t index) const {
    if (index < 0 || index >= static_cast<int64_t>(layers_.size())) {
        throw std::out_of_range("layer " + std::to_string(index) + " of " + std::to_string(layers_.size()));
    }
    return layers_[index];
}

void Cache::reserve(int64_t count) {
    const int64_t end = length_ + count;
    if (end > context_) {
        throw std::length_error(std::to_string(end) + " positions do not fit a context of " + std::to_string(context_));
    }
    while (static_cast<int64_t>(pages_.size()) * PAGE < end) {
        pages_.push_back(aligned_bytes(static_cast<int64_t>(page_bytes_), ALIGNMENT));
    }
}

void Cache::read(int64_t layer, int64_t values, int64_t count, float* to) const {
    if (count < 0 || count > length_) {
        throw std::out_of_range("the cache does not hold " + std::to_string(count) + " positions");
    }
    const CacheLayer& shape = this->layer(layer);
    for (int64_t i = 0; i < shape.kv_heads * count; ++i) {
        const int64_t run = values * shape.kv_heads + i / count, position = i % count;
        float x[MAX_HEAD_WIDTH];
        vector_ops().read_entry(entries(layer, run, position / PAGE), position % PAGE, x);
        std::copy_n(x, shape.head_width, to + i * shape.head_width);
    }
}

void Cache::extend(int64_t count) { length_ += count; }

void Cache::truncate(int64_t length) {
    length_ = std::clamp<int64_t>(length, 0, length_);
    pages_.resize(round_up(length_, PAGE) / PAGE);
}

CacheEntries Cache::entries(int64_t layer, int64_t run, int64_t page) const {
    const Place& place = places_[layer];
    uint8_t* data = pages_[page].get() + place.offset + run * place.run_bytes;
    float* scale = kind_ == CacheKind::Q8 ? reinterpret_cast<float*>(data + PAGE * place.width) : nullptr;
    return {data, scale, kind_, place.width, place.scales};
}

}  // namespace moekit
