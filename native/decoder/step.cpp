#include "decoder/step.h"

#include <algorithm>

#include "decoder/heads.h"

namespace moekit {
namespace {

constexpr int64_t CHUNK_BYTES = 512 * 1024;
// Smaller matrices still give every thread some, since not all start at the same time.
constexpr int64_t CHUNKS_PER_THREAD = 4;
constexpr int64_t SHORTER = 4;
// The products take several rows at a time.
constexpr int64_t ROWS_TOGETHER = 8;

// Positions whose attention is one task. A sequence is cut at its multiples, so that neither the number of threads nor
// other sequences change a result.
constexpr int64_t PART = 2 * Cache::PAGE;

}  // namespace

Chunks::Chunks(int64_t rows, int64_t row_bytes, int threads) : rows_(rows) {
    const auto size = [](int64_t wanted) {
        const int64_t whole = (wanted + ROWS_TOGETHER - 1) / ROWS_TOGETHER * ROWS_TOGETHER;
        return std::clamp(whole, ROWS_TOGETHER, MAX_ROWS);
    };
    long_ = size(std::min(CHUNK_BYTES / row_bytes, rows / (threads * CHUNKS_PER_THREAD)));
    short_ = size(long_ / SHORTER);
    long_count_ = rows * 3 / 4 / long_;
}

Step::Step(const DecoderShape& shape, const std::vector<Layer>& layers, Scratch& scratch, Cache* const* caches,
           const int64_t* tokens, int64_t batch, float* logits)
    : shape_(shape),
      layers_(layers),
      scratch_(scratch),
      caches_(caches),
      tokens_(tokens),
      batch_(batch),
      logits_(logits) {
    // The longest list of tasks is that of a layer without a window.
    int64_t tasks = 0;
    for (int64_t b = 0; b < batch; ++b) {
        tasks += parts(b, 0) * shape.kv_heads;
    }
    const auto floats = static_cast<size_t>(tasks * task_floats());
    if (scratch.attention.size() < floats) {
        scratch.attention.resize(floats);
    }
    scratch.counters.reset();
}

void Step::run(Worker& worker) const {
    for (int64_t b = worker.thread(); b < batch_; b += worker.threads()) {
        embed(shape_, tokens_[b], scratch_.residual.data() + b * shape_.width,
              scratch_.added.data() + b * shape_.width);
        const auto pairs = static_cast<int64_t>(shape_.rope_frequencies.size());
        set_rope_angles(shape_, caches_[b]->length(), scratch_.cosine.data() + b * pairs,
                        scratch_.sine.data() + b * pairs);
    }
    const float* post_norm = nullptr;
    for (int64_t index = 0; index < static_cast<int64_t>(layers_.size()); ++index) {
        const Layer& layer = layers_[index];
        const Forms forms = forms_of(layer.query) | forms_of(layer.key) | forms_of(layer.value);
        attention(worker, index, norm(worker, post_norm, layer.attention_norm, forms));
        const Prepared x = norm(worker, layer.attention_post_norm, layer.ffn_norm, forms_of_ffn(layer));
        layer.experts ? moe_ffn(worker, layer, x) : dense_ffn(worker, layer, x);
        post_norm = layer.ffn_post_norm;
    }
    norm_rows(worker, post_norm, shape_.norm);
    multiply_head(worker, shape_, scratch_.normed, batch_, logits_);
}

void multiply_head(Worker& worker, const DecoderShape& shape, Input& normed, int64_t batch, float* logits) {
    const Matrix& head = shape.head;
    const Prepared x = normed.prepare(batch, shape.width, forms_of(head), worker.thread(), worker.threads());
    worker.barrier();
    multiply(worker, {{head, x.of(head), logits, head.rows, nullptr, shape.logit_scale}});
}

void Step::norm_rows(Worker& worker, const float* post_norm, const float* norm) const {
    const int64_t width = shape_.width;
    for (int64_t b = worker.thread(); b < batch_; b += worker.threads()) {
        float* residual = scratch_.residual.data() + b * width;
        add_block(shape_, post_norm, scratch_.added.data() + b * width, residual);
        rms_norm(residual, norm, width, shape_.norm_eps, scratch_.normed.numbers() + b * width);
    }
    worker.barrier();
}

Prepared Step::norm(Worker& worker, const float* post_norm, const float* norm, Forms forms) const {
    norm_rows(worker, post_norm, norm);
    const Prepared prepared = scratch_.normed.prepare(batch_, shape_.width, forms, worker.thread(), worker.threads());
    worker.barrier();
    return prepared;
}

void multiply(Worker& worker, std::initializer_list<Product> products) {
    int64_t tasks = 0;
    for (const Product& product : products) {
        tasks += Chunks(product.matrix.rows, product.matrix.row_bytes(), worker.threads()).count();
    }
    worker.each(tasks, [&](int64_t task) {
        const Product* product = products.begin();
        Chunks chunks(product->matrix.rows, product->matrix.row_bytes(), worker.threads());
        while (task >= chunks.count()) {
            task -= chunks.count();
            ++product;
            chunks = Chunks(product->matrix.rows, product->matrix.row_bytes(), worker.threads());
        }
        product->compute(chunks.begin(task), chunks.end(task));
    });
}

void Product::compute(int64_t begin, int64_t end) const {
    multiply_rows(matrix, x, begin, end, y, y_stride);
    if (!bias && scale == 1) {
        return;
    }
    for (int64_t b = 0; b < x.rows; ++b) {
        for (int64_t row = begin; row < end; ++row) {
            float& number = y[b * y_stride + row];
            number = (number + (bias ? bias[row] : 0.0f)) * scale;
        }
    }
}

int64_t Step::task_floats() const {
    const int64_t width = caches_[0]->shape().padded_width(), queries = shape_.heads / shape_.kv_heads;
    return (queries + 1) * width + softmax_floats(queries, width);
}

int64_t Step::parts(int64_t sequence, int64_t window) const {
    const int64_t last = caches_[sequence]->length();
    return last / PART - first_unmasked(last, window) / PART + 1;
}

void Step::attention(Worker& worker, int64_t index, const Prepared& x) const {
    const Layer& layer = layers_[index];
    const int64_t query_rows = shape_.heads * shape_.head_width, key_rows = shape_.kv_heads * shape_.head_width;
    const int64_t stride = query_rows + 2 * key_rows;
    float* projected = scratch_.projected.data();
    multiply(worker, {{layer.query, x.of(layer.query), projected, stride, layer.query_bias},
                      {layer.key, x.of(layer.key), projected + query_rows, stride, layer.key_bias},
                      {layer.value, x.of(layer.value), projected + query_rows + key_rows, stride, layer.value_bias}});

    int64_t tasks = 0;
    bool split = false;
    for (int64_t b = 0; b < batch_; ++b) {
        tasks += parts(b, layer.window) * shape_.kv_heads;
        split = split || parts(b, layer.window) > 1;
    }
    worker.each(tasks, [&](int64_t task) {
        float* memory = scratch_.attention.data() + task * task_floats();
        int64_t sequence = 0;
        while (task >= parts(sequence, layer.window) * shape_.kv_heads) {
            task -= parts(sequence++, layer.window) * shape_.kv_heads;
        }
        attend(index, sequence, task % shape_.kv_heads, task / shape_.kv_heads, memory);
    });
    if (split) {
        join(worker, layer);
    }
    const Prepared y =
        scratch_.attended.prepare(batch_, query_rows, forms_of(layer.output), worker.thread(), worker.threads());
    worker.barrier();
    multiply(worker, {{layer.output, y.of(layer.output), scratch_.added.data(), shape_.width, layer.output_bias}});
}

float* Step::attended(int64_t sequence, int64_t head) const {
    const int64_t queries = shape_.heads / shape_.kv_heads;
    return scratch_.attended.numbers() + (sequence * shape_.heads + head * queries) * shape_.head_width;
}

void Step::attend(int64_t index, int64_t sequence, int64_t head, int64_t part, float* memory) const {
    const Layer& layer = layers_[index];
    Cache& cache = *caches_[sequence];
    const int64_t width = cache.shape().padded_width(), queries = shape_.heads / shape_.kv_heads;
    const int64_t position = cache.length(), first = first_unmasked(position, layer.window);
    const int64_t begin = std::max(first, (first / PART + part) * PART);
    const int64_t end = std::min(position + 1, (first / PART + part + 1) * PART);

    const int64_t key_rows = shape_.kv_heads * shape_.head_width;
    const float* row = scratch_.projected.data() + sequence * (shape_.heads * shape_.head_width + 2 * key_rows);
    const Heads all_queries{row, shape_.heads, layer.query_norm, true};
    const Heads all_keys{row + shape_.heads * shape_.head_width, shape_.kv_heads, layer.key_norm, true};
    const Heads all_values{all_keys.row + key_rows, shape_.kv_heads, nullptr, false};

    const int64_t pairs = sequence * static_cast<int64_t>(shape_.rope_frequencies.size());
    const RopeAngles angles{scratch_.cosine.data() + pairs, scratch_.sine.data() + pairs};
    load_heads(shape_, all_queries, head * queries, queries, angles, width, memory);
    for (int64_t i = 0; i < queries * width; ++i) {
        memory[i] *= shape_.attention_scale;
    }
    if (end == position + 1) {
        // Nobody else reads this position: the other tasks of this head see those before it.
        float* entry = memory + queries * width;
        const int64_t page = position / Cache::PAGE, place = position % Cache::PAGE;
        load_heads(shape_, all_keys, head, 1, angles, width, entry);
        vector_ops().write_entry(cache.keys(index, head, page), place, entry);
        load_heads(shape_, all_values, head, 1, angles, width, entry);
        vector_ops().write_entry(cache.values(index, head, page), place, entry);
    }
    float* softmax = memory + (queries + 1) * width;
    attend_positions(cache, index, head, begin, end, memory, shape_.soft_cap, softmax_at(softmax, queries));
    if (parts(sequence, layer.window) == 1) {
        combine(softmax, 1, 0, queries, cache.shape(), attended(sequence, head));
    }
}

void Step::join(Worker& worker, const Layer& layer) const {
    worker.each(batch_ * shape_.kv_heads, [&](int64_t task) {
        const int64_t sequence = task / shape_.kv_heads, head = task % shape_.kv_heads;
        const int64_t count = parts(sequence, layer.window);
        if (count == 1) {
            return;  // done already
        }
        int64_t before = 0;
        for (int64_t b = 0; b < sequence; ++b) {
            before += parts(b, layer.window);
        }
        const CacheShape& shape = caches_[sequence]->shape();
        const int64_t queries = shape_.heads / shape_.kv_heads;
        float* memory = scratch_.attention.data() + (before * shape_.kv_heads + head) * task_floats() +
                        (queries + 1) * shape.padded_width();
        combine(memory, count, shape_.kv_heads * task_floats(), queries, shape, attended(sequence, head));
    });
}

}  // namespace moekit
