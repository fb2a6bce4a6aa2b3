#include "streaming/block_ring.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "streaming/seconds_now.h"

namespace moekit {

BlockRing::BlockRing(const std::vector<std::string>& paths, std::vector<StreamedBlock> blocks, int64_t bytes,
                     int threads, bool direct)
    : blocks_(std::move(blocks)), places_(blocks_.size()), loads_(blocks_.size()), waited_(1), bytes_(bytes) {
    files_ = open_files(paths, direct);
    for (size_t i = 0; i < blocks_.size(); ++i) {
        check(blocks_[i]);
        const std::vector<Span>& matrices = blocks_[i].matrices;
        for (const Span& span : matrices) {
            if (span.bytes) {
                loads_[i].pieces.push_back({DirectFile::blocks(span), nullptr});
            }
        }
        const int64_t size = blocks_bytes(matrices.data(), matrices.data() + matrices.size());
        if (size == 0 || size > bytes) {
            throw std::invalid_argument("a ring of " + std::to_string(bytes) + " bytes does not hold a block of " +
                                        std::to_string(size));
        }
        sizes_.push_back(size);
    }
    memory_ = huge_pages(bytes);
    reader_ = std::make_unique<Reader>(files_, threads);
    if (!blocks_.empty()) {
        read_ahead();
    }
}

void BlockRing::check(const StreamedBlock& block) const {
    for (const Span& span : block.matrices) {
        if (!lies_within(span, files_)) {
            throw std::invalid_argument("a block does not lie within its file");
        }
    }
}

void BlockRing::enter(int64_t block) {
    if (entered_) {
        first_ = following(first_);
        --held_;
    }
    if (held_ == 0 || first_ != block) {
        forget();
        first_ = next_ = block;
    }
    entered_ = true;
    read_ahead();
    wait_for(loads_[block]);
    if (reader_->state(loads_[block]) == Load::State::Failed) {
        // Zeros are finite in any type, and the step goes on to its end.
        std::memset(memory_.get() + places_[block], 0, static_cast<size_t>(sizes_[block]));
        failed_ = true;
    }
}

void BlockRing::wait_for(Load& load) {
    if (reader_->state(load) != Load::State::Reading) {
        return;
    }
    const double since = seconds_now();
    waited_[0] = &load;
    reader_->wait_for_any(waited_);
    stall_seconds_ += seconds_now() - since;
}

void BlockRing::forget() {
    reader_->wait_for_all();
    first_ = held_ = next_ = write_ = 0;
    entered_ = false;
}

void BlockRing::read_ahead() {
    while (held_ < static_cast<int64_t>(blocks_.size())) {
        const int64_t place = free_place(sizes_[next_]);
        if (place < 0) {
            return;
        }
        read(next_, place);
        write_ = place + sizes_[next_];
        next_ = following(next_);
        ++held_;
    }
}

int64_t BlockRing::free_place(int64_t bytes) const {
    if (held_ == 0) {
        return 0;
    }
    const int64_t begin = places_[first_];
    if (write_ <= begin) {  // what is held goes around the end
        return write_ + bytes <= begin ? write_ : -1;
    }
    if (write_ + bytes <= bytes_) {
        return write_;
    }
    return bytes <= begin ? 0 : -1;
}

void BlockRing::read(int64_t block, int64_t place) {
    places_[block] = place;
    uint8_t* memory = memory_.get() + place;
    for (Piece& piece : loads_[block].pieces) {
        piece.into = memory;
        memory += piece.blocks.bytes;
    }
    // In the order of their use, which is that of the asking.
    reader_->start(loads_[block], true);
}

const uint8_t* BlockRing::matrix(int64_t which) const {
    return memory_.get() + places_[first_] + place_of(blocks_[first_].matrices.data(), which);
}

std::string BlockRing::take_error() {
    if (!failed_) {
        return {};
    }
    failed_ = false;
    forget();
    return reader_->take_error();
}

RingCounts BlockRing::counts() const {
    const Reader::Counts read = reader_->counts();
    return {read.bytes, read.busy_seconds, stall_seconds_};
}

}  // namespace moekit
