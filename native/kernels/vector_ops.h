// What a decoder computes between its matrix products, compiled once for each instruction set.
#pragma once

#include <cstdint>

namespace moekit {

enum class Function : int { Silu = 0, Gelu = 1, GeluTanh = 2, Relu = 3 };

// How a cache keeps numbers: as they are, in bfloat16, or as bytes with one fp32 scale for each 32 of them.
enum class CacheKind : int { F32 = 0, Bf16 = 1, Q8 = 2 };

constexpr int64_t SCALE_BLOCK = 32;

// The keys or the values of one head, position after position. `width` is the head's, padded with zeros to whole lanes;
// `scales` is how many scales a position has (0 where there are none).
struct Entries {
    uint8_t* data = nullptr;
    float* scale = nullptr;
    CacheKind kind = CacheKind::Bf16;
    int64_t width = 0;
    int64_t scales = 0;
};

// What `heads` queries, which share a key head, have seen of the positions so far: the largest score, the sum of
// exponentials and the mixed values, of which each head has `width`.
struct Mixture {
    float* top;
    float* total;
    float* mixed;
    int64_t heads;
};

// Scores of 16 tokens side by side, position after position, and what those tokens have seen before.
struct TokenScores {
    float* scores;  // (positions, stride)
    int64_t stride;
    int64_t first;  // position of the first row
    int64_t positions;
    const float* first_seen;  // of each token; positions before it and after last_seen count for nothing
    const float* last_seen;
    float soft_cap;
    float* top;
    float* total;
    float* mixed;  // (width, stride)
    int64_t width;
};

struct VectorOps {
    // 1 / sqrt(mean(x^2) + eps)
    float (*rms_scale)(const float* x, int64_t count, float eps);
    // y = x * weight * scale; y may be x.
    void (*multiply)(const float* x, const float* weight, float scale, int64_t count, float* y);
    // out = function(gate) * up, or function(gate) where up is null; out may be gate or up.
    void (*activate)(Function function, const float* gate, const float* up, int64_t count, float* out);
    // Writes `width` numbers (whole lanes) as one position, and reads them back.
    void (*write_entry)(const Entries& entries, int64_t position, const float* x);
    void (*read_entry)(const Entries& entries, int64_t position, float* x);
    // Adds the positions begin to end to the mixture. queries: heads rows of `width`, scaled already.
    // soft_cap: scores become cap * tanh(score / cap); 0 for none.
    void (*attend)(const float* queries, const Entries& keys, const Entries& values, int64_t begin, int64_t end,
                   float soft_cap, const Mixture& mixture);
    // Turns scores into exponentials against the new top, to which what was mixed is scaled down.
    void (*soften)(const TokenScores& tokens);
};

// What tops start from, and what a score counts for that is not seen: finite, so that differences are.
constexpr float NOT_SEEN = -1e30f;

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
