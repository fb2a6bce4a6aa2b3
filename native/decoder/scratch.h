// The memory of a decoder's steps, taken once.
#pragma once

#include <cstdint>
#include <iterator>
#include <vector>

#include "decoder/decoder.h"
#include "decoder/model.h"
#include "decoder/rope.h"
#include "kernels/activations.h"
#include "kernels/worker.h"

namespace moekit {

// Which forms of an input the matrices of a phase need: a bit for each.
using Forms = unsigned;

// Of a matrix that may be missing.
inline Forms forms_of(const Matrix& matrix) {
    return matrix.data ? 1u << static_cast<unsigned>(form_for(matrix.type)) : 0;
}

// An input in the forms it was prepared in, as each thread knows it.
struct Prepared {
    Activations forms[std::size(FORMS)];

    const Activations& of(const Matrix& matrix) const { return forms[static_cast<int>(form_for(matrix.type))]; }
};

// Rows of floats, and the memory for their other forms.
class Input {
   public:
    Input(int64_t max_rows, int64_t max_columns)
        : numbers_(max_rows * max_columns), bf16_(max_rows, max_columns), bytes_(max_rows, max_columns) {}

    float* numbers() { return numbers_.data(); }

    // Rows `from` to `to`; those before are what earlier calls have made of them. By every thread, each doing its
    // share: a barrier must come before, and one before the use.
    Prepared prepare(int64_t from, int64_t to, int64_t columns, Forms forms, int thread, int threads) {
        Prepared prepared;
        for (const Form form : FORMS) {
            ActivationBuffer& buffer = form == Form::BF16 ? bf16_ : bytes_;
            if (forms >> static_cast<unsigned>(form) & 1) {
                prepared.forms[static_cast<int>(form)] =
                    buffer.prepare(numbers(), columns, from, to, columns, form, thread, threads);
            }
        }
        return prepared;
    }

   private:
    std::vector<float> numbers_;
    ActivationBuffer bf16_;
    ActivationBuffer bytes_;
};

// The largest that any layer needs.
struct Sizes {
    explicit Sizes(const Model& model);

    int64_t projected = 1;  // queries, keys and values of a token
    int64_t attended = 1;
    int64_t experts = 1;
    int64_t assignments = Decoder::MAX_BATCH;  // of sequences to experts
    int64_t hidden = 1;
    int64_t shared_expert = 1;
};

// Which sequences go to which expert of a layer, sorted by expert.
struct Routes {
    struct Expert {
        int64_t index;
        int64_t begin;  // its sequences: begin to end in the lists below
        int64_t end;
    };
    std::vector<Expert> experts;  // those that have any
    std::vector<int64_t> sequence;
    std::vector<float> weight;

    void reserve(int64_t most_experts, int64_t assignments);
    // The experts of each of `batch` sequences by their E router logits, which are overwritten: softmax, then the
    // top k.
    void choose(float* logits, int64_t batch, const Moe& moe);

   private:
    void add_choices(float* logits, int64_t of_sequence, const Moe& moe);

    struct Choice {
        int64_t expert;
        int64_t sequence;
        float weight;
    };
    std::vector<Choice> choices_;
    std::vector<int64_t> order_;
};

struct Scratch {
    explicit Scratch(const Model& model);

    TaskCounters counters;
    RopeTable rope;  // of each sequence's position
    std::vector<float> residual;
    std::vector<float> projected;     // queries, keys and values
    std::vector<float> attention;     // the memory of attention's tasks; grows with the longest sequence
    std::vector<float> added;         // what a block adds to the residual stream
    std::vector<float> expert_added;  // what the expert of each assignment adds
    std::vector<float> shared_added;
    std::vector<float> router_logits, shared_expert_gate;
    Input normed, attended;
    Input routed;  // rows of `normed` in the order of the assignments
    Input hidden, shared_hidden;
    Routes routes;
    // The next layer's choice as it would be now.
    std::vector<float> foreseen, foreseen_logits;
    Routes foreseen_routes;

   private:
    Scratch(const Model& model, const Sizes& sizes);
};

}  // namespace moekit
