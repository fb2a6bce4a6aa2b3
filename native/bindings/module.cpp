// The Python module moekit.kernels.native._native. Memory belongs to Python: matrices and activations are addresses.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/activations.h"
#include "kernels/bandwidth.h"
#include "kernels/kernels.h"
#include "kernels/many_rows.h"
#include "kernels/matrix.h"
#include "kernels/pool.h"
#include "kernels/worker.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace moekit {

void bind_decoder(nb::module_& module);

namespace {

template <typename T>
T* address(uintptr_t number) {
    return reinterpret_cast<T*>(number);
}

Matrix make_matrix(uintptr_t data, int type, int64_t rows, int64_t columns) {
    constexpr Type KNOWN[] = {Type::F32, Type::F16, Type::Q4_0, Type::Q8_0, Type::Q4_K, Type::Q6_K, Type::BF16};
    const auto* found = std::find_if(std::begin(KNOWN), std::end(KNOWN), [&](Type t) { return int(t) == type; });
    if (found == std::end(KNOWN)) {
        throw std::invalid_argument("no kernel for matrices of type " + std::to_string(type));
    }
    if (rows < 0 || columns < 0 || columns % block_numbers(*found)) {
        throw std::invalid_argument("rows of " + std::to_string(columns) + " numbers are not whole blocks");
    }
    return {address<const uint8_t>(data), *found, rows, columns};
}

// y (B, R) = x (B, D) @ matrix^T, all fp32.
void multiply(const Matrix& matrix, uintptr_t x, int64_t batch, uintptr_t y) {
    ActivationBuffer buffer(batch, matrix.columns);
    Pool::shared().run([&](int thread, int threads) {
        const Activations prepared = buffer.prepare(address<const float>(x), matrix.columns, batch, matrix.columns,
                                                    form_for(matrix.type), thread, threads);
        Pool::shared().barrier();
        multiply_rows(matrix, prepared, matrix.rows * thread / threads, matrix.rows * (thread + 1) / threads,
                      address<float>(y), matrix.rows);
    });
}

// y (T, R) = x (T, D) @ matrix^T, all fp32, x and the matrix as those numbers.
template <typename Number>
void multiply_tokens_as(const Matrix& matrix, uintptr_t rows, int64_t tokens, uintptr_t y) {
    // So many at a time that sums stay in a core's own cache.
    constexpr int64_t TOGETHER = 512;
    Aligned<Number> tiles;
    std::vector<PieceSpace<Number>> spaces;
    TaskCounters counters;
    Pool& pool = Pool::shared();
    for (int64_t first = 0; first < tokens; first += TOGETHER) {
        const int64_t count = std::min(TOGETHER, tokens - first);
        counters.reset();
        pool.run(
            [&](int threads) {
                tiles.get(tile_blocks(count) * tile_stride(matrix.columns));
                spaces.resize(threads);
                for (PieceSpace<Number>& space : spaces) {
                    space.reserve(count);
                }
            },
            [&](int thread, int threads) {
                Worker worker(pool, counters, thread, threads);
                const Tiles<Number> x = pack_many(worker, address<const float>(rows) + first * matrix.columns, count,
                                                  matrix.columns, tiles.get(0));
                multiply_many(worker, spaces[thread], x, count,
                              {{matrix, address<float>(y) + first * matrix.rows, matrix.rows, nullptr}});
            });
    }
}

void multiply_tokens(const Matrix& matrix, uintptr_t rows, int64_t tokens, uintptr_t y) {
    if (multiplies_bf16() && matrix.type != Type::F32) {
        multiply_tokens_as<uint16_t>(matrix, rows, tokens, y);
    } else {
        multiply_tokens_as<float>(matrix, rows, tokens, y);
    }
}

template <typename Out, void (*DEQUANTIZE)(const Matrix&, int64_t, int64_t, Out*)>
void dequantize(const Matrix& matrix, int64_t begin, int64_t end, uintptr_t out) {
    if (begin < 0 || begin > end || end > matrix.rows) {
        throw std::out_of_range("rows " + std::to_string(begin) + " to " + std::to_string(end) + " of " +
                                std::to_string(matrix.rows));
    }
    Pool::shared().run([&](int thread, int threads) {
        const int64_t from = begin + (end - begin) * thread / threads;
        const int64_t to = begin + (end - begin) * (thread + 1) / threads;
        DEQUANTIZE(matrix, from, to, address<Out>(out) + (from - begin) * matrix.columns);
    });
}

std::vector<std::string> instruction_sets() {
    std::vector<std::string> names;
    for (const char* const* name = available_kernels(); *name; ++name) {
        names.emplace_back(*name);
    }
    return names;
}

void select(const std::string& name) {
    if (!select_kernels(name.c_str())) {
        throw std::invalid_argument("this machine does not run the kernels for " + name);
    }
}

}  // namespace

NB_MODULE(_native, module) {
    nb::class_<Matrix>(module, "Matrix")
        .def_static("at", &make_matrix, "data"_a, "type"_a, "rows"_a, "columns"_a)
        .def_ro("rows", &Matrix::rows)
        .def_ro("columns", &Matrix::columns);
    module.def("threads", [] { return Pool::shared().threads(); });
    module.def(
        "set_threads", [](int threads) { Pool::shared().set_threads(threads); },
        nb::call_guard<nb::gil_scoped_release>());
    module.def("instruction_set", [] { return std::string(kernels().name); });
    module.def("instruction_sets", &instruction_sets);
    module.def("select_instruction_set", &select, "name"_a);
    module.def("multiply", &multiply, "matrix"_a, "x"_a, "batch"_a, "y"_a, nb::call_guard<nb::gil_scoped_release>());
    module.def("multiply_many", &multiply_tokens, "matrix"_a, "x"_a, "tokens"_a, "y"_a,
               nb::call_guard<nb::gil_scoped_release>());
    module.def("dequantize", &dequantize<float, dequantize_rows>, "matrix"_a, "begin"_a, "end"_a, "out"_a,
               nb::call_guard<nb::gil_scoped_release>());
    module.def("dequantize_bf16", &dequantize<uint16_t, dequantize_rows_bf16>, "matrix"_a, "begin"_a, "end"_a, "out"_a,
               nb::call_guard<nb::gil_scoped_release>());
    module.def("read_bandwidth", &read_bandwidth, "bytes"_a, "rounds"_a, nb::call_guard<nb::gil_scoped_release>());
    bind_decoder(module);
}

}  // namespace moekit
