// Construction of RetrievalAttention's graph, step by step. Every step computes per key in parallel and
// applies in an order that no thread decides: the graph is the same for any number of threads.
#pragma once

#include "graph.hpp"

namespace ra_bench {

struct BuildSettings {
  size_t degree = 24;        // links a key
  size_t query_degree = 16;  // of them from queries, at most
  size_t pivots = 20;        // of a query's neighbours, how many are joined to the others
  size_t lists = 64;         // queries whose neighbours a key is offered, at most
  size_t candidates = 128;   // keys that pruning chooses from, at most
  size_t beam = 64;          // pool of the search that finds further links; 0 leaves it out
  bool fill = false;         // whether the search for further links fills every place that it can
  int threads = 1;
};

// (m, width) exact neighbours of learn queries, or of keys, best first, -1 padded.
struct Neighbors {
  const int32_t* ids = nullptr;
  size_t m = 0, width = 0;
  const int32_t* row(size_t q) const { return ids + q * width; }
};

// Joins the keys [from, graph.n) to keys that are neighbours of the same query, and those back to them.
void project(const Kernels& kernels, const Geometry& geometry, const Neighbors& neighbors, size_t from,
             const BuildSettings& settings, Graph& graph);

// Gives the keys [from, graph.n) further links, and links back: to some of the `near_keys` of each, where those are
// given (m = n), or else to what a search for each of them passes.
void enhance(const Kernels& kernels, const Geometry& geometry, const Neighbors& near_keys, size_t from,
             const BuildSettings& settings, Graph& graph);

// Links the keys [graph.n, keys.n) of `geometry`; the graph must own its links.
void insert_keys(const Kernels& kernels, const Geometry& geometry, const BuildSettings& settings,
                 Graph& graph);

// Makes room for keys up to n, without links.
void grow(Graph& graph, size_t n);

// Links every key that the entry does not reach. Returns how many there were.
size_t connect(const Kernels& kernels, const Geometry& geometry, const BuildSettings& settings, Graph& graph);

// The same for the keys [from, graph.n) alone, as if the entry still reached all others. Cost does not grow with n,
// but for a byte a key.
void connect_new(const Kernels& kernels, const Geometry& geometry, const BuildSettings& settings, size_t from,
                 Graph& graph);

// Which keys the entry reaches.
std::vector<char> reached(const Graph& graph);

// Groups learn queries (m, d) by direction and stores the keys that each group's neighbours name most.
void choose_seeds(const Kernels& kernels, const float* queries, const Neighbors& neighbors, size_t dim,
                  size_t num_centroids, size_t seeds_each, uint64_t seed, int threads, Graph& graph);

// New links target ← source grouped by target, sources in order: what parallel steps apply one target at a
// time.
struct Grouped {
  std::vector<size_t> begin;  // (number of targets + 1)
  std::vector<int32_t> targets, sources;
};
Grouped group_by_target(const std::vector<std::vector<int32_t>>& chosen, size_t first_source, size_t n);

}  // namespace ra_bench
