#include <algorithm>
#include <vector>

#include "checks.h"
#include "kernels/activations.h"
#include "kernels/kernels.h"
#include "kernels/many_rows.h"
#include "kernels/matrix.h"
#include "kernels/pool.h"
#include "kernels/tiles.h"
#include "kernels/worker.h"
#include "random_model.h"

namespace moekit::tests {
namespace {

constexpr int64_t ROWS = 21, TOKENS = 37;

// The product as it is defined, of what the matrix's rows unpack to.
std::vector<float> product(const Matrix& matrix, const std::vector<float>& x, int64_t tokens) {
    std::vector<float> weights(matrix.rows * matrix.columns), y(tokens * matrix.rows);
    dequantize_rows(matrix, 0, matrix.rows, weights.data());
    for (int64_t token = 0; token < tokens; ++token) {
        for (int64_t row = 0; row < matrix.rows; ++row) {
            double sum = 0;
            for (int64_t c = 0; c < matrix.columns; ++c) {
                sum += static_cast<double>(weights[row * matrix.columns + c]) * x[token * matrix.columns + c];
            }
            y[token * matrix.rows + row] = static_cast<float>(sum);
        }
    }
    return y;
}

std::vector<float> few_rows(const Matrix& matrix, const std::vector<float>& x, int64_t batch) {
    std::vector<float> y(batch * matrix.rows);
    ActivationBuffer buffer(batch, matrix.columns);
    const Activations prepared =
        buffer.prepare(x.data(), matrix.columns, 0, batch, matrix.columns, form_for(matrix.type), 0, 1);
    multiply_rows(matrix, prepared, 0, matrix.rows, y.data(), matrix.rows);
    return y;
}

template <typename Number>
std::vector<float> many_rows(const Matrix& matrix, const std::vector<float>& x, int threads, ManyForms forms) {
    std::vector<float> y(TOKENS * matrix.rows);
    ManyBuffer<Number> buffer;
    std::vector<PieceSpace<Number>> spaces;
    TaskCounters counters;
    counters.reset();
    Pool& pool = Pool::shared();
    pool.set_threads(threads);
    pool.run(
        [&](int all) {
            buffer.reserve(tile_blocks(TOKENS), TOKENS, matrix.columns, forms);
            spaces.resize(all);
            for (PieceSpace<Number>& space : spaces) {
                space.reserve(TOKENS, matrix.columns);
            }
        },
        [&](int thread, int all) {
            Worker worker(pool, counters, thread, all);
            const ManyInput<Number> input = put_many(worker, TOKENS, matrix.columns, forms, buffer,
                                                     [&](int64_t token) { return x.data() + token * matrix.columns; });
            multiply_many(worker, spaces[thread], input, TOKENS, {{matrix, y.data(), matrix.rows, nullptr}});
        });
    return y;
}

void check_matrix(const Matrix& matrix, RandomMemory& memory) {
    const std::vector<float> x = memory.floats(TOKENS * matrix.columns);
    const std::vector<float> expected = product(matrix, x, TOKENS);
    // Activations keep fp32, or 8 bits: bf16 ones have as many digits.
    const double error = form_for(matrix.type) == Form::F32 ? 1e-5 : 2e-2;
    for (const int64_t batch : {int64_t{1}, int64_t{3}, int64_t{9}}) {
        const std::vector<float> first(expected.begin(), expected.begin() + batch * matrix.rows);
        CHECK(difference(few_rows(matrix, x, batch), first) <= error);
    }
    const ManyForms tiles{true, false};
    const std::vector<float> in_fp32 = many_rows<float>(matrix, x, 1, tiles);
    CHECK(difference(in_fp32, expected) <= 1e-5);
    CHECK(many_rows<float>(matrix, x, 3, tiles) == in_fp32);
    if (multiplies_bf16()) {
        CHECK(difference(many_rows<uint16_t>(matrix, x, 2, tiles), expected) <= 2e-2);
    }
    if (in_bytes(matrix)) {
        CHECK(many_rows<float>(matrix, x, 3, {false, true}) == few_rows(matrix, x, TOKENS));
    }
    // Parts of rows, as bf16 numbers: as many as fit.
    std::vector<uint16_t> rounded((matrix.rows - 2) * matrix.columns);
    dequantize_rows_bf16(matrix, 1, matrix.rows - 1, rounded.data());
}

}  // namespace

void test_products() {
    RandomMemory memory(1);
    for (const Type type : {Type::F32, Type::F16, Type::BF16, Type::Q4_0, Type::Q8_0, Type::Q4_K, Type::Q6_K}) {
        const int64_t block = block_numbers(type);
        for (const int64_t columns : {block, 3 * block, 77 * block}) {
            if (columns <= 1024) {
                check_matrix(memory.matrix(type, ROWS, columns), memory);
            }
        }
    }
}

}  // namespace moekit::tests
