// The functions of TokenLossTable.

#include "training/token_loss.h"

#include <cstdint>

#include "simd/isa.h"
#include "simd/lanes.h"
#include "training/numbers.h"

namespace moekit::MOEKIT_ISA {
namespace lanes {

template <typename Number>
static bool token_loss(const Number* logits, const int64_t* target, int64_t rows, int64_t vocabulary, float* loss,
                       float* log_sum) {
    const IntLanes lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    for (int64_t row = 0; row < rows; ++row, logits += vocabulary) {
        if (target[row] < 0 || target[row] >= vocabulary) {
            return false;
        }
        Lanes most = splat(-__builtin_inff());
        each_lanes(vocabulary, [&](int64_t i, int64_t count) MOEKIT_INLINED {
            const Lanes x = read_up_to(logits + i, count);
            most = largest(count == LANES || lane < static_cast<int32_t>(count) ? x : most, most);
        });
        const float top = largest(most);
        Lanes total = {};
        each_lanes(vocabulary, [&](int64_t i, int64_t count) MOEKIT_INLINED {
            const Lanes e = exponential(read_up_to(logits + i, count) - top);
            total += count == LANES || lane < static_cast<int32_t>(count) ? e : Lanes{};
        });
        log_sum[row] = top + __builtin_logf(sum(total));
        const Number* own = logits + target[row];
        loss[row] = log_sum[row] - read(own, 1)[0];
    }
    return true;
}

template <typename Number>
static void token_loss_gradient(const Number* logits, const int64_t* target, const float* log_sum,
                                const float* grad_loss, int64_t rows, int64_t vocabulary, Number* grad_logits) {
    const IntLanes lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    for (int64_t row = 0; row < rows; ++row, logits += vocabulary, grad_logits += vocabulary) {
        const float below = log_sum[row], factor = grad_loss[row];
        each_lanes(vocabulary, [=](int64_t i, int64_t count) MOEKIT_INLINED {
            write_up_to(exponential(read_up_to(logits + i, count) - below) * factor, grad_logits + i, count);
        });
        // The target's sixteen again, from the logits, so that bf16 is rounded once.
        const int64_t at = target[row] / LANES * LANES, count = vocabulary - at < LANES ? vocabulary - at : LANES;
        const Lanes share = exponential(read_up_to(logits + at, count) - below);
        const Lanes one = lane == static_cast<int32_t>(target[row] - at) ? splat(1.0f) : Lanes{};
        write_up_to((share - one) * factor, grad_logits + at, count);
    }
}

}  // namespace lanes

const TokenLossTable TOKEN_LOSS = {{lanes::token_loss<float>, lanes::token_loss_gradient<float>},
                                   {lanes::token_loss<uint16_t>, lanes::token_loss_gradient<uint16_t>}};

}  // namespace moekit::MOEKIT_ISA
