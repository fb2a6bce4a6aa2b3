// Attention and ffns whose matrices lie on disk, as a decoder's layers see them: at a block's beginning they are there.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "decoder/model.h"
#include "streaming/block_ring.h"

namespace moekit {

class StreamedBlocks {
   public:
    // The layers' matrices are made to point to where the ring has them; what they pointed to is not read. Without a
    // ring there is nothing to do. Throws std::invalid_argument where the ring's blocks are not those of the layers, in
    // their order.
    StreamedBlocks(std::vector<Layer>& layers, std::shared_ptr<BlockRing> ring);

    // Waits for the matrices of a block that is about to be computed. By one thread, between the barrier after the
    // block before and one before the use.
    void enter(int64_t layer, BlockKind kind);

    // Why a block has had zeros since the last call; empty where none has.
    std::string take_error();

   private:
    static constexpr int64_t IN_MEMORY = -1;
    static constexpr int64_t KINDS = 2;
    static int64_t slot(int64_t layer, BlockKind kind) { return KINDS * layer + static_cast<int64_t>(kind); }

    std::vector<Layer>& layers_;
    std::shared_ptr<BlockRing> ring_;
    std::vector<int64_t> index_;  // in the ring, of each layer's two blocks
};

}  // namespace moekit
