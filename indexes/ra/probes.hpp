// Parts of a build and of a walk, each alone, for tests.
#pragma once

#include <nanobind/nanobind.h>

namespace ra_bench {

void add_probes(nanobind::module_& m);

}  // namespace ra_bench
