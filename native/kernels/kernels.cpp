#include "kernels/kernels.h"

#include <atomic>
#include <cstring>
#include <vector>

#if defined(MOEKIT_AMX)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace moekit {
namespace {

#if defined(MOEKIT_AMX)
// Linux gives the registers of tiles to processes that ask for them.
bool has_tiles() {
    constexpr unsigned BF16 = 1u << 22, TILES = 1u << 24;
    constexpr long REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & BF16) && (d & TILES) &&
           syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}
#endif

// The compiler's built-in asks the processor and whether the operating system saves the registers (XGETBV).
std::vector<const Kernels*> runnable() {
    std::vector<const Kernels*> found{&portable::KERNELS};
#if defined(MOEKIT_X86)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512vnni");
    if (avx2) {
        found.push_back(&avx2::KERNELS);
    }
    if (avx512) {
        found.push_back(&avx512::KERNELS);
    }
#if defined(MOEKIT_AVX512_BF16)
    if (avx512 && __builtin_cpu_supports("avx512bf16")) {
        found.push_back(&avx512_bf16::KERNELS);
#if defined(MOEKIT_AMX)
        if (has_tiles()) {
            found.push_back(&amx::table());
        }
#endif
    }
#endif
#endif
    return found;
}

const std::vector<const Kernels*>& found() {
    static const std::vector<const Kernels*> all = runnable();
    return all;
}

std::atomic<const Kernels*>& chosen() {
    static std::atomic<const Kernels*> kernels{found().back()};
    return kernels;
}

}  // namespace

const Kernels& kernels() { return *chosen().load(std::memory_order_relaxed); }

const VectorOps& vector_ops() { return *kernels().vectors; }

bool select_kernels(const char* name) {
    for (const Kernels* candidate : found()) {
        if (std::strcmp(candidate->name, name) == 0) {
            chosen().store(candidate);
            return true;
        }
    }
    return false;
}

const char* const* available_kernels() {
    static const std::vector<const char*> names = [] {
        std::vector<const char*> all;
        for (const Kernels* candidate : found()) {
            all.push_back(candidate->name);
        }
        all.push_back(nullptr);
        return all;
    }();
    return names.data();
}

}  // namespace moekit
