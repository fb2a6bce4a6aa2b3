#include "kernels.h"

#include <atomic>
#include <cstring>
#include <vector>

namespace moekit {
namespace {

// The compiler's built-in asks the processor and whether the operating system saves the registers (XGETBV).
std::vector<const Kernels*> runnable() {
    std::vector<const Kernels*> found{&portable::KERNELS};
#if defined(MOEKIT_X86)
    __builtin_cpu_init();
    const bool avx2 =
        __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512vnni");
    if (avx2) {
        found.push_back(&avx2::KERNELS);
    }
    if (avx512) {
        found.push_back(&avx512::KERNELS);
    }
    if (avx512 && __builtin_cpu_supports("avx512bf16")) {
        found.push_back(&avx512_bf16::KERNELS);
    }
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
