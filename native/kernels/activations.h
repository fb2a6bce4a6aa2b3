// Activations in the forms that products with packed weights need.
#pragma once

#include <cstdint>

#include "kernels/aligned_bytes.h"
#include "kernels/matrix.h"

namespace moekit {

// F32: as they came. BF16: rounded to nearest even. Q8: 8-bit blocks of 32 with a scale each.
enum class Form { F32, BF16, Q8 };
constexpr Form FORMS[] = {Form::F32, Form::BF16, Form::Q8};

// The form that weights of that type are multiplied with: F32 for F32 and F16, BF16 for BF16, Q8 for all else. The same
// for any number of rows: a result does not depend on others.
Form form_for(Type type);

// 256 numbers as eight blocks of 32: number = scale of its block * its 8 bits; scale = (greatest magnitude) / 127.
// First the even blocks, then the odd ones. Of four blocks, numbers 0 to 3 of each, then numbers 4 to 7 of each, and so
// on: 16 bytes that meet as many of each of four rows of weights in a 512-bit register, and each lane is one block's.
// If a number of a block is not finite, its scale is NaN.
struct alignas(64) ActivationBlock {
    static constexpr int NUMBERS = 256;

    // Where a block's figures stand in the arrays below.
    static constexpr int place(int block) { return block % 2 * 4 + block / 2; }

    int8_t numbers[NUMBERS];
    float scales[8];
    // What stands for the offset of the weights, from the sums of the 8-bit numbers.
    float minus_sums[8];     // times the scale
    int32_t minus_8[8];      // times 8
    int32_t minus_128[8];    // times 128
    int32_t minus_32[2][8];  // times 32, of first and of second halves
};

// How many of them a row of so many numbers takes.
inline int64_t activation_blocks(int64_t columns) {
    return (columns + ActivationBlock::NUMBERS - 1) / ActivationBlock::NUMBERS;
}

// `rows` rows of activations in one form. Small, without memory of its own: each thread has its copy.
struct Activations {
    Form form = Form::F32;
    int64_t rows = 0;
    int64_t columns = 0;
    const void* data = nullptr;
    int64_t stride = 0;  // from row to row, in floats, 16-bit numbers or ActivationBlocks

    const float* numbers(int64_t row) const { return static_cast<const float*>(data) + row * stride; }
    const uint16_t* bf16(int64_t row) const { return static_cast<const uint16_t*>(data) + row * stride; }
    const ActivationBlock* blocks(int64_t row) const {
        return static_cast<const ActivationBlock*>(data) + row * stride;
    }

    // Rows begin to end of these.
    Activations slice(int64_t begin, int64_t end) const;
};

// Memory for one form of up to max_rows * max_columns activations.
class ActivationBuffer {
   public:
    ActivationBuffer(int64_t max_rows, int64_t max_columns);

    // Brings rows `from` to `to` of x (`columns` numbers each, `x_stride` floats from one to the next) into that form.
    // Rows before `from` are what earlier calls have made of them.
    // Called by every thread of a parallel region, each doing its share; a barrier must come before the use of what it
    // returns, and before a call for the same rows. F32 is x itself and touches nothing.
    Activations prepare(const float* x, int64_t x_stride, int64_t from, int64_t to, int64_t columns, Form form,
                        int thread, int threads);

   private:
    AlignedBytes memory_;
    int64_t max_rows_;
    int64_t max_columns_;
};

}  // namespace moekit
