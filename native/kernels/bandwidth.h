// How fast the pool's threads read memory: the limit that decoding is held against.
#pragma once

#include <cstdint>

namespace moekit {

// Bytes a second of the best of `rounds` passes over `bytes` of memory, which should be several times the last cache.
double read_bandwidth(int64_t bytes, int rounds);

}  // namespace moekit
