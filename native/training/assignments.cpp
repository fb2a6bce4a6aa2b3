#include "training/assignments.h"

#include <stdexcept>

namespace moekit {

// Two passes, the second of which puts everything where it belongs: less than a microsecond for a hundred choices, so
// that threads would gain little.
void sort_choices(const int64_t* expert, int64_t tokens, int64_t per_token, int64_t experts, SortedChoices& sorted) {
    sorted.offsets.assign(experts + 1, 0);
    for (int64_t n = 0; n < tokens * per_token; ++n) {
        if (expert[n] >= experts) {
            throw std::invalid_argument("there is no expert of that number");
        }
        if (expert[n] >= 0) {
            ++sorted.offsets[expert[n] + 1];
        }
    }
    for (int64_t e = 0; e < experts; ++e) {
        sorted.offsets[e + 1] += sorted.offsets[e];
    }
    std::vector<int64_t> next(sorted.offsets.begin(), sorted.offsets.end() - 1);
    int64_t taken = 0;
    for (int64_t token = 0; token < tokens; ++token) {
        sorted.token_offset[token] = taken;
        for (int64_t n = token * per_token; n < (token + 1) * per_token; ++n) {
            if (expert[n] >= 0) {
                const int64_t place = next[expert[n]]++;
                sorted.order[place] = n;
                sorted.token[place] = token;
                sorted.slot[taken++] = place;
            }
        }
    }
}

}  // namespace moekit
