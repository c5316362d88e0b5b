// Vector kernels in several instruction sets, chosen at run time.
//
// A row is d numbers of type float16 (as uint16_t) or float32; rows lie one after another, `ids` select them.
// To add an instruction set: a file kernels_NAME.cpp that defines NAME_kernels(), its compile flags in
// CMakeLists.txt, and a line in kernels.cpp, best first.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace ra_bench {

enum RowType { kFloat16 = 0, kFloat32 = 1 };

inline size_t item_bytes(RowType type) { return type == kFloat16 ? 2 : 4; }

// (n, d) numbers, not owned.
struct Rows {
  const void* data = nullptr;
  RowType type = kFloat32;
  size_t n = 0;
  size_t d = 0;

  size_t row_bytes() const { return d * item_bytes(type); }
  const char* row(size_t id) const { return static_cast<const char*>(data) + id * row_bytes(); }
};

struct Kernels {
  const char* name;
  bool (*supported)();
  // scores[i] = query · rows[ids[i]], for i < count. Prefetches the rows. Indexed by RowType.
  void (*dot_rows[2])(const float* query, const void* rows, const int32_t* ids, size_t count, size_t d,
                      float* scores);
  // out[j] += Σ_i weights[i] * rows[ids[i]][j], for j < d.
  void (*add_rows[2])(const float* weights, const void* rows, const int32_t* ids, size_t count, size_t d,
                      float* out);
  // out[j] = row[j] as float32, for j < d.
  void (*widen[2])(const void* row, size_t d, float* out);
  // x[i] = exp(x[i] - shift), and their sum. Wants x[i] <= shift.
  float (*exp_sum)(float* x, size_t count, float shift);

  void dot(const float* query, const Rows& rows, const int32_t* ids, size_t count, float* scores) const {
    dot_rows[rows.type](query, rows.data, ids, count, rows.d, scores);
  }
  void add(const float* weights, const Rows& rows, const int32_t* ids, size_t count, float* out) const {
    add_rows[rows.type](weights, rows.data, ids, count, rows.d, out);
  }
  void widen_row(const Rows& rows, size_t id, float* out) const {
    widen[rows.type](rows.row(id), rows.d, out);
  }
};

// The kernels that this CPU has, best first; "plain" is the last and always there.
const std::vector<const Kernels*>& available_kernels();

// The best, or the one that force_kernels named.
const Kernels& kernels();

// The kernels of that name; throws std::invalid_argument where this CPU lacks them.
const Kernels& kernels_named(const std::string& name);

// Makes kernels() return those of that name; "" goes back to the best. For tests.
void force_kernels(const std::string& name);

inline void prefetch(const void* address) {
#if defined(__GNUC__)
  __builtin_prefetch(address);
#else
  (void)address;
#endif
}

// Not into the first level, which takes few at a time: for many, long before their use.
inline void prefetch_second_level(const void* address) {
#if defined(__GNUC__)
  __builtin_prefetch(address, 0, 2);
#else
  (void)address;
#endif
}

inline void prefetch_row(const char* row, size_t bytes) {
  for (size_t offset = 0; offset < bytes; offset += 64) prefetch(row + offset);
}

}  // namespace ra_bench
