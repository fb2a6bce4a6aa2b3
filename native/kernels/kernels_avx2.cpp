#define MOEKIT_ISA avx2
#define MOEKIT_VECTORS "simd/avx2.h"

#include "kernels/kernels.inl"
