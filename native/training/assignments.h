// The assignments of tokens to experts, sorted as kernels take them.
#pragma once

#include <cstdint>
#include <vector>

namespace moekit {

// A choice n = token * per_token + k is for expert[n]; negative ones are none. All arrays have room for every choice.
struct SortedChoices {
    std::vector<int64_t> offsets;  // where each expert's begin in `order`, and the end
    int64_t* order;                // the choices by expert, of equal ones the first first
    int64_t* token;                // their tokens
    int64_t* slot;                 // where in `order` the choices stand that are not none
    int64_t* token_offset;         // where each token's begin in `slot`
};

// std::invalid_argument where an expert is not below `experts`.
void sort_choices(const int64_t* expert, int64_t tokens, int64_t per_token, int64_t experts, SortedChoices& sorted);

}  // namespace moekit
