// The inner loops of a search, in several instruction sets, chosen at run time as kernels.hpp does.
#pragma once

#include <cstddef>
#include <cstdint>

#include "lists.hpp"

namespace ra_bench {

constexpr size_t kMaxTogether = 8;  // queries that share a pass over a list: their sums stay in registers

// Candidates of one query: the keys whose estimated score is above `threshold`.
struct Candidates {
  float* scores;
  int32_t* ids;
  size_t size = 0;
  float threshold;
};

// One query on its way through a list. Estimated score of a key: base + scale * step * (codes · q - middle).
struct Scanner {
  const int8_t* q;    // 8 bytes a slice: the rotated query, rounded
  float scale;        // of q
  float middle;       // kMiddleLevel * sum of q
  float base;         // query · centroid of the list
  Candidates* found;  // room for the whole segment
};

struct ScanKernels {
  const char* name;
  bool (*supported)();
  // Scores every key of the segment for `count` (1 .. kMaxTogether) queries and appends the good ones.
  void (*scan)(const Segment& segment, size_t slices, const Scanner* queries, size_t count);
  // out[q][i] = Σ_j panels[i / 16][j][i % 16] * queries[q][j] + bias[i], for i < 16 * panels, q < count.
  void (*panel_scores)(const float* panels, const float* bias, size_t num_panels, size_t d,
                       const float* const* queries, size_t count, float* const* out);
  // The sum of weight[i] over those i < count (a multiple of 16) whose key[i] >= threshold.
  float (*sum_from)(const float* key, const float* weight, size_t count, float threshold);
  // How many of x[i] >= threshold.
  size_t (*count_from)(const float* x, size_t count, float threshold);
  // Keeps, in order, the entries of scores and ids whose score >= threshold; returns how many.
  size_t (*compress)(float* scores, int32_t* ids, size_t count, float threshold);
  // The places i < count (a multiple of 16) with x[i] >= threshold into `places`; returns how many.
  size_t (*find_from)(const float* x, size_t count, float threshold, int32_t* places);
  // The smallest and the largest of count > 0 numbers.
  void (*range)(const float* x, size_t count, float* smallest, float* largest);
  // ranks[i] = how many scores are larger than scores[i]. Quadratic, for few.
  void (*rank)(const float* scores, size_t count, int32_t* ranks);
};

// Those of the instruction set that kernels() names, or the nearest below it that there is.
const ScanKernels& scan_kernels();

}  // namespace ra_bench
