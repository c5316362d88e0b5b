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

namespace {

// Those of k ids that are not -1, and where they stood. Its memory stays with the thread.
struct Real {
  std::vector<int32_t> ids, places;
  std::vector<float> numbers;
  size_t count = 0;

  void take(const int32_t* all, size_t k) {
    if (ids.size() < k + 1) {  // one more, for the branchless loop's last write
      ids.resize(k + 1);
      places.resize(k + 1);
      numbers.resize(k + 1);
    }
    count = 0;
    for (size_t i = 0; i < k; ++i) {
      ids[count] = all[i];
      places[count] = static_cast<int32_t>(i);
      count += all[i] >= 0;
    }
  }
};

}  // namespace

void gather_logits(const Kernels& kernels, const float* query, const int32_t* ids, size_t k, const Rows& keys,
                   float* logits) {
  thread_local Real real;
  real.take(ids, k);
  kernels.dot(query, keys, real.ids.data(), real.count, real.numbers.data());
  std::fill(logits, logits + k, -std::numeric_limits<float>::infinity());
  for (size_t i = 0; i < real.count; ++i) logits[real.places[i]] = real.numbers[i];
}

void mix_rows(const Kernels& kernels, const float* weights, const int32_t* ids, size_t k, const Rows& values,
              float* output) {
  thread_local Real real;
  real.take(ids, k);
  for (size_t i = 0; i < real.count; ++i) real.numbers[i] = weights[real.places[i]];
  std::fill(output, output + values.d, 0.0f);
  kernels.add(real.numbers.data(), values, real.ids.data(), real.count, output);
}

}  // namespace ra_bench
