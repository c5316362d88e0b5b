#include "code_kernels.hpp"

namespace ra_bench {
namespace {

void score(const uint8_t* rows, size_t stride, const float* steps, const int8_t* const* levels, const float* middles,
           size_t queries, const int32_t* ids, size_t count, float* scores, size_t apart) {
  for (size_t i = 0; i < count; ++i) {
    const uint8_t* row = rows + static_cast<size_t>(ids[i]) * stride;
    for (size_t q = 0; q < queries; ++q) {
      int32_t sum = 0;
      for (size_t c = 0; c < stride; c += kChunkBytes)
        for (size_t j = 0; j < kChunkBytes; ++j)
          sum += (row[c + j] & 15) * levels[q][2 * c + j] + (row[c + j] >> 4) * levels[q][2 * c + kChunkBytes + j];
      scores[q * apart + i] = steps[row[stride - 1]] * (static_cast<float>(sum) - middles[q]);
    }
  }
}

// No branch depends on a score.
size_t keep_good(float least, size_t count, const int32_t* ids, const float* scores, int32_t* good_ids,
                 float* good_scores) {
  size_t good = 0;
  for (size_t i = 0; i < count; ++i) {
    const float score = scores[i];
    good_ids[good] = ids[i];
    good_scores[good] = score;
    good += !(score < least);
  }
  return good;
}

void dot_bytes(const uint8_t* rows, size_t width, int32_t by, const int32_t* ids, size_t count, float* dots) {
  const uint8_t* query = rows + static_cast<size_t>(by) * width;
  for (size_t i = 0; i < count; ++i) {
    const uint8_t* row = rows + static_cast<size_t>(ids[i]) * width;
    int32_t sum = 0;
    for (size_t j = 0; j < width; ++j) sum += (row[j] - kMiddleByte) * (query[j] - kMiddleByte);
    dots[i] = static_cast<float>(sum);
  }
}

bool always() { return true; }

}  // namespace

const CodeKernels* codes_plain() {
  static const CodeKernels table = {"plain", always, score, keep_good, dot_bytes};
  return &table;
}

}  // namespace ra_bench
