// A file that is read around the page cache, where its file system allows that.
#pragma once

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace moekit {

// What a reading failed with, as a sentence that names the file.
struct ReadError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// Bytes of one of several files.
struct Span {
    int64_t offset = 0;
    int64_t bytes = 0;
    int64_t file = 0;

    int64_t end() const { return offset + bytes; }
};

class DirectFile {
   public:
    // Offsets, lengths and addresses of direct reads are multiples of it: what any disk in use takes.
    static constexpr int64_t BLOCK = 4096;

    // `direct`: whether to try reading around the page cache. Throws ReadError.
    explicit DirectFile(std::string path, bool direct = true);
    ~DirectFile();
    DirectFile(const DirectFile&) = delete;
    DirectFile& operator=(const DirectFile&) = delete;

    const std::string& path() const { return path_; }
    int64_t bytes() const { return bytes_; }
    bool direct() const { return direct_; }

    // The blocks that a span lies in.
    static Span blocks(Span span) {
        const int64_t begin = span.offset / BLOCK * BLOCK;
        return {begin, (span.end() + BLOCK - 1) / BLOCK * BLOCK - begin, span.file};
    }

    // Reads whole blocks into memory that is aligned to a block; beyond the file's end it stays as it is. By any number
    // of threads at a time. Throws ReadError: also where the file has been written to or cut since it was opened.
    void read(Span blocks, uint8_t* into) const;

   private:
    [[noreturn]] void fail(const char* why) const;

    std::string path_;
    int file_ = -1;
    int64_t bytes_ = 0;
    int64_t changed_ = 0;  // when the file was last written to, in nanoseconds
    bool direct_ = false;
};

std::vector<std::unique_ptr<DirectFile>> open_files(const std::vector<std::string>& paths, bool direct);

// What spans take that are read into memory one after the other, each in its whole blocks.
int64_t blocks_bytes(const Span* begin, const Span* end);
// Where the bytes of one of them stand there.
int64_t place_of(const Span* spans, int64_t which);

// Whether a span lies within the file that it names.
bool lies_within(const Span& span, const std::vector<std::unique_ptr<DirectFile>>& files);

}  // namespace moekit
