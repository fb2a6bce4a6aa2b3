// A layer's experts forward and backward in bf16, sums in fp32: a dense feed-forward network is one expert of all rows.
//
// Legend: T tokens, S rows of one expert (its assignments), D model width, F expert width, G = 2 F (gate, then up) or
// F (up alone), E experts. D and F are even.
#pragma once

#include <cstdint>

#include "kernels/vector_ops.h"
#include "training/tables.h"

namespace moekit {

struct ExpertShape {
    int64_t width;   // D
    int64_t hidden;  // F
    bool gated;
    ActivationFunction function;

    int64_t gate_up() const { return gated ? 2 * hidden : hidden; }
};

// A matrix of parameters, or of their gradients: fp32, or else bf16.
struct Parameters {
    void* data;
    bool fp32;

    Parameters from(int64_t number) const { return {static_cast<char*>(data) + number * (fp32 ? 4 : 2), fp32}; }
};

// One expert's matrices as right sides (training/pairs.h), and how many words they take.
struct ExpertRight {
    uint32_t* gate_up;
    uint32_t* down;
};

// What an expert computes of its rows. Row i is that of token[i], or row i where there are no tokens.
struct ForwardRows {
    ExpertShape shape;
    ExpertRight weights;
    const float* gate_up_bias;  // G, or null
    const float* down_bias;     // D, or null
    const uint16_t* x;          // (T, D)
    const int64_t* token;       // S, or null
    const float* weight;        // S factors on the output, or null for 1
    uint16_t* gate_up;          // (S, G) for backward, or null
    uint16_t* y;                // (S, D)
};

// The sides of an expert's weight gradients, which are products over its rows: of gate_up (G, D) the gradient of its
// outputs and x, of down (D, F) the gradient of y and the weighted hidden rows. With biases the right sides have one
// more column, whose product is the bias's gradient: ones, and the rows' weights.
struct GradientSides {
    uint32_t* gate_up_left;
    uint32_t* gate_up_right;
    uint32_t* down_left;
    uint32_t* down_right;
};

struct BackwardRows {
    ExpertShape shape;
    ExpertRight weights;
    const float* down_bias;   // D, or null
    const uint16_t* grad_y;   // (T, D)
    const uint16_t* x;        // (T, D)
    const int64_t* token;     // S, or null
    const float* weight;      // S, or null
    const uint16_t* gate_up;  // (S, G) from forward
    int64_t rows;             // S
    float* grad_weight;       // S, or null
    uint16_t* grad_x;         // (S, D), or null
    bool grad_gate_up_bias;   // whether gradients of the biases are wanted
    bool grad_down_bias;
    GradientSides sides;  // null where no weight gradients are wanted
};

// A weight gradient (rows, columns) and that of its bias, of `pairs` pairs of rows.
struct WeightGradient {
    const uint32_t* left;
    const uint32_t* right;
    int64_t pairs;
    int64_t rows;
    int64_t columns;
    Parameters gradient;
    float* bias;  // `rows`, or null
};

struct ExpertsTable {
    // How many words a right side of so many inner rows and columns takes; gated: gate and up are vectors in turns.
    int64_t (*right_words)(int64_t inner, int64_t columns, bool gated);
    int64_t (*left_words)(int64_t rows, int64_t columns);
    // Packing the weights for the products of forward or of backward: one of so many pieces.
    int64_t (*forward_pieces)(const ExpertShape&);
    void (*pack_forward)(const ExpertShape&, Parameters gate_up, Parameters down, int64_t piece, const ExpertRight&);
    int64_t (*backward_pieces)(const ExpertShape&);
    void (*pack_backward)(const ExpertShape&, Parameters gate_up, Parameters down, int64_t piece, const ExpertRight&);
    // Rows begin to end, begin even. room: (end - begin) * F numbers forward, (end - begin) * (F + G) backward.
    void (*forward)(const ForwardRows&, int64_t begin, int64_t end, uint16_t* room);
    void (*backward)(const BackwardRows&, int64_t begin, int64_t end, uint16_t* room);
    // Rows begin to end of the gradient in eights.
    void (*weight_gradient)(const WeightGradient&, int64_t begin, int64_t end);
    // sums[t] = rows of `width` numbers added up: those that slot has from offset[t] to offset[t + 1], or to `slots`.
    void (*sum_by_token)(const uint16_t* rows, int64_t width, const int64_t* slot, int64_t slots, const int64_t* offset,
                         int64_t tokens, int64_t begin, int64_t end, uint16_t* sums);
};

MOEKIT_TRAINING_TABLE(ExpertsTable, EXPERTS)

// All experts of a layer. What is a pointer may be null where the comment above says so.
struct LayerForward {
    ExpertShape shape;
    int64_t experts;
    const int64_t* offsets;  // E + 1: expert e has the rows from offsets[e] to offsets[e + 1]
    Parameters gate_up;      // (E, G, D)
    Parameters down;         // (E, D, F)
    const float* gate_up_bias;
    const float* down_bias;
    const uint16_t* x;
    const int64_t* token;
    const float* weight;
    uint16_t* saved_gate_up;
    uint16_t* rows;    // all experts' rows (S, D); y itself where there are no tokens
    bool sums_tokens;  // the sum of each token's rows; else none of these
    const int64_t* slot;
    const int64_t* token_offset;
    int64_t tokens;
    uint16_t* y;  // (T, D)
};

struct LayerBackward {
    ExpertShape shape;
    int64_t experts;
    const int64_t* offsets;
    Parameters gate_up;
    Parameters down;
    const float* down_bias;
    const uint16_t* grad_y;
    const uint16_t* x;
    const int64_t* token;
    const float* weight;
    const uint16_t* saved_gate_up;
    float* grad_weight;
    uint16_t* grad_rows;  // (S, D), or null where no gradient of x is wanted
    bool sums_tokens;
    const int64_t* slot;
    const int64_t* token_offset;
    int64_t tokens;
    uint16_t* grad_x;         // (T, D)
    Parameters grad_gate_up;  // null data where weight gradients are not wanted
    Parameters grad_down;
    float* grad_gate_up_bias;  // (E, G), or null
    float* grad_down_bias;     // (E, D), or null
};

// The number of threads changes no bit of what they compute. std::bad_alloc where there is no memory for scratch.
void run_forward(const LayerForward& layer);
void run_backward(const LayerBackward& layer);

}  // namespace moekit
