#include <cstdint>
#include <cstring>

#include "kernels/vector_ops.h"

namespace moekit::portable {
#include "kernels/vector_ops.inl"
}  // namespace moekit::portable
