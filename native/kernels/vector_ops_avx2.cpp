#include <cstdint>
#include <cstring>

#include "kernels/vector_ops.h"

namespace moekit::avx2 {
#include "kernels/vector_ops.inl"
}  // namespace moekit::avx2
