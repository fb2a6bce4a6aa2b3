#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "kernels.h"

#define MOEKIT_KERNELS_NAME "avx2"

namespace moekit::avx2 {
#include "simd_x86.h"

#include "simd_avx2.h"

#include "kernels.inl"
}  // namespace moekit::avx2
