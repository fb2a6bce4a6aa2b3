#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "bindings/tensors.h"
#include "bindings/training.h"
#include "training/adamw.h"
#include "training/sharing.h"

using namespace nanobind::literals;

namespace moekit {
namespace {

using Parameters = std::vector<Tensor<float>>;
using Numbers = std::vector<Tensor<const float>>;

// What a thread takes at a time, and what is added up before it meets others.
constexpr int64_t PIECE = 1 << 14;
constexpr double COST = 0.15 * PIECE;  // nanoseconds, roughly

struct Piece {
    size_t tensor;
    int64_t begin;
    int64_t count;
};

template <typename Some>
std::vector<Piece> pieces_of(const std::vector<Tensor<Some>>& tensors) {
    std::vector<Piece> pieces;
    for (size_t i = 0; i < tensors.size(); ++i) {
        for (int64_t begin = 0, size = tensors[i].size(); begin < size; begin += PIECE) {
            pieces.push_back({i, begin, std::min(PIECE, size - begin)});
        }
    }
    return pieces;
}

template <typename Some>
void check_like(const char* name, const std::vector<Tensor<Some>>& tensors, const Parameters& weights) {
    bool same = tensors.size() == weights.size();
    for (size_t i = 0; same && i < tensors.size(); ++i) {
        same = tensors[i].size() == weights[i].size();
    }
    if (!same) {
        throw std::invalid_argument(std::string(name) + " are not those of the weights");
    }
}

// The root of the sum of all squares.
double norm_of(const Numbers& tensors) {
    const nb::gil_scoped_release released;
    const std::vector<Piece> pieces = pieces_of(tensors);
    std::vector<double> squares(pieces.size());
    const AdamWTable& passes = training_table<AdamWTable>();
    share_rows(pieces.size(), COST, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            const Piece& piece = pieces[i];
            squares[i] = passes.sum_of_squares(tensors[piece.tensor].data() + piece.begin, piece.count);
        }
    });
    double total = 0;
    for (const double square : squares) {
        total += square;
    }
    return std::sqrt(total);
}

// Steps: of each parameter the factor that weight decay leaves, the rate over 1 - beta1^t, and sqrt(1 - beta2^t).
void step(const Parameters& weights, const Numbers& gradients, const Parameters& first_moments,
          const Parameters& second_moments, const Parameters& averages, const std::vector<float>& kept,
          const std::vector<float>& rates, const std::vector<float>& root_corrections, float beta1, float beta2,
          float eps, float gradient_scale, float average_kept) {
    check_like("gradients", gradients, weights);
    check_like("first_moments", first_moments, weights);
    check_like("second_moments", second_moments, weights);
    if (!averages.empty()) {
        check_like("averages", averages, weights);
    }
    if (kept.size() != weights.size() || rates.size() != weights.size() || root_corrections.size() != weights.size()) {
        throw std::invalid_argument("steps are not those of the weights");
    }
    const nb::gil_scoped_release released;
    const std::vector<Piece> pieces = pieces_of(weights);
    const AdamWTable& passes = training_table<AdamWTable>();
    share_rows(pieces.size(), COST, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            const Piece& piece = pieces[i];
            const size_t at = piece.tensor;
            passes.step({gradient_scale, beta1, beta2, kept[at], rates[at], root_corrections[at], eps, average_kept},
                        gradients[at].data() + piece.begin, piece.count, weights[at].data() + piece.begin,
                        first_moments[at].data() + piece.begin, second_moments[at].data() + piece.begin,
                        averages.empty() ? nullptr : averages[at].data() + piece.begin);
        }
    });
}

}  // namespace

void bind_adamw(nb::module_& training) {
    training.def("norm_of", &norm_of, "tensors"_a);
    training.def("adamw_step", &step, "weights"_a, "gradients"_a, "first_moments"_a, "second_moments"_a, "averages"_a,
                 "kept"_a, "rates"_a, "root_corrections"_a, "beta1"_a, "beta2"_a, "eps"_a, "gradient_scale"_a,
                 "average_kept"_a);
}

}  // namespace moekit
