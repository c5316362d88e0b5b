#include "rounded.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

#include "pool.hpp"

namespace ra_bench {

void RoundedKeys::round(const Kernels& table, const Rows& rows, const float* extra, int threads) {
  kernels = &code_kernels();
  width = (rows.d + kByteRows - 1) / kByteRows * kByteRows;
  levels.resize(rows.n * width, kMiddleByte);
  keys.resize(rows.n);
  parallel_for(threads, static_cast<int64_t>(rows.n), 1024, [&](int64_t first, int64_t last, int) {
    std::vector<float> row(rows.d);
    for (size_t x = static_cast<size_t>(first); x < static_cast<size_t>(last); ++x) {
      table.widen_row(rows, x, row.data());
      float largest = 0;
      for (float number : row) largest = std::max(largest, std::fabs(number));
      const float inverse = largest > 0 ? 127.0f / largest : 0.0f;
      // The sums are positive, so that dropping the fraction rounds.
      for (size_t j = 0; j < rows.d; ++j)
        levels[x * width + j] = static_cast<uint8_t>(static_cast<int32_t>(row[j] * inverse + (kMiddleByte + 0.5f)));
      keys[x] = {largest / 127.0f, extra[x]};
    }
  });
}

void RoundedKeys::nearness(int32_t key, const int32_t* ids, size_t count, float* near) const {
  kernels->dot_bytes(levels.data(), width, key, ids, count, near);
  const Key by = keys[static_cast<size_t>(key)];
  for (size_t i = 0; i < count; ++i) {
    const Key& other = keys[static_cast<size_t>(ids[i])];
    near[i] = near[i] * (by.step * other.step) + by.extra * other.extra;
  }
}

}  // namespace ra_bench
