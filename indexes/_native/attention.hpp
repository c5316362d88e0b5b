// Exact softmax attention over chosen rows.
#pragma once

#include <vector>

#include "kernels.hpp"

namespace ra_bench {

// Softmax attention of one query (d,) over keys[ids[i]] for those of k ids that are not -1, into output (d,)
// and lse, the natural logarithm of the summed exponentials; none of them gives output 0 and lse -inf. Every
// id must be in [-1, keys.n). Returns how many keys took part. Its working space stays with the thread.
size_t attend_query(const Kernels& kernels, const float* query, const int32_t* ids, size_t k,
                    const Rows& keys, const Rows& values, float* output, float* lse);

// The rows of one head, and what its queries (m, d) found: ids (m, k).
struct HeadIds {
  Rows keys, values;
  const int32_t* ids;
  size_t k;
};

// Attention of queries (heads, m, d) of all heads, into output (heads, m, d) and lse (heads, m). A thread
// takes one query at a time, so that few heads keep many threads busy.
void gather_attention(const float* queries, size_t m, const std::vector<HeadIds>& heads, int threads,
                      float* output, float* lse);

// The two halves of attend_query, for methods that weigh what was found in their own way: the logits (k,) of
// those of k ids that are not -1, -infinity for the others; and the sum (d,) of their rows by weights (k,).
void gather_logits(const Kernels& kernels, const float* query, const int32_t* ids, size_t k, const Rows& keys,
                   float* logits);
void mix_rows(const Kernels& kernels, const float* weights, const int32_t* ids, size_t k, const Rows& values,
              float* output);

}  // namespace ra_bench
