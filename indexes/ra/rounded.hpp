// The keys once more in 8 bits a dimension, while a graph is built: what pruning compares them by. Half the bytes of
// float16, and sums of products in whole numbers.
#pragma once

#include <cstddef>
#include <cstdint>

#include "code_kernels.hpp"
#include "kernels.hpp"
#include "memory.hpp"

namespace ra_bench {

struct RoundedKeys {
  struct Key {
    float step, extra;  // of a level; the coordinate that lifts the key (Geometry)
  };

  const CodeKernels* kernels = nullptr;
  size_t width = 0;
  Table<uint8_t> levels;  // (n, width): a coordinate is (level - 128) steps of its key
  Table<Key> keys;

  // Rounds `rows`, whose extra coordinates are `extra`.
  void round(const Kernels& table, const Rows& rows, const float* extra, int threads);

  // near[i] = nearness of ids[i] to `key`, as Geometry says it.
  void nearness(int32_t key, const int32_t* ids, size_t count, float* near) const;

  void fetch(int32_t key) const {
    prefetch_row(reinterpret_cast<const char*>(levels.data() + static_cast<size_t>(key) * width), width);
    prefetch(&keys[static_cast<size_t>(key)]);
  }

  void fetch_early(int32_t key) const {  // into the second level
    const uint8_t* row = levels.data() + static_cast<size_t>(key) * width;
    for (size_t offset = 0; offset < width; offset += 64) prefetch_second_level(row + offset);
    prefetch_second_level(&keys[static_cast<size_t>(key)]);
  }
};

}  // namespace ra_bench
