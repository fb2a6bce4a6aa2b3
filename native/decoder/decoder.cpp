#include "decoder/decoder.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <stdexcept>
#include <string>

#include "decoder/expert_waves.h"
#include "decoder/prompt.h"
#include "decoder/scratch.h"
#include "decoder/step.h"
#include "decoder/streamed_blocks.h"
#include "kernels/pool.h"
#include "kernels/worker.h"
#include "streaming/expert_store.h"

namespace moekit {
namespace {

// Log softmax at one of so many logits, in nats.
double log_prob(const float* logits, int64_t count, int64_t at) {
    const double most = *std::max_element(logits, logits + count);
    double sum = 0;
    for (int64_t i = 0; i < count; ++i) {
        sum += std::exp(logits[i] - most);
    }
    return logits[at] - most - std::log(sum);
}

}  // namespace

Decoder::Decoder(Model model, std::shared_ptr<ExpertStore> store, Prefetch prefetch, std::shared_ptr<BlockRing> ring)
    : model_(std::move(model)), store_(std::move(store)), prefetch_(store_ ? prefetch : Prefetch::Off) {
    moekit::check(model_);
    check_streamed();
    // Routers decide: whatever the precision of the model, they are computed in fp32.
    for (Layer& layer : model_.layers) {
        cache_layers_.push_back({layer.attention.kv_heads, layer.attention.head_width});
        Matrix& router = layer.moe.router;
        if (!layer.is_moe() || router.type == Type::F32) {
            continue;
        }
        std::vector<float> numbers(router.rows * router.columns);
        dequantize_rows(router, 0, router.rows, numbers.data());
        routers_.push_back(std::move(numbers));
        router = {reinterpret_cast<const uint8_t*>(routers_.back().data()), Type::F32, router.rows, router.columns};
    }
    waves_ = std::make_unique<ExpertWaves>(store_.get());
    blocks_ = std::make_unique<StreamedBlocks>(model_.layers, std::move(ring));
    scratch_ = std::make_unique<Scratch>(model_);
    prompt_scratch_ = std::make_unique<PromptScratches>(model_);
}

Decoder::~Decoder() = default;

void Decoder::check_streamed() const {
    for (int64_t index = 0; store_ && index < store_->layers(); ++index) {
        if (!store_->streamed(index)) {
            continue;
        }
        const std::string part = "layer " + std::to_string(index) + ": ";
        if (index >= static_cast<int64_t>(model_.layers.size()) ||
            static_cast<int64_t>(store_->layer(index).experts.size()) != model_.layers[index].moe.experts) {
            throw std::invalid_argument(part + "other experts are streamed than it has");
        }
        const Layer& layer = model_.layers[index];
        const Matrix* matrices[] = {&layer.ffn.gate, &layer.ffn.up, &layer.ffn.down};
        for (const StreamedLayer::Expert& expert : store_->layer(index).experts) {
            for (int which = 0; which < StreamedLayer::MATRICES; ++which) {
                const Matrix& matrix = *matrices[which];
                const int64_t bytes = matrix.data ? matrix.rows / layer.moe.experts * matrix.row_bytes() : 0;
                if (expert[which].bytes != bytes) {
                    throw std::invalid_argument(part + "a streamed expert has " + std::to_string(expert[which].bytes) +
                                                " bytes where " + std::to_string(bytes) + " are needed");
                }
            }
        }
    }
}

void Decoder::check_reading() {
    // Both, so that neither keeps an error for the next call.
    const std::string of_experts = store_ ? store_->take_error() : std::string(), of_blocks = blocks_->take_error();
    if (!of_experts.empty() || !of_blocks.empty()) {
        throw ReadError(of_experts.empty() ? of_blocks : of_experts);
    }
}

void Decoder::check(int64_t token) const {
    if (token < 0 || token >= model_.vocabulary) {
        throw std::out_of_range("token " + std::to_string(token) + " is not one of a vocabulary of " +
                                std::to_string(model_.vocabulary));
    }
}

void Decoder::check(const Cache& cache) const {
    if (!(cache.layers() == cache_layers_)) {
        throw std::invalid_argument("the cache is that of another model");
    }
}

void Decoder::decode(Cache* const* caches, const int64_t* tokens, int64_t batch, float* logits) {
    const std::lock_guard<std::mutex> lock(entry_);
    for (int64_t b = 0; b < batch; ++b) {
        check(tokens[b]);
        check(*caches[b]);
        if (std::find(caches, caches + b, caches[b]) != caches + b) {
            throw std::invalid_argument("a step decodes one token of each sequence, and two have the same cache");
        }
        caches[b]->reserve(1);
    }
    int64_t begin = 0;
    try {
        for (; begin < batch; begin += MAX_BATCH) {
            const int64_t count = std::min(MAX_BATCH, batch - begin);
            decode_together(caches + begin, tokens + begin, count, logits + begin * model_.vocabulary);
        }
    } catch (const ReadError&) {
        for (int64_t b = 0; b < begin; ++b) {
            caches[b]->truncate(caches[b]->length() - 1);
        }
        throw;
    }
}

void Decoder::prefill(Cache& cache, const int64_t* tokens, int64_t count, float* logits) {
    const std::lock_guard<std::mutex> lock(entry_);
    read(cache, tokens, count, [&](Worker& worker, const auto& prompt, int64_t begin, int64_t together) {
        if (logits && begin + together == count) {
            prompt.norm_tokens(worker, together - 1, 1, scratch_->normed.numbers());
            multiply_head(worker, model_, scratch_->normed, 1, logits);
        }
    });
}

void Decoder::score(Cache& cache, const int64_t* tokens, const int64_t* targets, int64_t count, double* log_probs) {
    const std::lock_guard<std::mutex> lock(entry_);
    std::for_each(targets, targets + count, [this](int64_t token) { check(token); });
    const int64_t vocabulary = model_.vocabulary;
    scored_logits_.resize(MAX_BATCH * vocabulary);
    read(cache, tokens, count, [&](Worker& worker, const auto& prompt, int64_t begin, int64_t together) {
        for (int64_t at = 0; at < together; at += MAX_BATCH) {
            const int64_t rows = std::min(MAX_BATCH, together - at);
            prompt.norm_tokens(worker, at, rows, scratch_->normed.numbers());
            multiply_head(worker, model_, scratch_->normed, rows, scored_logits_.data());
            worker.each(rows, [&](int64_t row) {
                const int64_t token = begin + at + row;
                log_probs[token] = log_prob(scored_logits_.data() + row * vocabulary, vocabulary, targets[token]);
            });
        }
    });
}

template <typename After>
void Decoder::read(Cache& cache, const int64_t* tokens, int64_t count, After after) {
    if (count < 1) {
        throw std::invalid_argument("a prompt has a token or more");
    }
    check(cache);
    std::for_each(tokens, tokens + count, [this](int64_t token) { check(token); });
    cache.reserve(count);
    const bool bf16 = multiplies_bf16() && !fp32();
    const int64_t before = cache.length();
    try {
        for (int64_t begin = 0; begin < count; begin += MAX_TOGETHER) {
            const int64_t together = std::min(count - begin, MAX_TOGETHER);
            if (bf16) {
                read_together(prompt_scratch_->bf16, cache, tokens, begin, together, after);
            } else {
                read_together(prompt_scratch_->fp32, cache, tokens, begin, together, after);
            }
        }
    } catch (const ReadError&) {
        cache.truncate(before);
        throw;
    }
}

template <typename Number, typename After>
void Decoder::read_together(PromptScratch<Number>& scratch, Cache& cache, const int64_t* tokens, int64_t begin,
                            int64_t count, After after) {
    const Prompt<Number> prompt(model_, scratch, *waves_, *blocks_, cache, tokens + begin, count);
    Pool& pool = Pool::shared();
    pool.run([&](int threads) { prompt.reserve(threads); },
             [&](int thread, int threads) {
                 Worker worker(pool, scratch.counters, thread, threads);
                 prompt.run(worker);
                 after(worker, prompt, begin, count);
             });
    check_reading();
    cache.extend(count);
}

void Decoder::decode_together(Cache* const* caches, const int64_t* tokens, int64_t batch, float* logits) {
    const auto began = std::chrono::steady_clock::now();
    const Step step(model_, *scratch_, *waves_, *blocks_, caches, tokens, batch, logits, prefetch_.on());
    Pool& pool = Pool::shared();
    pool.run([&](int thread, int threads) {
        Worker worker(pool, scratch_->counters, thread, threads);
        step.run(worker);
    });
    check_reading();
    prefetch_.took(std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count());
    for (int64_t b = 0; b < batch; ++b) {
        caches[b]->extend(1);
    }
}

}  // namespace moekit
