// Memory that begins at a multiple of some number of bytes, as wide vectors, huge pages and direct reads want it.
#pragma once

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace moekit {

struct FreeBytes {
    void operator()(void* memory) const { std::free(memory); }
};

using AlignedBytes = std::unique_ptr<uint8_t, FreeBytes>;

// `bytes` or a few more, up to the next multiple of the alignment, which is a power of two; none where there are none
// to take. Throws std::bad_alloc.
inline AlignedBytes aligned_bytes(int64_t bytes, int64_t alignment) {
    if (bytes == 0) {
        return {};
    }
    void* memory = std::aligned_alloc(static_cast<size_t>(alignment),
                                      static_cast<size_t>((bytes + alignment - 1) / alignment * alignment));
    if (!memory) {
        throw std::bad_alloc();
    }
    return AlignedBytes(static_cast<uint8_t*>(memory));
}

// The same at huge pages, which the system is asked for: a disk then writes into long runs of memory and not into
// thousands of pages.
inline AlignedBytes huge_pages(int64_t bytes) {
    constexpr int64_t HUGE_PAGE = 2 << 20;
    AlignedBytes memory = aligned_bytes(bytes, HUGE_PAGE);
#ifdef MADV_HUGEPAGE
    if (memory) {
        madvise(memory.get(), static_cast<size_t>((bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE), MADV_HUGEPAGE);
    }
#endif
    return memory;
}

}  // namespace moekit
