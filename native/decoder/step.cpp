#include "decoder/step.h"

#include <algorithm>

#include "decoder/attention.h"
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

// The memory of a task of attention: queries, a key or a value, and their online softmax.
int64_t task_floats(const Attention& attention) {
    const CacheLayer shape{attention.kv_heads, attention.head_width};
    const int64_t width = shape.padded_width(), queries = attention.queries_per_key();
    return (queries + 1) * width + softmax_floats(queries, width);
}

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

Step::Step(const Model& model, Scratch& scratch, ExpertWaves& waves, StreamedBlocks& blocks, Cache* const* caches,
           const int64_t* tokens, int64_t batch, float* logits, bool reads_ahead)
    : model_(model),
      scratch_(scratch),
      waves_(waves),
      blocks_(blocks),
      caches_(caches),
      tokens_(tokens),
      batch_(batch),
      logits_(logits),
      reads_ahead_(reads_ahead) {
    for (const Layer& layer : model.layers) {
        int64_t tasks = 0;
        for (int64_t b = 0; b < batch; ++b) {
            tasks += parts(b, layer.attention.window) * layer.attention.kv_heads;
        }
        const auto floats = static_cast<size_t>(tasks * task_floats(layer.attention));
        if (scratch.attention.size() < floats) {
            scratch.attention.resize(floats);
        }
    }
    scratch.counters.reset();
}

void Step::run(Worker& worker) const {
    for (int64_t b = worker.thread(); b < batch_; b += worker.threads()) {
        embed(model_, tokens_[b], scratch_.residual.data() + b * model_.width,
              scratch_.added.data() + b * model_.width);
        scratch_.rope.set(b, caches_[b]->length());
    }
    const Norm none;
    const Norm* post_norm = &none;
    for (int64_t index = 0; index < static_cast<int64_t>(model_.layers.size()); ++index) {
        const Layer& layer = model_.layers[index];
        const Attention& part = layer.attention;
        const Forms forms = forms_of(part.query) | forms_of(part.key) | forms_of(part.value);
        attention(worker, index, norm(worker, *post_norm, index, BlockKind::Attention, forms));
        const Prepared x = norm(worker, layer.attention_post_norm, index, BlockKind::Ffn, forms_of_ffn(layer));
        layer.is_moe() ? moe_ffn(worker, index, x) : dense_ffn(worker, layer, x);
        post_norm = &layer.ffn_post_norm;
    }
    norm_rows(worker, *post_norm, model_.norm);
    multiply_head(worker, model_, scratch_.normed, batch_, logits_);
}

void multiply_head(Worker& worker, const Model& model, Input& normed, int64_t batch, float* logits) {
    const Matrix& head = model.head;
    const Prepared x = normed.prepare(0, batch, model.width, forms_of(head), worker.thread(), worker.threads());
    worker.barrier();
    multiply(worker, {{head, x.of(head), logits, head.rows, nullptr, model.logit_scale}});
}

void Step::norm_rows(Worker& worker, const Norm& post_norm, const Norm& norm) const {
    const int64_t width = model_.width;
    for (int64_t b = worker.thread(); b < batch_; b += worker.threads()) {
        float* residual = scratch_.residual.data() + b * width;
        add_residual(post_norm, width, scratch_.added.data() + b * width, residual);
        rms_norm(norm, residual, width, scratch_.normed.numbers() + b * width);
    }
    worker.barrier();
}

Prepared Step::norm(Worker& worker, const Norm& post_norm, int64_t index, BlockKind kind, Forms forms) const {
    const Layer& layer = model_.layers[index];
    norm_rows(worker, post_norm, kind == BlockKind::Attention ? layer.attention_norm : layer.ffn_norm);
    if (worker.thread() == 0) {
        blocks_.enter(index, kind);
    }
    const Prepared prepared =
        scratch_.normed.prepare(0, batch_, model_.width, forms, worker.thread(), worker.threads());
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

int64_t Step::parts(int64_t sequence, int64_t window) const {
    const int64_t last = caches_[sequence]->length();
    return last / PART - first_unmasked(last, window) / PART + 1;
}

void Step::attention(Worker& worker, int64_t index, const Prepared& x) const {
    const Attention& part = model_.layers[index].attention;
    const int64_t query_rows = part.query_rows(), key_rows = part.key_rows(), stride = part.projected_rows();
    float* projected = scratch_.projected.data();
    multiply(worker, {{part.query, x.of(part.query), projected, stride, part.query_bias.data},
                      {part.key, x.of(part.key), projected + query_rows, stride, part.key_bias.data},
                      {part.value, x.of(part.value), projected + query_rows + key_rows, stride, part.value_bias.data}});

    int64_t tasks = 0;
    bool split = false;
    for (int64_t b = 0; b < batch_; ++b) {
        tasks += parts(b, part.window) * part.kv_heads;
        split = split || parts(b, part.window) > 1;
    }
    worker.each(tasks, [&](int64_t task) {
        float* memory = scratch_.attention.data() + task * task_floats(part);
        int64_t sequence = 0;
        while (task >= parts(sequence, part.window) * part.kv_heads) {
            task -= parts(sequence++, part.window) * part.kv_heads;
        }
        attend(index, sequence, task % part.kv_heads, task / part.kv_heads, memory);
    });
    if (split) {
        join(worker, part);
    }
    const Prepared y =
        scratch_.attended.prepare(0, batch_, query_rows, forms_of(part.output), worker.thread(), worker.threads());
    worker.barrier();
    multiply(worker, {{part.output, y.of(part.output), scratch_.added.data(), model_.width, part.output_bias.data}});
}

float* Step::attended(const Attention& attention, int64_t sequence, int64_t head) const {
    const int64_t first = sequence * attention.heads + head * attention.queries_per_key();
    return scratch_.attended.numbers() + first * attention.head_width;
}

void Step::attend(int64_t index, int64_t sequence, int64_t head, int64_t part, float* memory) const {
    const Attention& attention = model_.layers[index].attention;
    Cache& cache = *caches_[sequence];
    const CacheLayer& shape = cache.layers()[index];
    const int64_t width = shape.padded_width(), queries = attention.queries_per_key();
    const int64_t position = cache.length(), first = first_unmasked(position, attention.window);
    const int64_t begin = std::max(first, (first / PART + part) * PART);
    const int64_t end = std::min(position + 1, (first / PART + part + 1) * PART);

    const float* row = scratch_.projected.data() + sequence * attention.projected_rows();
    const RopeAngles angles = scratch_.rope.at(sequence, attention.rope);
    load_heads(query_heads(attention, row, angles), head * queries, queries, width, memory);
    for (int64_t i = 0; i < queries * width; ++i) {
        memory[i] *= attention.scale;
    }
    if (end == position + 1) {
        // Nobody else reads this position: the other tasks of this head see those before it.
        float* entry = memory + queries * width;
        const int64_t page = position / Cache::PAGE, place = position % Cache::PAGE;
        load_heads(key_heads(attention, row, angles), head, 1, width, entry);
        vector_ops().write_entry(cache.keys(index, head, page), place, entry);
        load_heads(value_heads(attention, row), head, 1, width, entry);
        vector_ops().write_entry(cache.values(index, head, page), place, entry);
    }
    float* softmax = memory + (queries + 1) * width;
    attend_positions(cache, index, head, begin, end, memory, attention.soft_cap, softmax_at(softmax, queries));
    if (parts(sequence, attention.window) == 1) {
        join_softmaxes(softmax, 1, 0, queries, shape, attended(attention, sequence, head));
    }
}

void Step::join(Worker& worker, const Attention& attention) const {
    const int64_t kv_heads = attention.kv_heads, queries = attention.queries_per_key();
    const int64_t floats = task_floats(attention);
    const CacheLayer shape{kv_heads, attention.head_width};
    worker.each(batch_ * kv_heads, [&](int64_t task) {
        const int64_t sequence = task / kv_heads, head = task % kv_heads;
        const int64_t count = parts(sequence, attention.window);
        if (count == 1) {
            return;  // done already
        }
        int64_t before = 0;
        for (int64_t b = 0; b < sequence; ++b) {
            before += parts(b, attention.window);
        }
        float* softmax =
            scratch_.attention.data() + (before * kv_heads + head) * floats + (queries + 1) * shape.padded_width();
        join_softmaxes(softmax, count, kv_heads * floats, queries, shape, attended(attention, sequence, head));
    });
}

}  // namespace moekit
