#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "kernels/kernels.h"

#define MOEKIT_KERNELS_NAME "avx2"

namespace moekit::avx2 {
#include "simd/x86.h"

#include "simd/avx2.h"

#include "kernels/kernels.inl"
}  // namespace moekit::avx2
