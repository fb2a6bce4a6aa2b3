// The operations of training steps: in the instruction set in use against the portable ones, on widths that are no
// whole vectors.
#include <cstdint>
#include <cstring>
#include <vector>

#include "checks.h"
#include "kernels/kernels.h"
#include "training/activation.h"

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

}  // namespace

void test_training() { check_activation(training_table<ActivationTable>()); }

}  // namespace moekit::tests
