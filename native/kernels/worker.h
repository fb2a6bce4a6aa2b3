// One thread's part in a parallel region of several phases.
#pragma once

#include <atomic>
#include <cstdint>

#include "kernels/pool.h"

namespace moekit {

// What the threads of a region take their next tasks from: a counter for each of the phases that may overlap.
struct TaskCounters {
    struct alignas(64) Counter {
        std::atomic<int64_t> taken{0};
    };
    static constexpr int COUNT = 4;
    Counter counters[COUNT];

    // Before the region.
    void reset() {
        for (Counter& counter : counters) {
            counter.taken.store(0, std::memory_order_relaxed);
        }
    }
};

class Worker {
   public:
    Worker(Pool& pool, TaskCounters& counters, int thread, int threads)
        : pool_(pool), counters_(counters), thread_(thread), threads_(threads) {}

    int thread() const { return thread_; }
    int threads() const { return threads_; }
    void barrier() { pool_.barrier(); }

    // task(0) to task(tasks - 1), each by the next thread that is free, then a barrier. Every thread must come here.
    template <typename Task>
    void each(int64_t tasks, Task task) {
        share(tasks, task);
        barrier();
    }

    // The same without the barrier, which has to come before the phase after the next.
    template <typename Task>
    void share(int64_t tasks, Task task) {
        // No thread is two phases behind or ahead of another, so that this counter is not in use.
        if (thread_ == 0) {
            counter(phase_ + 2).store(0, std::memory_order_relaxed);
        }
        std::atomic<int64_t>& taken = counter(phase_++);
        for (int64_t i = thread_; i < tasks; i = threads_ + taken.fetch_add(1, std::memory_order_relaxed)) {
            task(i);
        }
    }

   private:
    std::atomic<int64_t>& counter(int64_t phase) { return counters_.counters[phase % TaskCounters::COUNT].taken; }

    Pool& pool_;
    TaskCounters& counters_;
    int thread_;
    int threads_;
    int64_t phase_ = 0;
};

}  // namespace moekit
