#define MOEKIT_ISA portable
#define MOEKIT_VECTORS "simd/portable.h"

#include "kernels/kernels.inl"
