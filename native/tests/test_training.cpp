// The operations of training steps: in the instruction set in use against the portable ones, on widths that are no
// whole vectors.
#include <cstdint>
#include <cstring>
#include <vector>

#include "checks.h"
#include "kernels/kernels.h"
#include "kernels/pool.h"
#include "training/activation.h"
#include "training/experts.h"

namespace moekit::tests {
namespace {

std::vector<float> numbers(size_t count, float scale) {
    std::vector<float> out(count);
    uint32_t state = 1;
    for (float& x : out) {
        state = state * 1664525u + 1013904223u;
        x = scale * (static_cast<float>(state >> 8) / 8388608.0f - 1.0f);
    }
    return out;
}

std::vector<uint16_t> to_bf16(const std::vector<float>& x) {
    std::vector<uint16_t> out(x.size());
    for (size_t i = 0; i < x.size(); ++i) {
        uint32_t bits;
        std::memcpy(&bits, &x[i], 4);
        out[i] = static_cast<uint16_t>(bits >> 16);
    }
    return out;
}

std::vector<float> to_floats(const std::vector<uint16_t>& x) {
    std::vector<float> out(x.size());
    for (size_t i = 0; i < x.size(); ++i) {
        const uint32_t bits = static_cast<uint32_t>(x[i]) << 16;
        std::memcpy(&out[i], &bits, 4);
    }
    return out;
}

void check_activation(const ActivationTable& passes) {
    constexpr int64_t ROWS = 3;
    constexpr double TOLERANCE = 1e-2;
    const ActivationTable& portable = portable::ACTIVATION;
    const std::vector<uint16_t> x = to_bf16(numbers(300, 3)), grad = to_bf16(numbers(150, 1));
    for (const int64_t width : {1, 16, 35}) {
        for (int function = 0; function < 4; ++function) {
            for (const bool gated : {false, true}) {
                const auto chosen = static_cast<ActivationFunction>(function);
                const int64_t columns = gated ? 2 * width : width;
                std::vector<uint16_t> y(ROWS * width), expected(ROWS * width);
                passes.forward(chosen, gated, x.data(), ROWS, width, y.data());
                portable.forward(chosen, gated, x.data(), ROWS, width, expected.data());
                CHECK(difference(to_floats(y), to_floats(expected)) < TOLERANCE);
                std::vector<uint16_t> grad_x(ROWS * columns), grad_expected(ROWS * columns);
                passes.backward(chosen, gated, grad.data(), x.data(), ROWS, width, grad_x.data());
                portable.backward(chosen, gated, grad.data(), x.data(), ROWS, width, grad_expected.data());
                CHECK(difference(to_floats(grad_x), to_floats(grad_expected)) < TOLERANCE);
            }
        }
    }
}

// A layer's results, one after the other: y, and the gradients of x, of the assignments' weights, of both matrices and
// both biases. Experts 1 and 3 are idle; widths are no whole vectors; token 2 has no assignment.
std::vector<float> layer_results(bool fp32, bool gated) {
    constexpr int64_t TOKENS = 5, ROWS = 9, WIDTH = 18, HIDDEN = 34, EXPERTS = 4;
    const int64_t offsets[EXPERTS + 1] = {0, 3, 3, 9, 9};
    const int64_t token[ROWS] = {0, 1, 4, 0, 0, 1, 3, 3, 4}, slot[ROWS] = {0, 3, 4, 1, 5, 6, 7, 2, 8};
    const int64_t token_offset[TOKENS] = {0, 3, 5, 5, 7};
    const ExpertShape shape = {WIDTH, HIDDEN, gated, ActivationFunction::Silu};
    const int64_t columns = shape.gate_up();
    std::vector<float> gate_up = numbers(EXPERTS * columns * WIDTH, 0.5f),
                       down = numbers(EXPERTS * WIDTH * HIDDEN, 0.5f);
    std::vector<uint16_t> gate_up_bf16 = to_bf16(gate_up), down_bf16 = to_bf16(down);
    const auto weights = [&](std::vector<float>& floats, std::vector<uint16_t>& bf16) -> Parameters {
        return fp32 ? Parameters{floats.data(), true} : Parameters{bf16.data(), false};
    };
    const std::vector<float> gate_up_bias = numbers(EXPERTS * columns, 1), down_bias = numbers(EXPERTS * WIDTH, 1);
    const std::vector<float> weight = numbers(ROWS, 1);
    const std::vector<uint16_t> x = to_bf16(numbers(TOKENS * WIDTH, 1)), grad_y = to_bf16(numbers(TOKENS * WIDTH, 1));
    std::vector<uint16_t> saved(ROWS * columns), rows(ROWS * WIDTH), y(TOKENS * WIDTH), grad_x(TOKENS * WIDTH);
    run_forward({shape, EXPERTS, offsets, weights(gate_up, gate_up_bf16), weights(down, down_bf16), gate_up_bias.data(),
                 down_bias.data(), x.data(), token, weight.data(), saved.data(), rows.data(), true, slot, token_offset,
                 TOKENS, y.data()});
    std::vector<float> grad_weight(ROWS), grad_gate_up_bias(EXPERTS * columns), grad_down_bias(EXPERTS * WIDTH);
    std::vector<float> grad_gate_up(gate_up.size()), grad_down(down.size());
    std::vector<uint16_t> grad_gate_up_bf16(gate_up.size()), grad_down_bf16(down.size());
    run_backward({shape,
                  EXPERTS,
                  offsets,
                  weights(gate_up, gate_up_bf16),
                  weights(down, down_bf16),
                  down_bias.data(),
                  grad_y.data(),
                  x.data(),
                  token,
                  weight.data(),
                  saved.data(),
                  grad_weight.data(),
                  rows.data(),
                  true,
                  slot,
                  token_offset,
                  TOKENS,
                  grad_x.data(),
                  weights(grad_gate_up, grad_gate_up_bf16),
                  weights(grad_down, grad_down_bf16),
                  grad_gate_up_bias.data(),
                  grad_down_bias.data()});
    std::vector<float> all = to_floats(y);
    const auto add = [&](const std::vector<float>& more) { all.insert(all.end(), more.begin(), more.end()); };
    add(to_floats(grad_x));
    add(grad_weight);
    add(fp32 ? grad_gate_up : to_floats(grad_gate_up_bf16));
    add(fp32 ? grad_down : to_floats(grad_down_bf16));
    add(grad_gate_up_bias);
    add(grad_down_bias);
    return all;
}

// The instruction set in use against the portable one, and threads against one another, which differ in no bit.
void check_experts(const char* name) {
    for (const bool fp32 : {false, true}) {
        for (const bool gated : {false, true}) {
            CHECK(select_kernels("portable"));
            const std::vector<float> expected = layer_results(fp32, gated);
            CHECK(select_kernels(name));
            Pool::shared().set_threads(1);
            const std::vector<float> alone = layer_results(fp32, gated);
            CHECK(difference(alone, expected) < 1e-2);
            Pool::shared().set_threads(3);
            CHECK(layer_results(fp32, gated) == alone);
        }
    }
}

}  // namespace

void test_training(const char* name) {
    check_activation(training_table<ActivationTable>());
    check_experts(name);
}

}  // namespace moekit::tests
