// Attention of the queries of one position over what a cache holds: an online softmax in parts that are joined.
#pragma once

#include <cstdint>

#include "decoder/cache.h"
#include "kernels/vector_ops.h"

namespace moekit {

// The mask: the first position that a token at `position` sees; the last is its own. window: 0 for no limit.
inline int64_t first_unmasked(int64_t position, int64_t window) {
    return window > 0 && position + 1 > window ? position + 1 - window : 0;
}

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
void join_softmaxes(float* memory, int64_t parts, int64_t stride, int64_t heads, const CacheLayer& shape, float* y);

}  // namespace moekit
