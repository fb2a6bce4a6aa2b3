#include "decoder/streamed_blocks.h"

#include <array>
#include <stdexcept>
#include <string>
#include <utility>

namespace moekit {
namespace {

constexpr size_t MOST_MATRICES = 4;

// Null beyond the last.
std::array<Matrix*, MOST_MATRICES> matrices_of(Layer& layer, BlockKind kind) {
    if (kind == BlockKind::Attention) {
        Attention& part = layer.attention;
        return {&part.query, &part.key, &part.value, &part.output};
    }
    return {&layer.ffn.gate, &layer.ffn.up, &layer.ffn.down, nullptr};
}

void check_block(Layer& layer, const StreamedBlock& block) {
    const std::string part = "layer " + std::to_string(block.layer) + ": ";
    if (block.kind == BlockKind::Ffn && layer.is_moe()) {
        throw std::invalid_argument(part + "its experts are no block that every token uses");
    }
    size_t which = 0;
    for (const Matrix* matrix : matrices_of(layer, block.kind)) {
        if (!matrix) {
            continue;
        }
        const int64_t bytes = matrix->data ? matrix->rows * matrix->row_bytes() : 0;
        const int64_t got = which < block.matrices.size() ? block.matrices[which].bytes : -1;
        if (got != bytes) {
            throw std::invalid_argument(part + "a streamed matrix has " + std::to_string(got) + " bytes where " +
                                        std::to_string(bytes) + " are needed");
        }
        ++which;
    }
}

}  // namespace

StreamedBlocks::StreamedBlocks(std::vector<Layer>& layers, std::shared_ptr<BlockRing> ring)
    : layers_(layers), ring_(std::move(ring)), index_(KINDS * layers.size(), IN_MEMORY) {
    if (!ring_) {
        return;
    }
    int64_t last = -1;
    for (size_t i = 0; i < ring_->blocks().size(); ++i) {
        const StreamedBlock& block = ring_->blocks()[i];
        if (block.layer < 0 || block.layer >= static_cast<int64_t>(layers.size())) {
            throw std::invalid_argument("a block of layer " + std::to_string(block.layer) + " is streamed, of " +
                                        std::to_string(layers.size()));
        }
        if (slot(block.layer, block.kind) <= last) {
            throw std::invalid_argument("streamed blocks are not in the order of their use");
        }
        check_block(layers[block.layer], block);
        last = slot(block.layer, block.kind);
        index_[last] = static_cast<int64_t>(i);
    }
}

void StreamedBlocks::enter(int64_t layer, BlockKind kind) {
    const int64_t block = index_[slot(layer, kind)];
    if (block == IN_MEMORY) {
        return;
    }
    ring_->enter(block);
    int64_t which = 0;
    for (Matrix* matrix : matrices_of(layers_[layer], kind)) {
        if (matrix && matrix->data) {
            matrix->data = ring_->matrix(which);
        }
        ++which;
    }
}

std::string StreamedBlocks::take_error() { return ring_ ? ring_->take_error() : std::string(); }

}  // namespace moekit
