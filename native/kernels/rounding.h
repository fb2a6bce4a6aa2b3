// Activations to 8-bit blocks and to bf16.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/activations.h"
#include "simd/isa.h"

#include MOEKIT_VECTORS

namespace moekit::MOEKIT_ISA {

struct QuantizedBlock {
    Floats first, second;  // whole numbers up to 127
    float scale;
};

inline QuantizedBlock quantize_block(const float* x) {
    const Floats first = load(x);
    const Floats second = load(x + 16);
    const Floats zero = set(0.0f);
    // 0 where all are finite, else NaN: a maximum does not tell.
    const float poison = sum(add(multiply(first, zero), multiply(second, zero)));
    const float most = greatest(greater(magnitudes(first), magnitudes(second)));
    const float inverse = 127.0f / most;
    if (poison != 0.0f) {
        return {zero, zero, poison};
    }
    if (!(inverse < 3e38f)) {
        return {zero, zero, 0.0f};  // all are 0, or so small that the reciprocal overflows
    }
    const Floats times = set(inverse);
    return {to_nearest(multiply(first, times)), to_nearest(multiply(second, times)), most / 127.0f};
}

inline void put(const QuantizedBlock& quantized, int index, ActivationBlock& block) {
    int8_t numbers[32];
    store_signed_bytes(numbers, quantized.first);
    store_signed_bytes(numbers + 16, quantized.second);
    for (int i = 0; i < 8; ++i) {
        memcpy(block.numbers + index % 2 * 128 + 16 * i + index / 2 * 4, numbers + 4 * i, 4);
    }
    const int place = ActivationBlock::place(index);
    const float first = sum(quantized.first), second = sum(quantized.second);  // of whole numbers: exact
    block.scales[place] = quantized.scale;
    block.minus_sums[place] = -(quantized.scale * (first + second));
    block.minus_8[place] = -8 * static_cast<int32_t>(first + second);
    block.minus_128[place] = -128 * static_cast<int32_t>(first + second);
    block.minus_32[0][place] = -32 * static_cast<int32_t>(first);
    block.minus_32[1][place] = -32 * static_cast<int32_t>(second);
}

inline void quantize_numbers(const float* x, int64_t begin, int64_t end, int64_t columns, ActivationBlock* out) {
    const int64_t last =
        end == columns ? (columns + ActivationBlock::NUMBERS - 1) / ActivationBlock::NUMBERS * 8 : end / 32;
    for (int64_t index = begin / 32; index < last; ++index, x += 32) {
        const int64_t left = end - 32 * index;
        float padded[32];
        if (left < 32) {
            memset(padded, 0, sizeof padded);
            memcpy(padded, x, static_cast<size_t>(left > 0 ? left : 0) * sizeof(float));
        }
        put(quantize_block(left < 32 ? padded : x), static_cast<int>(index % 8), out[index / 8]);
    }
}

inline void round_numbers(const float* x, int64_t count, uint16_t* out) {
    int64_t at = 0;
    for (; at + 16 <= count; at += 16) {
        store_bf16(out + at, load(x + at));
    }
    if (at < count) {
        float padded[16] = {};
        memcpy(padded, x + at, static_cast<size_t>(count - at) * sizeof(float));
        store_bf16(out + at, load(padded));
        at += 16;
    }
    if (at % 32) {
        store_bf16(out + at, set(0.0f));
    }
}

}  // namespace moekit::MOEKIT_ISA
