// The keys once more in 4 bits a dimension, for the walk: a quarter of the bytes to fetch, exact rows come last.
//
// A key's code is that of y = T (key - mean), each coordinate one of 16 levels (level - 7.5) times the key's own
// step; a query is turned by the transposed inverse of T and rounded to 8 bits. `_balance.py` makes T. A key has
// `stride` bytes: chunks of 32, whose low halves are 32 dimensions and whose high halves the next 32. The last
// byte holds no dimension but the number of the key's step, so that a key costs one fetch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "code_kernels.hpp"
#include "four_bits.hpp"
#include "kernels.hpp"
#include "memory.hpp"

namespace ra_bench {

constexpr size_t kSteps = 256;

// A query as the codes want it.
struct CodeQuery {
  std::vector<float> turned;
  std::vector<int8_t> levels;  // (2 * stride), in the order of a key's dimensions
  float middle = 0;            // kMiddleLevel * the sum of the levels
  float scale = 1;             // of a level: what CodeKernels::score is to be multiplied by, to tell q·(key - mean)
};

struct Codes {
  size_t d = 0, kept = 0, stride = 0;
  std::vector<float> to_key, to_query;  // (kept, d)
  std::vector<float> offset;            // (kept): to_key times the mean key
  std::vector<float> steps;             // (kSteps), growing
  const uint8_t* rows = nullptr;        // (n, stride): `owned`, or a mapped file
  Table<uint8_t> owned;
  std::vector<int32_t> every;           // 0, 1, ... kept - 1

  bool empty() const { return kept == 0; }
  size_t nbytes(size_t n) const {
    return n * stride + (to_key.size() + to_query.size() + offset.size() + steps.size()) * 4;
  }
  // Takes the transforms (kept, d) and the offset (kept).
  void set_transform(const float* key, const float* query, const float* mean, size_t kept_dims, size_t dim);
  // Encodes the keys [from, keys.n); with from = 0 it chooses the steps first. `is_turned`: the first `kept` of their
  // numbers are the coordinates of the codes already.
  void encode(const Kernels& kernels, const Rows& keys, bool is_turned, size_t from, int threads);
  void turn(const Kernels& kernels, const float* query, CodeQuery& out) const;
  // The same for a query whose coordinates (kept) are those of the codes already.
  void round(const float* turned, CodeQuery& out) const;
};

// Most dimensions that a code of d dimensions keeps.
inline size_t code_stride(size_t d) { return (d + 63) / 64 * kChunkBytes; }
inline size_t most_kept(size_t d) { return d < 2 * code_stride(d) - 2 ? d : 2 * code_stride(d) - 2; }

}  // namespace ra_bench
