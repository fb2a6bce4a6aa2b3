#include "decoder/prompt.h"

#include <algorithm>

#include "kernels/kernels.h"

namespace moekit {

template <typename Number>
Prompt<Number>::Prompt(const DecoderShape& shape, const std::vector<Layer>& layers, PromptScratch<Number>& scratch,
                       Cache& cache, const int64_t* tokens, int64_t count)
    : shape_(shape),
      layers_(layers),
      scratch_(scratch),
      cache_(cache),
      tokens_(tokens),
      count_(count),
      start_(cache.length()),
      residual_(scratch.residual.get(count * shape.width)),
      normed_(scratch.normed.get(count * shape.width)),
      added_(scratch.added.get(count * shape.width)),
      projected_(scratch.projected.get(count * projected_rows())),
      attended_(scratch.attended.get(count * query_rows())),
      tiles_(scratch.tiles.get(tile_blocks(count) * tile_stride(std::max(shape.width, query_rows())))) {}

template <typename Number>
void Prompt<Number>::reserve(int threads) const {
    scratch_.counters.reset();
    scratch_.cosine.resize(count_ * pairs());
    scratch_.sine.resize(count_ * pairs());
    scratch_.spaces.resize(threads);
    for (PieceSpace<Number>& space : scratch_.spaces) {
        space.reserve(count_);
    }
    reserve_attention(threads);
    const int64_t blocks = tile_blocks(count_);
    for (const Layer& layer : layers_) {
        // Every expert's last block may hold a single token.
        const int64_t used = layer.experts ? tile_blocks(count_ * layer.top_k) + layer.experts : blocks;
        scratch_.hidden.get(used * tile_stride(layer.ffn.hidden()));
        if (layer.experts) {
            scratch_.routed.get(used * tile_stride(shape_.width));
            scratch_.expert_added.get(count_ * layer.top_k * shape_.width);
            scratch_.router_logits.get(count_ * layer.experts);
            scratch_.places.resize(std::max<size_t>(scratch_.places.size(), count_ * layer.top_k));
            scratch_.placed.reserve(count_);
            scratch_.blocks.reserve(layer.experts);
            scratch_.routes.reserve(layer.experts, count_ * layer.top_k);
        }
        if (layer.has_shared_expert()) {
            scratch_.shared_hidden.get(blocks * tile_stride(layer.shared_expert.hidden()));
            scratch_.shared_added.get(count_ * shape_.width);
            scratch_.shared_expert_gate.get(count_);
        }
    }
}

template <typename Number>
void Prompt<Number>::run(Worker& worker) const {
    worker.each(count_, [&](int64_t token) {
        embed(shape_, tokens_[token], residual_ + token * shape_.width, added_ + token * shape_.width);
        set_rope_angles(shape_, start_ + token, scratch_.cosine.data() + token * pairs(),
                        scratch_.sine.data() + token * pairs());
    });
    const float* post_norm = nullptr;
    for (int64_t index = 0; index < static_cast<int64_t>(layers_.size()); ++index) {
        const Layer& layer = layers_[index];
        attention(worker, index, norm(worker, post_norm, layer.attention_norm));
        const Tiles<Number> x = norm(worker, layer.attention_post_norm, layer.ffn_norm);
        if (layer.experts) {
            moe_ffn(worker, layer, x);
        } else {
            dense_ffn(worker, layer.ffn, x, scratch_.hidden, added_);
        }
        post_norm = layer.ffn_post_norm;
    }
}

template <typename Number>
void Prompt<Number>::norm_last(Worker& worker, float* normed) const {
    if (worker.thread() == 0) {
        const int64_t at = (count_ - 1) * shape_.width;
        add_block(shape_, layers_.back().ffn_post_norm, added_ + at, residual_ + at);
        rms_norm(residual_ + at, shape_.norm, shape_.width, shape_.norm_eps, normed);
    }
    worker.barrier();
}

template <typename Number>
Tiles<Number> Prompt<Number>::norm(Worker& worker, const float* post_norm, const float* norm) const {
    const Tiles<Number> x{tiles_, shape_.width, tile_blocks(count_)};
    worker.each(x.blocks, [&](int64_t block) {
        const float* rows[TILE_TOKENS];
        const int64_t begin = block * TILE_TOKENS, count = std::min(TILE_TOKENS, count_ - begin);
        for (int64_t i = 0; i < count; ++i) {
            const int64_t at = (begin + i) * shape_.width;
            add_block(shape_, post_norm, added_ + at, residual_ + at);
            float* normed = normed_ + at;
            rms_norm(residual_ + at, norm, shape_.width, shape_.norm_eps, normed);
            rows[i] = normed;
        }
        tile_kernels<Number>().pack(rows, count, shape_.width, tiles_ + block * x.block_stride());
    });
    return x;
}

template class Prompt<float>;
template class Prompt<uint16_t>;

}  // namespace moekit
