#include <algorithm>
#include <numeric>

#include "build.hpp"
#include "pool.hpp"
#include "search.hpp"

namespace ra_bench {
namespace {

constexpr size_t kWidth = 100;  // neighbours of each kept query
constexpr size_t kPerKey = 4;  // kept queries asked for each inserted key: a small block must not pay for all

struct Scratch {
  Beam beam;
  std::vector<int32_t> starts;
  std::vector<float> scores;
  std::vector<Candidate> candidates;
};

// The neighbours of one query among the old keys, as the graph finds them, and the new keys `fresh`: into
// `out` (kWidth,), -1 padded. All -1 where no new key is among them, since then nothing new is learnt.
void neighbors_of(const Kernels& kernels, const Rows& keys, const Graph& graph, const float* query,
                  const std::vector<int32_t>& fresh, Scratch& scratch, int32_t* out) {
  find_starts(kernels, graph, query, scratch.beam, scratch.starts);
  search_graph(kernels, {keys, nullptr}, graph, {query, 0.0f}, scratch.starts.data(), scratch.starts.size(),
               std::min(kWidth, graph.n), kWidth, false, scratch.beam);
  scratch.candidates.clear();
  for (size_t i = 0; i < scratch.beam.size; ++i)
    scratch.candidates.push_back({scratch.beam.score(i), scratch.beam.id(i)});
  scratch.scores.resize(fresh.size());
  kernels.dot(query, keys, fresh.data(), fresh.size(), scratch.scores.data());
  for (size_t i = 0; i < fresh.size(); ++i) scratch.candidates.push_back({scratch.scores[i], fresh[i]});
  std::sort(scratch.candidates.begin(), scratch.candidates.end());
  const size_t width = std::min(kWidth, scratch.candidates.size());
  std::fill(out, out + kWidth, -1);
  const auto is_new = [&](const Candidate& c) { return c.id >= static_cast<int32_t>(graph.n); };
  if (std::none_of(scratch.candidates.begin(), scratch.candidates.begin() + width, is_new)) return;
  for (size_t i = 0; i < width; ++i) out[i] = scratch.candidates[i].id;
}

}  // namespace

void grow(Graph& graph, size_t n) {
  graph.n = n;
  graph.owned.resize(n * graph.degree, -1);
  graph.links = graph.owned.data();
  graph.kept.resize(n, 0);
}

void insert_keys(const Kernels& kernels, const Geometry& geometry, const BuildSettings& settings,
                 Graph& graph) {
  const size_t from = graph.n, added = geometry.keys.n - from;
  const size_t kept = graph.dim ? graph.sample.size() / graph.dim : 0;
  const size_t asked = std::min(kept, kPerKey * added);
  std::vector<int32_t> fresh(added);
  std::iota(fresh.begin(), fresh.end(), static_cast<int32_t>(from));
  std::vector<int32_t> ids(asked * kWidth);
  std::vector<Scratch> scratch(static_cast<size_t>(settings.threads));
  parallel_for(
      settings.threads, static_cast<int64_t>(asked), 4, [&](int64_t first, int64_t last, int worker) {
        for (int64_t i = first; i < last; ++i) {
          const float* query = graph.sample.data() + static_cast<size_t>(i) * kept / asked * graph.dim;
          neighbors_of(kernels, geometry.keys, graph, query, fresh, scratch[static_cast<size_t>(worker)],
                       ids.data() + static_cast<size_t>(i) * kWidth);
        }
      });
  grow(graph, geometry.keys.n);
  BuildSettings all = settings;
  all.pivots = kWidth;  // a sample is thin: any rank counts
  project(kernels, geometry, {ids.data(), asked, kWidth}, from, all, graph);
  enhance(kernels, geometry, from, all, graph);
  connect(kernels, geometry, all, graph);
}

}  // namespace ra_bench
