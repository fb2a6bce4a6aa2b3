// What a decoder computes between its matrix products, compiled once for each instruction set.
#pragma once

#include <cstdint>

namespace moekit {

enum class ActivationFunction : int { Silu = 0, Gelu = 1, GeluTanh = 2, Relu = 3 };

// How a cache keeps numbers: as they are, in bfloat16, or as bytes with one fp32 scale for each 32 of them.
enum class CacheKind : int { F32 = 0, Bf16 = 1, Q8 = 2 };

constexpr int64_t SCALE_BLOCK = 32;

// The keys or the values of one head, position after position. `width` is the head's, padded with zeros to whole lanes;
// `scales` is how many scales a position has (0 where there are none).
struct CacheEntries {
    uint8_t* data = nullptr;
    float* scale = nullptr;
    CacheKind kind = CacheKind::Bf16;
    int64_t width = 0;
    int64_t scales = 0;
};

// What `heads` queries, which share a key head, have seen of the positions so far: the running max of their scores, the
// running sum of exponentials and the weighted values, of which each head has `width`.
struct OnlineSoftmax {
    float* running_max;
    float* running_sum;
    float* weighted;
    int64_t heads;
};

// Scores of 16 tokens side by side, position after position, and what those tokens have seen before.
struct ScoreTile {
    float* scores;  // (positions, stride)
    int64_t stride;
    int64_t first;  // position of the first row
    int64_t positions;
    const float* first_unmasked;  // of each token; the mask: positions before it and after last_unmasked
    const float* last_unmasked;
    float soft_cap;
    float* running_max;
    float* running_sum;
    float* weighted;  // (width, stride)
    int64_t width;
};

struct VectorOps {
    // 1 / sqrt(mean(x^2) + eps)
    float (*rms_scale)(const float* x, int64_t count, float eps);
    // y = x * weight * scale; y may be x.
    void (*multiply)(const float* x, const float* weight, float scale, int64_t count, float* y);
    // out = function(gate) * up, or function(gate) where up is null; out may be gate or up.
    void (*activate)(ActivationFunction function, const float* gate, const float* up, int64_t count, float* out);
    // Writes `width` numbers (whole lanes) as one position, and reads them back.
    void (*write_entry)(const CacheEntries& entries, int64_t position, const float* x);
    void (*read_entry)(const CacheEntries& entries, int64_t position, float* x);
    // Adds the positions begin to end to the online softmax. queries: heads rows of `width`, scaled already.
    // soft_cap: scores become cap * tanh(score / cap); 0 for none.
    void (*attend)(const float* queries, const CacheEntries& keys, const CacheEntries& values, int64_t begin,
                   int64_t end, float soft_cap, const OnlineSoftmax& softmax);
    // One step of an online softmax: scores become exponentials against the new running max, to which the running sum
    // and the weighted values are scaled down.
    void (*softmax)(const ScoreTile& tokens);
};

// What a running max starts from, and the score of a masked position: finite, so that differences are.
constexpr float MASKED = -1e30f;

// Those of the instruction set that the matrix products use.
const VectorOps& vector_ops();

namespace portable {
extern const VectorOps OPS;
}
#if defined(MOEKIT_X86)
namespace avx2 {
extern const VectorOps OPS;
}
namespace avx512 {
extern const VectorOps OPS;
}
#endif

}  // namespace moekit
