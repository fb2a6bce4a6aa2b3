// The decoder, the description that it is made of, and its caches in Python.
#include "decoder/decoder.h"

#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <memory>
#include <new>
#include <optional>
#include <stdexcept>
#include <utility>
#include <vector>

#include "bindings/arrays.h"
#include "decoder/cache.h"
#include "decoder/model.h"
#include "streaming/block_ring.h"
#include "streaming/expert_store.h"
#include "streaming/prefetch_trial.h"

using namespace nanobind::literals;

namespace moekit {
namespace {

using Released = nb::call_guard<nb::gil_scoped_release>;
using OptionalFloats = std::optional<Array<const float, 1>>;

// Constructs in the place that nanobind has for it.
template <typename Part>
void construct(Kept<Part>* self, Collector<Part>& collector) {
    new (self) Kept<Part>(collector.take());
}

void bind_norm(nb::module_& module) {
    nb::class_<Kept<Norm>>(module, "Norm")
        .def(
            "__init__",
            [](Kept<Norm>* self, const Array<const float, 1>& weight, float eps) {
                Collector<Norm> collect;
                collect.part() = {collect(OptionalFloats(weight)), eps};
                construct(self, collect);
            },
            nb::kw_only(), "weight"_a.noconvert(), "eps"_a);
}

void bind_rope(nb::module_& module) {
    nb::class_<Rope>(module, "Rope")
        .def(
            "__init__",
            [](Rope* self, std::vector<double> frequencies, float magnitude, bool interleaved) {
                new (self) Rope{std::move(frequencies), magnitude, interleaved};
            },
            nb::kw_only(), "frequencies"_a, "magnitude"_a, "interleaved"_a);
}

void bind_attention(nb::module_& module) {
    nb::class_<Kept<Attention>>(module, "Attention")
        .def(
            "__init__",
            [](Kept<Attention>* self, int64_t heads, int64_t kv_heads, int64_t head_width, int64_t window, float scale,
               float soft_cap, std::optional<int64_t> rope, bool norm_all_heads, const Kept<Matrix>& query,
               const Kept<Matrix>& key, const Kept<Matrix>& value, const Kept<Matrix>& output,
               const OptionalFloats& query_bias, const OptionalFloats& key_bias, const OptionalFloats& value_bias,
               const OptionalFloats& output_bias, const Kept<Norm>* query_norm, const Kept<Norm>* key_norm) {
                Collector<Attention> collect;
                Attention& part = collect.part();
                part.heads = heads;
                part.kv_heads = kv_heads;
                part.head_width = head_width;
                part.window = window;
                part.scale = scale;
                part.soft_cap = soft_cap;
                part.rope = rope.value_or(Attention::NO_ROPE);
                part.norm_all_heads = norm_all_heads;
                part.query = collect(query);
                part.key = collect(key);
                part.value = collect(value);
                part.output = collect(output);
                part.query_bias = collect(query_bias);
                part.key_bias = collect(key_bias);
                part.value_bias = collect(value_bias);
                part.output_bias = collect(output_bias);
                part.query_norm = collect(query_norm);
                part.key_norm = collect(key_norm);
                construct(self, collect);
            },
            nb::kw_only(), "heads"_a, "kv_heads"_a, "head_width"_a, "window"_a, "scale"_a, "soft_cap"_a,
            "rope"_a.none(), "norm_all_heads"_a, "query"_a, "key"_a, "value"_a, "output"_a,
            "query_bias"_a.noconvert().none(), "key_bias"_a.noconvert().none(), "value_bias"_a.noconvert().none(),
            "output_bias"_a.noconvert().none(), "query_norm"_a.none(), "key_norm"_a.none());
}

void bind_ffn(nb::module_& module) {
    nb::enum_<ActivationFunction>(module, "ActivationFunction")
        .value("silu", ActivationFunction::Silu)
        .value("gelu", ActivationFunction::Gelu)
        .value("gelu_tanh", ActivationFunction::GeluTanh)
        .value("relu", ActivationFunction::Relu);
    nb::class_<Kept<Ffn>>(module, "Ffn")
        .def(
            "__init__",
            [](Kept<Ffn>* self, int64_t hidden, ActivationFunction activation, const Kept<Matrix>* gate,
               const Kept<Matrix>& up, const Kept<Matrix>& down) {
                Collector<Ffn> collect;
                collect.part() = {hidden, collect(gate), collect(up), collect(down), activation};
                construct(self, collect);
            },
            nb::kw_only(), "hidden"_a, "activation"_a, "gate"_a.none(), "up"_a, "down"_a);
    nb::class_<Kept<Moe>>(module, "Moe")
        .def(
            "__init__",
            [](Kept<Moe>* self, int64_t experts, int64_t top_k, bool renormalize, const Kept<Matrix>& router,
               const Kept<Ffn>* shared_expert, const OptionalFloats& shared_expert_gate) {
                Collector<Moe> collect;
                collect.part() = {
                    experts, top_k, renormalize, collect(router), collect(shared_expert), collect(shared_expert_gate)};
                construct(self, collect);
            },
            nb::kw_only(), "experts"_a, "top_k"_a, "renormalize"_a, "router"_a, "shared_expert"_a.none(),
            "shared_expert_gate"_a.noconvert().none());
}

void bind_layer(nb::module_& module) {
    nb::class_<Kept<Layer>>(module, "Layer")
        .def(
            "__init__",
            [](Kept<Layer>* self, const Kept<Norm>& attention_norm, const Kept<Attention>& attention,
               const Kept<Norm>* attention_post_norm, const Kept<Norm>& ffn_norm, const Kept<Ffn>& ffn,
               const Kept<Moe>* moe, const Kept<Norm>* ffn_post_norm) {
                Collector<Layer> collect;
                collect.part() = {collect(attention_norm), collect(attention), collect(attention_post_norm),
                                  collect(ffn_norm),       collect(ffn),       collect(moe),
                                  collect(ffn_post_norm)};
                construct(self, collect);
            },
            nb::kw_only(), "attention_norm"_a, "attention"_a, "attention_post_norm"_a.none(), "ffn_norm"_a, "ffn"_a,
            "moe"_a.none(), "ffn_post_norm"_a.none());
}

// A decoder, and the arrays of its model.
struct BoundDecoder {
    BoundDecoder(Kept<Model> model, std::shared_ptr<ExpertStore> store, Prefetch prefetch,
                 std::shared_ptr<BlockRing> ring)
        : arrays(std::move(model.arrays)),
          decoder(std::move(model.part), std::move(store), prefetch, std::move(ring)) {}

    std::vector<std::shared_ptr<const void>> arrays;
    Decoder decoder;
};

void make_decoder(BoundDecoder* self, int64_t width, int64_t vocabulary, std::vector<Rope> ropes,
                  const std::vector<Kept<Layer>*>& layers, const Kept<Matrix>& embedding, const Kept<Matrix>& head,
                  float embedding_scale, float logit_scale, const Kept<Norm>& norm, std::shared_ptr<ExpertStore> store,
                  Prefetch prefetch, std::shared_ptr<BlockRing> ring) {
    Collector<Model> collect;
    Model& model = collect.part();
    model.width = width;
    model.vocabulary = vocabulary;
    model.ropes = std::move(ropes);
    for (const Kept<Layer>* layer : layers) {
        model.layers.push_back(collect(layer));
    }
    model.embedding = collect(embedding);
    model.head = collect(head);
    model.embedding_scale = embedding_scale;
    model.logit_scale = logit_scale;
    model.norm = collect(norm);
    new (self) BoundDecoder(collect.take(), std::move(store), prefetch, std::move(ring));
}

void decode(BoundDecoder& bound, const std::vector<Cache*>& caches, const std::vector<int64_t>& tokens,
            const Array<float, 2>& logits) {
    const auto batch = static_cast<int64_t>(tokens.size());
    if (caches.size() != tokens.size()) {
        throw std::invalid_argument(std::to_string(caches.size()) + " caches are not those of " +
                                    std::to_string(batch) + " tokens");
    }
    check_shape("logits", logits, {batch, bound.decoder.vocabulary()});
    const nb::gil_scoped_release released;
    bound.decoder.decode(caches.data(), tokens.data(), batch, logits.data());
}

void prefill(BoundDecoder& bound, Cache& cache, const std::vector<int64_t>& tokens,
             const std::optional<Array<float, 1>>& logits) {
    if (logits) {
        check_shape("logits", *logits, {bound.decoder.vocabulary()});
    }
    float* to = logits ? logits->data() : nullptr;
    const nb::gil_scoped_release released;
    bound.decoder.prefill(cache, tokens.data(), static_cast<int64_t>(tokens.size()), to);
}

void score(BoundDecoder& bound, Cache& cache, const std::vector<int64_t>& tokens, const std::vector<int64_t>& targets,
           const Array<double, 1>& log_probs) {
    const auto count = static_cast<int64_t>(tokens.size());
    if (targets.size() != tokens.size()) {
        throw std::invalid_argument(std::to_string(targets.size()) + " targets are not those of " +
                                    std::to_string(count) + " tokens");
    }
    check_shape("log_probs", log_probs, {count});
    const nb::gil_scoped_release released;
    bound.decoder.score(cache, tokens.data(), targets.data(), count, log_probs.data());
}

void bind_caches(nb::module_& module) {
    nb::enum_<CacheKind>(module, "CacheKind")
        .value("fp32", CacheKind::F32)
        .value("bf16", CacheKind::Bf16)
        .value("q8", CacheKind::Q8);
    nb::class_<Cache>(module, "Cache")
        .def_prop_ro("length", &Cache::length)
        .def_prop_ro("bytes", &Cache::bytes)
        .def("truncate", &Cache::truncate, "length"_a, Released())
        .def(
            "read",
            [](const Cache& cache, int64_t layer, const Array<float, 3>& key, const Array<float, 3>& value) {
                const auto tokens = static_cast<int64_t>(key.shape(1));
                const CacheLayer shape = cache.layer(layer);
                check_shape("key", key, {shape.kv_heads, tokens, shape.head_width});
                check_shape("value", value, {shape.kv_heads, tokens, shape.head_width});
                cache.read_keys(layer, tokens, key.data());
                cache.read_values(layer, tokens, value.data());
            },
            "layer"_a, "key"_a.noconvert(), "value"_a.noconvert());
}

}  // namespace

void bind_decoder(nb::module_& module) {
    bind_norm(module);
    bind_rope(module);
    bind_attention(module);
    bind_ffn(module);
    bind_layer(module);
    bind_caches(module);
    nb::class_<BoundDecoder>(module, "Decoder")
        .def("__init__", &make_decoder, nb::kw_only(), "width"_a, "vocabulary"_a, "ropes"_a, "layers"_a, "embedding"_a,
             "head"_a, "embedding_scale"_a, "logit_scale"_a, "norm"_a, "store"_a.none() = nb::none(),
             "prefetch"_a = Prefetch::Measured, "ring"_a.none() = nb::none())
        .def(
            "new_cache",
            [](const BoundDecoder& bound, CacheKind kind, int64_t context) {
                return std::make_unique<Cache>(kind, bound.decoder.cache_layers(), context);
            },
            "kind"_a, "context"_a)
        .def("decode", &decode, "caches"_a, "tokens"_a, "logits"_a.noconvert())
        .def("prefill", &prefill, "cache"_a, "tokens"_a, "logits"_a.noconvert().none())
        .def("score", &score, "cache"_a, "tokens"_a, "targets"_a, "log_probs"_a.noconvert())
        .def_prop_ro("fp32", [](const BoundDecoder& bound) { return bound.decoder.fp32(); });
}

}  // namespace moekit
