// Search, and attention over what it finds, for one head and for a layer.
#pragma once

#include <nanobind/nanobind.h>

namespace ra_bench {

void add_answers(nanobind::module_& m);

}  // namespace ra_bench
