#include <nanobind/nanobind.h>

#include <atomic>
#include <cstdint>
#include <stdexcept>

#include "bindings/tensors.h"
#include "bindings/training.h"
#include "training/sharing.h"
#include "training/token_loss.h"

using namespace nanobind::literals;

namespace moekit {
namespace {

// Nanoseconds a row, roughly.
double cost(int64_t vocabulary) { return 0.6 * static_cast<double>(vocabulary); }

template <typename Number>
void forward(const Tensor<const Number>& logits, const Tensor<const int64_t>& target, const Tensor<float>& loss,
             const Tensor<float>& log_sum) {
    const int64_t rows = logits.rows(), vocabulary = logits.columns();
    target.check("target", 1, rows);
    loss.check("loss", 1, rows);
    log_sum.check("log_sum", 1, rows);
    std::atomic<bool> inside{true};
    {
        const nb::gil_scoped_release released;
        const auto& passes = training_table<TokenLossTable>().of(logits.data());
        share_rows(rows, cost(vocabulary), [&](int64_t begin, int64_t end) {
            if (!passes.forward(logits.data() + begin * vocabulary, target.data() + begin, end - begin, vocabulary,
                                loss.data() + begin, log_sum.data() + begin)) {
                inside = false;
            }
        });
    }
    if (!inside) {
        throw std::out_of_range("a target is none of the " + std::to_string(vocabulary) + " tokens");
    }
}

template <typename Number>
void backward(const Tensor<const Number>& logits, const Tensor<const int64_t>& target,
              const Tensor<const float>& log_sum, const Tensor<const float>& grad_loss,
              const Tensor<Number>& grad_logits) {
    const int64_t rows = logits.rows(), vocabulary = logits.columns();
    target.check("target", 1, rows);
    log_sum.check("log_sum", 1, rows);
    grad_loss.check("grad_loss", 1, rows);
    grad_logits.check("grad_logits", rows, vocabulary);
    const nb::gil_scoped_release released;
    const auto& passes = training_table<TokenLossTable>().of(logits.data());
    share_rows(rows, cost(vocabulary), [&](int64_t begin, int64_t end) {
        passes.backward(logits.data() + begin * vocabulary, target.data() + begin, log_sum.data() + begin,
                        grad_loss.data() + begin, end - begin, vocabulary, grad_logits.data() + begin * vocabulary);
    });
}

template <typename Number>
void bind(nb::module_& training) {
    training.def("token_loss_forward", &forward<Number>, "logits"_a, "target"_a, "loss"_a, "log_sum"_a);
    training.def("token_loss_backward", &backward<Number>, "logits"_a, "target"_a, "log_sum"_a, "grad_loss"_a,
                 "grad_logits"_a);
}

}  // namespace

void bind_token_loss(nb::module_& training) {
    bind<uint16_t>(training);
    bind<float>(training);
}

}  // namespace moekit
