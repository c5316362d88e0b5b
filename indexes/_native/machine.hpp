// What the machine can do at best, measured in a moment: the ceilings that a search is held against.
#pragma once

#include <cstddef>
#include <vector>

namespace ra_bench {

// Bytes per second that `threads` read together from random rows of `row_bytes` (a multiple of 64) of a
// working set, addresses known ahead; for `seconds`, after the working set is made.
double random_read_bytes_per_s(int threads, size_t row_bytes, size_t working_set_bytes, double seconds);

// Microseconds of each of `calls` of parallel_for with one task a thread, by the caller's clock. A task keeps
// its thread busy for `busy_us`; the caller waits `pause_us` between calls, so that the others fall asleep.
std::vector<double> pool_call_us(int threads, int calls, double busy_us, double pause_us);

}  // namespace ra_bench
