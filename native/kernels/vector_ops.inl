// The functions of VectorOps for one instruction set. A source file defines MOEKIT_ISA and includes this.

#include <cstdint>

#include "kernels/vector_ops.h"
#include "simd/isa.h"
#include "simd/lanes.h"

namespace moekit::MOEKIT_ISA {
namespace lanes {

// Positions that are scored before any is mixed: their keys and values stay in the first cache.
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

static void activate(Function function, const float* gate, const float* up, int64_t count, float* out) {
    switch (function) {
        case Function::Silu:
            return gated(gate, up, count, out, [](Lanes x) MOEKIT_INLINED { return x / (1.0f + exponential(-x)); });
        case Function::Gelu:
            return gated(gate, up, count, out,
                         [](Lanes x) MOEKIT_INLINED { return 0.5f * x * (1.0f + error_function(x * 0.70710678f)); });
        case Function::GeluTanh:
            return gated(gate, up, count, out, [](Lanes x) MOEKIT_INLINED {
                const Lanes inner = 0.79788456f * (x + 0.044715f * x * x * x);
                return 0.5f * x * (1.0f + hyperbolic_tangent(inner));
            });
        case Function::Relu:
            return gated(gate, up, count, out, [](Lanes x) MOEKIT_INLINED { return x < Lanes{} ? Lanes{} : x; });
    }
}

template <typename Number>
static MOEKIT_INLINE Number* entry(const Entries& entries, int64_t position) {
    return reinterpret_cast<Number*>(entries.data) + position * entries.width;
}

// Sixteen numbers of an entry: half a block of scale, so that one scale is theirs.
template <CacheKind kind>
static MOEKIT_INLINE Lanes entry_lanes(const Entries& entries, int64_t position, int64_t column) {
    if constexpr (kind == CacheKind::F32) {
        return load(entry<float>(entries, position) + column);
    } else if constexpr (kind == CacheKind::Bf16) {
        return load_bf16(entry<uint16_t>(entries, position) + column);
    } else {
        const float scale = entries.scale[position * entries.scales + column / SCALE_BLOCK];
        return load_int8(entry<int8_t>(entries, position) + column) * scale;
    }
}

static MOEKIT_INLINE void write_bytes(const Entries& entries, int64_t position, const float* x) {
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

static void write_entry(const Entries& entries, int64_t position, const float* x) {
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
static void read_entry_of(const Entries& entries, int64_t position, float* x) {
    for (int64_t i = 0; i < entries.width; i += LANES) {
        store(entry_lanes<kind>(entries, position, i), x + i);
    }
}

static void read_entry(const Entries& entries, int64_t position, float* x) {
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
static MOEKIT_INLINE void score_tile(const float* queries, const Entries& keys, int64_t begin, int64_t end,
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

// mixed += share . values, for several heads and several lanes of each at each reading of a value.
template <CacheKind kind, int heads, int lanes>
static MOEKIT_INLINE void mix_columns(const float* shares, const Entries& values, int64_t begin, int64_t end,
                                      int64_t column, float* mixed) {
    Lanes y[heads][lanes];
    for (int head = 0; head < heads; ++head) {
        for (int i = 0; i < lanes; ++i) {
            y[head][i] = load(mixed + head * values.width + column + i * LANES);
        }
    }
    for (int64_t position = begin; position < end; ++position) {
        for (int i = 0; i < lanes; ++i) {
            const Lanes value = entry_lanes<kind>(values, position, column + i * LANES);
            for (int head = 0; head < heads; ++head) {
                y[head][i] += shares[head * TILE + position - begin] * value;
            }
        }
    }
    for (int head = 0; head < heads; ++head) {
        for (int i = 0; i < lanes; ++i) {
            store(y[head][i], mixed + head * values.width + column + i * LANES);
        }
    }
}

template <CacheKind kind, int heads>
static MOEKIT_INLINE void mix_tile(const float* shares, const Entries& values, int64_t begin, int64_t end,
                                   float* mixed) {
    int64_t column = 0;
    for (; column + 4 * LANES <= values.width; column += 4 * LANES) {
        mix_columns<kind, heads, 4>(shares, values, begin, end, column, mixed);
    }
    for (; column < values.width; column += LANES) {
        mix_columns<kind, heads, 1>(shares, values, begin, end, column, mixed);
    }
}

// Turns `count` scores of a tile into exponentials against the new top, to which what was mixed is scaled down.
static MOEKIT_INLINE void soften(float* scores, int64_t count, float soft_cap, float* top, float* total, float* mixed,
                                 int64_t width) {
    const float old_top = *top;
    Lanes most = splat(old_top);
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
    const float new_top = largest(most);
    Lanes added = {};
    for (int64_t i = 0; i < count; i += LANES) {
        const Lanes x = exponential(load(scores + i) - new_top);
        store(x, scores + i);
        added += x;
    }
    const float kept = exponential(splat(old_top - new_top))[0];
    *total = *total * kept + sum(added);
    *top = new_top;
    for (int64_t c = 0; c < width; c += LANES) {
        store(load(mixed + c) * kept, mixed + c);
    }
}

template <CacheKind kind, int heads>
static void attend_heads(const float* queries, const Entries& keys, const Entries& values, int64_t begin, int64_t end,
                         float soft_cap, const Mixture& mixture, int64_t first) {
    alignas(64) float scores[heads * TILE];
    const int64_t width = keys.width;
    float* mixed = mixture.mixed + first * width;
    for (int64_t from = begin; from < end; from += TILE) {
        const int64_t to = from + TILE < end ? from + TILE : end;
        score_tile<kind, heads>(queries + first * width, keys, from, to, scores);
        for (int head = 0; head < heads; ++head) {
            soften(scores + head * TILE, to - from, soft_cap, mixture.top + first + head, mixture.total + first + head,
                   mixed + head * width, width);
        }
        mix_tile<kind, heads>(scores, values, from, to, mixed);
    }
}

template <CacheKind kind>
static void attend_of(const float* queries, const Entries& keys, const Entries& values, int64_t begin, int64_t end,
                      float soft_cap, const Mixture& mixture) {
    int64_t head = 0;
    for (; head + 4 <= mixture.heads; head += 4) {
        attend_heads<kind, 4>(queries, keys, values, begin, end, soft_cap, mixture, head);
    }
    for (; head + 2 <= mixture.heads; head += 2) {
        attend_heads<kind, 2>(queries, keys, values, begin, end, soft_cap, mixture, head);
    }
    for (; head < mixture.heads; ++head) {
        attend_heads<kind, 1>(queries, keys, values, begin, end, soft_cap, mixture, head);
    }
}

static void attend(const float* queries, const Entries& keys, const Entries& values, int64_t begin, int64_t end,
                   float soft_cap, const Mixture& mixture) {
    switch (keys.kind) {
        case CacheKind::F32:
            return attend_of<CacheKind::F32>(queries, keys, values, begin, end, soft_cap, mixture);
        case CacheKind::Bf16:
            return attend_of<CacheKind::Bf16>(queries, keys, values, begin, end, soft_cap, mixture);
        case CacheKind::Q8:
            return attend_of<CacheKind::Q8>(queries, keys, values, begin, end, soft_cap, mixture);
    }
}

static void soften_tokens(const TokenScores& tokens) {
    const Lanes first = load(tokens.first_seen), last = load(tokens.last_seen), old_top = load(tokens.top);
    Lanes top = old_top;
    for (int64_t i = 0; i < tokens.positions; ++i) {
        Lanes x = load(tokens.scores + i * tokens.stride);
        if (tokens.soft_cap > 0) {
            x = tokens.soft_cap * hyperbolic_tangent(x / tokens.soft_cap);
        }
        const Lanes position = splat(static_cast<float>(tokens.first + i));
        x = position < first ? splat(NOT_SEEN) : x;
        x = position > last ? splat(NOT_SEEN) : x;
        store(x, tokens.scores + i * tokens.stride);
        top = largest(x, top);
    }
    Lanes added = {};
    for (int64_t i = 0; i < tokens.positions; ++i) {
        const Lanes x = exponential(load(tokens.scores + i * tokens.stride) - top);
        store(x, tokens.scores + i * tokens.stride);
        added += x;
    }
    const Lanes kept = exponential(old_top - top);
    store(load(tokens.total) * kept + added, tokens.total);
    store(top, tokens.top);
    for (int64_t c = 0; c < tokens.width; ++c) {
        store(load(tokens.mixed + c * tokens.stride) * kept, tokens.mixed + c * tokens.stride);
    }
}

}  // namespace lanes

const VectorOps OPS = {lanes::rms_scale,  lanes::multiply, lanes::activate,     lanes::write_entry,
                       lanes::read_entry, lanes::attend,   lanes::soften_tokens};

}  // namespace moekit::MOEKIT_ISA
