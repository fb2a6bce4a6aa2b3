// The operations of training steps in Python: the module `_native.training`, a function here for each file of them.
#pragma once

#include <nanobind/nanobind.h>

namespace moekit {

void bind_activation(nanobind::module_& training);
void bind_experts(nanobind::module_& training);
void bind_router(nanobind::module_& training);
void bind_adamw(nanobind::module_& training);
void bind_attention(nanobind::module_& training);
void bind_norm(nanobind::module_& training);
void bind_token_loss(nanobind::module_& training);

}  // namespace moekit
