#include <cstring>
#include <memory>
#include <stdexcept>
#include <thread>
#include <vector>

#include "checks.h"
#include "decoder/cache.h"
#include "decoder/decoder.h"
#include "kernels/pool.h"
#include "random_model.h"

namespace moekit::tests {
namespace {

constexpr int64_t CONTEXT = 600;

std::unique_ptr<Cache> new_cache(const Decoder& decoder, CacheKind kind = CacheKind::F32) {
    return std::make_unique<Cache>(kind, decoder.cache_layers(), CONTEXT);
}

std::vector<float> prefill(Decoder& decoder, Cache& cache, const std::vector<int64_t>& tokens) {
    std::vector<float> logits(decoder.vocabulary());
    decoder.prefill(cache, tokens.data(), static_cast<int64_t>(tokens.size()), logits.data());
    return logits;
}

std::vector<float> step(Decoder& decoder, const std::vector<Cache*>& caches, const std::vector<int64_t>& tokens) {
    std::vector<float> logits(tokens.size() * decoder.vocabulary());
    decoder.decode(caches.data(), tokens.data(), static_cast<int64_t>(tokens.size()), logits.data());
    return logits;
}

// A prompt computed at once and token by token; in fp32 both give the same but for rounding.
void check_prompts_and_steps(Type type, int64_t width, CacheKind kind) {
    RandomMemory memory(2);
    Decoder decoder(random_model(memory, type, width));
    const std::vector<int64_t> tokens = memory.tokens(23, decoder.vocabulary());
    const auto at_once = new_cache(decoder, kind), in_steps = new_cache(decoder, kind);
    const std::vector<float> logits = prefill(decoder, *at_once, tokens);
    std::vector<float> last;
    for (const int64_t token : tokens) {
        last = step(decoder, {in_steps.get()}, {token});
    }
    CHECK(at_once->length() == in_steps->length());
    const bool exact = type == Type::F32 && kind == CacheKind::F32;
    CHECK(difference(logits, last) <= (exact ? 1e-4 : 10.0));
}

// Neither threads nor other sequences change a bit, over several pages and parts of attention.
void check_bits(Type type, int64_t width) {
    RandomMemory memory(3);
    Decoder decoder(random_model(memory, type, width));
    std::vector<std::vector<int64_t>> texts;
    for (const int64_t length : {530, 1, 40}) {
        texts.push_back(memory.tokens(length, decoder.vocabulary()));
    }
    std::vector<float> together;
    for (const int threads : {1, 3}) {
        Pool::shared().set_threads(threads);
        std::vector<std::unique_ptr<Cache>> caches;
        std::vector<Cache*> all;
        std::vector<float> alone;
        for (const std::vector<int64_t>& text : texts) {
            const auto lone = new_cache(decoder, CacheKind::Bf16);
            prefill(decoder, *lone, text);
            const std::vector<float> logits = step(decoder, {lone.get()}, {7});
            alone.insert(alone.end(), logits.begin(), logits.end());
            caches.push_back(new_cache(decoder, CacheKind::Bf16));
            prefill(decoder, *caches.back(), text);
            all.push_back(caches.back().get());
        }
        const std::vector<float> logits = step(decoder, all, {7, 7, 7});
        CHECK(logits == alone);
        CHECK(together.empty() || together == logits);
        together = logits;
    }
}

void check_refusals() {
    RandomMemory memory(4);
    Model model = random_model(memory, Type::F32, 20);
    Model misshapen = model;
    misshapen.layers[1].moe.router.rows = 4;
    CHECK_THROWS(std::invalid_argument, Decoder{misshapen});
    misshapen = model;
    misshapen.layers[0].attention.rope = 1;
    CHECK_THROWS(std::invalid_argument, Decoder{misshapen});
    Decoder decoder(std::move(model));
    const auto cache = new_cache(decoder);
    CHECK_THROWS(std::out_of_range, step(decoder, {cache.get()}, {decoder.vocabulary()}));
    CHECK_THROWS(std::invalid_argument, step(decoder, {cache.get(), cache.get()}, {1, 1}));
    CHECK_THROWS(std::invalid_argument, prefill(decoder, *cache, {}));
    CHECK_THROWS(std::length_error, prefill(decoder, *cache, std::vector<int64_t>(CONTEXT + 1, 1)));
    CHECK(cache->length() == 0);
}

// Callers on several threads, while another changes how many threads there are.
void check_callers() {
    RandomMemory memory(5);
    Decoder first(random_model(memory, Type::F32, 20)), second(random_model(memory, Type::Q8_0, 64));
    const auto expected = new_cache(first);
    const std::vector<float> logits = prefill(first, *expected, {1, 2, 3});
    std::vector<std::thread> callers;
    for (int caller = 0; caller < 3; ++caller) {
        callers.emplace_back([&, caller] {
            Decoder& decoder = caller == 1 ? second : first;
            const auto cache = new_cache(decoder);
            for (int i = 0; i < 4; ++i) {
                Pool::shared().set_threads(1 + (caller + i) % 2);
                cache->truncate(0);
                CHECK(prefill(decoder, *cache, {1, 2, 3}) == logits || caller == 1);
                step(decoder, {cache.get()}, {4});
            }
        });
    }
    for (std::thread& caller : callers) {
        caller.join();
    }
}

}  // namespace

void test_cache() {
    RandomMemory memory(6);
    const std::vector<CacheLayer> layers{{2, 10}, {1, 33}};
    for (const CacheKind kind : {CacheKind::F32, CacheKind::Bf16, CacheKind::Q8}) {
        Cache cache(kind, layers, CONTEXT);
        cache.reserve(300);
        for (int64_t layer = 0; layer < 2; ++layer) {
            for (int64_t position = 0; position < 300; ++position) {
                std::vector<float> entry = memory.floats(layers[layer].padded_width());
                std::fill(entry.begin() + layers[layer].head_width, entry.end(), 0.0f);
                for (int64_t head = 0; head < layers[layer].kv_heads; ++head) {
                    const int64_t page = position / Cache::PAGE, place = position % Cache::PAGE;
                    vector_ops().write_entry(cache.keys(layer, head, page), place, entry.data());
                    vector_ops().write_entry(cache.values(layer, head, page), place, entry.data());
                }
            }
        }
        cache.extend(300);
        for (int64_t layer = 0; layer < 2; ++layer) {
            const size_t count = layers[layer].kv_heads * 300 * layers[layer].head_width;
            std::vector<float> keys(count), values(count);
            cache.read_keys(layer, 300, keys.data());
            cache.read_values(layer, 300, values.data());
            CHECK(keys == values);
        }
        float none = 0;
        CHECK_THROWS(std::out_of_range, cache.read_keys(2, 1, &none));
        CHECK_THROWS(std::out_of_range, cache.read_keys(0, 301, &none));
        const size_t full = cache.bytes();
        cache.truncate(256);
        CHECK(cache.bytes() == full / 2);
    }
}

void test_decoder() {
    Pool::shared().set_threads(2);
    for (const CacheKind kind : {CacheKind::F32, CacheKind::Bf16, CacheKind::Q8}) {
        check_prompts_and_steps(Type::F32, 20, kind);
        check_prompts_and_steps(Type::BF16, 50, kind);
        check_prompts_and_steps(Type::Q8_0, 64, kind);
        check_prompts_and_steps(Type::Q4_K, 256, kind);
    }
    check_bits(Type::F32, 20);
    check_bits(Type::Q8_0, 64);
    check_refusals();
    check_callers();
}

}  // namespace moekit::tests
