// What the native tests check with: the first that does not hold ends the program, and says where it stands.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#define CHECK(condition)                                                                        \
    do {                                                                                        \
        if (!(condition)) {                                                                     \
            std::fprintf(stderr, "%s:%d: does not hold: %s\n", __FILE__, __LINE__, #condition); \
            std::exit(1);                                                                       \
        }                                                                                       \
    } while (false)

#define CHECK_THROWS(Error, call)                                                                      \
    do {                                                                                               \
        bool thrown = false;                                                                           \
        try {                                                                                          \
            call;                                                                                      \
        } catch (const Error&) {                                                                       \
            thrown = true;                                                                             \
        }                                                                                              \
        if (!thrown) {                                                                                 \
            std::fprintf(stderr, "%s:%d: does not throw " #Error ": %s\n", __FILE__, __LINE__, #call); \
            std::exit(1);                                                                              \
        }                                                                                              \
    } while (false)

namespace moekit::tests {

// The largest difference of two results over the largest number of the second; infinite where one is not finite.
inline double difference(const std::vector<float>& x, const std::vector<float>& expected) {
    double most = 0, largest = 0;
    for (size_t i = 0; i < expected.size(); ++i) {
        if (!std::isfinite(x[i]) || !std::isfinite(expected[i])) {
            return INFINITY;
        }
        most = std::fmax(most, std::fabs(static_cast<double>(x[i]) - expected[i]));
        largest = std::fmax(largest, std::fabs(static_cast<double>(expected[i])));
    }
    return most / largest;
}

void test_mapped_files();
void test_pool();
void test_products();
void test_cache();
void test_decoder();
void test_streaming();
void test_training(const char* name);

}  // namespace moekit::tests
