#include <cstdint>
#include <cstring>

#include "kernels/vector_ops.h"

namespace moekit::avx512 {
#include "kernels/vector_ops.inl"
}  // namespace moekit::avx512
