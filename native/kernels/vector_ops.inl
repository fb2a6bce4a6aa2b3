// The functions of VectorOps for one instruction set. A source file defines MOEKIT_ISA and includes this.

#include <cstdint>

#include "kernels/vector_ops.h"
#include "simd/isa.h"
#include "simd/lanes.h"

namespace moekit::MOEKIT_ISA {
namespace lanes {

// Positions that are scored before any is weighted: their keys and values stay in the first cache.
constexpr int64_t TILE = 64;

// Calls `apply` on whole lanes, the last of which may stand beyond the end: it works on copies then.
template <typename Apply>
static MOEKIT_INLINE void for_lanes(int64_t count, const float* first, const float* second, float* out, Apply apply) {
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        store(apply(load(first + i), second ? load(second + i) : Lanes{}), out + i);
    }
    if (i == count) {
        return;
    }
    float a[LANES] = {}, b[LANES] = {}, y[LANES];
    for (int64_t j = 0; i + j < count; ++j) {
        a[j] = first[i + j];
        b[j] = second ? second[i + j] : 0.0f;
    }
    store(apply(load(a), load(b)), y);
    for (int64_t j = 0; i + j < count; ++j) {
        out[i + j] = y[j];
    }
}

static float rms_scale(const float* x, int64_t count, float eps) {
    Lanes squares[2] = {};
    int64_t i = 0;
    for (; i + 2 * LANES <= count; i += 2 * LANES) {
        const Lanes a = load(x + i), b = load(x + i + LANES);
        squares[0] += a * a;
        squares[1] += b * b;
    }
    float total = sum(squares[0] + squares[1]);
    for (; i < count; ++i) {
        total += x[i] * x[i];
    }
    return 1.0f / __builtin_sqrtf(total / static_cast<float>(count) + eps);
}

static void multiply(const float* x, const float* weight, float scale, int64_t count, float* y) {
    for_lanes(count, x, weight, y,
              [scale](Lanes value, Lanes factor) MOEKIT_INLINED { return value * scale * factor; });
}

template <typename Act>
static MOEKIT_INLINE void gated(const float* gate, const float* up, int64_t count, float* out, Act act) {
    if (up) {
        for_lanes(count, gate, up, out, [act](Lanes x, Lanes y) MOEKIT_INLINED { return act(x) * y; });
    } else {
        for_lanes(count, gate, nullptr, out, [act](Lanes x, Lanes) MOEKIT_INLINED { return act(x); });
    }
}

static void activate(ActivationFunction function, const float* gate, const float* up, int64_t count, float* out) {
    switch (function) {
        case ActivationFunction::Silu:
            return gated(gate, up, count, out, [](Lanes x) MOEKIT_INLINED { return x / (1.0f + exponential(-x)); });
        case ActivationFunction::Gelu:
            return gated(gate, up, count, out,
                         [](Lanes x) MOEKIT_INLINED { return 0.5f * x * (1.0f + error_function(x * 0.70710678f)); });
        case ActivationFunction::GeluTanh:
            return gated(gate, up, count, out, [](Lanes x) MOEKIT_INLINED {
                const Lanes inner = 0.79788456f * (x + 0.044715f * x * x * x);
                return 0.5f * x * (1.0f + hyperbolic_tangent(inner));
            });
        case ActivationFunction::Relu:
            return gated(gate, up, count, out, [](Lanes x) MOEKIT_INLINED { return x < Lanes{} ? Lanes{} : x; });
    }
}

template <typename Number>
static MOEKIT_INLINE Number* entry(const CacheEntries& entries, int64_t position) {
    return reinterpret_cast<Number*>(entries.data) + position * entries.width;
}

// Sixteen numbers of an entry: half a block of scale, so that one scale is theirs.
template <CacheKind kind>
static MOEKIT_INLINE Lanes entry_lanes(const CacheEntries& entries, int64_t position, int64_t column) {
    if constexpr (kind == CacheKind::F32) {
        return load(entry<float>(entries, position) + column);
    } else if constexpr (kind == CacheKind::Bf16) {
        return load_bf16(entry<uint16_t>(entries, position) + column);
    } else {
        const float scale = entries.scale[position * entries.scales + column / SCALE_BLOCK];
        return load_int8(entry<int8_t>(entries, position) + column) * scale;
    }
}

static MOEKIT_INLINE void write_bytes(const CacheEntries& entries, int64_t position, const float* x) {
    int8_t* to = entry<int8_t>(entries, position);
    for (int64_t begin = 0; begin < entries.width; begin += SCALE_BLOCK) {
        const int64_t end = begin + SCALE_BLOCK < entries.width ? begin + SCALE_BLOCK : entries.width;
        Lanes most = {};
        for (int64_t i = begin; i < end; i += LANES) {
            most = largest(most, magnitude(load(x + i)));
        }
        const float scale = largest(most) / 127.0f;
        const float inverse = scale > 0 ? 1.0f / scale : 0.0f;
        entries.scale[position * entries.scales + begin / SCALE_BLOCK] = scale;
        for (int64_t i = begin; i < end; i += LANES) {
            store_int8(load(x + i) * inverse, to + i);
        }
    }
}

static void write_entry(const CacheEntries& entries, int64_t position, const float* x) {
    if (entries.kind == CacheKind::Q8) {
        return write_bytes(entries, position, x);
    }
    for (int64_t i = 0; i < entries.width; i += LANES) {
        if (entries.kind == CacheKind::Bf16) {
            store_bf16(load(x + i), entry<uint16_t>(entries, position) + i);
        } else {
            store(load(x + i), entry<float>(entries, position) + i);
        }
    }
}

template <CacheKind kind>
static void read_entry_of(const CacheEntries& entries, int64_t position, float* x) {
    for (int64_t i = 0; i < entries.width; i += LANES) {
        store(entry_lanes<kind>(entries, position, i), x + i);
    }
}

static void read_entry(const CacheEntries& entries, int64_t position, float* x) {
    switch (entries.kind) {
        case CacheKind::F32:
            return read_entry_of<CacheKind::F32>(entries, position, x);
        case CacheKind::Bf16:
            return read_entry_of<CacheKind::Bf16>(entries, position, x);
        case CacheKind::Q8:
            return read_entry_of<CacheKind::Q8>(entries, position, x);
    }
}

// scores[head * TILE + i] = query of that head . key of position begin + i, for several heads at each reading of a key.
template <CacheKind kind, int heads>
static MOEKIT_INLINE void score_tile(const float* queries, const CacheEntries& keys, int64_t begin, int64_t end,
                                     float* scores) {
    const int64_t width = keys.width;
    for (int64_t position = begin; position < end; ++position) {
        Lanes dot[heads] = {};
        for (int64_t c = 0; c < width; c += LANES) {
            const Lanes key = entry_lanes<kind>(keys, position, c);
            for (int head = 0; head < heads; ++head) {
                dot[head] += load(queries + head * width + c) * key;
            }
        }
        for (int head = 0; head < heads; ++head) {
            scores[head * TILE + position - begin] = sum(dot[head]);
        }
    }
}

// weighted += exponentials . values, for several heads and several lanes of each at each reading of a value.
template <CacheKind kind, int heads, int lanes>
static MOEKIT_INLINE void weigh_columns(const float* exponentials, const CacheEntries& values, int64_t begin,
                                        int64_t end, int64_t column, float* weighted) {
    Lanes y[heads][lanes];
    for (int head = 0; head < heads; ++head) {
        for (int i = 0; i < lanes; ++i) {
            y[head][i] = load(weighted + head * values.width + column + i * LANES);
        }
    }
    for (int64_t position = begin; position < end; ++position) {
        for (int i = 0; i < lanes; ++i) {
            const Lanes value = entry_lanes<kind>(values, position, column + i * LANES);
            for (int head = 0; head < heads; ++head) {
                y[head][i] += exponentials[head * TILE + position - begin] * value;
            }
        }
    }
    for (int head = 0; head < heads; ++head) {
        for (int i = 0; i < lanes; ++i) {
            store(y[head][i], weighted + head * values.width + column + i * LANES);
        }
    }
}

template <CacheKind kind, int heads>
static MOEKIT_INLINE void weigh_tile(const float* exponentials, const CacheEntries& values, int64_t begin, int64_t end,
                                     float* weighted) {
    int64_t column = 0;
    for (; column + 4 * LANES <= values.width; column += 4 * LANES) {
        weigh_columns<kind, heads, 4>(exponentials, values, begin, end, column, weighted);
    }
    for (; column < values.width; column += LANES) {
        weigh_columns<kind, heads, 1>(exponentials, values, begin, end, column, weighted);
    }
}

// One step of an online softmax (Milakov and Gimelshein, arXiv 1805.02867): `count` scores of a tile become
// exponentials against the new running max, to which the running sum and the weighted values are scaled down.
static MOEKIT_INLINE void softmax(float* scores, int64_t count, float soft_cap, float* running_max, float* running_sum,
                                  float* weighted, int64_t width) {
    const float old_max = *running_max;
    Lanes most = splat(old_max);
    for (int64_t i = 0; i < count; i += LANES) {
        Lanes x = load(scores + i);
        if (soft_cap > 0) {
            x = soft_cap * hyperbolic_tangent(x / soft_cap);
        }
        for (int64_t lane = count - i; lane < LANES; ++lane) {
            x[lane] = -__builtin_inff();
        }
        store(x, scores + i);
        most = largest(x, most);
    }
    const float new_max = largest(most);
    Lanes added = {};
    for (int64_t i = 0; i < count; i += LANES) {
        const Lanes x = exponential(load(scores + i) - new_max);
        store(x, scores + i);
        added += x;
    }
    const float kept = exponential(splat(old_max - new_max))[0];
    *running_sum = *running_sum * kept + sum(added);
    *running_max = new_max;
    for (int64_t c = 0; c < width; c += LANES) {
        store(load(weighted + c) * kept, weighted + c);
    }
}

template <CacheKind kind, int heads>
static void attend_heads(const float* queries, const CacheEntries& keys, const CacheEntries& values, int64_t begin,
                         int64_t end, float soft_cap, const OnlineSoftmax& state, int64_t first) {
    alignas(64) float scores[heads * TILE];
    const int64_t width = keys.width;
    float* weighted = state.weighted + first * width;
    for (int64_t from = begin; from < end; from += TILE) {
        const int64_t to = from + TILE < end ? from + TILE : end;
        score_tile<kind, heads>(queries + first * width, keys, from, to, scores);
        for (int head = 0; head < heads; ++head) {
            softmax(scores + head * TILE, to - from, soft_cap, state.running_max + first + head,
                    state.running_sum + first + head, weighted + head * width, width);
        }
        weigh_tile<kind, heads>(scores, values, from, to, weighted);
    }
}

template <CacheKind kind>
static void attend_of(const float* queries, const CacheEntries& keys, const CacheEntries& values, int64_t begin,
                      int64_t end, float soft_cap, const OnlineSoftmax& state) {
    int64_t head = 0;
    for (; head + 4 <= state.heads; head += 4) {
        attend_heads<kind, 4>(queries, keys, values, begin, end, soft_cap, state, head);
    }
    for (; head + 2 <= state.heads; head += 2) {
        attend_heads<kind, 2>(queries, keys, values, begin, end, soft_cap, state, head);
    }
    for (; head < state.heads; ++head) {
        attend_heads<kind, 1>(queries, keys, values, begin, end, soft_cap, state, head);
    }
}

static void attend(const float* queries, const CacheEntries& keys, const CacheEntries& values, int64_t begin,
                   int64_t end, float soft_cap, const OnlineSoftmax& state) {
    switch (keys.kind) {
        case CacheKind::F32:
            return attend_of<CacheKind::F32>(queries, keys, values, begin, end, soft_cap, state);
        case CacheKind::Bf16:
            return attend_of<CacheKind::Bf16>(queries, keys, values, begin, end, soft_cap, state);
        case CacheKind::Q8:
            return attend_of<CacheKind::Q8>(queries, keys, values, begin, end, soft_cap, state);
    }
}

// The same for 16 tokens side by side, each with its mask.
static void softmax_tokens(const ScoreTile& tokens) {
    const Lanes first = load(tokens.first_unmasked), last = load(tokens.last_unmasked),
                old_max = load(tokens.running_max);
    Lanes running_max = old_max;
    for (int64_t i = 0; i < tokens.positions; ++i) {
        Lanes x = load(tokens.scores + i * tokens.stride);
        if (tokens.soft_cap > 0) {
            x = tokens.soft_cap * hyperbolic_tangent(x / tokens.soft_cap);
        }
        const Lanes position = splat(static_cast<float>(tokens.first + i));
        x = position < first ? splat(MASKED) : x;
        x = position > last ? splat(MASKED) : x;
        store(x, tokens.scores + i * tokens.stride);
        running_max = largest(x, running_max);
    }
    Lanes added = {};
    for (int64_t i = 0; i < tokens.positions; ++i) {
        const Lanes x = exponential(load(tokens.scores + i * tokens.stride) - running_max);
        store(x, tokens.scores + i * tokens.stride);
        added += x;
    }
    const Lanes kept = exponential(old_max - running_max);
    store(load(tokens.running_sum) * kept + added, tokens.running_sum);
    store(running_max, tokens.running_max);
    for (int64_t c = 0; c < tokens.width; ++c) {
        store(load(tokens.weighted + c * tokens.stride) * kept, tokens.weighted + c * tokens.stride);
    }
}

}  // namespace lanes

const VectorOps OPS = {lanes::rms_scale,  lanes::multiply, lanes::activate,      lanes::write_entry,
                       lanes::read_entry, lanes::attend,   lanes::softmax_tokens};

}  // namespace moekit::MOEKIT_ISA
