#include "streaming/reader.h"

#include <unistd.h>

#include <algorithm>
#include <exception>
#include <iterator>
#include <utility>

#include "streaming/seconds_now.h"

namespace moekit {

Reader::Reader(const std::vector<std::unique_ptr<DirectFile>>& files, int threads) : files_(files), owner_(getpid()) {
    try {
        for (int i = 0; i < std::max(1, threads); ++i) {
            threads_.emplace_back([this] { work(); });
        }
    } catch (...) {
        stop();
        throw;
    }
}

Reader::~Reader() {
    if (in_child()) {
        // Nobody is there to be waited for, and nobody to let go of the lock.
        for (std::thread& thread : threads_) {
            thread.detach();
        }
        return;
    }
    stop();
}

bool Reader::in_child() const { return getpid() != owner_; }

void Reader::stop() {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        stopping_ = true;
        urgent_.clear();
        later_.clear();
    }
    wanted_.notify_all();
    for (std::thread& thread : threads_) {
        thread.join();
    }
}

void Reader::start(Load& load, bool urgent) {
    if (in_child()) {
        load.state_ = Load::State::Failed;
        return;
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    load.state_ = Load::State::Reading;
    load.left_ = 0;
    load.failed_ = false;
    std::deque<Request>& queue = urgent ? urgent_ : later_;
    for (const Piece& piece : load.pieces) {
        for (int64_t at = 0; at < piece.blocks.bytes; at += REQUEST) {
            const int64_t bytes = std::min(REQUEST, piece.blocks.bytes - at);
            queue.push_back({&load, {{piece.blocks.offset + at, bytes, piece.blocks.file}, piece.into + at}});
            ++load.left_;
        }
    }
    if (load.left_ == 0) {
        load.state_ = Load::State::Done;
    }
    wanted_.notify_all();
}

void Reader::hurry(Load& load) {
    if (in_child()) {
        return;
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto of_load = [&](const Request& request) { return request.load == &load; };
    std::copy_if(later_.begin(), later_.end(), std::back_inserter(urgent_), of_load);
    later_.erase(std::remove_if(later_.begin(), later_.end(), of_load), later_.end());
}

Load::State Reader::state(const Load& load) const {
    if (in_child()) {
        return load.state_ == Load::State::Done ? Load::State::Done : Load::State::Failed;
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    return load.state_;
}

void Reader::wait_for_any(const std::vector<Load*>& loads) {
    if (in_child()) {
        return;
    }
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [&] {
        return std::any_of(loads.begin(), loads.end(),
                           [](const Load* load) { return load->state_ != Load::State::Reading; });
    });
}

void Reader::wait_for_all() {
    if (in_child()) {
        return;
    }
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [&] { return reading_ == 0 && urgent_.empty() && later_.empty(); });
}

std::string Reader::take_error() {
    if (in_child()) {
        return "Weights are read by threads that a forked process does not have; load the model there.";
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    return std::exchange(error_, {});
}

Reader::Counts Reader::counts() const {
    if (in_child()) {
        return counts_;
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    Counts counts = counts_;
    if (reading_ > 0) {
        counts.busy_seconds += seconds_now() - busy_since_;
    }
    return counts;
}

Reader::Request Reader::next() {
    std::deque<Request>& queue = urgent_.empty() ? later_ : urgent_;
    const Request request = queue.front();
    queue.pop_front();
    return request;
}

void Reader::finish(Load& load, bool failed) {
    load.failed_ = load.failed_ || failed;
    // Whatever has failed: until the last request has ended, memory is being written to.
    if (--load.left_ == 0) {
        load.state_ = load.failed_ ? Load::State::Failed : Load::State::Done;
    }
}

void Reader::work() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
        wanted_.wait(lock, [&] { return stopping_ || !urgent_.empty() || !later_.empty(); });
        if (stopping_) {
            return;
        }
        const Request request = next();
        if (reading_++ == 0) {
            busy_since_ = seconds_now();
        }
        lock.unlock();
        std::string error;
        try {
            files_[request.piece.blocks.file]->read(request.piece.blocks, request.piece.into);
        } catch (const std::exception& failure) {
            error = failure.what();
        }
        lock.lock();
        counts_.bytes += request.piece.blocks.bytes;
        if (--reading_ == 0) {
            counts_.busy_seconds += seconds_now() - busy_since_;
        }
        if (!error.empty() && error_.empty()) {
            error_ = error;
        }
        finish(*request.load, !error.empty());
        done_.notify_all();
    }
}

}  // namespace moekit
