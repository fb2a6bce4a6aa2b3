// Threads that read files into memory while others compute.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "streaming/direct_file.h"

namespace moekit {

// Blocks of a file, and where they come to stand.
struct Piece {
    Span blocks;
    uint8_t* into;
};

// Pieces that are of use together. It and its memory must live until it is done.
class Load {
   public:
    enum class State { Idle, Reading, Done, Failed };

    std::vector<Piece> pieces;

   private:
    friend class Reader;
    State state_ = State::Idle;  // what follows is guarded by the reader's mutex
    int64_t left_ = 0;
    bool failed_ = false;
};

class Reader {
   public:
    // Pieces are cut into requests of this size, so that a disk has several to do at a time.
    static constexpr int64_t REQUEST = 2 << 20;

    // The files must live as long as the reader. A forked child has none of its threads: whatever it starts or waits
    // for has failed there, and the error says so.
    Reader(const std::vector<std::unique_ptr<DirectFile>>& files, int threads);
    // Waits for the requests that have begun; others are dropped.
    ~Reader();
    Reader(const Reader&) = delete;
    Reader& operator=(const Reader&) = delete;

    // Reads a load that is not being read; urgent ones come before all others.
    void start(Load& load, bool urgent);
    // Lets a load that is being read come before others.
    void hurry(Load& load);
    Load::State state(const Load& load) const;
    // Returns when one of the loads is no longer being read. None may be idle.
    void wait_for_any(const std::vector<Load*>& loads);
    // Returns when nothing is being read.
    void wait_for_all();
    // The first error since the last call; empty where there was none.
    std::string take_error();

    struct Counts {
        int64_t bytes = 0;
        double busy_seconds = 0;  // in which one request or more was being read
    };
    Counts counts() const;

   private:
    struct Request {
        Load* load;
        Piece piece;
    };

    bool in_child() const;
    void work();
    void stop();
    Request next();  // with mutex_ held, where one is wanted
    void finish(Load& load, bool failed);

    const std::vector<std::unique_ptr<DirectFile>>& files_;
    mutable std::mutex mutex_;
    std::condition_variable wanted_;
    std::condition_variable done_;
    std::deque<Request> urgent_, later_;
    int64_t reading_ = 0;
    double busy_since_ = 0;
    Counts counts_;
    std::string error_;
    bool stopping_ = false;
    const int64_t owner_;
    std::vector<std::thread> threads_;
};

}  // namespace moekit
