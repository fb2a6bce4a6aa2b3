#include "kernels/pool.h"

#include <unistd.h>

#include <chrono>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace moekit {
namespace {

// A worker looks for the next region this long before it sleeps: longer than a caller takes between two tokens, short
// enough that an idle process takes no core.
constexpr std::chrono::microseconds SPIN{200};

// Between two looks at the clock, or two offers of the core to others.
constexpr int LOOKS = 64;
// Within a region the others come soon, unless they were put off their core: then waiting on ours would keep them off.
constexpr int LOOKS_BEFORE_YIELD = 4096;

void pause() {
#if defined(__x86_64__) || defined(__i386__)
    _mm_pause();
#endif
}

}  // namespace

Pool& Pool::shared() {
    static std::mutex guard;
    static Pool* pool = nullptr;
    static pid_t owner = 0;
    const pid_t here = getpid();
    const std::lock_guard<std::mutex> lock(guard);
    if (owner != here) {
        // Never destroyed: a pool's threads may be asleep when the process ends, and in a forked child the parent's
        // pool has none that could be joined.
        pool = new Pool(1);
        owner = here;
    }
    return *pool;
}

Pool::Pool(int threads) { start(threads); }

Pool::~Pool() { stop(); }

void Pool::set_threads(int threads) {
    const std::lock_guard<std::mutex> lock(entry_);
    if (threads == threads_.load()) {
        return;
    }
    stop();
    start(threads < 1 ? 1 : threads);
}

void Pool::borrow(const Team& team) {
    const std::lock_guard<std::mutex> lock(entry_);
    const int threads = threads_.load();
    stop();
    team_ = team;
    start(threads);
}

void Pool::start(int threads) {
    threads_.store(threads);
    if (team_.parallel) {
        return;
    }
    stopping_.store(false);
    const uint64_t seen = generation_.load();
    for (int thread = 1; thread < threads; ++thread) {
        workers_.emplace_back([this, thread, seen] { work(thread, seen); });
    }
}

void Pool::stop() {
    stopping_.store(true);
    {
        const std::lock_guard<std::mutex> lock(sleep_);
        generation_.fetch_add(1);
    }
    wake_.notify_all();
    for (std::thread& worker : workers_) {
        worker.join();
    }
    workers_.clear();
}

void Pool::run_on_team(Region region, void* context) {
    struct Call {
        Pool& pool;
        Region region;
        void* context;
        bool alone;
    } call{*this, region, context, false};
    const auto body = [](void* given) {
        Call& call = *static_cast<Call*>(given);
        const int thread = call.pool.team_.thread(), threads = call.pool.threads_.load(std::memory_order_relaxed);
        if (call.pool.team_.threads() == threads) {
            call.region(call.context, thread, threads);
        } else if (thread == 0) {
            call.alone = true;
        }
    };
    team_.parallel(body, &call, static_cast<unsigned>(threads_.load()), 0);
    if (call.alone) {
        // The runtime gave fewer threads than it was asked for: a region's barriers need all of them.
        const int threads = threads_.exchange(1);
        region(context, 0, 1);
        threads_.store(threads);
    }
}

void Pool::run_region(Region region, void* context) {
    const int threads = threads_.load();
    if (team_.parallel && threads > 1) {
        return run_on_team(region, context);
    }
    if (threads > 1) {
        region_ = region;
        context_ = context;
        generation_.fetch_add(1);
        // A worker counts itself asleep before it looks a last time, so that one of the two sees the other.
        if (sleepers_.load() > 0) {
            const std::lock_guard<std::mutex> awake(sleep_);
            wake_.notify_all();
        }
    }
    region(context, 0, threads);
    barrier();
}

void Pool::barrier() {
    const int threads = threads_.load(std::memory_order_relaxed);
    if (threads == 1) {
        return;
    }
    const uint64_t phase = phase_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == threads - 1) {
        arrived_.store(0, std::memory_order_relaxed);
        phase_.store(phase + 1, std::memory_order_release);
        return;
    }
    for (int looks = 1; phase_.load(std::memory_order_acquire) == phase; ++looks) {
        pause();
        if (looks % LOOKS_BEFORE_YIELD == 0) {
            std::this_thread::yield();
        }
    }
}

void Pool::work(int thread, uint64_t seen) {
    using Clock = std::chrono::steady_clock;
    while (true) {
        const auto begin = Clock::now();
        for (int looks = 1; generation_.load() == seen; ++looks) {
            pause();
            if (looks % LOOKS == 0 && Clock::now() - begin > SPIN) {
                std::unique_lock<std::mutex> lock(sleep_);
                sleepers_.fetch_add(1);
                wake_.wait(lock, [&] { return generation_.load() != seen; });
                sleepers_.fetch_sub(1);
            }
        }
        seen = generation_.load();
        if (stopping_.load()) {
            return;
        }
        region_(context_, thread, threads_.load(std::memory_order_relaxed));
        barrier();
    }
}

}  // namespace moekit
