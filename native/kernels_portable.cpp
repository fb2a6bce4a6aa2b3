#include <cstdint>
#include <cstring>

#include "kernels.h"

#define MOEKIT_KERNELS_NAME "portable"

namespace moekit::portable {
#include "simd_portable.h"

#include "kernels.inl"
}  // namespace moekit::portable
