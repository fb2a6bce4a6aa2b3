#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "kernels/kernels.h"

#define MOEKIT_KERNELS_NAME "avx512"

namespace moekit::avx512 {
#include "simd/x86.h"

#include "simd/avx512.h"

#include "kernels/kernels.inl"
}  // namespace moekit::avx512
