#include "decoder/model.h"

#include <stdexcept>
#include <string>

#include "decoder/cache.h"

namespace moekit {
namespace {

// The shapes of one part, such as a layer, whose name stands before those of its matrices in messages.
class Checks {
   public:
    explicit Checks(std::string part) : part_(std::move(part)) {}

    void matrix(const std::string& name, const Matrix& matrix, int64_t rows, int64_t columns) const {
        if (!matrix.data) {
            fail("the matrix " + name + " is missing");
        }
        if (matrix.rows != rows || matrix.columns != columns) {
            fail(name + " is " + shape(matrix.rows, matrix.columns) + " where " + shape(rows, columns) + " are needed");
        }
    }

    void optional(const std::string& name, const Vector& vector, int64_t count) const {
        if (vector.data && vector.count != count) {
            fail(name + " has " + std::to_string(vector.count) + " numbers where " + std::to_string(count) +
                 " are needed");
        }
    }

    void norm(const std::string& name, const Norm& norm, int64_t count) const {
        if (!norm) {
            fail("the norm " + name + " is missing");
        }
        optional(name, norm.weight, count);
    }

    void that(bool holds, const std::string& sentence) const {
        if (!holds) {
            fail(sentence);
        }
    }

   private:
    static std::string shape(int64_t rows, int64_t columns) {
        return std::to_string(rows) + " x " + std::to_string(columns);
    }

    [[noreturn]] void fail(const std::string& sentence) const { throw std::invalid_argument(part_ + sentence); }

    std::string part_;
};

void check_attention(const Checks& checks, const Attention& attention, const Model& model) {
    const int64_t queries = attention.query_rows(), keys = attention.key_rows(), width = attention.head_width;
    checks.that(attention.kv_heads > 0 && attention.heads > 0 && attention.heads % attention.kv_heads == 0,
                "query heads must be a multiple of key heads");
    checks.that(width > 0 && width <= Cache::MAX_HEAD_WIDTH,
                "heads are at most " + std::to_string(Cache::MAX_HEAD_WIDTH) + " numbers wide");
    checks.matrix("query", attention.query, queries, model.width);
    checks.matrix("key", attention.key, keys, model.width);
    checks.matrix("value", attention.value, keys, model.width);
    checks.matrix("output", attention.output, model.width, queries);
    checks.optional("query_bias", attention.query_bias, queries);
    checks.optional("key_bias", attention.key_bias, keys);
    checks.optional("value_bias", attention.value_bias, keys);
    checks.optional("output_bias", attention.output_bias, model.width);
    checks.optional("query_norm", attention.query_norm.weight, attention.norm_all_heads ? queries : width);
    checks.optional("key_norm", attention.key_norm.weight, attention.norm_all_heads ? keys : width);
    if (attention.rope != Attention::NO_ROPE) {
        checks.that(attention.rope >= 0 && attention.rope < static_cast<int64_t>(model.ropes.size()),
                    "its rope is none of the model's");
        checks.that(2 * model.ropes[attention.rope].pairs() == width, "its rope has other pairs than its heads");
    }
    checks.that(attention.window >= 0, "a window cannot be negative");
}

void check_ffn(const Checks& checks, const std::string& prefix, const Ffn& ffn, int64_t experts, int64_t width) {
    const int64_t hidden = ffn.hidden;
    checks.matrix(prefix + "down", ffn.down, experts * width, hidden);
    checks.matrix(prefix + "up", ffn.up, experts * hidden, width);
    if (ffn.gated()) {
        checks.matrix(prefix + "gate", ffn.gate, experts * hidden, width);
    }
}

void check_moe(const Checks& checks, const Moe& moe, int64_t width) {
    checks.that(moe.top_k > 0 && moe.top_k <= moe.experts, "top_k must lie between 1 and the number of experts");
    checks.matrix("router", moe.router, moe.experts, width);
    if (moe.has_shared_expert()) {
        check_ffn(checks, "shared_expert_", moe.shared_expert, 1, width);
    }
    checks.optional("shared_expert_gate", moe.shared_expert_gate, width);
}

}  // namespace

void check(const Model& model) {
    const Checks of_model("");
    of_model.that(model.width > 0 && !model.layers.empty(), "a model has a width and layers");
    of_model.matrix("embedding", model.embedding, model.vocabulary, model.width);
    of_model.matrix("head", model.head, model.vocabulary, model.width);
    of_model.norm("norm", model.norm, model.width);
    for (size_t index = 0; index < model.layers.size(); ++index) {
        const Layer& layer = model.layers[index];
        const Checks checks("layer " + std::to_string(index) + ": ");
        checks.norm("attention_norm", layer.attention_norm, model.width);
        checks.norm("ffn_norm", layer.ffn_norm, model.width);
        checks.optional("attention_post_norm", layer.attention_post_norm.weight, model.width);
        checks.optional("ffn_post_norm", layer.ffn_post_norm.weight, model.width);
        check_attention(checks, layer.attention, model);
        check_ffn(checks, "", layer.ffn, layer.is_moe() ? layer.moe.experts : 1, model.width);
        if (layer.is_moe()) {
            check_moe(checks, layer.moe, model.width);
        }
    }
}

}  // namespace moekit
