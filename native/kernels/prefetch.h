// How weights are asked for before they are read, by products and by what their speed is held against.
#pragma once

#include <cstdint>

namespace moekit {

// So many bytes ahead, into the second cache (the locality of __builtin_prefetch): the first one waits for so few lines
// at a time that they hold up memory.
constexpr int64_t PREFETCH_AHEAD = 1024;
constexpr int SECOND_CACHE = 2;

}  // namespace moekit
