// What a panel of weights consists of: see panels.h.
#pragma once

#include <cstdint>

#include "kernels/activations.h"

namespace moekit {

// 32 columns of 16 rows, in the order of ActivationBlock's blocks.
struct alignas(64) PanelBlock {
    uint8_t numbers[512];  // columns 4 i to 4 i + 3 of all rows from 64 i on
    float scales[16];      // of each row, or of its first half block
    float second[16];      // of second halves, or minimums, where the format has them
};

// Of a panel of so many columns.
inline int64_t panel_blocks(int64_t columns) { return activation_blocks(columns) * 8; }

// The most panels that are unpacked at a time.
constexpr int MAX_PANELS = 2;

}  // namespace moekit
