#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <vector>

#include "bindings/tensors.h"
#include "bindings/training.h"
#include "training/norm.h"
#include "training/sharing.h"

using namespace nanobind::literals;

namespace moekit {
namespace {

template <typename Number>
using Optional = std::optional<Tensor<Number>>;

// The pointer of a tensor that may be absent, of that shape where it is there.
template <typename Number>
Number* pointer(const char* name, const Optional<Number>& tensor, int64_t rows, int64_t columns) {
    if (!tensor) {
        return nullptr;
    }
    tensor->check(name, rows, columns);
    return tensor->data();
}

// Nanoseconds a row, roughly.
double cost(int64_t width) { return 0.3 * static_cast<double>(width); }

// Rows whose part of the weight's gradient is added up before it meets that of others: a number of theirs alone.
int64_t block_rows(int64_t rows) { return std::max<int64_t>(64, (rows + 31) / 32); }

NormWeights weights_of(const Tensor<const float>& weight, const Optional<const float>& bias, float offset, float eps,
                       int64_t width) {
    weight.check("weight", 1, width);
    return {weight.data(), pointer("bias", bias, 1, width), offset, eps, width};
}

template <typename X, typename Added, typename Y>
void forward(const Tensor<const X>& x, const Optional<const Added>& added, const Optional<X>& sum,
             const Tensor<const float>& weight, const Optional<const float>& bias, float offset, float eps,
             const Tensor<Y>& y, const Optional<float>& mean, const Tensor<float>& scale) {
    const int64_t rows = x.rows(), width = x.columns();
    const NormWeights norm = weights_of(weight, bias, offset, eps, width);
    y.check("y", rows, width);
    scale.check("scale", 1, rows);
    const NormRows<X, Added, Y> all{x.data(), pointer("added", added, rows, width), pointer("sum", sum, rows, width),
                                    y.data(), pointer("mean", mean, 1, rows),       scale.data()};
    if (!all.added != !all.sum || !norm.bias != !all.mean) {
        throw std::invalid_argument("added and sum, and bias and mean, come together");
    }
    const nb::gil_scoped_release released;
    const auto& passes = training_table<NormTable>().of(X{}, Added{}, Y{});
    share_rows(rows, cost(width), [&](int64_t begin, int64_t end) { passes.forward(norm, all, begin, end); });
}

template <typename X, typename Added, typename Y>
void backward(const Tensor<const X>& sum, const Optional<const float>& mean, const Tensor<const float>& scale,
              const Tensor<const float>& weight, const Optional<const float>& bias, float offset,
              const Tensor<const Y>& grad_y, const Optional<const X>& grad_sum, const Tensor<X>& grad_x,
              const Optional<Added>& grad_added, const Tensor<float>& grad_weight, const Optional<float>& grad_bias) {
    const int64_t rows = sum.rows(), width = sum.columns();
    const NormWeights norm = weights_of(weight, bias, offset, 0.0f, width);
    scale.check("scale", 1, rows);
    grad_y.check("grad_y", rows, width);
    grad_x.check("grad_x", rows, width);
    grad_weight.check("grad_weight", 1, width);
    const NormGradientRows<X, Added, Y> all{sum.data(),
                                            pointer("mean", mean, 1, rows),
                                            scale.data(),
                                            grad_y.data(),
                                            pointer("grad_sum", grad_sum, rows, width),
                                            grad_x.data(),
                                            pointer("grad_added", grad_added, rows, width)};
    float* to_bias = pointer("grad_bias", grad_bias, 1, width);
    if (!norm.bias != !all.mean || !norm.bias != !to_bias) {
        throw std::invalid_argument("bias, mean and grad_bias come together");
    }
    const nb::gil_scoped_release released;
    const auto& passes = training_table<NormTable>().of(X{}, Added{}, Y{});
    const int64_t height = block_rows(rows), blocks = (rows + height - 1) / height, padded = (width + 15) / 16 * 16;
    const int64_t stride = norm.bias ? 2 * padded : padded;
    std::vector<float> parts(blocks * stride);
    share_rows(blocks, static_cast<double>(height) * 2 * cost(width), [&](int64_t begin, int64_t end) {
        for (int64_t block = begin; block < end; ++block) {
            float* part = parts.data() + block * stride;
            passes.backward(norm, all, block * height, std::min(rows, (block + 1) * height), part,
                            norm.bias ? part + padded : nullptr);
        }
    });
    const auto add_up = [&](const float* first, float* to) {
        std::fill_n(to, width, 0.0f);
        for (int64_t block = 0; block < blocks; ++block) {
            for (int64_t i = 0; i < width; ++i) {
                to[i] += first[block * stride + i];
            }
        }
    };
    add_up(parts.data(), grad_weight.data());
    if (to_bias) {
        add_up(parts.data() + padded, to_bias);
    }
}

template <typename X, typename Added, typename Y>
void bind(nb::module_& training) {
    training.def("norm_forward", &forward<X, Added, Y>, "x"_a, "added"_a.none(), "sum"_a.none(), "weight"_a,
                 "bias"_a.none(), "offset"_a, "eps"_a, "y"_a, "mean"_a.none(), "scale"_a);
    training.def("norm_backward", &backward<X, Added, Y>, "sum"_a, "mean"_a.none(), "scale"_a, "weight"_a,
                 "bias"_a.none(), "offset"_a, "grad_y"_a, "grad_sum"_a.none(), "grad_x"_a, "grad_added"_a.none(),
                 "grad_weight"_a, "grad_bias"_a.none());
}

}  // namespace

void bind_norm(nb::module_& training) {
    // The first that takes the tensors is called: what training under autocast gives comes first.
    bind<float, uint16_t, uint16_t>(training);
    bind<float, float, float>(training);
    bind<float, float, uint16_t>(training);
    bind<float, uint16_t, float>(training);
    bind<uint16_t, uint16_t, uint16_t>(training);
    bind<uint16_t, uint16_t, float>(training);
}

}  // namespace moekit
