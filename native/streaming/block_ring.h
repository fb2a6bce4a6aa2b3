// Blocks of a model that lie on disk and are read each time they are needed: always in the same order, again and again.
//
// What is used in turns gains nothing from a cache that is smaller than all of it; so those that stay in memory are
// chosen once, and the others pass through a ring, in which the disk is ahead of what is computed.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/aligned_bytes.h"
#include "streaming/direct_file.h"
#include "streaming/reader.h"

namespace moekit {

enum class BlockKind { Attention, Ffn };

// The attention or the ffn of a layer: where its matrices lie. One that there is not has no bytes.
struct StreamedBlock {
    int64_t layer;
    BlockKind kind;
    std::vector<Span> matrices;
};

// Counted since the ring was made.
struct RingCounts {
    int64_t bytes = 0;
    double busy_seconds = 0;   // of the disk
    double stall_seconds = 0;  // in which nothing could be computed
};

// All but the constructor is called by one thread at a time. Nothing throws where reading fails, since threads that
// compute cannot: a block then has zeros, until take_error() says why.
class BlockRing {
   public:
    // `blocks`: in the order in which they are used. `bytes`: of the ring; the reading is ahead where it holds two
    // blocks or more. Throws ReadError, std::bad_alloc, and std::invalid_argument where a block does not lie within its
    // file or the ring does not hold it.
    BlockRing(const std::vector<std::string>& paths, std::vector<StreamedBlock> blocks, int64_t bytes, int threads,
              bool direct);

    const std::vector<StreamedBlock>& blocks() const { return blocks_; }

    // Waits until a block is in memory. Those before it are no longer needed; those after it are read as far as there
    // is room, the first after the last.
    void enter(int64_t block);

    // Where a matrix of the block stands that was entered last.
    const uint8_t* matrix(int64_t which) const;

    // Why a block has had zeros since the last call; empty where none has.
    std::string take_error();

    RingCounts counts() const;

   private:
    int64_t following(int64_t block) const { return (block + 1) % static_cast<int64_t>(blocks_.size()); }
    void check(const StreamedBlock& block) const;
    void forget();
    void read_ahead();
    // Where so many bytes are free in one piece; -1: nowhere.
    int64_t free_place(int64_t bytes) const;
    void read(int64_t block, int64_t place);
    void wait_for(Load& load);

    std::vector<std::unique_ptr<DirectFile>> files_;
    std::vector<StreamedBlock> blocks_;
    std::vector<int64_t> sizes_;   // of each block, in whole blocks of the file
    std::vector<int64_t> places_;  // of each block, once it is in the ring
    std::vector<Load> loads_;
    std::vector<Load*> waited_;
    AlignedBytes memory_;
    int64_t bytes_;
    std::unique_ptr<Reader> reader_;

    // In the ring are `held_` blocks from first_ on; of these, the first was entered or is to be.
    int64_t first_ = 0;
    int64_t held_ = 0;
    int64_t next_ = 0;   // to be read
    int64_t write_ = 0;  // where what was read last ends
    bool entered_ = false;
    bool failed_ = false;
    double stall_seconds_ = 0;
};

}  // namespace moekit
