#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <optional>
#include <stdexcept>
#include <tuple>
#include <vector>

#include "bindings/tensors.h"
#include "bindings/training.h"
#include "kernels/pool.h"
#include "training/assignments.h"
#include "training/router.h"
#include "training/sharing.h"

using namespace nanobind::literals;

namespace moekit {
namespace {

// Tokens whose sums are added up before those of others: the same blocks whatever the number of threads.
constexpr int64_t BLOCK = 256;
// A multiplication in fp32, and what a score costs beside it, in nanoseconds.
constexpr double MULTIPLICATION = 0.012, SCORE = 2.0;

int64_t blocks_of(int64_t rows) { return (rows + BLOCK - 1) / BLOCK; }

template <typename Number>
void logits(const Tensor<const Number>& x, const Tensor<const float>& weight, const Tensor<float>& logits) {
    const int64_t rows = x.rows(), width = x.columns(), experts = weight.rows();
    weight.check("weight", experts, width);
    logits.check("logits", rows, experts);
    const nb::gil_scoped_release released;
    const auto& products = training_table<RouterTable>().of(x.data());
    std::vector<float> packed(products.packed(experts, width));
    products.pack_logits(weight.data(), experts, width, packed.data());
    const int64_t padded = (experts + 15) / 16 * 16;
    share_rows(rows, MULTIPLICATION * static_cast<double>(width * padded), [&](int64_t begin, int64_t end) {
        std::vector<float> space(products.space(experts, width));
        products.logits(x.data() + begin * width, end - begin, width, packed.data(), experts, space.data(),
                        logits.data() + begin * experts);
    });
}

template <typename Number>
void grad_x(const Tensor<const float>& grad_logits, const Tensor<const float>& weight, const Tensor<Number>& grad_x) {
    const int64_t rows = grad_x.rows(), width = grad_x.columns(), experts = weight.rows();
    weight.check("weight", experts, width);
    grad_logits.check("grad_logits", rows, experts);
    const nb::gil_scoped_release released;
    const auto& products = training_table<RouterTable>().of(grad_x.data());
    std::vector<float> packed(products.packed(experts, width));
    products.pack_grad_x(weight.data(), experts, width, packed.data());
    share_rows(rows, MULTIPLICATION * static_cast<double>(width * experts), [&](int64_t begin, int64_t end) {
        std::vector<float> space(products.space(experts, width));
        products.grad_x(grad_logits.data() + begin * experts, end - begin, experts, packed.data(), width, space.data(),
                        grad_x.data() + begin * width);
    });
}

template <typename Number>
void grad_weight(const Tensor<const float>& grad_logits, const Tensor<const Number>& x,
                 const Tensor<float>& grad_weight) {
    const int64_t rows = x.rows(), width = x.columns(), experts = grad_weight.rows();
    grad_logits.check("grad_logits", rows, experts);
    grad_weight.check("grad_weight", experts, width);
    const nb::gil_scoped_release released;
    const auto& products = training_table<RouterTable>().of(x.data());
    // Threads share the columns, some at a time, so that each number is one thread's sum over all rows.
    constexpr int64_t TOGETHER = RouterProducts<uint16_t>::TOGETHER;
    const double cost = MULTIPLICATION * static_cast<double>(rows * experts * TOGETHER);
    share_rows((width + TOGETHER - 1) / TOGETHER, cost, [&](int64_t begin, int64_t end) {
        for (int64_t part = begin; part < end; ++part) {
            products.grad_weight(grad_logits.data(), x.data(), rows, experts, width, part * TOGETHER,
                                 std::min(width, (part + 1) * TOGETHER), grad_weight.data());
        }
    });
}

RouterRule rule_of(int64_t experts, int64_t top_k, bool sigmoid, bool renormalize, float epsilon, float scale) {
    if (top_k < 1 || top_k > experts) {
        throw std::invalid_argument("so many experts cannot be chosen");
    }
    return {experts, top_k, sigmoid, renormalize, epsilon, scale};
}

template <typename Any>
auto pointer(const std::optional<Tensor<Any>>& tensor) {
    return tensor ? tensor->data() : nullptr;
}

using Mask = std::optional<Tensor<const bool>>;

const uint8_t* bytes(const Mask& mask) { return reinterpret_cast<const uint8_t*>(pointer(mask)); }

// Gives the number of real tokens, the sum of their highest scores, of their squared logits, of their squared log_sum.
std::tuple<int64_t, double, double, double> choose(int64_t top_k, bool sigmoid, bool renormalize, float epsilon,
                                                   float scale, bool decided, const Tensor<const float>& logits,
                                                   const std::optional<Tensor<const float>>& bias, const Mask& real,
                                                   const Tensor<int64_t>& expert, const Tensor<float>& score,
                                                   const Tensor<float>& weight,
                                                   const std::optional<Tensor<float>>& log_sum,
                                                   const Tensor<float>& score_sums, const Tensor<int64_t>& chosen) {
    const int64_t rows = logits.rows(), experts = logits.columns();
    const RouterRule rule = rule_of(experts, top_k, sigmoid, renormalize, epsilon, scale);
    expert.check("expert", rows, top_k);
    score.check("score", rows, experts);
    weight.check("weight", rows, top_k);
    score_sums.check("score_sums", 1, experts);
    chosen.check("chosen", 1, experts);
    if (bias) {
        bias->check("bias", 1, experts);
    }
    if (real) {
        real->check("real", 1, rows);
    }
    if (log_sum) {
        log_sum->check("log_sum", 1, rows);
    }
    const nb::gil_scoped_release released;
    const int64_t* ids = expert.data();
    if (decided && std::any_of(ids, ids + expert.size(), [=](int64_t id) { return id >= experts; })) {
        throw std::invalid_argument("there is no expert of that number");
    }
    const RouterTable& table = training_table<RouterTable>();
    const int64_t blocks = blocks_of(rows);
    std::vector<double> of_experts(2 * experts * blocks);
    std::vector<RouterSums> parts(blocks);
    const double cost = SCORE * BLOCK * static_cast<double>(experts);
    share_rows(blocks, cost, [&](int64_t begin, int64_t end) {
        std::vector<float> space(table.space(rule));
        for (int64_t block = begin; block < end; ++block) {
            const int64_t row = block * BLOCK;
            RouterSums& sums = parts[block] = {};
            sums.score = of_experts.data() + 2 * experts * block;
            sums.chosen = sums.score + experts;
            const RouterRows part = {std::min(BLOCK, rows - row),
                                     logits.data() + row * experts,
                                     pointer(bias),
                                     real ? bytes(real) + row : nullptr,
                                     decided,
                                     expert.data() + row * top_k,
                                     score.data() + row * experts,
                                     weight.data() + row * top_k,
                                     log_sum ? log_sum->data() + row : nullptr};
            table.choose(rule, part, space.data(), sums);
        }
    });
    for (int64_t e = 0; e < experts; ++e) {
        double of_score = 0, of_chosen = 0;
        for (const RouterSums& part : parts) {
            of_score += part.score[e];
            of_chosen += part.chosen[e];
        }
        score_sums.data()[e] = static_cast<float>(of_score);
        chosen.data()[e] = static_cast<int64_t>(of_chosen);
    }
    double top_score = 0, logit_squares = 0, log_sum_squares = 0;
    for (const RouterSums& part : parts) {
        top_score += part.top_score;
        logit_squares += part.logit_squares;
        log_sum_squares += part.log_sum_squares;
    }
    const int64_t tokens = real ? std::count(bytes(real), bytes(real) + rows, 1) : rows;
    return {tokens, top_score, logit_squares, log_sum_squares};
}

void differentiate(int64_t top_k, bool sigmoid, bool renormalize, float epsilon, float scale,
                   const std::optional<Tensor<const float>>& logits, const Mask& real,
                   const Tensor<const int64_t>& expert, const Tensor<const float>& score,
                   const std::optional<Tensor<const float>>& log_sum,
                   const std::optional<Tensor<const float>>& grad_weight,
                   const std::optional<Tensor<const float>>& grad_scores,
                   const std::optional<Tensor<const float>>& grad_sums, float grad_squares,
                   const Tensor<float>& grad_logits) {
    const int64_t rows = score.rows(), experts = score.columns();
    const RouterRule rule = rule_of(experts, top_k, sigmoid, renormalize, epsilon, scale);
    expert.check("expert", rows, top_k);
    grad_logits.check("grad_logits", rows, experts);
    const auto check = [](const char* name, const auto& tensor, int64_t rows, int64_t columns) {
        if (tensor) {
            tensor->check(name, rows, columns);
        }
    };
    check("logits", logits, rows, experts);
    check("real", real, 1, rows);
    check("log_sum", log_sum, 1, rows);
    check("grad_weight", grad_weight, rows, top_k);
    check("grad_scores", grad_scores, rows, experts);
    check("grad_sums", grad_sums, 1, experts);
    if (sigmoid && log_sum && !logits) {
        throw std::invalid_argument("the gradient of log_sum takes the logits");
    }
    const nb::gil_scoped_release released;
    const RouterTable& table = training_table<RouterTable>();
    const auto at = [](const auto& tensor, int64_t place) { return tensor ? tensor->data() + place : nullptr; };
    share_rows(rows, SCORE * static_cast<double>(experts), [&](int64_t begin, int64_t end) {
        std::vector<float> space(table.space(rule));
        const RouterGradients part = {end - begin,
                                      at(logits, begin * experts),
                                      score.data() + begin * experts,
                                      real ? bytes(real) + begin : nullptr,
                                      expert.data() + begin * top_k,
                                      at(grad_weight, begin * top_k),
                                      at(grad_scores, begin * experts),
                                      pointer(grad_sums),
                                      at(log_sum, begin),
                                      grad_squares,
                                      grad_logits.data() + begin * experts};
        table.differentiate(rule, part, space.data());
    });
}

std::vector<int64_t> sort(const Tensor<const int64_t>& expert, int64_t experts, const Tensor<int64_t>& order,
                          const Tensor<int64_t>& token, const Tensor<int64_t>& slot,
                          const Tensor<int64_t>& token_offset) {
    const int64_t tokens = expert.rows(), per_token = expert.columns();
    order.check("order", 1, tokens * per_token);
    token.check("token", 1, tokens * per_token);
    slot.check("slot", 1, tokens * per_token);
    token_offset.check("token_offset", 1, tokens);
    const nb::gil_scoped_release released;
    SortedChoices sorted{{}, order.data(), token.data(), slot.data(), token_offset.data()};
    sort_choices(expert.data(), tokens, per_token, experts, sorted);
    return std::move(sorted.offsets);
}

template <typename Number>
void bind_products(nb::module_& training) {
    training.def("router_logits", &logits<Number>, "x"_a, "weight"_a, "logits"_a);
    training.def("router_grad_x", &grad_x<Number>, "grad_logits"_a, "weight"_a, "grad_x"_a);
    training.def("router_grad_weight", &grad_weight<Number>, "grad_logits"_a, "x"_a, "grad_weight"_a);
}

}  // namespace

void bind_router(nb::module_& training) {
    bind_products<float>(training);
    bind_products<uint16_t>(training);
    training.def("router_choose", &choose, "top_k"_a, "sigmoid"_a, "renormalize"_a, "epsilon"_a, "scale"_a, "decided"_a,
                 "logits"_a, "bias"_a.none(), "real"_a.none(), "expert"_a, "score"_a, "weight"_a, "log_sum"_a.none(),
                 "score_sums"_a, "chosen"_a);
    training.def("router_differentiate", &differentiate, "top_k"_a, "sigmoid"_a, "renormalize"_a, "epsilon"_a,
                 "scale"_a, "logits"_a.none(), "real"_a.none(), "expert"_a, "score"_a, "log_sum"_a.none(),
                 "grad_weight"_a.none(), "grad_scores"_a.none(), "grad_sums"_a.none(), "grad_squares"_a,
                 "grad_logits"_a);
    training.def("sort_choices", &sort, "expert"_a, "experts"_a, "order"_a, "token"_a, "slot"_a, "token_offset"_a);
}

}  // namespace moekit
