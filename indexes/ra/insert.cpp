#include <algorithm>
#include <numeric>

#include "build.hpp"
#include "pool.hpp"
#include "search.hpp"

namespace ra_bench {
namespace {

// A walk over the whole graph for keys that lost their last link waits until this share of the keys is new.
constexpr size_t kWalkEvery = 32;

// Puts those of the keys `fresh` that belong among a kept query's nearest in their places in `ids` and `scores`
// (width), best first. Whether there were any.
bool update_nearest(const Kernels& kernels, const Rows& keys, const float* query,
                    const std::vector<int32_t>& fresh, size_t width, std::vector<float>& fresh_scores,
                    int32_t* ids, float* scores) {
  fresh_scores.resize(fresh.size());
  kernels.dot(query, keys, fresh.data(), fresh.size(), fresh_scores.data());
  bool changed = false;
  for (size_t i = 0; i < fresh.size(); ++i) {
    const float score = fresh_scores[i];
    const auto before = [&](size_t j) { return ids[j] >= 0 && !(scores[j] < score); };
    if (before(width - 1)) continue;
    size_t place = width - 1;
    for (; place > 0 && !before(place - 1); --place) {
      ids[place] = ids[place - 1];
      scores[place] = scores[place - 1];
    }
    ids[place] = fresh[i];
    scores[place] = score;
    changed = true;
  }
  return changed;
}

// Brings the nearest keys of all kept queries up to date; returns the lists that changed, one after the other.
std::vector<int32_t> update_sample(const Kernels& kernels, const Rows& keys, const std::vector<int32_t>& fresh,
                                   int threads, KeptQueries& sample) {
  std::vector<char> changed(sample.count, 0);
  std::vector<std::vector<float>> scratch(static_cast<size_t>(threads));
  parallel_for(
      threads, static_cast<int64_t>(sample.count), 64, [&](int64_t first, int64_t last, int worker) {
        for (size_t i = static_cast<size_t>(first); i < static_cast<size_t>(last); ++i)
          changed[i] = update_nearest(kernels, keys, sample.vectors.data() + i * keys.d, fresh, sample.width,
                                      scratch[static_cast<size_t>(worker)],
                                      sample.ids.data() + i * sample.width,
                                      sample.scores.data() + i * sample.width);
      });
  std::vector<int32_t> lists;
  for (size_t i = 0; i < sample.count; ++i) {
    const int32_t* row = sample.ids.data() + i * sample.width;
    if (changed[i]) lists.insert(lists.end(), row, row + sample.width);
  }
  return lists;
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
  const size_t from = graph.n, added = geometry.keys.n - from, width = graph.sample.width;
  std::vector<int32_t> fresh(added);
  std::iota(fresh.begin(), fresh.end(), static_cast<int32_t>(from));
  const std::vector<int32_t> lists =
      width ? update_sample(kernels, geometry.keys, fresh, settings.threads, graph.sample)
            : std::vector<int32_t>{};
  grow(graph, geometry.keys.n);
  BuildSettings all = settings;
  all.pivots = width;  // a sample is thin: any rank counts
  project(kernels, geometry, {lists.data(), width ? lists.size() / width : 0, width}, from, all, graph);
  enhance(kernels, geometry, from, all, graph);
  graph.unwalked += added;
  if (graph.unwalked * kWalkEvery >= graph.n)
    connect(kernels, geometry, all, graph);
  else
    connect_new(kernels, geometry, all, from, graph);
}

}  // namespace ra_bench
