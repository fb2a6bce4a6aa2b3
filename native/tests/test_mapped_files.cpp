#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstring>
#include <string>
#include <thread>

#include "checks.h"
#include "kernels/mapped_files.h"

namespace moekit::tests {
namespace {

constexpr size_t SIZE = 1 << 16;

// Maps a file of SIZE bytes, cuts it, and touches its end on another thread; the status of the process that did so, and
// what it said.
int touch_what_is_gone(bool watched, std::string& said) {
    int ends[2];
    CHECK(pipe(ends) == 0);
    const pid_t child = fork();
    if (!child) {
        dup2(ends[1], STDERR_FILENO);
        signal(SIGBUS, SIG_DFL);
        std::FILE* file = std::tmpfile();
        if (ftruncate(fileno(file), SIZE)) {
            _exit(77);
        }
        auto* bytes = static_cast<volatile char*>(mmap(nullptr, SIZE, PROT_READ, MAP_SHARED, fileno(file), 0));
        const auto* begin = const_cast<const char*>(bytes);
        forget_mapped_file(watch_mapped_file(begin, SIZE, "Another.\n"));
        if (watched) {
            watch_mapped_file(begin, SIZE, "It was cut.\n");
        }
        if (bytes[SIZE - 1] || ftruncate(fileno(file), 0)) {
            _exit(77);
        }
        std::thread([&] { (void)bytes[SIZE - 1]; }).join();
        _exit(78);
    }
    close(ends[1]);
    char buffer[256];
    ssize_t got;
    said.clear();
    while ((got = read(ends[0], buffer, sizeof buffer)) > 0) {
        said.append(buffer, static_cast<size_t>(got));
    }
    close(ends[0]);
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child);
    return status;
}

}  // namespace

void test_mapped_files() {
    std::string said;
    const int status = touch_what_is_gone(true, said);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 1);
    CHECK(said == "It was cut.\n");
    const int unwatched = touch_what_is_gone(false, said);
    CHECK(WIFSIGNALED(unwatched) && WTERMSIG(unwatched) == SIGBUS);
    CHECK(said.empty());
}

}  // namespace moekit::tests
