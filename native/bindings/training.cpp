#include "bindings/training.h"

#include <nanobind/nanobind.h>

namespace moekit {

void bind_training(nanobind::module_& module) {
    nanobind::module_ training = module.def_submodule("training");
    bind_activation(training);
    bind_experts(training);
    bind_router(training);
    bind_adamw(training);
    bind_attention(training);
    bind_norm(training);
    bind_token_loss(training);
}

}  // namespace moekit
