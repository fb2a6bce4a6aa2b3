// Files that are mapped into memory: what is said where one of them became shorter meanwhile.
#pragma once

#include <cstddef>
#include <string>

namespace moekit {

struct MappedFile;

// From now on, whoever touches a page of these bytes that the file has no more ends the process with status 1, after
// `sentence` on standard error, where else a signal (SIGBUS) would end it without a word. On any thread. Signals of
// other addresses go to whoever had them before. Where the system has no such signals it does nothing.
MappedFile* watch_mapped_file(const void* begin, size_t size, const std::string& sentence);

// To be called before the bytes are anything else.
void forget_mapped_file(MappedFile* file);

}  // namespace moekit
