#include "decoder/heads.h"

#include <algorithm>
#include <cmath>

#include "kernels/vector_ops.h"

namespace moekit {
namespace {

void turn(const DecoderShape& shape, const Angles& angles, float* head) {
    const auto pairs = static_cast<int64_t>(shape.frequencies.size());
    const int64_t step = shape.interleaved ? 2 : 1, apart = shape.interleaved ? 1 : pairs;
    for (int64_t i = 0; i < pairs; ++i) {
        float& x = head[i * step];
        float& y = head[i * step + apart];
        const float turned = x * angles.cosine[i] - y * angles.sine[i];
        y = y * angles.cosine[i] + x * angles.sine[i];
        x = turned;
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

void add_block(const DecoderShape& shape, const float* after_norm, float* added, float* residual) {
    if (after_norm) {
        rms_norm(added, after_norm, shape.width, shape.norm_eps, added);
    }
    for (int64_t i = 0; i < shape.width; ++i) {
        residual[i] += added[i];
    }
}

void set_angles(const DecoderShape& shape, int64_t position, float* cosine, float* sine) {
    for (size_t i = 0; i < shape.frequencies.size(); ++i) {
        const double angle = static_cast<double>(position) * shape.frequencies[i];
        cosine[i] = static_cast<float>(std::cos(angle) * shape.rotary_magnitude);
        sine[i] = static_cast<float>(std::sin(angle) * shape.rotary_magnitude);
    }
}

void load_heads(const DecoderShape& shape, const Heads& heads, int64_t first, int64_t count, const Angles& angles,
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
        if (heads.turned) {
            turn(shape, angles, out);
        }
    }
}

}  // namespace moekit
