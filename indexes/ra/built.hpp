// A graph as Python holds it, and the checks of what Python gives for it.
#pragma once

#include <algorithm>
#include <cmath>
#include <optional>
#include <string>
#include <vector>

#include "arrays.hpp"
#include "build.hpp"
#include "codes.hpp"
#include "kernels.hpp"

namespace ra_bench {

// Learned queries and links; immutable but for insert(). Keys are not kept.
struct Built {
  Graph graph;
  BuildSettings settings;
  float radius = 0;             // of the sphere of lifted keys; 0 for raw inner product
  std::vector<float> extra;     // (n): extra coordinates; only kept once something was inserted
  Codes codes;
  std::optional<Array> mapped, mapped_codes;  // keep `graph.links` and `codes.rows` alive where they are files

  // What every search reads to find its starts.
  size_t start_bytes() const { return graph.centroids.size() * 4 + graph.seeds_each * 4; }

  Geometry geometry(const Rows& keys) const { return {keys, radius > 0 ? extra.data() : nullptr, &codes}; }

  void lift(const Rows& keys) {  // the extra coordinates of keys that lack them
    if (radius <= 0) return;
    std::vector<float> vector(keys.d);
    for (size_t i = extra.size(); i < keys.n; ++i) {
      kernels().widen_row(keys, i, vector.data());
      double squares = 0;
      for (float x : vector) squares += static_cast<double>(x) * x;
      // A key inserted later may be longer than the radius: it then counts as lying on the equator.
      extra.push_back(
          static_cast<float>(std::sqrt(std::max(0.0, static_cast<double>(radius) * radius - squares))));
    }
  }

  void own_tables() {
    if (mapped) {
      graph.owned.assign(graph.links, graph.links + graph.n * graph.degree);
      graph.links = graph.owned.data();
      mapped.reset();
    }
    if (mapped_codes) {
      codes.owned.assign(codes.rows, codes.rows + graph.n * codes.stride);
      codes.rows = codes.owned.data();
      mapped_codes.reset();
    }
  }
};

inline BuildSettings settings_from(size_t degree, size_t query_degree, size_t pivots, size_t lists,
                                   size_t candidates, size_t beam, int threads) {
  BuildSettings settings;
  settings.degree = degree;
  settings.query_degree = std::min(query_degree, degree);
  settings.pivots = pivots;
  settings.lists = lists;
  settings.candidates = candidates;
  settings.beam = beam;
  settings.threads = std::max(threads, 1);
  return settings;
}

inline void check_ids(const char* name, const int32_t* ids, size_t count, size_t n, int32_t least = -1) {
  for (size_t i = 0; i < count; ++i)
    if (ids[i] < least || ids[i] >= static_cast<int64_t>(n))
      refuse(std::string(name) + " must hold ids from " + std::to_string(least) + " to " + std::to_string(static_cast<int64_t>(n) - 1) +
             ", got " + std::to_string(ids[i]));
}

// The graph that was saved as its parts; refuses parts that do not fit each other. Where links and codes are not
// files, `copy` puts them where searches read them fastest: NumPy's arrays begin between cache lines.
Built* restore(const Array& links, const Array& kept, const Array& centroids, const Array& seeds,
               const Array& sample, const Array& sample_ids, const Array& codes,
               const Array& steps, const Array& to_key, const Array& to_query, const Array& offset, int64_t entry,
               float radius, size_t query_degree, size_t lists, size_t candidates, size_t beam, bool copy);

// Takes kept queries (count, d) float16 and their nearest keys (count, width) int32, best first, into the graph.
void set_sample(const Array& sample, const Array& sample_ids, Graph& graph);

// Takes the transforms of a code, each (kept, d) float32, and the offset (1, kept), into `codes`, checked.
void set_codes(const Array& to_key, const Array& to_query, const Array& offset, size_t d, Codes& codes);

}  // namespace ra_bench
