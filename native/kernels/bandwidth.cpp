#include "kernels/bandwidth.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <vector>

#include "kernels/pool.h"
#include "kernels/prefetch.h"

namespace moekit {
namespace {

constexpr int64_t STREAMS = 8;
constexpr int64_t LINE = 64;

// Every byte is loaded, in the way that was the fastest of those tried: some streams, each asked for ahead, into the
// second cache. A plain loop reads at two thirds of this, and a product measured against it would come out above 1.
uint64_t sum_of(const uint64_t* memory, int64_t lines) {
    constexpr int64_t NUMBERS = LINE / 8;
    const int64_t part = lines / STREAMS;
    uint64_t sums[STREAMS][NUMBERS] = {};
    for (int64_t line = 0; line < part; ++line) {
        for (int64_t stream = 0; stream < STREAMS; ++stream) {
            const uint64_t* from = memory + (stream * part + line) * NUMBERS;
            __builtin_prefetch(from + PREFETCH_AHEAD / NUMBERS, 0, SECOND_CACHE);
            for (int64_t i = 0; i < NUMBERS; ++i) {
                sums[stream][i] += from[i];
            }
        }
    }
    uint64_t total = 0;
    for (const auto& stream : sums) {
        for (const uint64_t sum : stream) {
            total += sum;
        }
    }
    return total;
}

}  // namespace

double read_bandwidth(int64_t bytes, int rounds) {
    const int64_t lines = bytes / LINE;
    const std::vector<uint64_t> memory(static_cast<size_t>(lines * LINE / 8), 1);
    std::atomic<uint64_t> sink{0};
    double best = 0;
    for (int round = 0; round < rounds; ++round) {
        const auto begin = std::chrono::steady_clock::now();
        Pool::shared().run([&](int thread, int threads) {
            const int64_t from = lines * thread / threads;
            sink += sum_of(memory.data() + from * LINE / 8, lines * (thread + 1) / threads - from);
        });
        const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
        best = std::max(best, static_cast<double>(bytes) / seconds.count());
    }
    return sink.load() ? best : 0;  // the sum is used, so that no compiler leaves the loads out
}

}  // namespace moekit
