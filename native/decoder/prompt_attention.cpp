// Attention of a prompt: the scores of many tokens are a product of keys with tiles of queries, their sums are one
// of values, transposed, with tiles of the exponentials.
#include <algorithm>

#include "decoder/attention.h"
#include "decoder/heads.h"
#include "decoder/prompt.h"
#include "kernels/kernels.h"

namespace moekit {
namespace {

// Tokens that look at the cache together, and positions that they look at before they go on: scores, exponentials and
// what is weighted stay in a core's own cache.
constexpr int64_t GROUP = 4 * TILE_TOKENS;
constexpr int64_t PANEL = 256;
// Some more than the tokens of a group: see sums_stride.
constexpr int64_t STRIDE = GROUP + TILE_TOKENS;

// Numbers as the products take them, followed by zeros up to a multiple of 32.
void convert(const float* x, int64_t count, uint16_t* out) { kernels().round(x, count, out); }
void convert(const float* x, int64_t count, float* out) {
    std::fill(std::copy_n(x, count, out), out + in_tiles(count), 0.0f);
}

}  // namespace

template <typename Number>
void Prompt<Number>::reserve_attention(int threads) const {
    scratch_.queries.resize(threads);
    scratch_.attention.resize(threads);
    for (const Layer& layer : model_.layers) {
        const Attention& attention = layer.attention;
        const int64_t width = in_tiles(attention.head_width), value_rows = in_16s(attention.head_width);
        const int64_t positions = attention.kv_heads * in_tiles(seen());
        scratch_.keys.get(positions * width);
        scratch_.values.get(positions * value_rows);
        for (int thread = 0; thread < threads; ++thread) {
            scratch_.queries[thread].get(tile_blocks(GROUP) * tile_stride(width) + GROUP * PANEL);
            scratch_.attention[thread].get((PANEL + value_rows) * STRIDE + 4 * GROUP);
        }
    }
}

template <typename Number>
void Prompt<Number>::attention(Worker& worker, int64_t index, const ManyInput<Number>& x) const {
    const Attention& part = model_.layers[index].attention;
    const int64_t query_rows = part.query_rows(), stride = part.projected_rows();
    PieceSpace<Number>& space = scratch_.spaces[worker.thread()];
    multiply_many(worker, space, x, count_,
                  {{part.query, projected_, stride, part.query_bias.data},
                   {part.key, projected_ + query_rows, stride, part.key_bias.data},
                   {part.value, projected_ + query_rows + part.key_rows(), stride, part.value_bias.data}});
    worker.each(count_, [&](int64_t token) { write_cache(index, token); });
    gather_cache(worker, index);
    const int64_t groups = (count_ + GROUP - 1) / GROUP;
    // The last groups see most: they come first.
    worker.each(groups * part.heads, [&](int64_t task) {
        attend(index, task % part.heads, groups - 1 - task / part.heads, worker.thread());
    });
    const ManyInput<Number> attended =
        put_many(worker, count_, query_rows, scratch_.forms[index].attended, scratch_.rows,
                 [&](int64_t token) { return attended_ + token * query_rows; });
    multiply_many(worker, space, attended, count_, {{part.output, added_, model_.width, part.output_bias.data}});
}

template <typename Number>
void Prompt<Number>::write_cache(int64_t index, int64_t token) const {
    const Attention& attention = model_.layers[index].attention;
    const float* row = projected_ + token * attention.projected_rows();
    const Heads keys = key_heads(attention, row, scratch_.rope.at(token, attention.rope));
    const Heads values = value_heads(attention, row);
    const int64_t width = cache_.layers()[index].padded_width();
    const int64_t position = start_ + token, page = position / Cache::PAGE, place = position % Cache::PAGE;
    float entry[Cache::MAX_HEAD_WIDTH];
    for (int64_t head = 0; head < attention.kv_heads; ++head) {
        load_heads(keys, head, 1, width, entry);
        vector_ops().write_entry(cache_.keys(index, head, page), place, entry);
        load_heads(values, head, 1, width, entry);
        vector_ops().write_entry(cache_.values(index, head, page), place, entry);
    }
}

// A task is some positions of a head.
template <typename Number>
void Prompt<Number>::gather_cache(Worker& worker, int64_t index) const {
    const Attention& attention = model_.layers[index].attention;
    const int64_t width = in_tiles(attention.head_width), value_rows = in_16s(attention.head_width);
    const int64_t positions = in_tiles(seen()), first = first_unmasked(start_, attention.window);
    constexpr int64_t RUN = 2 * TILE_COLUMNS / sizeof(Number);
    const int64_t begin_of_all = first / TILE_COLUMNS * TILE_COLUMNS, runs = (positions - begin_of_all) / RUN;
    worker.each(runs * attention.kv_heads, [&](int64_t task) {
        const int64_t head = task % attention.kv_heads, begin = begin_of_all + task / attention.kv_heads * RUN;
        Number* keys = scratch_.keys.get(0) + (head * positions + begin) * width;
        Number* values = scratch_.values.get(0) + head * value_rows * positions + begin;
        std::fill_n(keys, RUN * width, Number{0});
        Number rows[RUN][Cache::MAX_HEAD_WIDTH + TILE_COLUMNS];
        for (int64_t i = 0; i < RUN; ++i) {
            if (begin + i >= seen()) {
                std::fill_n(rows[i], value_rows, Number{0});
                continue;
            }
            const int64_t page = (begin + i) / Cache::PAGE, place = (begin + i) % Cache::PAGE;
            float entry[Cache::MAX_HEAD_WIDTH];
            vector_ops().read_entry(cache_.keys(index, head, page), place, entry);
            convert(entry, attention.head_width, keys + i * width);
            vector_ops().read_entry(cache_.values(index, head, page), place, entry);
            convert(entry, attention.head_width, rows[i]);
        }
        for (int64_t c = 0; c < value_rows; ++c) {
            for (int64_t i = 0; i < RUN; ++i) {
                values[c * positions + i] = rows[i][c];
            }
        }
    });
}

template <typename Number>
Tiles<Number> Prompt<Number>::load_queries(const Attention& attention, int64_t head, int64_t first, int64_t count,
                                           int thread) const {
    const int64_t width = in_tiles(attention.head_width);
    Number* tiles = scratch_.queries[thread].get(0);
    const Tiles<Number> queries{tiles, width, tile_blocks(count)};
    float loaded[TILE_TOKENS * (Cache::MAX_HEAD_WIDTH + TILE_COLUMNS)];
    for (int64_t block = 0; block < queries.blocks; ++block) {
        const float* rows[TILE_TOKENS];
        const int64_t begin = first + block * TILE_TOKENS, inside = std::min(TILE_TOKENS, first + count - begin);
        for (int64_t i = 0; i < inside; ++i) {
            const int64_t token = begin + i;
            const float* row = projected_ + token * attention.projected_rows();
            float* query = loaded + i * width;
            load_heads(query_heads(attention, row, scratch_.rope.at(token, attention.rope)), head, 1, width, query);
            for (int64_t c = 0; c < width; ++c) {
                query[c] *= attention.scale;
            }
            rows[i] = query;
        }
        tile_kernels<Number>().pack(rows, inside, width, tiles + block * queries.block_stride());
    }
    return queries;
}

template <typename Number>
void Prompt<Number>::attend(int64_t index, int64_t head, int64_t group, int thread) const {
    const Attention& attention = model_.layers[index].attention;
    const TileKernels<Number>& kernel = tile_kernels<Number>();
    const int64_t first = group * GROUP, count = std::min(GROUP, count_ - first);
    const int64_t width = in_tiles(attention.head_width), value_rows = in_16s(attention.head_width);
    const int64_t positions = in_tiles(seen()), kv_head = head / (attention.queries_per_key());
    const Number* keys = scratch_.keys.get(0) + kv_head * positions * width;
    const Number* values = scratch_.values.get(0) + kv_head * value_rows * positions;

    const Tiles<Number> queries = load_queries(attention, head, first, count, thread);
    Number* exponentials = scratch_.queries[thread].get(0) + tile_blocks(GROUP) * tile_stride(width);
    float* scores = scratch_.attention[thread].get(0);
    float* weighted = scores + PANEL * STRIDE;
    float* running_max = weighted + value_rows * STRIDE;
    float *running_sum = running_max + GROUP, *from = running_sum + GROUP, *to = from + GROUP;
    std::fill_n(weighted, value_rows * STRIDE, 0.0f);
    for (int64_t i = 0; i < GROUP; ++i) {
        const int64_t position = start_ + first + std::min(i, count - 1);
        running_max[i] = MASKED;
        running_sum[i] = 0;
        from[i] = static_cast<float>(first_unmasked(position, attention.window));
        to[i] = static_cast<float>(position);
    }
    const int64_t begin = first_unmasked(start_ + first, attention.window) / TILE_COLUMNS * TILE_COLUMNS;
    const int64_t end = in_tiles(start_ + first + count);
    // Panels end at the same positions wherever the tokens begin, so that no bit depends on how a prompt is cut: what
    // is masked adds zeros.
    for (int64_t panel = begin, rows = 0; panel < end; panel += rows) {
        rows = std::min(PANEL - panel % PANEL, end - panel);
        kernel.multiply(keys + panel * width, width, rows, queries.data, queries.block_stride(), queries.blocks, width,
                        false, scores, STRIDE);
        for (int64_t block = 0; block < queries.blocks; ++block) {
            const int64_t at = block * TILE_TOKENS;
            vector_ops().softmax({scores + at, STRIDE, panel, rows, from + at, to + at, attention.soft_cap,
                                  running_max + at, running_sum + at, weighted + at, value_rows});
            kernel.pack_sums(scores + at, STRIDE, rows, exponentials + block * PANEL * TILE_TOKENS);
        }
        kernel.multiply(values + panel, positions, value_rows, exponentials, PANEL * TILE_TOKENS, queries.blocks, rows,
                        true, weighted, STRIDE);
    }
    for (int64_t c = 0; c < attention.head_width; ++c) {
        for (int64_t i = 0; i < count; ++i) {
            weighted[c * STRIDE + i] /= running_sum[i];
        }
    }
    for (int64_t block = 0; block < queries.blocks; ++block) {
        const int64_t at = block * TILE_TOKENS;
        kernel.unpack(weighted + at, STRIDE, attention.head_width, std::min(TILE_TOKENS, count - at),
                      attended_ + (first + at) * attention.query_rows() + head * attention.head_width,
                      attention.query_rows());
    }
}

template void Prompt<float>::reserve_attention(int) const;
template void Prompt<uint16_t>::reserve_attention(int) const;
template void Prompt<float>::attention(Worker&, int64_t, const ManyInput<float>&) const;
template void Prompt<uint16_t>::attention(Worker&, int64_t, const ManyInput<uint16_t>&) const;

}  // namespace moekit
