#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

#include "checks.h"
#include "kernels/bandwidth.h"
#include "kernels/pool.h"
#include "kernels/worker.h"

namespace moekit::tests {
namespace {

// Phases that read what other threads wrote before a barrier, without any other synchronisation.
void check_phases(Pool& pool) {
    constexpr int64_t TASKS = 50;
    std::vector<int64_t> first(TASKS), second(TASKS);
    TaskCounters counters;
    for (int64_t round = 1; round <= 20; ++round) {
        counters.reset();
        pool.run([&](int thread, int threads) {
            Worker worker(pool, counters, thread, threads);
            worker.each(TASKS, [&](int64_t i) { first[i] = round + i; });
            worker.each(TASKS, [&](int64_t i) { second[i] = first[TASKS - 1 - i]; });
            worker.share(TASKS, [&](int64_t i) { first[i] = second[i]; });
            worker.barrier();
        });
        for (int64_t i = 0; i < TASKS; ++i) {
            CHECK(first[i] == round + TASKS - 1 - i);
        }
    }
}

// A runtime with the three functions that a team has; it may give fewer threads than it is asked for.
namespace borrowed {
int most = 8, threads = 1;
thread_local int thread = 0;

void parallel(void (*body)(void*), void* context, unsigned wanted, unsigned) {
    threads = std::min(most, static_cast<int>(wanted));
    std::vector<std::thread> others;
    for (int i = 1; i < threads; ++i) {
        others.emplace_back([=] {
            thread = i;
            body(context);
        });
    }
    body(context);
    for (std::thread& other : others) {
        other.join();
    }
}
}  // namespace borrowed

void check_team(Pool& pool) {
    pool.borrow({borrowed::parallel, [] { return borrowed::thread; }, [] { return borrowed::threads; }});
    for (const int most : {8, 2}) {
        borrowed::most = most;
        pool.set_threads(3);
        check_phases(pool);
        CHECK(pool.threads() == 3);
    }
    pool.borrow({});
    check_phases(pool);
}

}  // namespace

void test_pool() {
    Pool& pool = Pool::shared();
    for (const int threads : {1, 2, 3}) {
        pool.set_threads(threads);
        CHECK(pool.threads() == threads);
        check_phases(pool);
    }
    check_team(pool);
    // Callers take turns, and so does who changes the number of threads.
    std::atomic<int64_t> calls{0};
    std::vector<std::thread> callers;
    for (int caller = 0; caller < 3; ++caller) {
        callers.emplace_back([&, caller] {
            for (int i = 0; i < 20; ++i) {
                pool.run([&](int thread, int) { calls += thread == 0; });
                if (i % 5 == caller) {
                    pool.set_threads(1 + i % 3);
                }
            }
        });
    }
    for (std::thread& caller : callers) {
        caller.join();
    }
    CHECK(calls == 60);
    CHECK(read_bandwidth(1 << 20, 1) > 0);
}

}  // namespace moekit::tests
