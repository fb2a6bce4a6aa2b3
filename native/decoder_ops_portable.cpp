#include <cstdint>
#include <cstring>

#include "decoder_ops.h"

namespace moekit::portable {
#include "decoder_ops.inl"
}  // namespace moekit::portable
