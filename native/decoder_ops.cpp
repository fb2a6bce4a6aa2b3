#include "decoder_ops.h"

#include <cstring>

#include "kernels.h"

namespace moekit {

const VectorOps& vector_ops() {
#if defined(MOEKIT_X86)
    const char* name = kernels().name;
    if (std::strncmp(name, "avx512", 6) == 0) {
        return avx512::OPS;
    }
    if (std::strcmp(name, "avx2") == 0) {
        return avx2::OPS;
    }
#endif
    return portable::OPS;
}

}  // namespace moekit
