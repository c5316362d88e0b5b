// Exact softmax attention over chosen rows.
#pragma once

#include "kernels.hpp"

namespace ra_bench {

// For each of m queries (m, d): softmax attention over keys[ids[i]] for the ids (m, k) of its row that are
// not -1, into output (m, d) and lse (m,), the natural logarithm of the summed exponentials. An empty row
// gives output 0 and lse -inf. Every id must be in [-1, keys.n).
void gather_attention(const float* queries, size_t m, const int32_t* ids, size_t k, const Rows& keys,
                      const Rows& values, int threads, float* output, float* lse);

}  // namespace ra_bench
