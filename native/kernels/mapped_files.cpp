#include "kernels/mapped_files.h"

#include <atomic>
#include <cstdint>
#include <mutex>

#if __has_include(<sys/mman.h>)
#include <signal.h>
#include <unistd.h>
#define MOEKIT_HAS_SIGBUS
#endif

namespace moekit {

// One of a list that only grows, since the handler may walk it at any time; what is forgotten is used again.
struct MappedFile {
    std::atomic<uintptr_t> begin{0}, end{0};  // both 0 where it is free
    std::string sentence;
    MappedFile* next = nullptr;
};

namespace {

std::atomic<MappedFile*> first_file{nullptr};
std::mutex files_mutex;  // of all but the handler

#ifdef MOEKIT_HAS_SIGBUS

struct sigaction handler_before = {};

void say(const char* text, size_t size) {
    while (size) {
        const ssize_t written = write(STDERR_FILENO, text, size);
        if (written <= 0) {
            return;
        }
        text += written;
        size -= static_cast<size_t>(written);
    }
}

// Calls only what a signal handler may call.
void on_bus_error(int number, siginfo_t* info, void* context) {
    static std::atomic_flag said = ATOMIC_FLAG_INIT;
    const auto address = reinterpret_cast<uintptr_t>(info->si_addr);
    for (const MappedFile* file = first_file.load(); file; file = file->next) {
        if (address >= file->begin.load() && address < file->end.load()) {
            if (said.test_and_set()) {
                for (;;) {
                    pause();  // another thread is saying it, and ends the process
                }
            }
            if (isatty(STDERR_FILENO)) {
                constexpr char FRESH_LINE[] = "\x1b[?25h\n";  // a display of progress may have hidden the cursor
                say(FRESH_LINE, sizeof FRESH_LINE - 1);
            }
            say(file->sentence.data(), file->sentence.size());
            _exit(1);
        }
    }
    if (handler_before.sa_flags & SA_SIGINFO) {
        handler_before.sa_sigaction(number, info, context);
    } else if (handler_before.sa_handler == SIG_DFL || handler_before.sa_handler == SIG_IGN) {
        sigaction(SIGBUS, &handler_before, nullptr);  // the same instruction comes again, and the signal with it
        if (info->si_code <= 0) {
            raise(number);  // but not where somebody sent it
        }
    } else {
        handler_before.sa_handler(number);
    }
}

void install_handler() {
    struct sigaction current = {};
    sigaction(SIGBUS, nullptr, &current);
    if ((current.sa_flags & SA_SIGINFO) && current.sa_sigaction == on_bus_error) {
        return;
    }
    handler_before = current;
    struct sigaction ours = {};
    ours.sa_sigaction = on_bus_error;
    ours.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigemptyset(&ours.sa_mask);
    sigaction(SIGBUS, &ours, nullptr);
}

#else

void install_handler() {}

#endif

}  // namespace

MappedFile* watch_mapped_file(const void* begin, size_t size, const std::string& sentence) {
    const std::lock_guard<std::mutex> lock(files_mutex);
    MappedFile* file = first_file.load();
    while (file && file->end.load()) {
        file = file->next;
    }
    const bool is_new = !file;
    if (is_new) {
        file = new MappedFile;
        file->next = first_file.load();
    }
    file->sentence = sentence;
    file->begin = reinterpret_cast<uintptr_t>(begin);
    file->end = file->begin.load() + size;
    if (is_new) {
        first_file = file;
    }
    install_handler();
    return file;
}

void forget_mapped_file(MappedFile* file) {
    const std::lock_guard<std::mutex> lock(files_mutex);
    file->end = 0;
    file->begin = 0;
}

}  // namespace moekit
