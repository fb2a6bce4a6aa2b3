#define MOEKIT_ISA avx512
#define MOEKIT_VECTORS "simd/avx512.h"

#include "kernels/vector_ops.inl"
