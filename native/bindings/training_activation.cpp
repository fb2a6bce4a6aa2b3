#include <nanobind/nanobind.h>

#include <cstdint>
#include <stdexcept>

#include "bindings/tensors.h"
#include "bindings/training.h"
#include "training/activation.h"
#include "training/sharing.h"

using namespace nanobind::literals;

namespace moekit {
namespace {

// A row of `width` numbers, roughly: an exponential of 16 of them takes 8 ns.
double cost(int64_t width) { return 0.5 * static_cast<double>(width); }

ActivationFunction checked(int function) {
    if (function < int(ActivationFunction::Silu) || function > int(ActivationFunction::Relu)) {
        throw std::invalid_argument("no activation function has that number");
    }
    return static_cast<ActivationFunction>(function);
}

void forward(int function, bool gated, const Tensor<const uint16_t>& x, const Tensor<uint16_t>& hidden) {
    const int64_t rows = x.rows(), width = hidden.columns(), columns = gated ? 2 * width : width;
    x.check("x", rows, columns);
    hidden.check("hidden", rows, width);
    const ActivationFunction chosen = checked(function);
    const nb::gil_scoped_release released;
    const auto& passes = training_table<ActivationTable>();
    share_rows(rows, cost(width), [&](int64_t begin, int64_t end) {
        passes.forward(chosen, gated, x.data() + begin * columns, end - begin, width, hidden.data() + begin * width);
    });
}

void backward(int function, bool gated, const Tensor<const uint16_t>& grad_hidden, const Tensor<const uint16_t>& x,
              const Tensor<uint16_t>& grad_x) {
    const int64_t rows = x.rows(), width = grad_hidden.columns(), columns = gated ? 2 * width : width;
    x.check("x", rows, columns);
    grad_hidden.check("grad_hidden", rows, width);
    grad_x.check("grad_x", rows, columns);
    const ActivationFunction chosen = checked(function);
    const nb::gil_scoped_release released;
    const auto& passes = training_table<ActivationTable>();
    share_rows(rows, 2 * cost(width), [&](int64_t begin, int64_t end) {
        passes.backward(chosen, gated, grad_hidden.data() + begin * width, x.data() + begin * columns, end - begin,
                        width, grad_x.data() + begin * columns);
    });
}

}  // namespace

void bind_activation(nb::module_& training) {
    training.def("activation_forward", &forward, "function"_a, "gated"_a, "x"_a, "hidden"_a);
    training.def("activation_backward", &backward, "function"_a, "gated"_a, "grad_hidden"_a, "x"_a, "grad_x"_a);
}

}  // namespace moekit
