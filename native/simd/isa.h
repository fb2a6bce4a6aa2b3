// The instruction set that an including file is compiled for: MOEKIT_ISA, the namespace of what is made for it, and
// MOEKIT_VECTORS, the header of its vectors. A source file defines both before it includes anything.
//
// Everything that vectors enter lies in that namespace and takes nothing of the standard library's templates, so that
// no code compiled for one instruction set can be picked by the linker for another.
#pragma once

#if !defined(MOEKIT_ISA)
#define MOEKIT_ISA portable
#define MOEKIT_VECTORS "simd/portable.h"
#endif

// Compilers leave what is as long as some of these functions to a call, by which all registers go to memory; and how
// vectors would be passed differs between instruction sets. MOEKIT_INLINED stands behind the parameters of a lambda.
#define MOEKIT_INLINED __attribute__((always_inline))
#define MOEKIT_INLINE MOEKIT_INLINED inline
