#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>

#include <cstdint>
#include <optional>
#include <stdexcept>

#include "bindings/tensors.h"
#include "bindings/training.h"
#include "training/self_attention.h"

using namespace nanobind::literals;

namespace moekit {
namespace {

using Angles = std::optional<Tensor<const float>>;

// `rows` are those of queries, keys and values: (batch, tokens, (heads + 2 kv_heads) width).
template <typename Number>
SelfAttention checked(const Tensor<Number>& rows, int64_t heads, int64_t kv_heads, const Angles& cosine,
                      const Angles& sine, float scale, int64_t window) {
    const int64_t all = heads + 2 * kv_heads;
    if (rows.dimensions() != 3 || heads < 1 || kv_heads < 1 || heads % kv_heads || rows.columns() % all || window < 1) {
        throw std::invalid_argument(
            "queries, keys and values are (batch, tokens, heads), and key heads are shared alike");
    }
    const int64_t tokens = rows.shape(1), width = rows.columns() / all;
    if (cosine.has_value() != sine.has_value()) {
        throw std::invalid_argument("cosine and sine come together");
    }
    if (cosine) {
        if (width % 2) {
            throw std::invalid_argument("heads of an odd width cannot be rotated");
        }
        cosine->check("cosine", tokens, width);
        sine->check("sine", tokens, width);
    }
    return {rows.shape(0),
            tokens,
            heads,
            kv_heads,
            width,
            window,
            scale,
            cosine ? cosine->data() : nullptr,
            sine ? sine->data() : nullptr};
}

template <typename Number>
void forward(const Tensor<const Number>& projected, int64_t heads, int64_t kv_heads, const Angles& cosine,
             const Angles& sine, float scale, int64_t window, const Tensor<Number>& mixed) {
    const SelfAttention shape = checked(projected, heads, kv_heads, cosine, sine, scale, window);
    mixed.check("mixed", projected.rows(), heads * shape.width);
    const nb::gil_scoped_release released;
    attend(shape, projected.data(), mixed.data());
}

template <typename Number>
void backward(const Tensor<const Number>& projected, int64_t heads, int64_t kv_heads, const Angles& cosine,
              const Angles& sine, float scale, int64_t window, const Tensor<const Number>& grad_mixed,
              const Tensor<Number>& grad_projected) {
    const SelfAttention shape = checked(projected, heads, kv_heads, cosine, sine, scale, window);
    grad_mixed.check("grad_mixed", projected.rows(), heads * shape.width);
    grad_projected.check("grad_projected", projected.rows(), projected.columns());
    const nb::gil_scoped_release released;
    attend_backward(shape, projected.data(), grad_mixed.data(), grad_projected.data());
}

template <typename Number>
void bind(nb::module_& training) {
    training.def("attention_forward", &forward<Number>, "projected"_a, "heads"_a, "kv_heads"_a, "cosine"_a.none(),
                 "sine"_a.none(), "scale"_a, "window"_a, "mixed"_a);
    training.def("attention_backward", &backward<Number>, "projected"_a, "heads"_a, "kv_heads"_a, "cosine"_a.none(),
                 "sine"_a.none(), "scale"_a, "window"_a, "grad_mixed"_a, "grad_projected"_a);
}

}  // namespace

void bind_attention(nb::module_& training) {
    bind<uint16_t>(training);
    bind<float>(training);
}

}  // namespace moekit
