// What a step and a prompt do with one token: its residual stream, and its heads as attention wants them, after norm
// and rope.
#pragma once

#include <cstdint>

#include "decoder/decoder.h"

namespace moekit {

// Heads side by side in a row. norm may be null.
struct Heads {
    const float* row;
    int64_t count;
    const float* norm;
    bool rotated;
};

// Cosines and sines of a position's angles, one for each pair of a head's numbers.
struct RopeAngles {
    const float* cosine;
    const float* sine;
};

void set_rope_angles(const DecoderShape& shape, int64_t position, float* cosine, float* sine);

// Heads first to first + count, each padded with zeros to `width`.
void load_heads(const DecoderShape& shape, const Heads& heads, int64_t first, int64_t count, const RopeAngles& angles,
                int64_t width, float* out);

// The residual stream of a token (`width` numbers) as it starts, with nothing to be added yet.
void embed(const DecoderShape& shape, int64_t token, float* residual, float* added);

// Adds what a block made, after its norm (null: none), to the residual stream.
void add_block(const DecoderShape& shape, const float* post_norm, float* added, float* residual);

// y = x / rms(x) * weight; y may be x.
void rms_norm(const float* x, const float* weight, int64_t count, float eps, float* y);

// The first position that a token at `position` sees.
inline int64_t first_unmasked(int64_t position, int64_t window) {
    return window > 0 && position + 1 > window ? position + 1 - window : 0;
}

}  // namespace moekit
