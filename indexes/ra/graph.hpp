// The graph and the geometry it is built in. Everything here is checked when it is made, so that a search
// can trust every id.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "kernels.hpp"
#include "memory.hpp"

namespace ra_bench {

struct Codes;
struct RoundedKeys;

// Learn queries that stay after the build, each with its nearest of all keys so far: what links later keys.
struct KeptQueries {
  size_t count = 0, width = 0;
  std::vector<uint16_t> vectors;  // (count, dim) float16
  std::vector<int32_t> ids;       // (count, width), best first, -1 padded
  std::vector<float> scores;      // (count, width); only kept once something was inserted
};

// A directed graph over n keys: row x of `links` (n, degree) holds the keys that x points to, -1 after the
// last. The first `kept[x]` of them come from queries and are never pruned away by later insertions.
struct Graph {
  size_t n = 0;
  size_t degree = 0;
  const int32_t* links = nullptr;  // `owned`, or a mapped file
  Table<int32_t> owned;
  std::vector<uint16_t> kept;
  int32_t entry = 0;  // every key can be reached from here
  size_t dim = 0;
  std::vector<float> centroids;         // (C, dim): mean directions of groups of learn queries
  std::vector<int32_t> seeds;           // (C, S): where a search for a query near that mean starts; -1 padded
  std::vector<int32_t> every_centroid;  // 0, 1, ... C - 1
  size_t num_centroids = 0, seeds_each = 0;
  KeptQueries sample;
  size_t unwalked = 0;  // keys inserted since it was last made sure that every key is reached

  const int32_t* row(size_t x) const { return links + x * degree; }
  int32_t* mutable_row(size_t x) { return owned.data() + x * degree; }
  size_t count(size_t x) const {
    const int32_t* to = row(x);
    size_t found = 0;
    while (found < degree && to[found] >= 0) ++found;
    return found;
  }
};

// How near two keys are: their inner product, plus the product of one extra coordinate each. Extra
// coordinates sqrt(c² - |k|²) put all keys on a sphere of radius c ("lifted": nearer means a larger inner
// product, and equals a smaller distance, which is c² - the product, doubled). None of them: raw inner
// product.
struct Geometry {
  Rows keys;
  const float* extra = nullptr;
  const Codes* codes = nullptr;  // what enhance() searches by; where they are empty, by the keys themselves
  bool is_balanced = false;      // whether the keys are in the coordinates of the codes
  const RoundedKeys* rounded = nullptr;  // the same keys, for pruning, where they can be rounded

  float extra_of(size_t id) const { return extra ? extra[id] : 0.0f; }
  // near[i] = nearness of ids[i] to the point whose vector is `vector` and extra coordinate `x`.
  void nearness(const Kernels& kernels, const float* vector, float x, const int32_t* ids, size_t count,
                float* near) const {
    kernels.dot(vector, keys, ids, count, near);
    if (!extra) return;
    for (size_t i = 0; i < count; ++i) near[i] += x * extra[ids[i]];
  }
};

struct Candidate {
  float near;
  int32_t id;
  // Nearest first; the id decides ties, so that no order depends on threads or on the standard library.
  bool operator<(const Candidate& other) const {
    return near > other.near || (near == other.near && id < other.id);
  }
};

}  // namespace ra_bench
