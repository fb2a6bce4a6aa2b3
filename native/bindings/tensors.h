// Torch tensors as training kernels take them: of one dtype, dense rows in the processor's memory, never converted or
// copied, and valid for as long as the call. They come through DLPack's table of functions on their type
// (`__dlpack_c_exchange_api__`, DLPack 1.2 and later), which takes some 50 ns a tensor; those of an older torch,
// another dtype or layout are a TypeError. A tensor that asks for gradients is taken as it is.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <type_traits>

namespace moekit {

namespace nb = nanobind;

// What a tensor's numbers are in C++: uint16_t stands for bf16.
template <typename Number>
struct NumberType;
template <>
struct NumberType<float> {
    static constexpr nb::dlpack::dtype DTYPE{uint8_t(nb::dlpack::dtype_code::Float), 32, 1};
    static constexpr auto NAME = nb::detail::const_name("float32");
};
template <>
struct NumberType<uint16_t> {
    static constexpr nb::dlpack::dtype DTYPE{uint8_t(nb::dlpack::dtype_code::Bfloat), 16, 1};
    static constexpr auto NAME = nb::detail::const_name("bfloat16");
};
template <>
struct NumberType<int64_t> {
    static constexpr nb::dlpack::dtype DTYPE{uint8_t(nb::dlpack::dtype_code::Int), 64, 1};
    static constexpr auto NAME = nb::detail::const_name("int64");
};
template <>
struct NumberType<int32_t> {
    static constexpr nb::dlpack::dtype DTYPE{uint8_t(nb::dlpack::dtype_code::Int), 32, 1};
    static constexpr auto NAME = nb::detail::const_name("int32");
};

template <>
struct NumberType<bool> {
    static constexpr nb::dlpack::dtype DTYPE{uint8_t(nb::dlpack::dtype_code::Bool), 8, 1};
    static constexpr auto NAME = nb::detail::const_name("bool");
};

struct TensorView {
    static constexpr int MOST_DIMENSIONS = 6;

    void* data = nullptr;
    int dimensions = 0;
    int64_t shape[MOST_DIMENSIONS] = {};
};

// False where that is no tensor of this dtype with dense rows on the CPU.
bool view_tensor(PyObject* object, nb::dlpack::dtype dtype, TensorView& view) noexcept;

// const Number: it is only read.
template <typename Number>
class Tensor {
   public:
    Tensor() = default;
    explicit Tensor(const TensorView& view) : view_(view) {}

    Number* data() const { return static_cast<Number*>(view_.data); }
    int dimensions() const { return view_.dimensions; }
    int64_t shape(int dimension) const { return view_.shape[dimension]; }
    // The last dimension, and all others together.
    int64_t columns() const { return view_.dimensions ? view_.shape[view_.dimensions - 1] : 1; }
    int64_t rows() const {
        int64_t rows = 1;
        for (int i = 0; i + 1 < view_.dimensions; ++i) {
            rows *= view_.shape[i];
        }
        return rows;
    }
    int64_t size() const { return rows() * columns(); }

    // std::invalid_argument unless there are so many rows and columns.
    void check(const char* name, int64_t rows, int64_t columns) const {
        if (this->rows() != rows || this->columns() != columns) {
            throw std::invalid_argument(std::string(name) + " has " + std::to_string(this->rows()) + " rows of " +
                                        std::to_string(this->columns()) + " numbers where " + std::to_string(rows) +
                                        " of " + std::to_string(columns) + " are needed");
        }
    }
    // std::invalid_argument unless it has that shape.
    void check_shape(const char* name, std::initializer_list<int64_t> wanted) const {
        bool same = view_.dimensions == static_cast<int>(wanted.size());
        for (int i = 0; same && i < view_.dimensions; ++i) {
            same = view_.shape[i] == wanted.begin()[i];
        }
        if (!same) {
            throw std::invalid_argument(std::string(name) + " has another shape than is needed");
        }
    }

   private:
    TensorView view_;
};

}  // namespace moekit

namespace nanobind::detail {

template <typename Number>
struct type_caster<moekit::Tensor<Number>> {
    using Type = moekit::NumberType<std::remove_const_t<Number>>;
    NB_TYPE_CASTER(moekit::Tensor<Number>, const_name("torch.Tensor[") + Type::NAME + const_name("]"))

    bool from_python(handle source, uint32_t, cleanup_list*) noexcept {
        moekit::TensorView view;
        if (!moekit::view_tensor(source.ptr(), Type::DTYPE, view)) {
            return false;
        }
        value = moekit::Tensor<Number>(view);
        return true;
    }
};

}  // namespace nanobind::detail
