#include <algorithm>
#include <limits>
#include <numeric>

#include "build.hpp"
#include "pool.hpp"
#include "search.hpp"

namespace ra_bench {
namespace {

// A walk over the whole graph for keys that lost their last link waits until this share of the keys is new.
constexpr size_t kWalkEvery = 32;

// The scores of a kept query's nearest keys so far.
void score_nearest(const Kernels& kernels, const Rows& keys, const float* query, const int32_t* ids, size_t width,
                   float* scores) {
  const size_t real = static_cast<size_t>(std::find(ids, ids + width, -1) - ids);
  kernels.dot(query, keys, ids, real, scores);
  std::fill(scores + real, scores + width, -std::numeric_limits<float>::infinity());
}

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
  struct Scratch {
    std::vector<float> query, fresh_scores;
  };
  std::vector<Scratch> scratch(static_cast<size_t>(threads));
  const Rows queries{sample.vectors.data(), kFloat16, sample.count, keys.d};
  const bool is_first = sample.scores.empty();
  sample.scores.resize(sample.ids.size());
  parallel_for(
      threads, static_cast<int64_t>(sample.count), 64, [&](int64_t first, int64_t last, int worker) {
        Scratch& own = scratch[static_cast<size_t>(worker)];
        own.query.resize(keys.d);
        for (size_t i = static_cast<size_t>(first); i < static_cast<size_t>(last); ++i) {
          int32_t* ids = sample.ids.data() + i * sample.width;
          float* scores = sample.scores.data() + i * sample.width;
          kernels.widen_row(queries, i, own.query.data());
          if (is_first) score_nearest(kernels, keys, own.query.data(), ids, sample.width, scores);
          changed[i] =
              update_nearest(kernels, keys, own.query.data(), fresh, sample.width, own.fresh_scores, ids, scores);
        }
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
  enhance(kernels, geometry, {}, from, all, graph);
  graph.unwalked += added;
  if (graph.unwalked * kWalkEvery >= graph.n)
    connect(kernels, geometry, all, graph);
  else
    connect_new(kernels, geometry, all, from, graph);
}

}  // namespace ra_bench
