# How the decoder's files for each instruction set are compiled; included by CMakeLists.txt, which defines AVX2, AVX512.
# Products and sums may be fused here: no format says what bits come out. No vector is passed to a function that is not
# inlined, so that the change of how they are passed, which the compiler notes, does not matter.
set(DECODER_OPS -ffp-contract=fast -Wno-psabi)
set_source_files_properties(decoder_ops_portable.cpp PROPERTIES COMPILE_OPTIONS "${DECODER_OPS}")
set_source_files_properties(decoder_ops_avx2.cpp PROPERTIES COMPILE_OPTIONS "${AVX2};${DECODER_OPS}")
set_source_files_properties(decoder_ops_avx512.cpp PROPERTIES COMPILE_OPTIONS "${AVX512};${DECODER_OPS}")
