#include "decoder/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace moekit {

void attend_positions(const Cache& cache, int64_t layer, int64_t head, int64_t begin, int64_t end, const float* queries,
                      float soft_cap, const OnlineSoftmax& softmax) {
    std::fill_n(softmax.running_max, softmax.heads, -std::numeric_limits<float>::infinity());
    std::fill_n(softmax.running_sum, softmax.heads, 0.0f);
    std::fill_n(softmax.weighted, softmax.heads * cache.layers()[layer].padded_width(), 0.0f);
    while (begin < end) {
        const int64_t page = begin / Cache::PAGE, start = page * Cache::PAGE;
        const int64_t stop = std::min(end, start + Cache::PAGE);
        vector_ops().attend(queries, cache.keys(layer, head, page), cache.values(layer, head, page), begin - start,
                            stop - start, soft_cap, softmax);
        begin = stop;
    }
}

void join_softmaxes(float* memory, int64_t parts, int64_t stride, int64_t heads, const CacheLayer& shape, float* y) {
    const int64_t width = shape.padded_width();
    for (int64_t head = 0; head < heads; ++head) {
        float running_max = -std::numeric_limits<float>::infinity(), running_sum = 0;
        for (int64_t part = 0; part < parts; ++part) {
            running_max = std::max(running_max, softmax_at(memory + part * stride, heads).running_max[head]);
        }
        float* to = y + head * shape.head_width;
        std::fill_n(to, shape.head_width, 0.0f);
        for (int64_t part = 0; part < parts; ++part) {
            const OnlineSoftmax softmax = softmax_at(memory + part * stride, heads);
            const float scale = std::exp(softmax.running_max[head] - running_max);
            running_sum += scale * softmax.running_sum[head];
            const float* weighted = softmax.weighted + head * width;
            for (int64_t c = 0; c < shape.head_width; ++c) {
                to[c] += scale * weighted[c];
            }
        }
        for (int64_t c = 0; c < shape.head_width; ++c) {
            to[c] /= running_sum;
        }
    }
}

}  // namespace moekit
