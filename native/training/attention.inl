// The functions of AttentionTable.

#include "training/attention.h"

#include <cstdint>

#include "simd/isa.h"
#include "simd/lanes.h"
#include "training/numbers.h"

namespace moekit::MOEKIT_ISA {
namespace lanes {

// The sixteens that hold a row's seen positions, relative to ScoreRows::begin; `from` and `to` are the first seen and
// the one behind the last.
struct Seen {
    int64_t from;
    int64_t to;
    int64_t first;
    int64_t last;

    Seen(const ScoreRows& rows, int64_t row) {
        const int64_t position = rows.first + row, oldest = position - rows.window + 1;
        from = (oldest > rows.begin ? oldest : rows.begin) - rows.begin;
        to = position + 1 - rows.begin;
        to = to < rows.columns ? to : rows.columns;
        first = from / LANES * LANES;
        last = (to + LANES - 1) / LANES * LANES;
    }

    // x where the position is seen, else `hidden`.
    MOEKIT_INLINE Lanes only(Lanes x, int64_t i, float hidden) const {
        if (i >= from && i + LANES <= to) {
            return x;
        }
        const IntLanes lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
        const IntLanes place = lane + static_cast<int32_t>(i);
        const Lanes none = splat(hidden);
        x = place < static_cast<int32_t>(from) ? none : x;
        return place < static_cast<int32_t>(to) ? x : none;
    }
};

// The largest score that is seen, times the scale.
static MOEKIT_INLINE float top_score(const float* scores, const Seen& seen, float scale) {
    Lanes most = splat(-__builtin_inff());
    for (int64_t i = seen.first; i < seen.last; i += LANES) {
        most = largest(seen.only(load(scores + i), i, -__builtin_inff()), most);
    }
    return largest(most) * scale;
}

template <typename Number>
static MOEKIT_INLINE void clear(Number* to, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i += LANES) {
        write(Lanes{}, to + i);
    }
}

template <typename Number>
static void softmax_rows(const ScoreRows& rows, Number* to, int64_t stride) {
    for (int64_t row = 0; row < rows.rows; ++row, to += stride) {
        float* scores = rows.scores + row * rows.stride;
        const Seen seen(rows, row);
        const float top = top_score(scores, seen, rows.scale);
        Lanes total = {};
        for (int64_t i = seen.first; i < seen.last; i += LANES) {
            const Lanes e = seen.only(exponential(load(scores + i) * rows.scale - top), i, 0.0f);
            store(e, scores + i);
            total += e;
        }
        const float share = 1.0f / sum(total);
        clear(to, 0, seen.first);
        for (int64_t i = seen.first; i < seen.last; i += LANES) {
            write(load(scores + i) * share, to + i);
        }
        clear(to, seen.last, rows.columns);
    }
}

template <typename Number>
static void softmax_gradient_rows(const ScoreRows& rows, float* grad_shares, Number* to, int64_t stride) {
    for (int64_t row = 0; row < rows.rows; ++row) {
        float *scores = rows.scores + row * rows.stride, *grad = grad_shares + row * rows.stride;
        const Seen seen(rows, row);
        const float top = top_score(scores, seen, rows.scale);
        Lanes total = {}, along = {};
        for (int64_t i = seen.first; i < seen.last; i += LANES) {
            const Lanes e = seen.only(exponential(load(scores + i) * rows.scale - top), i, 0.0f);
            store(e, scores + i);
            total += e;
            along += e * load(grad + i);
        }
        const float share = 1.0f / sum(total), mean = sum(along) * share;
        clear(scores, 0, seen.first);
        clear(grad, 0, seen.first);
        for (int64_t i = seen.first; i < seen.last; i += LANES) {
            const Lanes p = load(scores + i) * share;
            store(p, scores + i);
            store(p * (load(grad + i) - mean) * rows.scale, grad + i);
        }
        clear(scores, seen.last, rows.columns);
        clear(grad, seen.last, rows.columns);
        if (to) {
            for (int64_t i = 0; i < rows.columns; i += LANES) {
                write(load(grad + i), to + row * stride + i);
            }
        }
    }
}

template <typename From, typename To>
static void move_rows(const From* from, int64_t from_stride, int64_t rows, int64_t width, const Rotation& rotation,
                      int64_t padded, To* to, int64_t to_stride) {
    const int64_t half = width / 2;
    for (int64_t row = 0; row < rows; ++row, from += from_stride, to += to_stride) {
        if (!rotation.cosine) {
            each_lanes(width, [=](int64_t i, int64_t count)
                                  MOEKIT_INLINED { write_up_to(read_up_to(from + i, count), to + i, count); });
        } else {
            const float *cosine = rotation.cosine + row * width, *sine = rotation.sine + row * width;
            const float sign = rotation.sign;
            each_lanes(half, [=](int64_t i, int64_t count) MOEKIT_INLINED {
                const Lanes a = read_up_to(from + i, count), b = read_up_to(from + half + i, count);
                const Lanes before = read_up_to(sine + i, count) * sign,
                            after = read_up_to(sine + half + i, count) * sign;
                write_up_to(a * read_up_to(cosine + i, count) + b * before, to + i, count);
                write_up_to(b * read_up_to(cosine + half + i, count) + a * after, to + half + i, count);
            });
        }
        for (int64_t i = width; i < padded; ++i) {
            to[i] = To{0};
        }
    }
}

}  // namespace lanes

const AttentionTable ATTENTION = {{lanes::softmax_rows<float>, lanes::softmax_gradient_rows<float>},
                                  {lanes::softmax_rows<uint16_t>, lanes::softmax_gradient_rows<uint16_t>},
                                  lanes::move_rows<float, float>,
                                  lanes::move_rows<float, uint16_t>,
                                  lanes::move_rows<uint16_t, float>,
                                  lanes::move_rows<uint16_t, uint16_t>};

}  // namespace moekit::MOEKIT_ISA
