#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/variant.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <variant>
#include <vector>

#include "bindings/tensors.h"
#include "bindings/training.h"
#include "training/experts.h"

using namespace nanobind::literals;

namespace moekit {
namespace {

using Bf16 = Tensor<uint16_t>;
using ConstBf16 = Tensor<const uint16_t>;
using Floats = std::optional<Tensor<float>>;
using ConstFloats = std::optional<Tensor<const float>>;
using Weights = std::variant<Tensor<float>, Tensor<uint16_t>>;

using Ids = std::optional<Tensor<const int64_t>>;

Parameters parameters(const char* name, const Weights& weights, int64_t experts, int64_t rows, int64_t columns) {
    return std::visit(
        [&](const auto& tensor) -> Parameters {
            tensor.check(name, experts * rows, columns);
            return {tensor.data(), sizeof(*tensor.data()) == sizeof(float)};
        },
        weights);
}

template <typename Number>
Number* numbers(const char* name, const std::optional<Tensor<Number>>& tensor, int64_t rows, int64_t columns) {
    if (!tensor) {
        return nullptr;
    }
    if (tensor->size() != rows * columns) {
        throw std::invalid_argument(std::string(name) + " has " + std::to_string(tensor->size()) + " numbers where " +
                                    std::to_string(rows * columns) + " are needed");
    }
    return tensor->data();
}

struct Layer {
    ExpertShape shape;
    int64_t experts;
    std::vector<int64_t> offsets;
    int64_t tokens;
    int64_t assignments;

    Layer(int64_t hidden, bool gated, int function, std::vector<int64_t> given_offsets, const ConstBf16& x)
        : shape{x.columns(), hidden, gated, static_cast<ActivationFunction>(function)},
          experts(static_cast<int64_t>(given_offsets.size()) - 1),
          offsets(std::move(given_offsets)),
          tokens(x.rows()),
          assignments(offsets.empty() ? 0 : offsets.back()) {
        if (experts < 1 || offsets[0] != 0) {
            throw std::invalid_argument("offsets begin with 0 and have one more number than there are experts");
        }
        for (int64_t expert = 0; expert < experts; ++expert) {
            if (offsets[expert] > offsets[expert + 1]) {
                throw std::invalid_argument("offsets must not fall");
            }
        }
        if (shape.width % 2 || shape.hidden % 2) {
            throw std::invalid_argument("bf16 numbers are multiplied in pairs: widths must be even");
        }
        if (function < int(ActivationFunction::Silu) || function > int(ActivationFunction::Relu)) {
            throw std::invalid_argument("no activation function has that number");
        }
    }

    // The assignments of tokens to experts, as kernels/assignments.py has them; none where one expert has all rows.
    void check(const Ids& token, const Ids& slot, const Ids& token_offset) const {
        if (!token && !slot && !token_offset) {
            if (experts != 1 || assignments != tokens) {
                throw std::invalid_argument("without assignments one expert has all rows");
            }
            return;
        }
        if (!token || !slot || !token_offset || token->size() != assignments || slot->size() > assignments ||
            token_offset->size() != tokens) {
            throw std::invalid_argument(
                "the assignments' tensors have other sizes than the experts' rows and the tokens");
        }
        check_below("token", *token, tokens);
        check_below("slot", *slot, assignments);
        check_below("token_offset", *token_offset, slot->size() + 1);
    }

   private:
    static void check_below(const char* name, const Tensor<const int64_t>& ids, int64_t limit) {
        const int64_t* id = ids.data();
        for (int64_t i = 0; i < ids.size(); ++i) {
            if (id[i] < 0 || id[i] >= limit) {
                throw std::invalid_argument(std::string(name) + " has the number " + std::to_string(id[i]) +
                                            ", and there are " + std::to_string(limit));
            }
        }
    }
};

void forward(const ConstBf16& x, const std::vector<int64_t>& offsets, const Ids& token, const Ids& slot,
             const Ids& token_offset, const ConstFloats& weight, const Weights& gate_up, const Weights& down,
             const ConstFloats& gate_up_bias, const ConstFloats& down_bias, bool gated, int function,
             const std::optional<Bf16>& saved_gate_up, const Bf16& rows, const Bf16& y) {
    const Layer layer(std::visit([](const auto& tensor) { return tensor.columns(); }, down), gated, function, offsets,
                      x);
    layer.check(token, slot, token_offset);
    const ExpertShape& shape = layer.shape;
    const int64_t columns = shape.gate_up();
    rows.check("rows", layer.assignments, shape.width);
    y.check("y", layer.tokens, shape.width);
    const LayerForward call = {shape,
                               layer.experts,
                               layer.offsets.data(),
                               parameters("gate_up", gate_up, layer.experts, columns, shape.width),
                               parameters("down", down, layer.experts, shape.width, shape.hidden),
                               numbers("gate_up_bias", gate_up_bias, layer.experts, columns),
                               numbers("down_bias", down_bias, layer.experts, shape.width),
                               x.data(),
                               token ? token->data() : nullptr,
                               numbers("weight", weight, layer.assignments, 1),
                               numbers("saved_gate_up", saved_gate_up, layer.assignments, columns),
                               rows.data(),
                               slot.has_value(),
                               slot ? slot->data() : nullptr,
                               token_offset ? token_offset->data() : nullptr,
                               layer.tokens,
                               y.data()};
    const nb::gil_scoped_release released;
    run_forward(call);
}

void backward(const ConstBf16& grad_y, const ConstBf16& x, const std::vector<int64_t>& offsets, const Ids& token,
              const Ids& slot, const Ids& token_offset, const ConstFloats& weight, const Weights& gate_up,
              const Weights& down, const ConstFloats& down_bias, bool gated, int function,
              const ConstBf16& saved_gate_up, const Floats& grad_weight, const std::optional<Bf16>& grad_rows,
              const std::optional<Bf16>& grad_x, const std::optional<Weights>& grad_gate_up,
              const std::optional<Weights>& grad_down, const Floats& grad_gate_up_bias, const Floats& grad_down_bias) {
    const Layer layer(std::visit([](const auto& tensor) { return tensor.columns(); }, down), gated, function, offsets,
                      x);
    layer.check(token, slot, token_offset);
    const ExpertShape& shape = layer.shape;
    const int64_t columns = shape.gate_up();
    grad_y.check("grad_y", layer.tokens, shape.width);
    saved_gate_up.check("saved_gate_up", layer.assignments, columns);
    if (grad_rows.has_value() != grad_x.has_value() || grad_gate_up.has_value() != grad_down.has_value()) {
        throw std::invalid_argument("of grad_rows and grad_x, and of grad_gate_up and grad_down, both or none");
    }
    const Parameters none = {nullptr, true};
    const LayerBackward call = {
        shape,
        layer.experts,
        layer.offsets.data(),
        parameters("gate_up", gate_up, layer.experts, columns, shape.width),
        parameters("down", down, layer.experts, shape.width, shape.hidden),
        numbers("down_bias", down_bias, layer.experts, shape.width),
        grad_y.data(),
        x.data(),
        token ? token->data() : nullptr,
        numbers("weight", weight, layer.assignments, 1),
        saved_gate_up.data(),
        numbers("grad_weight", grad_weight, layer.assignments, 1),
        numbers("grad_rows", grad_rows, layer.assignments, shape.width),
        slot.has_value(),
        slot ? slot->data() : nullptr,
        token_offset ? token_offset->data() : nullptr,
        layer.tokens,
        numbers("grad_x", grad_x, layer.tokens, shape.width),
        grad_gate_up ? parameters("grad_gate_up", *grad_gate_up, layer.experts, columns, shape.width) : none,
        grad_down ? parameters("grad_down", *grad_down, layer.experts, shape.width, shape.hidden) : none,
        numbers("grad_gate_up_bias", grad_gate_up_bias, layer.experts, columns),
        numbers("grad_down_bias", grad_down_bias, layer.experts, shape.width)};
    const nb::gil_scoped_release released;
    run_backward(call);
}

}  // namespace

void bind_experts(nb::module_& training) {
    training.def("experts_forward", &forward, "x"_a, "offsets"_a, "token"_a.none(), "slot"_a.none(),
                 "token_offset"_a.none(), "weight"_a.none(), "gate_up"_a, "down"_a, "gate_up_bias"_a.none(),
                 "down_bias"_a.none(), "gated"_a, "function"_a, "saved_gate_up"_a.none(), "rows"_a, "y"_a);
    training.def("experts_backward", &backward, "grad_y"_a, "x"_a, "offsets"_a, "token"_a.none(), "slot"_a.none(),
                 "token_offset"_a.none(), "weight"_a.none(), "gate_up"_a, "down"_a, "down_bias"_a.none(), "gated"_a,
                 "function"_a, "saved_gate_up"_a, "grad_weight"_a.none(), "grad_rows"_a.none(), "grad_x"_a.none(),
                 "grad_gate_up"_a.none(), "grad_down"_a.none(), "grad_gate_up_bias"_a.none(),
                 "grad_down_bias"_a.none());
}

}  // namespace moekit
