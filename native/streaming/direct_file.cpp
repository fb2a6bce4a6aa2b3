#include "streaming/direct_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace moekit {
namespace {

int64_t change_time(const struct stat& about) {
#ifdef __APPLE__
    const auto& time = about.st_mtimespec;
#else
    const auto& time = about.st_mtim;
#endif
    return static_cast<int64_t>(time.tv_sec) * 1'000'000'000 + time.tv_nsec;
}

}  // namespace

DirectFile::DirectFile(std::string path, bool direct) : path_(std::move(path)) {
#ifdef O_DIRECT
    if (direct) {
        file_ = open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT);
        // Some file systems open so, and refuse to read.
        alignas(BLOCK) uint8_t block[BLOCK];
        if (file_ >= 0 && pread(file_, block, BLOCK, 0) < 0) {
            close(file_);
            file_ = -1;
        }
        direct_ = file_ >= 0;
    }
#else
    (void)direct;
#endif
    if (file_ < 0) {
        file_ = open(path_.c_str(), O_RDONLY | O_CLOEXEC);
    }
    struct stat about;
    if (file_ < 0 || fstat(file_, &about) != 0) {
        const std::string why = std::strerror(errno);
        if (file_ >= 0) {
            close(file_);
        }
        throw ReadError("Cannot read " + path_ + ": " + why + ".");
    }
    bytes_ = about.st_size;
    changed_ = change_time(about);
}

DirectFile::~DirectFile() { close(file_); }

void DirectFile::fail(const char* why) const { throw ReadError("Cannot read " + path_ + ": " + why + "."); }

void DirectFile::read(Span blocks, uint8_t* into) const {
    const int64_t wanted = std::min(blocks.end(), bytes_);
    for (int64_t at = blocks.offset; at < wanted;) {
        // A direct read asks for whole blocks even where the file ends within one.
        const ssize_t got = pread(file_, into + (at - blocks.offset), blocks.end() - at, at);
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got < 0) {
            fail(std::strerror(errno));
        }
        // A reading that stopped within a block goes on at its beginning; where it stops there again, the file ends
        // there.
        const int64_t reached = at + got, next = reached < wanted ? reached / BLOCK * BLOCK : reached;
        if (next == at) {
            fail("it has become shorter since it was opened");
        }
        at = next;
    }
    struct stat about;
    if (fstat(file_, &about) == 0 && (about.st_size != bytes_ || change_time(about) != changed_)) {
        fail("it has been written to since it was opened");
    }
#ifdef POSIX_FADV_DONTNEED
    if (!direct_) {
        // What is read here is kept in memory of our own.
        posix_fadvise(file_, blocks.offset, blocks.bytes, POSIX_FADV_DONTNEED);
    }
#endif
}

std::vector<std::unique_ptr<DirectFile>> open_files(const std::vector<std::string>& paths, bool direct) {
    std::vector<std::unique_ptr<DirectFile>> files;
    for (const std::string& path : paths) {
        files.push_back(std::make_unique<DirectFile>(path, direct));
    }
    return files;
}

int64_t blocks_bytes(const Span* begin, const Span* end) {
    int64_t bytes = 0;
    for (const Span* span = begin; span != end; ++span) {
        bytes += span->bytes ? DirectFile::blocks(*span).bytes : 0;
    }
    return bytes;
}

int64_t place_of(const Span* spans, int64_t which) {
    return blocks_bytes(spans, spans + which) + spans[which].offset % DirectFile::BLOCK;
}

bool lies_within(const Span& span, const std::vector<std::unique_ptr<DirectFile>>& files) {
    const bool known = span.file >= 0 && span.file < static_cast<int64_t>(files.size());
    return known && span.offset >= 0 && span.bytes >= 0 && span.end() <= files[span.file]->bytes();
}

}  // namespace moekit
