// The Python module moekit.kernels.native._native. Memory belongs to Python: matrices and activations are its arrays.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "bindings/arrays.h"
#include "kernels/activations.h"
#include "kernels/bandwidth.h"
#include "kernels/kernels.h"
#include "kernels/many_rows.h"
#include "kernels/mapped_files.h"
#include "kernels/matrix.h"
#include "kernels/pool.h"
#include "kernels/worker.h"

using namespace nanobind::literals;

namespace moekit {

void bind_decoder(nb::module_& module);
void bind_streaming(nb::module_& module);
void bind_training(nb::module_& module);

namespace {

// Rows of bytes, each `columns` numbers of a GGUF type.
void make_matrix(Kept<Matrix>* self, const Array<const uint8_t, 2>& data, int type, int64_t columns) {
    constexpr Type KNOWN[] = {Type::F32, Type::F16, Type::Q4_0, Type::Q8_0, Type::Q4_K, Type::Q6_K, Type::BF16};
    const auto* found = std::find_if(std::begin(KNOWN), std::end(KNOWN), [&](Type t) { return int(t) == type; });
    if (found == std::end(KNOWN)) {
        throw std::invalid_argument("no kernel for matrices of type " + std::to_string(type));
    }
    if (columns < 0 || columns % block_numbers(*found)) {
        throw std::invalid_argument("rows of " + std::to_string(columns) + " numbers are not whole blocks");
    }
    Collector<Matrix> collect;
    Matrix& matrix = collect.part();
    matrix = {collect.bytes(data), *found, static_cast<int64_t>(data.shape(0)), columns};
    if (matrix.row_bytes() != static_cast<int64_t>(data.shape(1))) {
        throw std::invalid_argument("rows of " + std::to_string(data.shape(1)) + " bytes do not hold " +
                                    std::to_string(columns) + " numbers of that type");
    }
    new (self) Kept<Matrix>(collect.take());
}

// How many rows x has; std::invalid_argument where it or y does not go with the matrix.
int64_t check_product(const Matrix& matrix, const Array<const float, 2>& x, const Array<float, 2>& y) {
    const auto rows = static_cast<int64_t>(x.shape(0));
    check_shape("x", x, {rows, matrix.columns});
    check_shape("y", y, {rows, matrix.rows});
    return rows;
}

// y (B, R) = x (B, D) @ matrix^T, all fp32.
void multiply(const Kept<Matrix>& kept, const Array<const float, 2>& x, const Array<float, 2>& y) {
    const Matrix& matrix = kept.part;
    const int64_t batch = check_product(matrix, x, y);
    const nb::gil_scoped_release released;
    ActivationBuffer buffer(batch, matrix.columns);
    Pool::shared().run([&](int thread, int threads) {
        const Activations prepared =
            buffer.prepare(x.data(), matrix.columns, 0, batch, matrix.columns, form_for(matrix.type), thread, threads);
        Pool::shared().barrier();
        multiply_rows(matrix, prepared, matrix.rows * thread / threads, matrix.rows * (thread + 1) / threads, y.data(),
                      matrix.rows);
    });
}

// y (T, R) = x (T, D) @ matrix^T, all fp32, as prompts are multiplied: what becomes tiles, as those numbers.
template <typename Number>
void multiply_tokens_as(const Matrix& matrix, const float* rows, int64_t tokens, float* y) {
    // So many at a time that sums stay in a core's own cache.
    constexpr int64_t TOGETHER = 512;
    const ManyForms forms = many_forms({&matrix});
    ManyBuffer<Number> buffer;
    std::vector<PieceSpace<Number>> spaces;
    TaskCounters counters;
    Pool& pool = Pool::shared();
    for (int64_t first = 0; first < tokens; first += TOGETHER) {
        const int64_t count = std::min(TOGETHER, tokens - first);
        counters.reset();
        pool.run(
            [&](int threads) {
                buffer.reserve(tile_blocks(count), count, matrix.columns, forms);
                spaces.resize(threads);
                for (PieceSpace<Number>& space : spaces) {
                    space.reserve(count, matrix.columns);
                }
            },
            [&](int thread, int threads) {
                Worker worker(pool, counters, thread, threads);
                const ManyInput<Number> x = put_many(worker, count, matrix.columns, forms, buffer, [&](int64_t token) {
                    return rows + (first + token) * matrix.columns;
                });
                multiply_many(worker, spaces[thread], x, count,
                              {{matrix, y + first * matrix.rows, matrix.rows, nullptr}});
            });
    }
}

void multiply_tokens(const Kept<Matrix>& kept, const Array<const float, 2>& x, const Array<float, 2>& y) {
    const Matrix& matrix = kept.part;
    const int64_t tokens = check_product(matrix, x, y);
    const nb::gil_scoped_release released;
    if (multiplies_bf16() && matrix.type != Type::F32) {
        multiply_tokens_as<uint16_t>(matrix, x.data(), tokens, y.data());
    } else {
        multiply_tokens_as<float>(matrix, x.data(), tokens, y.data());
    }
}

template <typename Out, void (*DEQUANTIZE)(const Matrix&, int64_t, int64_t, Out*)>
void dequantize(const Kept<Matrix>& kept, int64_t begin, int64_t end, const Array<Out, 2>& out) {
    const Matrix& matrix = kept.part;
    if (begin < 0 || begin > end || end > matrix.rows) {
        throw std::out_of_range("rows " + std::to_string(begin) + " to " + std::to_string(end) + " of " +
                                std::to_string(matrix.rows));
    }
    check_shape("out", out, {end - begin, matrix.columns});
    const nb::gil_scoped_release released;
    Pool::shared().run([&](int thread, int threads) {
        const int64_t from = begin + (end - begin) * thread / threads;
        const int64_t to = begin + (end - begin) * (thread + 1) / threads;
        DEQUANTIZE(matrix, from, to, out.data() + (from - begin) * matrix.columns);
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
    nb::class_<Kept<Matrix>>(module, "Matrix")
        .def("__init__", &make_matrix, "data"_a.noconvert(), "type"_a, "columns"_a);
    module.def("threads", [] { return Pool::shared().threads(); });
    module.def(
        "set_threads", [](int threads) { Pool::shared().set_threads(threads); },
        nb::call_guard<nb::gil_scoped_release>());
    module.def(
        "borrow_team",
        [](uintptr_t parallel, uintptr_t thread, uintptr_t threads) {
            Pool::shared().borrow({reinterpret_cast<decltype(Team::parallel)>(parallel),
                                   reinterpret_cast<decltype(Team::thread)>(thread),
                                   reinterpret_cast<decltype(Team::threads)>(threads)});
        },
        "parallel"_a, "thread"_a, "threads"_a, nb::call_guard<nb::gil_scoped_release>());
    module.def("instruction_set", [] { return std::string(kernels().name); });
    module.def("instruction_sets", &instruction_sets);
    module.def("select_instruction_set", &select, "name"_a);
    module.def("multiply", &multiply, "matrix"_a, "x"_a.noconvert(), "y"_a.noconvert());
    module.def("multiply_many", &multiply_tokens, "matrix"_a, "x"_a.noconvert(), "y"_a.noconvert());
    module.def("dequantize", &dequantize<float, dequantize_rows>, "matrix"_a, "begin"_a, "end"_a, "out"_a.noconvert());
    module.def("dequantize_bf16", &dequantize<uint16_t, dequantize_rows_bf16>, "matrix"_a, "begin"_a, "end"_a,
               "out"_a.noconvert());
    module.def("read_bandwidth", &read_bandwidth, "bytes"_a, "rounds"_a, nb::call_guard<nb::gil_scoped_release>());
    module.def(
        "watch_mapped_file",
        [](uintptr_t begin, size_t size, const std::string& sentence) {
            return reinterpret_cast<uintptr_t>(watch_mapped_file(reinterpret_cast<const void*>(begin), size, sentence));
        },
        "begin"_a, "size"_a, "sentence"_a);
    module.def(
        "forget_mapped_file", [](uintptr_t file) { forget_mapped_file(reinterpret_cast<MappedFile*>(file)); },
        "file"_a);
    bind_streaming(module);
    bind_decoder(module);
    bind_training(module);
}

}  // namespace moekit
