// Arrays of Python as the native code takes them: typed, checked, and alive as long as what is made of them.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "decoder/model.h"
#include "kernels/matrix.h"

namespace moekit {

namespace nb = nanobind;

// Rows lie one after another in the processor's memory; other dtypes and layouts are a TypeError, and never converted.
template <typename Number, int DIMENSIONS>
using Array = nb::ndarray<Number, nb::ndim<DIMENSIONS>, nb::c_contig, nb::device::cpu>;

// Part of a model's description, and the arrays that it points into.
template <typename Part>
struct Kept {
    Part part;
    std::vector<std::shared_ptr<const void>> arrays;
};

// Parts for a larger one, whose arrays it collects. What is absent becomes an empty part.
template <typename Whole>
class Collector {
   public:
    template <typename Part>
    Part operator()(const Kept<Part>& kept) {
        whole_.arrays.insert(whole_.arrays.end(), kept.arrays.begin(), kept.arrays.end());
        return kept.part;
    }
    template <typename Part>
    Part operator()(const Kept<Part>* kept) {
        return kept ? (*this)(*kept) : Part{};
    }
    Vector operator()(const std::optional<Array<const float, 1>>& numbers) {
        if (!numbers) {
            return {};
        }
        whole_.arrays.push_back(std::make_shared<Array<const float, 1>>(*numbers));
        return {numbers->data(), static_cast<int64_t>(numbers->size())};
    }
    const uint8_t* bytes(const Array<const uint8_t, 2>& rows) {
        whole_.arrays.push_back(std::make_shared<Array<const uint8_t, 2>>(rows));
        return rows.data();
    }

    Whole& part() { return whole_.part; }
    Kept<Whole> take() { return std::move(whole_); }

   private:
    Kept<Whole> whole_;
};

// std::invalid_argument unless an array for results has that shape.
template <typename Any>
void check_shape(const char* name, const Any& array, const std::vector<int64_t>& shape) {
    for (size_t i = 0; i < shape.size(); ++i) {
        if (static_cast<int64_t>(array.shape(i)) != shape[i]) {
            throw std::invalid_argument(std::string(name) + " has " + std::to_string(array.shape(i)) +
                                        " numbers in dimension " + std::to_string(i) + " where " +
                                        std::to_string(shape[i]) + " are needed");
        }
    }
}

}  // namespace moekit
