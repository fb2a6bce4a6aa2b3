#include "decoder/heads.h"

#include <algorithm>
#include <cmath>

#include "kernels/vector_ops.h"

namespace moekit {
namespace {

void apply_rope(const DecoderShape& shape, const RopeAngles& angles, float* head) {
    const auto pairs = static_cast<int64_t>(shape.rope_frequencies.size());
    const int64_t step = shape.rope_interleaved ? 2 : 1, apart = shape.rope_interleaved ? 1 : pairs;
    for (int64_t i = 0; i < pairs; ++i) {
        float& x = head[i * step];
        float& y = head[i * step + apart];
        const float rotated = x * angles.cosine[i] - y * angles.sine[i];
        y = y * angles.cosine[i] + x * angles.sine[i];
        x = rotated;
    }
}

}  // namespace

void rms_norm(const float* x, const float* weight, int64_t count, float eps, float* y) {
    const VectorOps& ops = vector_ops();
    ops.multiply(x, weight, ops.rms_scale(x, count, eps), count, y);
}

void embed(const DecoderShape& shape, int64_t token, float* residual, float* added) {
    dequantize_rows(shape.embedding, token, token + 1, residual);
    for (int64_t i = 0; i < shape.width; ++i) {
        residual[i] *= shape.embedding_scale;
    }
    std::fill_n(added, shape.width, 0.0f);
}

void add_block(const DecoderShape& shape, const float* post_norm, float* added, float* residual) {
    if (post_norm) {
        rms_norm(added, post_norm, shape.width, shape.norm_eps, added);
    }
    for (int64_t i = 0; i < shape.width; ++i) {
        residual[i] += added[i];
    }
}

void set_rope_angles(const DecoderShape& shape, int64_t position, float* cosine, float* sine) {
    for (size_t i = 0; i < shape.rope_frequencies.size(); ++i) {
        const double angle = static_cast<double>(position) * shape.rope_frequencies[i];
        cosine[i] = static_cast<float>(std::cos(angle) * shape.rope_magnitude);
        sine[i] = static_cast<float>(std::sin(angle) * shape.rope_magnitude);
    }
}

void load_heads(const DecoderShape& shape, const Heads& heads, int64_t first, int64_t count, const RopeAngles& angles,
                int64_t width, float* out) {
    const VectorOps& ops = vector_ops();
    const int64_t head_width = shape.head_width;
    float scale = 0;
    if (heads.norm && shape.norm_all_heads) {
        scale = ops.rms_scale(heads.row, heads.count * head_width, shape.norm_eps);
    }
    for (int64_t head = first; head < first + count; ++head, out += width) {
        const float* x = heads.row + head * head_width;
        if (!heads.norm) {
            std::copy_n(x, head_width, out);
        } else if (shape.norm_all_heads) {
            ops.multiply(x, heads.norm + head * head_width, scale, head_width, out);
        } else {
            rms_norm(x, heads.norm, head_width, shape.norm_eps, out);
        }
        std::fill(out + head_width, out + width, 0.0f);
        if (heads.rotated) {
            apply_rope(shape, angles, out);
        }
    }
}

}  // namespace moekit
