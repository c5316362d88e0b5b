#include "attention.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "pool.hpp"

namespace ra_bench {
namespace {

// Those of k ids that are not -1, and room for a number of each. Its memory stays with the thread.
struct Real {
  std::vector<int32_t> ids;
  std::vector<float> numbers;

  size_t take(const int32_t* all, size_t k) {
    if (ids.size() < k + 1) {  // one more, for the branchless loop's last write
      ids.resize(k + 1);
      numbers.resize(k + 1);
    }
    size_t count = 0;
    for (size_t i = 0; i < k; ++i) {
      ids[count] = all[i];
      count += all[i] >= 0;
    }
    return count;
  }
};

thread_local Real real;

}  // namespace

size_t attend_query(const Kernels& kernels, const float* query, const int32_t* ids, size_t k,
                    const Rows& keys, const Rows& values, float* output, float* lse) {
  const size_t count = real.take(ids, k);
  float* weights = real.numbers.data();
  std::fill(output, output + values.d, 0.0f);
  *lse = -std::numeric_limits<float>::infinity();
  if (!count) return 0;
  kernels.dot(query, keys, real.ids.data(), count, weights);
  const float largest = *std::max_element(weights, weights + count);
  const float sum = kernels.exp_sum(weights, count, largest);
  *lse = largest + std::log(sum);
  kernels.add(weights, values, real.ids.data(), count, output);
  const float scale = 1.0f / sum;
  for (size_t j = 0; j < values.d; ++j) output[j] *= scale;
  return count;
}

void gather_attention(const float* queries, size_t m, const std::vector<HeadIds>& heads, int threads,
                      float* output, float* lse) {
  const Kernels& table = kernels();
  const auto count = static_cast<int64_t>(heads.size() * m);
  parallel_for(threads, count, 1, [&](int64_t begin, int64_t end, int) {
    for (auto i = static_cast<size_t>(begin); i < static_cast<size_t>(end); ++i) {
      const HeadIds& head = heads[i / m];
      attend_query(table, queries + i * head.keys.d, head.ids + i % m * head.k, head.k, head.keys,
                   head.values, output + i * head.keys.d, lse + i);
    }
  });
}

void gather_logits(const Kernels& kernels, const float* query, const int32_t* ids, size_t k, const Rows& keys,
                   float* logits) {
  const size_t count = real.take(ids, k);
  kernels.dot(query, keys, real.ids.data(), count, real.numbers.data());
  const float* next = real.numbers.data();
  for (size_t i = 0; i < k; ++i) logits[i] = ids[i] < 0 ? -std::numeric_limits<float>::infinity() : *next++;
}

void mix_rows(const Kernels& kernels, const float* weights, const int32_t* ids, size_t k, const Rows& values,
              float* output) {
  const size_t count = real.take(ids, k);
  float* next = real.numbers.data();
  for (size_t i = 0; i < k; ++i)
    if (ids[i] >= 0) *next++ = weights[i];
  std::fill(output, output + values.d, 0.0f);
  kernels.add(real.numbers.data(), values, real.ids.data(), count, output);
}

}  // namespace ra_bench
