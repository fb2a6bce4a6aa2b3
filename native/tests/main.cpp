// Tries the native code on tiny random weights, to be run under sanitizers: `make sanitize`. What it computes is held
// to the definition in the tests of Python; here to itself, computed another way.
#include <cstdio>

#include "checks.h"
#include "kernels/kernels.h"

int main() {
    using namespace moekit;
    tests::test_mapped_files();  // before there are threads, since it forks
    tests::test_pool();
    for (const char* const* name = available_kernels(); *name; ++name) {
        CHECK(select_kernels(*name));
        std::printf("%s\n", *name);
        tests::test_products();
        tests::test_cache();
        tests::test_decoder();
        tests::test_streaming();
        tests::test_training(*name);
    }
    CHECK(!select_kernels("none"));
    return 0;
}
