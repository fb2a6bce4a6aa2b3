// A task is one key head of one sequence with all its queries. Some tokens at a time meet all positions that they see:
// their scores stay in a core's own cache, and products skip what lies behind them.
//
// Products are of rows with tiles (kernels/tiles.h): the lanes of a tile are either its rows' positions, to be scored,
// or the numbers of a head, to be mixed.
#include "training/self_attention.h"

#include <algorithm>
#include <type_traits>
#include <vector>

#include "kernels/kernels.h"
#include "kernels/many_rows.h"
#include "kernels/pool.h"
#include "kernels/tiles.h"
#include "kernels/worker.h"
#include "training/attention.h"

namespace moekit {
namespace {

// Tokens that are computed together: as few as a tile has columns, since what lies behind the last is computed for all.
constexpr int64_t GROUP = TILE_COLUMNS;

// A thread's memory for one head of one sequence. Sums lie some numbers more than a power of 2 apart: see sums_stride.
template <typename Number>
struct Space {
    Aligned<float> rows, scores, grad_scores, sums, key_sums, value_sums, transposed;
    Aligned<Number> key_tiles, value_tiles, mixing_tiles, score_tiles, queries, grads, shares, queries_across,
        grads_across;
};

template <typename Storage, typename Number>
class Head {
   public:
    Head(const SelfAttention& shape, Space<Number>& space, const Storage* projected, int64_t sequence, int64_t kv_head)
        : shape_(shape),
          space_(space),
          tokens_(in_tiles(shape.tokens)),
          width_(in_tiles(shape.width)),
          sequence_(sequence),
          kv_head_(kv_head),
          projected_(projected + sequence * shape.tokens * shape.projected()) {}

    void forward(Storage* mixed) {
        float* rows = space_.rows.get(tokens_ * width_);
        read(key_column(), 0, tokens_, rotation(), rows);
        const Number* keys = pack_positions(rows, space_.key_tiles);
        read(value_column(), 0, tokens_, {}, rows);
        const Number* values = pack_across(rows, space_.mixing_tiles);
        mixed += sequence_ * shape_.tokens * shape_.heads * shape_.width;
        each_group([&](int64_t head, const ScoreRows& seen) {
            const Number* queries = read_numbers(head * shape_.width, seen.first, rotation());
            score(queries, keys, seen, seen.scores);
            const int64_t stride = tokens_ + TILE_COLUMNS;
            Number* shares = space_.shares.get(GROUP * stride);
            table().of(shares).softmax(seen, shares, stride);
            const float* sums = mix(shares, stride, values, seen);
            write(sums, seen.first, {}, mixed + head * shape_.width, shape_.heads * shape_.width);
        });
    }

    void backward(const Storage* grad_mixed, Storage* grad_projected) {
        float* rows = space_.rows.get(tokens_ * width_);
        read(value_column(), 0, tokens_, {}, rows);
        const Number* values = pack_positions(rows, space_.value_tiles);
        read(key_column(), 0, tokens_, rotation(), rows);
        const Number* keys = pack_positions(rows, space_.key_tiles);
        const Number* keys_across = pack_across(rows, space_.mixing_tiles);
        float *key_sums = space_.key_sums.get(width_ * sums_stride()),
              *value_sums = space_.value_sums.get(width_ * sums_stride()),
              *grad_shares = space_.grad_scores.get(GROUP * sums_stride());
        std::fill_n(key_sums, width_ * sums_stride(), 0.0f);
        std::fill_n(value_sums, width_ * sums_stride(), 0.0f);
        const int64_t mixed_row = shape_.heads * shape_.width, projected_row = shape_.projected();
        grad_mixed += sequence_ * shape_.tokens * mixed_row;
        grad_projected += sequence_ * shape_.tokens * projected_row;
        each_group([&](int64_t head, const ScoreRows& seen) {
            float* loaded = space_.rows.get(0);
            read(head * shape_.width, seen.first, GROUP, rotation(), loaded);
            const Number* queries = convert(loaded, space_.queries);
            const Number* queries_across = transpose(loaded, space_.queries_across);
            read(grad_mixed + head * shape_.width, mixed_row, seen.first, GROUP, {}, loaded);
            const Number* grads = convert(loaded, space_.grads);
            const Number* grads_across = transpose(loaded, space_.grads_across);

            score(queries, keys, seen, seen.scores);
            score(grads, values, seen, grad_shares);
            Number* grad_scores = nullptr;
            int64_t stride = sums_stride();
            if constexpr (std::is_same_v<Number, float>) {
                grad_scores = grad_shares;
                table().of(grad_scores).gradient(seen, grad_shares, nullptr, 0);
            } else {
                stride = tokens_ + TILE_COLUMNS;
                grad_scores = space_.shares.get(GROUP * stride);
                table().of(grad_scores).gradient(seen, grad_shares, grad_scores, stride);
            }
            const float* sums = mix(grad_scores, stride, keys_across, seen);
            write(sums, seen.first, rotation().back(), grad_projected + head * shape_.width, projected_row);
            add(grads_across, seen.scores, seen, value_sums);
            add(queries_across, grad_shares, seen, key_sums);
        });
        write_positions(key_sums, rotation().back(), grad_projected + key_column(), projected_row);
        write_positions(value_sums, {}, grad_projected + value_column(), projected_row);
    }

   private:
    static const AttentionTable& table() { return training_table<AttentionTable>(); }
    static const TileKernels<Number>& products() { return tile_kernels<Number>(); }

    int64_t key_column() const { return (shape_.heads + kv_head_) * shape_.width; }
    int64_t value_column() const { return (shape_.heads + shape_.kv_heads + kv_head_) * shape_.width; }
    int64_t sums_stride() const { return tokens_ + TILE_TOKENS; }
    Rotation rotation() const { return {shape_.cosine, shape_.sine, 1}; }

    // use(head, seen) for each query head of this key head, and each group of tokens.
    template <typename Use>
    void each_group(Use use) {
        float* scores = space_.scores.get(GROUP * sums_stride());
        const int64_t shared = shape_.heads / shape_.kv_heads;
        for (int64_t head = kv_head_ * shared; head < (kv_head_ + 1) * shared; ++head) {
            for (int64_t first = 0; first < shape_.tokens; first += GROUP) {
                const int64_t oldest = std::max<int64_t>(0, first - shape_.window + 1);
                const int64_t begin = oldest / TILE_COLUMNS * TILE_COLUMNS;
                use(head, ScoreRows{scores, sums_stride(), first, GROUP, begin, first + GROUP - begin, shape_.window,
                                    shape_.scale});
            }
        }
    }

    // Rows of a head as fp32, zeros behind them and below the last token.
    void read(const Storage* from, int64_t stride, int64_t first, int64_t count, Rotation rotation, float* rows) const {
        const int64_t inside = std::min(count, shape_.tokens - first);
        table().move(from, rows)(from + first * stride, stride, inside, shape_.width,
                                 rotation.from(first, shape_.width), width_, rows, width_);
        std::fill(rows + inside * width_, rows + count * width_, 0.0f);
    }
    void read(int64_t column, int64_t first, int64_t count, Rotation rotation, float* rows) const {
        read(projected_ + column, shape_.projected(), first, count, rotation, rows);
    }

    // A group's rows as Numbers.
    const Number* read_numbers(int64_t column, int64_t first, Rotation rotation) {
        Number* rows = space_.queries.get(GROUP * width_);
        const int64_t stride = shape_.projected(), inside = std::min(GROUP, shape_.tokens - first);
        const Storage* from = projected_ + column;
        table().move(from, rows)(from + first * stride, stride, inside, shape_.width,
                                 rotation.from(first, shape_.width), width_, rows, width_);
        std::fill(rows + inside * width_, rows + GROUP * width_, Number{0});
        return rows;
    }

    const Number* convert(const float* rows, Aligned<Number>& to) {
        Number* numbers = to.get(GROUP * width_);
        round(rows, GROUP * width_, numbers);
        return numbers;
    }

    // A group's rows (GROUP, width) as (width, GROUP).
    const Number* transpose(const float* rows, Aligned<Number>& to) {
        float* across = space_.transposed.get(width_ * GROUP);
        for (int64_t column = 0; column < width_; column += TILE_TOKENS) {
            products().unpack(rows + column, width_, GROUP, TILE_TOKENS, across + column * GROUP, GROUP);
        }
        Number* numbers = to.get(width_ * GROUP);
        round(across, width_ * GROUP, numbers);
        return numbers;
    }

    static void round(const float* from, int64_t count, uint16_t* to) { kernels().round(from, count, to); }
    static void round(const float* from, int64_t count, float* to) { std::copy_n(from, count, to); }

    // Tiles whose lanes are positions.
    const Number* pack_positions(const float* rows, Aligned<Number>& to) {
        Number* tiles = to.get(tokens_ / TILE_TOKENS * tile_stride(width_));
        for (int64_t block = 0; block < tokens_ / TILE_TOKENS; ++block) {
            const float* of[TILE_TOKENS];
            for (int64_t i = 0; i < TILE_TOKENS; ++i) {
                of[i] = rows + (block * TILE_TOKENS + i) * width_;
            }
            products().pack(of, TILE_TOKENS, width_, tiles + block * tile_stride(width_));
        }
        return tiles;
    }

    // Tiles whose lanes are the numbers of a head.
    const Number* pack_across(const float* rows, Aligned<Number>& to) {
        Number* tiles = to.get(width_ / TILE_TOKENS * tile_stride(tokens_));
        for (int64_t block = 0; block < width_ / TILE_TOKENS; ++block) {
            products().pack_sums(rows + block * TILE_TOKENS, width_, tokens_, tiles + block * tile_stride(tokens_));
        }
        return tiles;
    }

    // scores = rows . positions, those that are seen.
    void score(const Number* rows, const Number* positions, const ScoreRows& seen, float* scores) {
        products().multiply(rows, width_, GROUP, positions + seen.begin / TILE_TOKENS * tile_stride(width_),
                            tile_stride(width_), seen.columns / TILE_TOKENS, width_, false, scores, seen.stride);
    }

    // A group's rows of a head: shares . rows of the positions.
    const float* mix(const Number* shares, int64_t stride, const Number* across, const ScoreRows& seen) {
        float* sums = space_.sums.get(GROUP * width_);
        products().multiply(shares, stride, GROUP, across + seen.begin * TILE_TOKENS, tile_stride(tokens_),
                            width_ / TILE_TOKENS, seen.columns, false, sums, width_);
        return sums;
    }

    // sums (width, positions) += rows across (width, GROUP) . shares (GROUP, positions)
    void add(const Number* across, const float* shares, const ScoreRows& seen, float* sums) {
        Number* tiles = space_.score_tiles.get(tokens_ / TILE_TOKENS * tile_stride(GROUP));
        for (int64_t block = 0; block < seen.columns / TILE_TOKENS; ++block) {
            products().pack_sums(shares + block * TILE_TOKENS, seen.stride, GROUP, tiles + block * tile_stride(GROUP));
        }
        products().multiply(across, GROUP, width_, tiles, tile_stride(GROUP), seen.columns / TILE_TOKENS, GROUP, true,
                            sums + seen.begin, sums_stride());
    }

    void write(const float* sums, int64_t first, Rotation rotation, Storage* to, int64_t stride) const {
        const int64_t inside = std::min(GROUP, shape_.tokens - first);
        table().move(sums, to)(sums, width_, inside, shape_.width, rotation.from(first, shape_.width), shape_.width,
                               to + first * stride, stride);
    }

    void write_positions(const float* sums, Rotation rotation, Storage* to, int64_t stride) {
        float* rows = space_.rows.get(0);
        for (int64_t position = 0; position < tokens_; position += TILE_TOKENS) {
            products().unpack(sums + position, sums_stride(), width_, TILE_TOKENS, rows + position * width_, width_);
        }
        table().move(rows, to)(rows, width_, shape_.tokens, shape_.width, rotation, shape_.width, to, stride);
    }

    const SelfAttention& shape_;
    Space<Number>& space_;
    int64_t tokens_, width_;  // in whole tiles
    int64_t sequence_, kv_head_;
    const Storage* projected_;
};

template <typename Storage, typename Number, typename Use>
void each_head(const SelfAttention& shape, const Storage* projected, Use use) {
    std::vector<Space<Number>> spaces;
    TaskCounters counters;
    Pool& pool = Pool::shared();
    counters.reset();
    pool.run([&](int threads) { spaces.resize(threads); },
             [&](int thread, int threads) {
                 Worker worker(pool, counters, thread, threads);
                 worker.share(shape.batch * shape.kv_heads, [&](int64_t task) {
                     use(Head<Storage, Number>(shape, spaces[thread], projected, task / shape.kv_heads,
                                               task % shape.kv_heads));
                 });
             });
}

// use(Number{}) with what products multiply.
template <typename Storage, typename Use>
void with_number(Use use) {
    if (std::is_same_v<Storage, uint16_t> && multiplies_bf16()) {
        use(uint16_t{});
    } else {
        use(float{});
    }
}

}  // namespace

template <typename Storage>
void attend(const SelfAttention& shape, const Storage* projected, Storage* mixed) {
    with_number<Storage>([&](auto number) {
        each_head<Storage, decltype(number)>(shape, projected, [&](auto head) { head.forward(mixed); });
    });
}

template <typename Storage>
void attend_backward(const SelfAttention& shape, const Storage* projected, const Storage* grad_mixed,
                     Storage* grad_projected) {
    with_number<Storage>([&](auto number) {
        each_head<Storage, decltype(number)>(shape, projected,
                                             [&](auto head) { head.backward(grad_mixed, grad_projected); });
    });
}

template void attend(const SelfAttention&, const float*, float*);
template void attend(const SelfAttention&, const uint16_t*, uint16_t*);
template void attend_backward(const SelfAttention&, const float*, const float*, float*);
template void attend_backward(const SelfAttention&, const uint16_t*, const uint16_t*, uint16_t*);

}  // namespace moekit
