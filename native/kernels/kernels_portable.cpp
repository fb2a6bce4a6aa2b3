#include <cstdint>
#include <cstring>

#include "kernels/kernels.h"

#define MOEKIT_KERNELS_NAME "portable"

namespace moekit::portable {
#include "simd/portable.h"

#include "kernels/kernels.inl"
}  // namespace moekit::portable
