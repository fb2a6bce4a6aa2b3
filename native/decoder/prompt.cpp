#include "decoder/prompt.h"

#include <algorithm>

#include "decoder/heads.h"

namespace moekit {
namespace {

template <typename Number>
typename PromptScratch<Number>::Forms forms_of(const Layer& layer) {
    const Attention& attention = layer.attention;
    ManyForms ffn = many_forms(layer.ffn);
    if (layer.moe.has_shared_expert()) {
        ffn.add(in_bytes(layer.moe.shared_expert));
    }
    return {many_forms({&attention.query, &attention.key, &attention.value}), many_forms({&attention.output}), ffn};
}

}  // namespace

template <typename Number>
Prompt<Number>::Prompt(const Model& model, PromptScratch<Number>& scratch, ExpertWaves& waves, StreamedBlocks& blocks,
                       Cache& cache, const int64_t* tokens, int64_t count)
    : model_(model),
      scratch_(scratch),
      waves_(waves),
      blocks_(blocks),
      cache_(cache),
      tokens_(tokens),
      count_(count),
      start_(cache.length()),
      residual_(scratch.residual.get(count * model.width)),
      normed_(scratch.normed.get(count * model.width)),
      added_(scratch.added.get(count * model.width)),
      projected_(scratch.projected.get(count * scratch.sizes.projected)),
      attended_(scratch.attended.get(count * scratch.sizes.attended)) {}

template <typename Number>
void Prompt<Number>::reserve(int threads) const {
    scratch_.counters.reset();
    scratch_.rope.reserve(count_);
    scratch_.spaces.resize(threads);
    const Sizes& sizes = scratch_.sizes;
    for (PieceSpace<Number>& space : scratch_.spaces) {
        space.reserve(count_, std::max({model_.width, sizes.attended, sizes.hidden, sizes.shared_expert}));
    }
    reserve_attention(threads);
    const int64_t blocks = tile_blocks(count_);
    scratch_.forms.clear();
    for (const Layer& layer : model_.layers) {
        const auto& forms = scratch_.forms.emplace_back(forms_of<Number>(layer));
        scratch_.rows.reserve(blocks, count_, model_.width, forms.attention);
        scratch_.rows.reserve(blocks, count_, layer.attention.query_rows(), forms.attended);
        scratch_.rows.reserve(blocks, count_, model_.width, forms.ffn);
        // Every expert's last block may hold a single token.
        const int64_t used = layer.is_moe() ? tile_blocks(count_ * layer.moe.top_k) + layer.moe.experts : blocks;
        const int64_t rows = layer.is_moe() ? count_ * layer.moe.top_k : count_;
        scratch_.hidden.reserve(used, rows, layer.ffn.hidden, many_forms(layer.ffn));
        if (layer.is_moe()) {
            scratch_.routed.reserve(used, rows, model_.width, many_forms(layer.ffn));
            scratch_.expert_added.get(count_ * layer.moe.top_k * model_.width);
            scratch_.router_logits.get(count_ * layer.moe.experts);
            scratch_.places.resize(std::max<size_t>(scratch_.places.size(), count_ * layer.moe.top_k));
            scratch_.placed.reserve(count_);
            scratch_.blocks.reserve(layer.moe.experts);
            scratch_.routes.reserve(layer.moe.experts, count_ * layer.moe.top_k);
        }
        if (layer.moe.has_shared_expert()) {
            const Ffn& shared = layer.moe.shared_expert;
            scratch_.shared_hidden.reserve(blocks, count_, shared.hidden, many_forms(shared));
            scratch_.shared_added.get(count_ * model_.width);
            scratch_.shared_expert_gate.get(count_);
        }
    }
}

template <typename Number>
void Prompt<Number>::run(Worker& worker) const {
    worker.each(count_, [&](int64_t token) {
        embed(model_, tokens_[token], residual_ + token * model_.width, added_ + token * model_.width);
        scratch_.rope.set(token, start_ + token);
    });
    const Norm none;
    const Norm* post_norm = &none;
    for (int64_t index = 0; index < static_cast<int64_t>(model_.layers.size()); ++index) {
        const Layer& layer = model_.layers[index];
        attention(worker, index, norm(worker, *post_norm, index, BlockKind::Attention));
        const ManyInput<Number> x = norm(worker, layer.attention_post_norm, index, BlockKind::Ffn);
        if (layer.is_moe()) {
            moe_ffn(worker, index, x);
        } else {
            dense_ffn(worker, layer.ffn, x, scratch_.hidden, added_);
        }
        post_norm = &layer.ffn_post_norm;
    }
}

template <typename Number>
void Prompt<Number>::norm_tokens(Worker& worker, int64_t begin, int64_t count, float* normed) const {
    worker.each(count, [&](int64_t i) {
        const int64_t at = (begin + i) * model_.width;
        add_residual(model_.layers.back().ffn_post_norm, model_.width, added_ + at, residual_ + at);
        rms_norm(model_.norm, residual_ + at, model_.width, normed + i * model_.width);
    });
}

template <typename Number>
ManyInput<Number> Prompt<Number>::norm(Worker& worker, const Norm& post_norm, int64_t index, BlockKind kind) const {
    const Layer& layer = model_.layers[index];
    const bool before_attention = kind == BlockKind::Attention;
    const Norm& norm = before_attention ? layer.attention_norm : layer.ffn_norm;
    const ManyForms forms = before_attention ? scratch_.forms[index].attention : scratch_.forms[index].ffn;
    if (worker.thread() == 0) {
        // While the others begin.
        blocks_.enter(index, kind);
    }
    return put_many(worker, count_, model_.width, forms, scratch_.rows, [&](int64_t token) {
        const int64_t at = token * model_.width;
        add_residual(post_norm, model_.width, added_ + at, residual_ + at);
        rms_norm(norm, residual_ + at, model_.width, normed_ + at);
        return normed_ + at;
    });
}

template class Prompt<float>;
template class Prompt<uint16_t>;

}  // namespace moekit
