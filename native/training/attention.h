// Causal attention of whole sequences that are trained on: what stands between its products, for one head at a time.
//
// Rows are query tokens, columns are key positions. Numbers are what products multiply: bf16 (uint16_t) or fp32.
#pragma once

#include <cstdint>

#include "training/tables.h"

namespace moekit {

// Rotates the pairs (i, i + width / 2) of rows by their positions' angles, or back where `sign` is -1. cosine and sine
// are (tokens, width), the first half of each sine negated; both are null where nothing is rotated.
struct Rotation {
    const float* cosine = nullptr;
    const float* sine = nullptr;
    float sign = 1;

    Rotation from(int64_t token, int64_t width) const {
        return cosine ? Rotation{cosine + token * width, sine + token * width, sign} : *this;
    }
    Rotation back() const { return {cosine, sine, -sign}; }
};

// Scores of `rows` tokens, `first` being the first one's position, with `columns` key positions from `begin` on. The
// token at position t sees those from t - window + 1 to t.
struct ScoreRows {
    float* scores;
    int64_t stride;
    int64_t first;
    int64_t rows;
    int64_t begin;
    int64_t columns;  // whole 16s, as begin
    int64_t window;
    float scale;
};

template <typename Number>
struct AttentionShares {
    // to[row][column] = softmax(scale * scores), 0 where a position is not seen.
    void (*softmax)(const ScoreRows& seen, Number* to, int64_t stride);
    // scores become the softmax, and grad_shares (like scores) the gradient of the scores, which is also written as
    // Numbers. to may be null.
    void (*gradient)(const ScoreRows& seen, float* grad_shares, Number* to, int64_t stride);
};

template <typename From, typename To>
using MoveRows = void (*)(const From* from, int64_t from_stride, int64_t rows, int64_t width, const Rotation& rotation,
                          int64_t padded, To* to, int64_t to_stride);

struct AttentionTable {
    AttentionShares<float> fp32;
    AttentionShares<uint16_t> bf16;
    // Rows of `width` numbers, rotated, and zeros behind them up to `padded`.
    MoveRows<float, float> ff;
    MoveRows<float, uint16_t> fb;
    MoveRows<uint16_t, float> bf;
    MoveRows<uint16_t, uint16_t> bb;

    const AttentionShares<float>& of(const float*) const { return fp32; }
    const AttentionShares<uint16_t>& of(const uint16_t*) const { return bf16; }
    MoveRows<float, float> move(const float*, const float*) const { return ff; }
    MoveRows<float, uint16_t> move(const float*, const uint16_t*) const { return fb; }
    MoveRows<uint16_t, float> move(const uint16_t*, const float*) const { return bf; }
    MoveRows<uint16_t, uint16_t> move(const uint16_t*, const uint16_t*) const { return bb; }
};

MOEKIT_TRAINING_TABLE(AttentionTable, ATTENTION)

}  // namespace moekit
