// The decoder and its caches in Python. Tensors are addresses, checked where they come from
// (kernels/native/decoder.py).
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "decoder/decoder.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace moekit {
namespace {

template <typename T>
T* address(uintptr_t number) {
    return reinterpret_cast<T*>(number);
}

// What a layer consists of comes as a dictionary: parts that it lacks are left out.
template <typename T>
T get(const nb::dict& parts, const char* name, T otherwise) {
    return parts.contains(name) ? nb::cast<T>(parts[name]) : otherwise;
}

const float* floats(const nb::dict& parts, const char* name) {
    return address<const float>(get<uintptr_t>(parts, name, 0));
}

Matrix matrix(const nb::dict& parts, const char* name) { return get(parts, name, Matrix{}); }

Ffn ffn(const nb::dict& parts, const std::string& prefix, int function) {
    return {matrix(parts, (prefix + "gate").c_str()), matrix(parts, (prefix + "up").c_str()),
            matrix(parts, (prefix + "down").c_str()), static_cast<ActivationFunction>(function)};
}

Layer make_layer(const nb::dict& parts) {
    Layer layer;
    layer.attention_norm = floats(parts, "attention_norm");
    layer.query = matrix(parts, "query");
    layer.key = matrix(parts, "key");
    layer.value = matrix(parts, "value");
    layer.output = matrix(parts, "output");
    layer.query_bias = floats(parts, "query_bias");
    layer.key_bias = floats(parts, "key_bias");
    layer.value_bias = floats(parts, "value_bias");
    layer.output_bias = floats(parts, "output_bias");
    layer.query_norm = floats(parts, "query_norm");
    layer.key_norm = floats(parts, "key_norm");
    layer.attention_post_norm = floats(parts, "attention_post_norm");
    layer.window = get<int64_t>(parts, "window", 0);
    layer.ffn_norm = floats(parts, "ffn_norm");
    layer.ffn_post_norm = floats(parts, "ffn_post_norm");
    const int function = get<int>(parts, "function", 0);
    layer.ffn = ffn(parts, "", function);
    layer.experts = get<int64_t>(parts, "experts", 0);
    layer.top_k = get<int64_t>(parts, "top_k", 0);
    layer.renormalize = get<bool>(parts, "renormalize", false);
    layer.router = matrix(parts, "router");
    layer.shared_expert = ffn(parts, "shared_expert_", function);
    layer.shared_expert_gate = floats(parts, "gate_of_shared_expert");
    return layer;
}

DecoderShape make_shape(const nb::dict& parts) {
    DecoderShape shape;
    shape.width = nb::cast<int64_t>(parts["width"]);
    shape.heads = nb::cast<int64_t>(parts["heads"]);
    shape.kv_heads = nb::cast<int64_t>(parts["kv_heads"]);
    shape.head_width = nb::cast<int64_t>(parts["head_width"]);
    shape.norm_eps = nb::cast<float>(parts["norm_eps"]);
    shape.attention_scale = nb::cast<float>(parts["attention_scale"]);
    shape.soft_cap = get<float>(parts, "soft_cap", 0);
    shape.norm_all_heads = get<bool>(parts, "norm_all_heads", false);
    shape.rope_interleaved = get<bool>(parts, "rope_interleaved", false);
    shape.rope_magnitude = get<double>(parts, "rope_magnitude", 1);
    shape.rope_frequencies = get(parts, "rope_frequencies", std::vector<double>{});
    shape.embedding_scale = nb::cast<float>(parts["embedding_scale"]);
    shape.logit_scale = nb::cast<float>(parts["logit_scale"]);
    shape.embedding = matrix(parts, "embedding");
    shape.head = matrix(parts, "head");
    shape.norm = floats(parts, "norm");
    return shape;
}

void decode(Decoder& decoder, const std::vector<Cache*>& caches, const std::vector<int64_t>& tokens, uintptr_t logits) {
    const nb::gil_scoped_release released;
    decoder.decode(caches.data(), tokens.data(), static_cast<int64_t>(tokens.size()), address<float>(logits));
}

void prefill(Decoder& decoder, Cache& cache, const std::vector<int64_t>& tokens, uintptr_t logits) {
    const nb::gil_scoped_release released;
    decoder.prefill(cache, tokens.data(), static_cast<int64_t>(tokens.size()), address<float>(logits));
}

void read(const Cache& cache, int64_t layer, bool values, int64_t tokens, uintptr_t data) {
    if (layer < 0 || layer >= cache.shape().layers) {
        throw std::out_of_range("layer " + std::to_string(layer) + " of " + std::to_string(cache.shape().layers));
    }
    cache.read(2 * layer + values, tokens, address<float>(data));
}

}  // namespace

void bind_decoder(nb::module_& module) {
    using released = nb::call_guard<nb::gil_scoped_release>;
    nb::class_<Cache>(module, "Cache")
        .def(
            "__init__",
            [](Cache* self, int kind, int64_t layers, int64_t kv_heads, int64_t head_width, int64_t context) {
                new (self) Cache({static_cast<CacheKind>(kind), layers, kv_heads, head_width}, context);
            },
            "kind"_a, "layers"_a, "kv_heads"_a, "head_width"_a, "context"_a)
        .def_prop_ro("length", &Cache::length)
        .def_prop_ro("bytes", &Cache::bytes)
        .def("truncate", &Cache::truncate, "length"_a, released())
        .def("read", &read, "layer"_a, "values"_a, "tokens"_a, "data"_a, released());
    nb::class_<Decoder>(module, "Decoder")
        .def(
            "__init__",
            [](Decoder* self, const nb::dict& shape, const std::vector<nb::dict>& layers) {
                std::vector<Layer> made;
                for (const nb::dict& layer : layers) {
                    made.push_back(make_layer(layer));
                }
                new (self) Decoder(make_shape(shape), std::move(made));
            },
            "shape"_a, "layers"_a)
        .def("decode", &decode, "caches"_a, "tokens"_a, "logits"_a)
        .def("prefill", &prefill, "cache"_a, "tokens"_a, "logits"_a)
        .def_prop_ro("fp32", &Decoder::fp32);
}

}  // namespace moekit
