// What a step and a prompt do with one token: its residual stream, and its heads as attention wants them, after norm
// and rope.
#pragma once

#include <cstdint>

#include "decoder/model.h"
#include "decoder/rope.h"

namespace moekit {

// Heads side by side in a row. Of values, norm and angles are empty.
struct Heads {
    const float* row;
    int64_t count;
    int64_t width;
    const Norm& norm;
    bool norm_all;  // the norm is of all heads at once
    RopeAngles angles;
};

// The heads of a token's projected row: queries, then keys, then values.
Heads query_heads(const Attention& attention, const float* projected, const RopeAngles& angles);
Heads key_heads(const Attention& attention, const float* projected, const RopeAngles& angles);
Heads value_heads(const Attention& attention, const float* projected);

// Heads first to first + count, each padded with zeros to `width`.
void load_heads(const Heads& heads, int64_t first, int64_t count, int64_t width, float* out);

// The residual stream of a token (`width` numbers) as it starts, with nothing to be added yet.
void embed(const Model& model, int64_t token, float* residual, float* added);

// Adds `width` numbers that a block made, after its norm (empty: none), to the residual stream.
void add_residual(const Norm& post_norm, int64_t width, float* added, float* residual);

// y = norm(x); y may be x.
void rms_norm(const Norm& norm, const float* x, int64_t count, float* y);

}  // namespace moekit
