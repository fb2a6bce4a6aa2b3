#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "kernels.h"

#define MOEKIT_KERNELS_NAME "avx512"

namespace moekit::avx512 {
#include "simd_x86.h"

#include "simd_avx512.h"

#include "kernels.inl"
}  // namespace moekit::avx512
