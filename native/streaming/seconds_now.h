// The clock that waiting and reading are measured by.
#pragma once

#include <chrono>

namespace moekit {

inline double seconds_now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace moekit
