// The kernels in portable C++: the reference for the others, and what a CPU without them runs.

#include <cmath>

#include "half.hpp"
#include "kernels.hpp"

namespace ra_bench {
namespace {

template <class T>
void dot_rows(const float* query, const void* rows, const int32_t* ids, size_t count, size_t d,
              float* scores) {
  const T* data = static_cast<const T*>(rows);
  for (size_t i = 0; i < count; ++i) {
    if (i + 4 < count) prefetch_row(reinterpret_cast<const char*>(data + ids[i + 4] * d), d * sizeof(T));
    const T* row = data + ids[i] * d;
    float sums[8] = {};  // independent sums, so that the compiler may use vectors
    size_t j = 0;
    for (; j + 8 <= d; j += 8)
      for (size_t lane = 0; lane < 8; ++lane) sums[lane] += query[j + lane] * to_float(row[j + lane]);
    float sum = 0;
    for (; j < d; ++j) sum += query[j] * to_float(row[j]);
    for (float lane : sums) sum += lane;
    scores[i] = sum;
  }
}

template <class T>
void add_rows(const float* weights, const void* rows, const int32_t* ids, size_t count, size_t d,
              float* out) {
  const T* data = static_cast<const T*>(rows);
  for (size_t i = 0; i < count; ++i) {
    if (i + 4 < count) prefetch_row(reinterpret_cast<const char*>(data + ids[i + 4] * d), d * sizeof(T));
    const T* row = data + ids[i] * d;
    for (size_t j = 0; j < d; ++j) out[j] += weights[i] * to_float(row[j]);
  }
}

template <class T>
void widen(const void* row, size_t d, float* out) {
  for (size_t j = 0; j < d; ++j) out[j] = to_float(static_cast<const T*>(row)[j]);
}

float exp_sum(float* x, size_t count, float shift) {
  float sum = 0;
  for (size_t i = 0; i < count; ++i) sum += x[i] = std::exp(x[i] - shift);
  return sum;
}

bool always() { return true; }

}  // namespace

const Kernels* plain_kernels() {
  static const Kernels table = {
      "plain",
      always,
      {dot_rows<uint16_t>, dot_rows<float>},
      {add_rows<uint16_t>, add_rows<float>},
      {widen<uint16_t>, widen<float>},
      exp_sum,
  };
  return &table;
}

}  // namespace ra_bench
