// The inner loop over codes (codes.hpp), in several instruction sets, chosen at run time as kernels.hpp does.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ra_bench {

constexpr size_t kChunkBytes = 32;  // 64 dimensions

struct CodeKernels {
  const char* name;
  bool (*supported)();
  // scores[i] = step * (levels · code - middle) of key ids[i], for i < count: its inner product with the query but
  // for a factor and an addend that are the same for all keys. Prefetches the codes.
  void (*score)(const uint8_t* rows, size_t stride, const float* steps, const int8_t* levels, float middle,
                const int32_t* ids, size_t count, float* scores);
};

// Those of the instruction set that kernels() names, or the nearest below it that there is.
const CodeKernels& code_kernels();

}  // namespace ra_bench
