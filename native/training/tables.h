// What computes training steps on a CPU, compiled once for each instruction set, and how such an operation is added.
//
// An operation NAME (a norm, an activation) is four files, and no line elsewhere but one in bindings/training.cpp:
//
// - training/NAME.h: a struct of function pointers, and behind it MOEKIT_TRAINING_TABLE(TheStruct, NAME_IN_CAPITALS);
// - training/NAME.inl: the functions (static, of Lanes, see simd/lanes.h and training/numbers.h), and the constant
//   `const TheStruct NAME_IN_CAPITALS = {...}` in namespace moekit::MOEKIT_ISA. CMake compiles every .inl here for
//   every instruction set; it takes nothing of the standard library's templates (see simd/isa.h);
// - bindings/training_NAME.cpp: checks the tensors (bindings/tensors.h), releases the GIL, and shares the rows among
//   the threads of the pool (training/sharing.h): training_table<TheStruct>() gives the functions. bindings/training.h
//   declares its bind_NAME, and bindings/training.cpp calls it;
// - src/moekit/kernels/training/NAME.py: one typed function an operation, which allocates what the native one writes.
//
// The number of threads must not change a bit of a result: share out what is computed row by row, and add up over rows
// in blocks of a fixed size. What wants a faster form where the processor multiplies bf16 asks __AVX512BF16__.
#pragma once

namespace moekit {

// AMX has no vectors of its own: what is chosen there is Avx512Bf16.
enum class InstructionSet : int { Portable, Avx2, Avx512, Avx512Bf16 };

// That of the kernels in use (kernels/kernels.h), which is the best unless another was selected.
InstructionSet training_set();

// The functions of an operation for the instruction set in use.
template <typename Table>
const Table& training_table();

}  // namespace moekit

#define MOEKIT_DECLARE_TABLE(Set, Table, NAME) \
    namespace Set {                            \
    extern const Table NAME;                   \
    }

#if !defined(MOEKIT_X86)
#define MOEKIT_TRAINING_TABLE(Table, NAME)      \
    MOEKIT_DECLARE_TABLE(portable, Table, NAME) \
    template <>                                 \
    inline const Table& training_table() {      \
        return portable::NAME;                  \
    }
#else
#if defined(MOEKIT_AVX512_BF16)
#define MOEKIT_BEST_SET avx512_bf16
#else
#define MOEKIT_BEST_SET avx512
#endif
// A set that an older compiler leaves out is declared twice instead, and never chosen.
#define MOEKIT_TRAINING_TABLE(Table, NAME)             \
    MOEKIT_DECLARE_TABLE(portable, Table, NAME)        \
    MOEKIT_DECLARE_TABLE(avx2, Table, NAME)            \
    MOEKIT_DECLARE_TABLE(avx512, Table, NAME)          \
    MOEKIT_DECLARE_TABLE(MOEKIT_BEST_SET, Table, NAME) \
    template <>                                        \
    inline const Table& training_table() {             \
        switch (training_set()) {                      \
            case InstructionSet::Avx2:                 \
                return avx2::NAME;                     \
            case InstructionSet::Avx512:               \
                return avx512::NAME;                   \
            case InstructionSet::Avx512Bf16:           \
                return MOEKIT_BEST_SET::NAME;          \
            default:                                   \
                return portable::NAME;                 \
        }                                              \
    }
#endif
