// The functions of RouterTable.
//
// Products have columns (of experts, or of the width) in their lanes, and a tile of rows and columns in registers. The
// choice has sixteen tokens in its lanes, and goes from expert to expert: no lane waits for another, whatever the
// number of experts, and a token's figures do not depend on where it stands.

#include "training/router.h"

#include <cstdint>
#include <cstring>

#include "simd/isa.h"
#include "simd/lanes.h"
#include "training/numbers.h"
#include "training/router_pairs.h"

namespace moekit::MOEKIT_ISA {
namespace lanes {

// Rows of x whose logits are computed at a time, and the most lanes of experts.
constexpr int64_t ROWS = 8, GROUPS = 2;
// Rows that the gradient of the weights adds up before it adds that to the rest.
constexpr int64_t SUMMED = 128;

// logits (COUNT, up to VECTORS lanes) of rows that lie in fp32; weights have `padded` numbers a row, of which `left`
// are those of experts from here on.
template <int64_t VECTORS, int64_t COUNT>
static MOEKIT_INLINE void logit_tile(const float* x, int64_t width, const float* weight, int64_t padded, int64_t left,
                                     int64_t experts, float* logits) {
    Lanes total[COUNT][VECTORS] = {};
    for (int64_t d = 0; d < width; ++d) {
        Lanes w[VECTORS];
        for (int64_t v = 0; v < VECTORS; ++v) {
            w[v] = load(weight + d * padded + v * LANES);
        }
        for (int64_t r = 0; r < COUNT; ++r) {
            const float value = x[r * width + d];  // not splat: a broadcast from memory is part of the product
            for (int64_t v = 0; v < VECTORS; ++v) {
                total[r][v] += value * w[v];
            }
        }
    }
    for (int64_t r = 0; r < COUNT; ++r) {
        for (int64_t v = 0; v < VECTORS; ++v) {
            const int64_t count = left - v * LANES;
            write_up_to(total[r][v], logits + r * experts + v * LANES, count < LANES ? count : LANES);
        }
    }
}

// logits of up to VECTORS lanes of experts, for `rows` rows that lie in fp32.
template <int64_t VECTORS>
static void logit_columns(const float* x, int64_t rows, int64_t width, const float* weight, int64_t padded,
                          int64_t left, int64_t experts, float* logits) {
    int64_t row = 0;
    for (; row + ROWS <= rows; row += ROWS) {
        logit_tile<VECTORS, ROWS>(x + row * width, width, weight, padded, left, experts, logits + row * experts);
    }
    for (; row < rows; ++row) {
        logit_tile<VECTORS, 1>(x + row * width, width, weight, padded, left, experts, logits + row * experts);
    }
}

// The rows of a block go through a group of experts before the next group comes: its weights stay in the cache.
template <typename Number>
static void router_logits(const Number* x, int64_t rows, int64_t width, const float* weight, int64_t experts,
                          float* space, float* logits) {
    constexpr int64_t BLOCK = RouterProducts<Number>::BLOCK;
    const int64_t padded = (experts + LANES - 1) / LANES * LANES;
    for (int64_t row = 0; row < rows; row += BLOCK, x += BLOCK * width, logits += BLOCK * experts) {
        const int64_t count = rows - row < BLOCK ? rows - row : BLOCK;
        each_lanes(count * width, [=](int64_t i, int64_t part)
                                      MOEKIT_INLINED { write_up_to(read_up_to(x + i, part), space + i, part); });
        int64_t e = 0;
        for (; e + LANES < experts; e += GROUPS * LANES) {
            logit_columns<GROUPS>(space, count, width, weight + e, padded, experts - e, experts, logits + e);
        }
        if (e < experts) {
            logit_columns<1>(space, count, width, weight + e, padded, experts - e, experts, logits + e);
        }
    }
}

// Transposed, with rows of a multiple of 16 experts.
static void pack_transposed(const float* weight, int64_t experts, int64_t width, float* packed) {
    const int64_t padded = (experts + LANES - 1) / LANES * LANES;
    memset(packed, 0, sizeof(float) * padded * width);
    for (int64_t e = 0; e < experts; ++e) {
        for (int64_t d = 0; d < width; ++d) {
            packed[d * padded + e] = weight[e * width + d];
        }
    }
}

static void pack_as_it_is(const float* weight, int64_t experts, int64_t width, float* packed) {
    memcpy(packed, weight, sizeof(float) * experts * width);
}

// COLUMNS lanes of grad_x, each of `part` numbers, in COUNT rows.
template <int64_t COUNT, int64_t COLUMNS, typename Number>
static MOEKIT_INLINE void grad_x_tile(const float* grad_logits, int64_t experts, const float* weight, int64_t width,
                                      int64_t part, Number* grad_x) {
    Lanes total[COUNT][COLUMNS] = {};
    for (int64_t e = 0; e < experts; ++e) {
        Lanes w[COLUMNS];
        for (int64_t c = 0; c < COLUMNS; ++c) {
            w[c] = read_up_to(weight + e * width + c * LANES, part);
        }
        for (int64_t r = 0; r < COUNT; ++r) {
            const float grad = grad_logits[r * experts + e];
            for (int64_t c = 0; c < COLUMNS; ++c) {
                total[r][c] += grad * w[c];
            }
        }
    }
    for (int64_t r = 0; r < COUNT; ++r) {
        for (int64_t c = 0; c < COLUMNS; ++c) {
            write_up_to(total[r][c], grad_x + r * width + c * LANES, part);
        }
    }
}

template <int64_t COUNT, typename Number>
static void grad_x_rows(const float* grad_logits, int64_t experts, const float* weight, int64_t width, Number* grad_x) {
    int64_t d = 0;
    for (; d + 4 * LANES <= width; d += 4 * LANES) {
        grad_x_tile<COUNT, 4>(grad_logits, experts, weight + d, width, LANES, grad_x + d);
    }
    for (; d + LANES <= width; d += LANES) {
        grad_x_tile<COUNT, 1>(grad_logits, experts, weight + d, width, LANES, grad_x + d);
    }
    if (d < width) {
        grad_x_tile<COUNT, 1>(grad_logits, experts, weight + d, width, width - d, grad_x + d);
    }
}

template <typename Number>
static void router_grad_x(const float* grad_logits, int64_t rows, int64_t experts, const float* weight, int64_t width,
                          float*, Number* grad_x) {
    int64_t row = 0;
    for (; row + 6 <= rows; row += 6) {
        grad_x_rows<6>(grad_logits + row * experts, experts, weight, width, grad_x + row * width);
    }
    for (; row < rows; ++row) {
        grad_x_rows<1>(grad_logits + row * experts, experts, weight, width, grad_x + row * width);
    }
}

// Adds the rows' part to EXPERTS rows of grad_weight and COLUMNS lanes, each of `part` numbers.
template <int64_t EXPERTS, int64_t COLUMNS, typename Number>
static MOEKIT_INLINE void grad_weight_tile(const float* grad_logits, const Number* x, int64_t rows, int64_t experts,
                                           int64_t width, int64_t part, float* grad_weight) {
    Lanes total[EXPERTS][COLUMNS] = {};
    for (int64_t row = 0; row < rows; ++row) {
        Lanes value[COLUMNS];
        for (int64_t c = 0; c < COLUMNS; ++c) {
            value[c] = read_up_to(x + row * width + c * LANES, part);
        }
        for (int64_t e = 0; e < EXPERTS; ++e) {
            const float grad = grad_logits[row * experts + e];
            for (int64_t c = 0; c < COLUMNS; ++c) {
                total[e][c] += grad * value[c];
            }
        }
    }
    for (int64_t e = 0; e < EXPERTS; ++e) {
        for (int64_t c = 0; c < COLUMNS; ++c) {
            float* to = grad_weight + e * width + c * LANES;
            write_up_to(read_up_to(to, part) + total[e][c], to, part);
        }
    }
}

template <int64_t COLUMNS, typename Number>
static MOEKIT_INLINE void grad_weight_columns(const float* grad_logits, const Number* x, int64_t rows, int64_t experts,
                                              int64_t width, int64_t part, float* grad_weight) {
    int64_t e = 0;
    for (; e + 8 <= experts; e += 8) {
        grad_weight_tile<8, COLUMNS>(grad_logits + e, x, rows, experts, width, part, grad_weight + e * width);
    }
    for (; e < experts; ++e) {
        grad_weight_tile<1, COLUMNS>(grad_logits + e, x, rows, experts, width, part, grad_weight + e * width);
    }
}

template <typename Number>
static void router_grad_weight(const float* grad_logits, const Number* x, int64_t rows, int64_t experts, int64_t width,
                               int64_t begin, int64_t end, float* grad_weight) {
    for (int64_t e = 0; e < experts; ++e) {
        memset(grad_weight + e * width + begin, 0, sizeof(float) * (end - begin));
    }
    for (int64_t row = 0; row < rows; row += SUMMED) {
        const int64_t count = rows - row < SUMMED ? rows - row : SUMMED;
        const float* grads = grad_logits + row * experts;
        const Number* values = x + row * width;
        int64_t d = begin;
        for (; d + 2 * LANES <= end; d += 2 * LANES) {
            grad_weight_columns<2>(grads, values + d, count, experts, width, LANES, grad_weight + d);
        }
        for (; d + LANES <= end; d += LANES) {
            grad_weight_columns<1>(grads, values + d, count, experts, width, LANES, grad_weight + d);
        }
        if (d < end) {
            grad_weight_columns<1>(grads, values + d, count, experts, width, end - d, grad_weight + d);
        }
    }
}

// Of a bf16 x, by pairs where the processor multiplies them and there are enough experts.
#if defined(__AVX512BF16__)
static void pack_grad_x_bf16(const float* weight, int64_t experts, int64_t width, float* packed) {
    if (experts < FEWEST_IN_PAIRS) {
        pack_as_it_is(weight, experts, width, packed);
    } else {
        pack_grad_x_pairs(weight, experts, width, reinterpret_cast<uint32_t*>(packed));
    }
}
static void grad_x_bf16(const float* grad_logits, int64_t rows, int64_t experts, const float* packed, int64_t width,
                        float* space, uint16_t* grad_x) {
    if (experts < FEWEST_IN_PAIRS) {
        router_grad_x(grad_logits, rows, experts, packed, width, space, grad_x);
    } else {
        grad_x_by_pairs(grad_logits, rows, experts, reinterpret_cast<const uint32_t*>(packed), width,
                        reinterpret_cast<uint32_t*>(space), grad_x);
    }
}
#else
constexpr auto pack_grad_x_bf16 = pack_as_it_is;
constexpr auto grad_x_bf16 = router_grad_x<uint16_t>;
#endif

// Numbers as integers that are ordered as they are, equal where they are; NaN above all, and NOTHING below all.
constexpr int32_t NOTHING = INT32_MIN;
static MOEKIT_INLINE IntLanes ordered(Lanes x) {
    const IntLanes bits = (IntLanes)(x + 0.0f);  // -0 is 0
    const IntLanes key = bits ^ ((bits >> 31) & INT32_MAX);
    return x == x ? key : IntLanes{} + INT32_MAX;
}

// Sixteen rows of `columns` numbers turned so that each column's are one vector; rows beyond `count` are 0.
static MOEKIT_INLINE void turn(const float* rows, int64_t count, int64_t columns, float* turned) {
    if (count < LANES) {
        memset(turned, 0, sizeof(float) * LANES * columns);
    }
    for (int64_t row = 0; row < count; ++row) {
        for (int64_t column = 0; column < columns; ++column) {
            turned[column * LANES + row] = rows[row * columns + column];
        }
    }
}
static MOEKIT_INLINE void turn_back(const float* turned, int64_t count, int64_t columns, float* rows) {
    for (int64_t row = 0; row < count; ++row) {
        for (int64_t column = 0; column < columns; ++column) {
            rows[row * columns + column] = turned[column * LANES + row];
        }
    }
}

// -1 in the lanes of real tokens, else 0.
static MOEKIT_INLINE IntLanes real_lanes(const uint8_t* real, int64_t count) {
    int32_t mask[LANES] = {};
    for (int64_t lane = 0; lane < count; ++lane) {
        mask[lane] = !real || real[lane] ? -1 : 0;
    }
    IntLanes lanes;
    memcpy(&lanes, mask, sizeof lanes);
    return lanes;
}

// The largest of a column, NaN where one is.
static MOEKIT_INLINE Lanes highest(const float* turned, int64_t columns) {
    Lanes top = load(turned);
    for (int64_t e = 1; e < columns; ++e) {
        const Lanes value = load(turned + e * LANES);
        top = (value > top) | (value != value) ? value : top;
    }
    return top;
}

// e^x for x <= 0, where what is far below is 0.
static MOEKIT_INLINE Lanes share(Lanes x) { return x < -87.0f ? Lanes{} : exponential(x); }

// Scores of turned logits; log_sum where that is asked for.
static MOEKIT_INLINE Lanes turned_scores(const RouterRule& rule, const float* logits, bool with_log_sum,
                                         float* scores) {
    Lanes log_sum{};
    if (!rule.sigmoid || with_log_sum) {
        const Lanes top = highest(logits, rule.experts);
        Lanes total{};
        for (int64_t e = 0; e < rule.experts; ++e) {
            const Lanes value = share(load(logits + e * LANES) - top);
            store(value, scores + e * LANES);
            total += value;
        }
        const Lanes factor = 1.0f / total;
        for (int64_t e = 0; e < rule.experts; ++e) {
            store(load(scores + e * LANES) * factor, scores + e * LANES);
        }
        if (with_log_sum) {
            for (int64_t lane = 0; lane < LANES; ++lane) {
                log_sum[lane] = top[lane] + __builtin_logf(total[lane]);
            }
        }
    }
    if (rule.sigmoid) {
        for (int64_t e = 0; e < rule.experts; ++e) {
            store(1.0f / (1.0f + exponential(-load(logits + e * LANES))), scores + e * LANES);
        }
    }
    return log_sum;
}

// Chooses: expert (top_k, 16), the highest first. `keys`: what is left to choose from, as `ordered` numbers.
static MOEKIT_INLINE void choose_highest(int64_t experts, int64_t top_k, int32_t* keys, int32_t* expert) {
    for (int64_t k = 0; k < top_k; ++k) {
        IntLanes best = IntLanes{} + NOTHING, id{};
        for (int64_t e = 0; e < experts; ++e) {
            IntLanes key;
            memcpy(&key, keys + e * LANES, sizeof key);
            const IntLanes above = key > best;
            best = above ? key : best;
            id = above ? IntLanes{} + static_cast<int32_t>(e) : id;
        }
        memcpy(expert + k * LANES, &id, sizeof id);
        for (int64_t lane = 0; lane < LANES; ++lane) {
            keys[expert[k * LANES + lane] * LANES + lane] = NOTHING;
        }
    }
}

// Weights of the chosen, (top_k, 16), by their scores.
static MOEKIT_INLINE Lanes turned_weights(const RouterRule& rule, const float* scores, const int32_t* expert,
                                          float* weight) {
    Lanes total{};
    for (int64_t k = 0; k < rule.top_k; ++k) {
        for (int64_t lane = 0; lane < LANES; ++lane) {
            weight[k * LANES + lane] = scores[expert[k * LANES + lane] * LANES + lane];
        }
        total += load(weight + k * LANES);
    }
    const Lanes factor = rule.renormalize ? rule.scale / (total + rule.epsilon) : splat(rule.scale);
    for (int64_t k = 0; k < rule.top_k; ++k) {
        store(load(weight + k * LANES) * factor, weight + k * LANES);
    }
    return factor;
}

// The ids of the chosen as lanes; where nothing was chosen it is 0.
static MOEKIT_INLINE void turn_ids(const int64_t* expert, int64_t count, int64_t top_k, int32_t* turned) {
    memset(turned, 0, sizeof(int32_t) * LANES * top_k);
    for (int64_t row = 0; row < count; ++row) {
        for (int64_t k = 0; k < top_k; ++k) {
            const int64_t id = expert[row * top_k + k];
            turned[k * LANES + row] = static_cast<int32_t>(id < 0 ? 0 : id);
        }
    }
}

static void choose(const RouterRule& rule, const RouterRows& rows, float* space, RouterSums& sums) {
    const int64_t experts = rule.experts, top_k = rule.top_k;
    float *logits = space, *scores = logits + LANES * experts, *total = scores + LANES * experts;
    auto* keys = reinterpret_cast<int32_t*>(total + LANES * experts);
    // The weights and ids of the chosen come last.
    auto* expert = keys + LANES * experts;
    float* weight = reinterpret_cast<float*>(expert + LANES * top_k);
    memset(total, 0, sizeof(float) * LANES * experts);
    Lanes top_scores{}, squares{}, log_squares{};
    for (int64_t row = 0; row < rows.rows; row += LANES) {
        const int64_t count = rows.rows - row < LANES ? rows.rows - row : LANES;
        const IntLanes real = real_lanes(rows.real ? rows.real + row : nullptr, count);
        turn(rows.logits + row * experts, count, experts, logits);
        const Lanes log_sum = turned_scores(rule, logits, rows.log_sum != nullptr, scores);
        turn_back(scores, count, experts, rows.score + row * experts);
        for (int64_t e = 0; e < experts; ++e) {
            const Lanes logit = load(logits + e * LANES), score = load(scores + e * LANES);
            squares += real ? logit * logit : Lanes{};
            store(load(total + e * LANES) + (real ? score : Lanes{}), total + e * LANES);
            const Lanes by = rule.sigmoid ? score : logit;
            const IntLanes key = ordered(rows.bias ? by + rows.bias[e] : by);
            memcpy(keys + e * LANES, &key, sizeof key);
        }
        top_scores += real ? highest(scores, experts) : Lanes{};
        if (rows.log_sum) {
            log_squares += real ? log_sum * log_sum : Lanes{};
            memcpy(rows.log_sum + row, &log_sum, sizeof(float) * count);
        }
        int64_t* ids = rows.expert + row * top_k;
        if (rows.decided) {
            turn_ids(ids, count, top_k, expert);
        } else {
            choose_highest(experts, top_k, keys, expert);
        }
        turned_weights(rule, scores, expert, weight);
        for (int64_t lane = 0; lane < count; ++lane) {
            for (int64_t k = 0; k < top_k; ++k, ++ids) {
                if (!rows.decided) {
                    *ids = real[lane] ? expert[k * LANES + lane] : -1;
                }
                if (*ids >= 0) {
                    sums.chosen[*ids] += 1;
                }
                rows.weight[(row + lane) * top_k + k] = *ids < 0 ? 0.0f : weight[k * LANES + lane];
            }
        }
    }
    for (int64_t e = 0; e < experts; ++e) {
        sums.score[e] += sum(load(total + e * LANES));
    }
    sums.top_score += sum(top_scores);
    sums.logit_squares += sum(squares);
    sums.log_sum_squares += sum(log_squares);
}

static void differentiate(const RouterRule& rule, const RouterGradients& rows, float* space) {
    const int64_t experts = rule.experts, top_k = rule.top_k;
    float *logits = space, *scores = logits + LANES * experts, *grad = scores + LANES * experts;
    auto* expert = reinterpret_cast<int32_t*>(grad + LANES * experts);
    float *weight = reinterpret_cast<float*>(expert + LANES * top_k), *of_chosen = weight + LANES * top_k;
    for (int64_t row = 0; row < rows.rows; row += LANES) {
        const int64_t count = rows.rows - row < LANES ? rows.rows - row : LANES;
        const IntLanes real = real_lanes(rows.real ? rows.real + row : nullptr, count);
        turn(rows.score + row * experts, count, experts, scores);
        turn_ids(rows.expert + row * top_k, count, top_k, expert);
        const Lanes factor = turned_weights(rule, scores, expert, weight);
        if (rows.grad_weight) {
            turn(rows.grad_weight + row * top_k, count, top_k, of_chosen);
        } else {
            memset(of_chosen, 0, sizeof(float) * LANES * top_k);
        }
        // From the gradients of weights to those of the chosen scores.
        Lanes mean{};
        for (int64_t k = 0; k < top_k && rule.renormalize; ++k) {
            mean += load(of_chosen + k * LANES) * load(weight + k * LANES);
        }
        mean = mean * (1.0f / rule.scale);
        Lanes inner{};
        for (int64_t k = 0; k < top_k; ++k) {
            const Lanes value = (load(of_chosen + k * LANES) - mean) * factor;
            store(value, of_chosen + k * LANES);
            for (int64_t lane = 0; lane < LANES; ++lane) {
                inner[lane] += of_chosen[k * LANES + lane] * scores[expert[k * LANES + lane] * LANES + lane];
            }
        }
        // All scores have their own gradient and that of their sum; the chosen have that of the weights besides.
        if (rows.grad_scores) {
            turn(rows.grad_scores + row * experts, count, experts, grad);
        }
        for (int64_t e = 0; e < experts; ++e) {
            Lanes own = rows.grad_scores ? load(grad + e * LANES) : Lanes{};
            own += rows.grad_sums ? rows.grad_sums[e] : 0.0f;
            store(own, grad + e * LANES);
            inner += own * load(scores + e * LANES);
        }
        for (int64_t k = 0; k < top_k; ++k) {
            for (int64_t lane = 0; lane < count; ++lane) {
                grad[expert[k * LANES + lane] * LANES + lane] += of_chosen[k * LANES + lane];
            }
        }
        Lanes of_log_sum{};
        if (rows.log_sum) {
            of_log_sum = 2.0f * rows.grad_squares * read_up_to(rows.log_sum + row, count);
        }
        if (rule.sigmoid && rows.log_sum) {
            turn(rows.logits + row * experts, count, experts, logits);
        }
        for (int64_t e = 0; e < experts; ++e) {
            const Lanes score = load(scores + e * LANES), own = load(grad + e * LANES);
            Lanes value;
            if (!rule.sigmoid) {
                value = score * (own - inner + of_log_sum);
            } else {
                value = own * score * (1.0f - score);
                if (rows.log_sum) {
                    value += of_log_sum * share(load(logits + e * LANES) - read_up_to(rows.log_sum + row, count));
                }
            }
            store(real ? value : Lanes{}, grad + e * LANES);
        }
        turn_back(grad, count, experts, rows.grad_logits + row * experts);
    }
}

}  // namespace lanes

const RouterTable ROUTER = {{lanes::pack_transposed, lanes::pack_as_it_is, lanes::router_logits<float>,
                             lanes::router_grad_x<float>, lanes::router_grad_weight<float>},
                            {lanes::pack_transposed, lanes::pack_grad_x_bf16, lanes::router_logits<uint16_t>,
                             lanes::grad_x_bf16, lanes::router_grad_weight<uint16_t>},
                            lanes::choose,
                            lanes::differentiate};

}  // namespace moekit::MOEKIT_ISA
