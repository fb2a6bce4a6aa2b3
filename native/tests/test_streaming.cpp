#include <algorithm>
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
#include "streaming/block_ring.h"
#include "streaming/disk_speed.h"
#include "streaming/expert_store.h"
#include "streaming/prefetch_trial.h"

namespace moekit::tests {
namespace {

// A file with the experts and the other blocks of a model, some bytes apart so that they begin anywhere in a block of
// the file; gone with this.
class ModelFile {
   public:
    explicit ModelFile(const Model& model) {
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
            const auto layer_index = static_cast<int64_t>(layers.size()) - 1;
            const Attention& part = layer.attention;
            blocks.push_back({layer_index, BlockKind::Attention, {}});
            for (const Matrix* matrix : {&part.query, &part.key, &part.value, &part.output}) {
                blocks.back().matrices.push_back(write(file, *matrix, 0, 1));
            }
            if (!layer.is_moe()) {
                blocks.push_back({layer_index, BlockKind::Ffn, {}});
                for (const Matrix* matrix : {&layer.ffn.gate, &layer.ffn.up, &layer.ffn.down}) {
                    blocks.back().matrices.push_back(write(file, *matrix, 0, 1));
                }
            }
        }
        CHECK(std::fclose(file) == 0);
    }
    ~ModelFile() { unlink(path.c_str()); }

    std::vector<StreamedLayer> with_places(int64_t places) const {
        std::vector<StreamedLayer> all = layers;
        for (StreamedLayer& layer : all) {
            layer.places = places;
        }
        return all;
    }

    // A ring for `count` of the largest of the blocks that it gets, which are all but every `kept`th.
    std::shared_ptr<BlockRing> ring(double count, size_t kept, bool direct) const {
        std::vector<StreamedBlock> streamed;
        int64_t largest = 0;
        for (size_t i = 0; i < blocks.size(); ++i) {
            if (i % kept != kept - 1) {
                streamed.push_back(blocks[i]);
                largest = std::max(largest, blocks_bytes(blocks[i].matrices.data(),
                                                         blocks[i].matrices.data() + blocks[i].matrices.size()));
            }
        }
        const auto bytes = static_cast<int64_t>(count * static_cast<double>(largest));
        return std::make_shared<BlockRing>(std::vector<std::string>{path}, streamed, bytes, 3, direct);
    }

    std::string path;
    std::vector<StreamedLayer> layers;
    std::vector<StreamedBlock> blocks;

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
    const ModelFile file(model);
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

void check_no_bit_changes_through_a_ring(Type type, int64_t width) {
    RandomMemory memory(9);
    const Model model = random_model(memory, type, width);
    const ModelFile file(model);
    Decoder whole(model);
    RandomMemory same(1);
    const std::vector<float> expected = logits_of(whole, same);
    for (const double count : {1.0, 1.4, 2.0, 5.0, 50.0}) {
        for (const size_t kept : {2, 3, 100}) {
            const auto ring = file.ring(count, kept, kept != 3);
            auto store = kept == 2 ? std::make_shared<ExpertStore>(std::vector<std::string>{file.path},
                                                                   file.with_places(1), StoreOptions{})
                                   : nullptr;
            Decoder decoder(model, store, Prefetch::On, ring);
            RandomMemory again(1);
            CHECK(logits_of(decoder, again) == expected);
            CHECK(ring->counts().bytes > 0);
        }
    }
}

// Blocks of other layers, of other sizes or in another order are refused before anything is read.
void check_rings_of_others() {
    RandomMemory memory(10);
    const Model model = random_model(memory, Type::F32, 20);
    const ModelFile file(model);
    const std::vector<std::string> paths = {file.path};
    const auto refused = [&](std::vector<StreamedBlock> blocks) {
        auto ring = std::make_shared<BlockRing>(paths, std::move(blocks), 1 << 24, 2, true);
        CHECK_THROWS(std::invalid_argument, Decoder(model, nullptr, Prefetch::Off, ring));
    };
    const std::vector<StreamedBlock>& all = file.blocks;
    StreamedBlock other = all[0];
    other.layer = 99;
    refused({other});
    refused({all[1], all[0]});
    refused({all[0], all[0]});
    other = all[0];
    other.matrices.pop_back();
    refused({other});
    other = all[0];
    other.matrices[0].bytes -= 4;
    refused({other});
    for (int64_t layer = 0; layer < static_cast<int64_t>(model.layers.size()); ++layer) {
        if (model.layers[layer].is_moe()) {
            refused({{layer, BlockKind::Ffn, std::vector<Span>(3, file.layers[layer].experts[0][1])}});
        }
    }
    other = all[0];
    other.matrices[0].offset = 1 << 30;
    CHECK_THROWS(std::invalid_argument, BlockRing(paths, {other}, 1 << 24, 2, true));
    CHECK_THROWS(std::invalid_argument, BlockRing(paths, {all[0]}, 4096, 2, true));
}

void check_failures() {
    RandomMemory memory(8);
    const Model model = random_model(memory, Type::F32, 20);
    CHECK_THROWS(ReadError, ExpertStore({"/nowhere"}, {}, {}));
    const ModelFile file(model);
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

void check_failures_of_a_ring() {
    RandomMemory memory(11);
    const Model model = random_model(memory, Type::F32, 20);
    const ModelFile file(model);
    Decoder decoder(model, nullptr, Prefetch::Off, file.ring(1.5, 100, true));
    Cache cache(CacheKind::F32, decoder.cache_layers(), 100);
    std::vector<float> logits(decoder.vocabulary());
    const std::vector<int64_t> tokens = memory.tokens(60, decoder.vocabulary());
    decoder.prefill(cache, tokens.data(), 1, logits.data());
    CHECK(truncate(file.path.c_str(), 100) == 0);
    Cache* caches[] = {&cache};
    for (int turn = 0; turn < 3; ++turn) {
        CHECK_THROWS(ReadError, decoder.prefill(cache, tokens.data(), 60, logits.data()));
        CHECK_THROWS(ReadError, decoder.decode(caches, tokens.data(), 1, logits.data()));
        CHECK(cache.length() == 1);
    }
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
    check_no_bit_changes_through_a_ring(Type::F32, 20);
    check_no_bit_changes_through_a_ring(Type::Q8_0, 64);
    check_rings_of_others();
    check_failures();
    check_failures_of_a_ring();
}

}  // namespace moekit::tests
