#include "attention.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "pool.hpp"

namespace ra_bench {
namespace {

struct Scratch {
  std::vector<int32_t> ids;
  std::vector<float> weights;
};

void attend_one(const Kernels& kernels, const float* query, const int32_t* ids, size_t k, const Rows& keys,
                const Rows& values, Scratch& scratch, float* output, float* lse) {
  std::fill(output, output + values.d, 0.0f);
  *lse = -std::numeric_limits<float>::infinity();
  int32_t* real = scratch.ids.data();
  float* weights = scratch.weights.data();
  size_t count = 0;
  for (size_t i = 0; i < k; ++i) {
    real[count] = ids[i];
    count += ids[i] >= 0;
  }
  if (!count) return;
  kernels.dot(query, keys, real, count, weights);
  const float largest = *std::max_element(weights, weights + count);
  const float sum = kernels.exp_sum(weights, count, largest);
  *lse = largest + std::log(sum);
  kernels.add(weights, values, real, count, output);
  const float scale = 1.0f / sum;
  for (size_t j = 0; j < values.d; ++j) output[j] *= scale;
}

}  // namespace

void gather_attention(const float* queries, size_t m, const int32_t* ids, size_t k, const Rows& keys,
                      const Rows& values, int threads, float* output, float* lse) {
  const Kernels& table = kernels();
  std::vector<Scratch> scratch(static_cast<size_t>(std::max(threads, 1)));
  parallel_for(threads, static_cast<int64_t>(m), 1, [&](int64_t begin, int64_t end, int worker) {
    Scratch& own = scratch[static_cast<size_t>(worker)];
    own.ids.resize(k + 1);
    own.weights.resize(k + 1);
    for (int64_t i = begin; i < end; ++i)
      attend_one(table, queries + i * keys.d, ids + i * k, k, keys, values, own, output + i * values.d,
                 lse + i);
  });
}

}  // namespace ra_bench
