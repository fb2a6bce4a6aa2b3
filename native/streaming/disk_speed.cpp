#include "streaming/disk_speed.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <random>
#include <vector>

#include "kernels/aligned_bytes.h"
#include "streaming/direct_file.h"
#include "streaming/reader.h"

namespace moekit {

double disk_speed(const std::string& path, int64_t piece, int threads, bool direct, double seconds) {
    // As many at a time as a layer misses matrices of experts, and in no more memory than this.
    constexpr int64_t MOST_TOGETHER = 6, MEMORY = 64 << 20;
    std::vector<std::unique_ptr<DirectFile>> files;
    files.push_back(std::make_unique<DirectFile>(path, direct));
    const int64_t blocks = std::max<int64_t>(1, files[0]->bytes() / DirectFile::BLOCK);
    const int64_t of_piece = std::clamp<int64_t>(piece / DirectFile::BLOCK, 1, blocks);
    const int64_t bytes = of_piece * DirectFile::BLOCK,
                  together = std::clamp<int64_t>(MEMORY / bytes, 1, MOST_TOGETHER);
    const AlignedBytes memory = huge_pages(together * bytes);
    std::mt19937_64 random(1);
    std::vector<Load> loads(together);
    Reader reader(files, threads);
    const auto start = [&](int64_t i) {
        const int64_t first = static_cast<int64_t>(random() % static_cast<uint64_t>(blocks - of_piece + 1));
        loads[i].pieces = {{{first * DirectFile::BLOCK, bytes}, memory.get() + i * bytes}};
        reader.start(loads[i], true);
    };
    const auto began = std::chrono::steady_clock::now();
    const auto passed = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count(); };
    int64_t done = 0;
    for (int64_t i = 0; i < together; ++i) {
        start(i);
    }
    for (int64_t i = 0; done < together || passed() < seconds; i = (i + 1) % together) {
        reader.wait_for_any({&loads[i]});
        if (reader.state(loads[i]) == Load::State::Failed) {
            throw ReadError(reader.take_error());
        }
        ++done;
        start(i);
    }
    const double rate = static_cast<double>(done * bytes) / passed();
    reader.wait_for_all();
    return rate;
}

}  // namespace moekit
