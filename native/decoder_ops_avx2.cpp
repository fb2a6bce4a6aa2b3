#if defined(MOEKIT_X86)
#include <cstdint>
#include <cstring>

#include "decoder_ops.h"

namespace moekit::avx2 {
#include "decoder_ops.inl"
}  // namespace moekit::avx2
#endif
