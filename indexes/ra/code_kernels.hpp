// The inner loops of a walk by codes (codes.hpp), and that of pruning by bytes (rounded.hpp), in several instruction
// sets, chosen at run time as kernels.hpp does.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ra_bench {

constexpr size_t kChunkBytes = 32;  // 64 dimensions
constexpr size_t kByteRows = 64;    // rows of bytes are a whole number of these long
constexpr uint8_t kMiddleByte = 128;

struct CodeKernels {
  const char* name;
  bool (*supported)();
  // scores[q * apart + i] = step * (levels[q] · code - middles[q]) of key ids[i], for q < queries and i < count: its
  // inner product with the query but for a factor and an addend that are the same for all keys. Reads each code once,
  // and prefetches it.
  void (*score)(const uint8_t* rows, size_t stride, const float* steps, const int8_t* const* levels,
                const float* middles, size_t queries, const int32_t* ids, size_t count, float* scores, size_t apart);
  // Copies the keys whose scores are not below `least`, in their order; returns how many they are.
  size_t (*keep_good)(float least, size_t count, const int32_t* ids, const float* scores, int32_t* good_ids,
                      float* good_scores);
  // dots[i] = row `by` · row ids[i], for i < count, of a table whose rows are `width` numbers (byte - kMiddleByte), a
  // whole number of kByteRows; exact below 2^24. Prefetches the rows.
  void (*dot_bytes)(const uint8_t* rows, size_t width, int32_t by, const int32_t* ids, size_t count, float* dots);
};

const CodeKernels* codes_avx512vnni();  // null where the compiler's target has no such instructions
const CodeKernels* codes_avx2();
const CodeKernels* codes_plain();

// Those of the instruction set that kernels() names, or the nearest below it that there is.
const CodeKernels& code_kernels();

}  // namespace ra_bench
