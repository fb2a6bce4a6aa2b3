#include "bindings/training.h"

#include <nanobind/nanobind.h>

namespace moekit {

void bind_training(nanobind::module_& module) {
    nanobind::module_ training = module.def_submodule("training");
    bind_activation(training);
    bind_router(training);
}

}  // namespace moekit
