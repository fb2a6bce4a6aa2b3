#include "decoder/heads.h"

#include <algorithm>

#include "kernels/vector_ops.h"

namespace moekit {
namespace {

const Norm NO_NORM;

}  // namespace

Heads query_heads(const Attention& attention, const float* projected, const RopeAngles& angles) {
    return {projected, attention.heads, attention.head_width, attention.query_norm, attention.norm_all_heads, angles};
}

Heads key_heads(const Attention& attention, const float* projected, const RopeAngles& angles) {
    return {projected + attention.query_rows(),
            attention.kv_heads,
            attention.head_width,
            attention.key_norm,
            attention.norm_all_heads,
            angles};
}

Heads value_heads(const Attention& attention, const float* projected) {
    const float* row = projected + attention.query_rows() + attention.key_rows();
    return {row, attention.kv_heads, attention.head_width, NO_NORM, false, {}};
}

void load_heads(const Heads& heads, int64_t first, int64_t count, int64_t width, float* out) {
    const VectorOps& ops = vector_ops();
    const float* weight = heads.norm.weight.data;
    float scale = 0;
    if (heads.norm && heads.norm_all) {
        scale = ops.rms_scale(heads.row, heads.count * heads.width, heads.norm.eps);
    }
    for (int64_t head = first; head < first + count; ++head, out += width) {
        const float* x = heads.row + head * heads.width;
        if (!heads.norm) {
            std::copy_n(x, heads.width, out);
        } else if (heads.norm_all) {
            ops.multiply(x, weight + head * heads.width, scale, heads.width, out);
        } else {
            rms_norm(heads.norm, x, heads.width, out);
        }
        std::fill(out + heads.width, out + width, 0.0f);
        apply_rope(heads.angles, out);
    }
}

void embed(const Model& model, int64_t token, float* residual, float* added) {
    dequantize_rows(model.embedding, token, token + 1, residual);
    for (int64_t i = 0; i < model.width; ++i) {
        residual[i] *= model.embedding_scale;
    }
    std::fill_n(added, model.width, 0.0f);
}

void add_residual(const Norm& post_norm, int64_t width, float* added, float* residual) {
    if (post_norm) {
        rms_norm(post_norm, added, width, added);
    }
    for (int64_t i = 0; i < width; ++i) {
        residual[i] += added[i];
    }
}

void rms_norm(const Norm& norm, const float* x, int64_t count, float* y) {
    const VectorOps& ops = vector_ops();
    ops.multiply(x, norm.weight.data, ops.rms_scale(x, count, norm.eps), count, y);
}

}  // namespace moekit
