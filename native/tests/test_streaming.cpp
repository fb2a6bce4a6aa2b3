#include <cstdio>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include <unistd.h>

#include "checks.h"
#include "decoder/cache.h"
#include "decoder/decoder.h"
#include "kernels/pool.h"
#include "random_model.h"
#include "streaming/disk_speed.h"
#include "streaming/expert_store.h"
#include "streaming/prefetch_trial.h"

namespace moekit::tests {
namespace {

// A file with the experts of a model, some bytes apart so that they begin anywhere in a block; gone with this.
class ExpertFile {
   public:
    explicit ExpertFile(const Model& model) {
        char name[] = "/tmp/moekit-streaming-XXXXXX";
        const int descriptor = mkstemp(name);
        CHECK(descriptor >= 0);
        path = name;
        std::FILE* file = fdopen(descriptor, "wb");
        for (const Layer& layer : model.layers) {
            StreamedLayer streamed;
            for (int64_t expert = 0; expert < layer.moe.experts; ++expert) {
                StreamedLayer::Expert spans;
                const Matrix matrices[] = {layer.ffn.gate, layer.ffn.up, layer.ffn.down};
                for (int which = 0; which < StreamedLayer::MATRICES; ++which) {
                    spans[which] = write(file, matrices[which], expert, layer.moe.experts);
                }
                streamed.experts.push_back(spans);
            }
            layers.push_back(streamed);
        }
        CHECK(std::fclose(file) == 0);
    }
    ~ExpertFile() { unlink(path.c_str()); }

    std::vector<StreamedLayer> with_places(int64_t places) const {
        std::vector<StreamedLayer> all = layers;
        for (StreamedLayer& layer : all) {
            layer.places = places;
        }
        return all;
    }

    std::string path;
    std::vector<StreamedLayer> layers;

   private:
    static Span write(std::FILE* file, const Matrix& matrix, int64_t expert, int64_t experts) {
        if (!matrix.data) {
            return {};
        }
        const uint8_t between[] = "between";
        CHECK(std::fwrite(between, 1, sizeof between, file) == sizeof between);
        const int64_t rows = matrix.rows / experts, bytes = rows * matrix.row_bytes();
        const Span span{std::ftell(file), bytes};
        CHECK(std::fwrite(matrix.row(expert * rows), 1, static_cast<size_t>(bytes), file) ==
              static_cast<size_t>(bytes));
        return span;
    }
};

std::vector<float> logits_of(Decoder& decoder, RandomMemory& memory) {
    std::vector<std::unique_ptr<Cache>> caches;
    std::vector<Cache*> all;
    std::vector<float> found;
    std::vector<float> logits(3 * decoder.vocabulary());
    for (const int64_t length : {40, 1, 9}) {
        caches.push_back(std::make_unique<Cache>(CacheKind::Bf16, decoder.cache_layers(), 100));
        all.push_back(caches.back().get());
        const std::vector<int64_t> tokens = memory.tokens(length, decoder.vocabulary());
        decoder.prefill(*caches.back(), tokens.data(), length, logits.data());
        found.insert(found.end(), logits.begin(), logits.begin() + decoder.vocabulary());
    }
    for (int step = 0; step < 6; ++step) {
        const int64_t batch = step % 2 ? 3 : 1;
        const std::vector<int64_t> tokens = memory.tokens(batch, decoder.vocabulary());
        decoder.decode(all.data(), tokens.data(), batch, logits.data());
        found.insert(found.end(), logits.begin(), logits.begin() + batch * decoder.vocabulary());
    }
    return found;
}

void check_no_bit_changes(Type type, int64_t width) {
    RandomMemory memory(7);
    const Model model = random_model(memory, type, width);
    const ExpertFile file(model);
    Decoder whole(model);
    RandomMemory same(1);
    const std::vector<float> expected = logits_of(whole, same);
    for (const int64_t places : {0, 1, 3, 5}) {
        for (const PolicyKind policy : {PolicyKind::Lru, PolicyKind::Lfu, PolicyKind::Lfru, PolicyKind::Static}) {
            const Prefetch prefetch = places % 2 ? Prefetch::On : Prefetch::Off;
            const StoreOptions options{policy, 1 + places % 2, 3, places != 3};
            auto store =
                std::make_shared<ExpertStore>(std::vector<std::string>{file.path}, file.with_places(places), options);
            Decoder decoder(model, store, prefetch);
            RandomMemory again(1);
            CHECK(logits_of(decoder, again) == expected);
            const StoreCounts counts = store->counts();
            CHECK(counts.misses > 0 && counts.bytes > 0);
        }
    }
}

void check_failures() {
    RandomMemory memory(8);
    const Model model = random_model(memory, Type::F32, 20);
    CHECK_THROWS(ReadError, ExpertStore({"/nowhere"}, {}, {}));
    const ExpertFile file(model);
    std::vector<StreamedLayer> beyond = file.with_places(1);
    beyond[1].experts[0][1].bytes = 1 << 30;
    CHECK_THROWS(std::invalid_argument, ExpertStore({file.path}, beyond, {}));
    beyond[1].experts[0][1] = {0, 8, 1};
    CHECK_THROWS(std::invalid_argument, ExpertStore({file.path}, beyond, {}));

    auto store =
        std::make_shared<ExpertStore>(std::vector<std::string>{file.path}, file.with_places(2), StoreOptions{});
    Decoder decoder(model, store, Prefetch::On);
    Cache cache(CacheKind::F32, decoder.cache_layers(), 100);
    std::vector<float> logits(decoder.vocabulary());
    const std::vector<int64_t> tokens = memory.tokens(60, decoder.vocabulary());
    decoder.prefill(cache, tokens.data(), 1, logits.data());
    CHECK(truncate(file.path.c_str(), 100) == 0);
    for (int turn = 0; turn < 2; ++turn) {
        CHECK_THROWS(ReadError, decoder.prefill(cache, tokens.data(), 60, logits.data()));
        CHECK(cache.length() == 1);
    }
    CHECK_THROWS(ReadError, disk_speed(file.path + "x", 4096, 2, true, 0.01));
}

void check_policies() {
    const std::vector<std::vector<int64_t>> cycle = {{0}, {1}, {2}, {0}, {1}, {2}, {0}, {1}, {2}};
    // With two places, the one that was used longest ago is always the next to be asked for.
    CHECK(simulate_hits(PolicyKind::Lru, 3, 2, cycle) == 0);
    CHECK(simulate_hits(PolicyKind::Static, 3, 2, cycle) == 4);
    CHECK(simulate_hits(PolicyKind::Lru, 3, 3, cycle) == 6);
    const std::vector<std::vector<int64_t>> favourite = {{0}, {0}, {0}, {1}, {2}, {0}, {1}, {2}, {0}};
    CHECK(simulate_hits(PolicyKind::Lfu, 3, 1, favourite) == 2);
    CHECK(simulate_hits(PolicyKind::Static, 3, 1, favourite) == 4);
}

// Steps that read ahead are the slower ones, then the faster ones.
void check_trial() {
    for (const double ahead : {2.0, 0.5}) {
        PrefetchTrial trial(Prefetch::Measured);
        for (int64_t step = 0; step < PrefetchTrial::TURN * PrefetchTrial::TURNS; ++step) {
            trial.took(trial.on() ? ahead : 1.0);
        }
        CHECK(trial.on() == (ahead < 1));
        for (int64_t step = 0; step + 1 < PrefetchTrial::KEPT; ++step) {
            trial.took(1);
            CHECK(trial.on() == (ahead < 1));
        }
    }
    PrefetchTrial on(Prefetch::On), off(Prefetch::Off);
    on.took(1);
    off.took(1);
    CHECK(on.on() && !off.on());
}

}  // namespace

void test_streaming() {
    Pool::shared().set_threads(2);
    check_policies();
    check_trial();
    check_no_bit_changes(Type::F32, 20);
    check_no_bit_changes(Type::Q8_0, 64);
    check_failures();
}

}  // namespace moekit::tests
