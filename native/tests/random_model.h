// Random matrices, and models made of them, in memory that ends where they do: sanitizers see what reads beyond.
#pragma once

#include <cstdint>
#include <memory>
#include <random>
#include <vector>

#include "decoder/model.h"
#include "kernels/matrix.h"

namespace moekit::tests {

class RandomMemory {
   public:
    explicit RandomMemory(uint32_t seed) : random_(seed) {}

    // Finite numbers of about unit scale, at no alignment.
    Matrix matrix(Type type, int64_t rows, int64_t columns);
    // Around `mean`.
    Vector vector(int64_t count, float mean);
    std::vector<float> floats(int64_t count, float mean = 0);
    std::vector<int64_t> tokens(int64_t count, int64_t vocabulary);

   private:
    uint16_t half();  // between 2^-7 and 2^-6

    std::mt19937 random_;
    std::vector<std::unique_ptr<uint8_t[]>> kept_;
};

// A model whose layers have nothing in common but the model's width: window, rope, norms, block and ffn differ.
Model random_model(RandomMemory& memory, Type type, int64_t width);

}  // namespace moekit::tests
