#include "attention.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "pool.hpp"

namespace ra_bench {
size_t attend_query(const Kernels& kernels, const float* query, const int32_t* ids, size_t k,
                    const Rows& keys, const Rows& values, float* output, float* lse) {
  thread_local std::vector<int32_t> real;
  thread_local std::vector<float> weights;
  if (real.size() < k + 1) {  // one more, for the branchless loop's last write
    real.resize(k + 1);
    weights.resize(k + 1);
  }
  std::fill(output, output + values.d, 0.0f);
  *lse = -std::numeric_limits<float>::infinity();
  size_t count = 0;
  for (size_t i = 0; i < k; ++i) {
    real[count] = ids[i];
    count += ids[i] >= 0;
  }
  if (!count) return 0;
  kernels.dot(query, keys, real.data(), count, weights.data());
  const float largest = *std::max_element(weights.data(), weights.data() + count);
  const float sum = kernels.exp_sum(weights.data(), count, largest);
  *lse = largest + std::log(sum);
  kernels.add(weights.data(), values, real.data(), count, output);
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

}  // namespace ra_bench
