// The one pool of native threads: a parallel region with barriers inside, cheap enough to be entered for every token.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace moekit {

// The threads of an OpenMP runtime, by its functions GOMP_parallel, omp_get_thread_num and omp_get_num_threads.
struct Team {
    void (*parallel)(void (*body)(void*), void* context, unsigned threads, unsigned flags) = nullptr;
    int (*thread)() = nullptr;
    int (*threads)() = nullptr;
};

class Pool {
   public:
    // The process's pool, made at the first use; after a fork the child gets a new one.
    static Pool& shared();

    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    // How many threads a region has from now on, the caller included.
    void set_threads(int threads);
    int threads() const { return threads_.load(); }

    // Runs regions on the threads of a team from now on. Its threads spin between their regions, as the pool's own do:
    // where both compute by turns, each would keep the other off the cores.
    void borrow(const Team& team);

    // body(thread, threads) on every thread at once, the caller being thread 0; returns when all are done.
    // One region at a time: a second caller waits. The body must not throw, nor call run.
    template <typename Body>
    void run(Body&& body) {
        run([](int) {}, body);
    }
    // prepare(threads) comes first, when it is certain how many threads there will be; it may throw.
    template <typename Prepare, typename Body>
    void run(Prepare&& prepare, Body&& body) {
        using Plain = std::remove_reference_t<Body>;
        const std::lock_guard<std::mutex> lock(entry_);
        prepare(threads_.load());
        run_region([](void* context, int thread, int threads) { (*static_cast<Plain*>(context))(thread, threads); },
                   const_cast<void*>(static_cast<const void*>(&body)));
    }

    // Inside a region: returns when every thread of it has come here. What they wrote before is then seen by all.
    void barrier();

   private:
    using Region = void (*)(void* context, int thread, int threads);

    explicit Pool(int threads);
    void run_region(Region region, void* context);  // with entry_ held
    void run_on_team(Region region, void* context);
    void start(int threads);
    void stop();
    void work(int thread, uint64_t seen);

    std::mutex entry_;  // of one region, or of a change of threads
    Team team_;
    std::atomic<int> threads_{1};
    std::vector<std::thread> workers_;

    Region region_ = nullptr;
    void* context_ = nullptr;
    std::atomic<bool> stopping_{false};

    std::mutex sleep_;
    std::condition_variable wake_;
    std::atomic<int> sleepers_{0};

    // Each in a cache line of its own: they are written by one thread while others look at them.
    alignas(64) std::atomic<uint64_t> generation_{0};
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<uint64_t> phase_{0};
};

}  // namespace moekit
