#include "training/tables.h"

#include "kernels/kernels.h"

namespace moekit {

InstructionSet training_set() {
    const Kernels* chosen = &kernels();
    if (chosen == &portable::KERNELS) {
        return InstructionSet::Portable;
    }
#if defined(MOEKIT_X86)
    if (chosen == &avx2::KERNELS) {
        return InstructionSet::Avx2;
    }
    if (chosen == &avx512::KERNELS) {
        return InstructionSet::Avx512;
    }
#endif
    return InstructionSet::Avx512Bf16;
}

}  // namespace moekit
