// How fast a file is read.
#pragma once

#include <cstdint>
#include <string>

namespace moekit {

// Bytes a second at which `threads` read pieces of `piece` bytes from places all over the file, for about so many
// seconds. Throws ReadError.
double disk_speed(const std::string& path, int64_t piece, int threads, bool direct, double seconds);

}  // namespace moekit
