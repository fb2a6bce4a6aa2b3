// Rows that threads share out among them.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/pool.h"

namespace moekit {

// body(begin, end) for parts of 0 … rows, each on a thread of its own where there is enough to do. `cost`: nanoseconds
// that a row takes, roughly. What a row becomes must not depend on where the parts begin.
template <typename Body>
void share_rows(int64_t rows, double cost, Body&& body) {
    // A region of threads that sleep takes some microseconds to begin.
    constexpr double WORTH_WAKING = 30'000;
    Pool& pool = Pool::shared();
    if (pool.threads() == 1 || static_cast<double>(rows) * cost < WORTH_WAKING) {
        body(int64_t{0}, rows);
        return;
    }
    pool.run([&](int thread, int threads) {
        const int64_t begin = rows * thread / threads, end = rows * (thread + 1) / threads;
        if (begin < end) {
            body(begin, end);
        }
    });
}

}  // namespace moekit
