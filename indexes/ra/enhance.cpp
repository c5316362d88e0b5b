#include <algorithm>

#include "build.hpp"
#include "pool.hpp"
#include "prune.hpp"
#include "search.hpp"

namespace ra_bench {
namespace {

struct Scratch {
  Beam beam;
  PruneScratch prune;
  CodeQuery code;
  std::vector<float> vector;
  std::vector<int32_t> starts, ids, chosen;
};

// Leaves in scratch.ids what a search for `key` expands, of those no more than settings.candidates.
void search_for(const Kernels& kernels, const Geometry& geometry, const Graph& graph, int32_t key,
                const BuildSettings& settings, Scratch& scratch) {
  scratch.vector.resize(geometry.keys.d);
  kernels.widen_row(geometry.keys, static_cast<size_t>(key), scratch.vector.data());
  scratch.starts.assign(1, graph.entry);
  if (key != graph.entry) scratch.starts.push_back(key);
  Target target{scratch.vector.data(), geometry.extra_of(static_cast<size_t>(key))};
  if (!geometry.codes->empty()) {
    if (geometry.is_balanced) geometry.codes->round(target.vector, scratch.code);
    else geometry.codes->turn(kernels, target.vector, scratch.code);
    target.code = &scratch.code;
  }
  search_graph(kernels, geometry, graph, target, scratch.starts.data(), scratch.starts.size(), settings.beam,
               settings.beam, true, scratch.beam);
  std::vector<Candidate>& found = scratch.beam.expanded;
  if (found.size() > settings.candidates) {
    std::nth_element(found.begin(), found.begin() + static_cast<std::ptrdiff_t>(settings.candidates), found.end());
    found.resize(settings.candidates);
  }
  scratch.ids.clear();
  for (const Candidate& candidate : found) scratch.ids.push_back(candidate.id);
}

// The keys near to `key`, pruned: its new links, beside those it has from queries.
std::vector<int32_t> find_links(const Kernels& kernels, const Geometry& geometry, const Graph& graph,
                                const Neighbors& near_keys, int32_t key, const BuildSettings& settings,
                                Scratch& scratch) {
  const size_t x = static_cast<size_t>(key);
  if (near_keys.m) {
    const int32_t* ids = near_keys.row(x);
    scratch.ids.assign(ids, std::find(ids, ids + std::min(near_keys.width, settings.candidates), -1));
    if (x + 1 < graph.n) {  // mostly the key that comes next
      fetch_early(geometry, near_keys.row(x + 1), near_keys.width);
      fetch_early(geometry, graph.row(x + 1), graph.kept[x + 1]);
    }
  } else {
    search_for(kernels, geometry, graph, key, settings, scratch);
  }
  std::vector<int32_t> chosen(graph.row(x), graph.row(x) + graph.kept[x]);
  const auto is_kept = [&](int32_t id) { return std::find(chosen.begin(), chosen.end(), id) != chosen.end(); };
  scratch.ids.erase(std::remove_if(scratch.ids.begin(), scratch.ids.end(), is_kept), scratch.ids.end());
  make_distinct(key, scratch.ids);
  const size_t kept = chosen.size();
  prune(kernels, geometry, key, scratch.ids, graph.degree, settings.fill, scratch.prune, chosen);
  chosen.erase(chosen.begin(), chosen.begin() + static_cast<std::ptrdiff_t>(kept));
  return chosen;
}

// Adds links to `sources`; where there is no room, all links not kept are pruned anew.
void add_links(const Kernels& kernels, const Geometry& geometry, Graph& graph, int32_t key,
               const int32_t* sources, size_t num_sources, bool fill, Scratch& scratch) {
  const size_t x = static_cast<size_t>(key);
  const size_t kept = graph.kept[x];
  int32_t* row = graph.mutable_row(x);
  scratch.ids.assign(row + kept, row + graph.count(x));
  for (size_t i = 0; i < num_sources; ++i)
    if (std::find(row, row + kept, sources[i]) == row + kept) scratch.ids.push_back(sources[i]);
  make_distinct(key, scratch.ids);
  if (kept + scratch.ids.size() > graph.degree) {
    scratch.chosen.clear();
    prune(kernels, geometry, key, scratch.ids, graph.degree - kept, fill, scratch.prune, scratch.chosen);
    std::swap(scratch.ids, scratch.chosen);
  }
  std::copy(scratch.ids.begin(), scratch.ids.end(), row + kept);
  std::fill(row + kept + scratch.ids.size(), row + graph.degree, -1);
}

// Adds the links back, one target's at a time.
void link_back(const Kernels& kernels, const Geometry& geometry, const Grouped& links, const BuildSettings& settings,
               std::vector<Scratch>& scratch, Graph& graph) {
  const auto count = static_cast<int64_t>(links.targets.size());
  parallel_for(settings.threads, count, 16, [&](int64_t first, int64_t last, int worker) {
    for (int64_t i = first; i < last; ++i) {
      const size_t t = static_cast<size_t>(i), begin = links.begin[t], end = links.begin[t + 1];
      if (i + 1 < last) {
        const size_t next = static_cast<size_t>(links.targets[t + 1]), kept = graph.kept[next];
        fetch_early(geometry, links.sources.data() + end, links.begin[t + 2] - end);
        fetch_early(geometry, graph.row(next) + kept, graph.degree - kept);
      }
      add_links(kernels, geometry, graph, links.targets[t], links.sources.data() + begin, end - begin, settings.fill,
                scratch[static_cast<size_t>(worker)]);
    }
  });
}

}  // namespace

void enhance(const Kernels& kernels, const Geometry& geometry, const Neighbors& near_keys, size_t from,
             const BuildSettings& settings, Graph& graph) {
  std::vector<Scratch> scratch(static_cast<size_t>(settings.threads));
  // Searches of one batch do not see each other's links: small batches at first, when there are few links. Without
  // searches one batch does, in which every key's links back are pruned once.
  for (size_t begin = from; begin < graph.n;) {
    const size_t left = graph.n - begin;
    const size_t batch = near_keys.m ? left : std::min({left, size_t{1024}, std::max<size_t>(16, begin / 8)});
    std::vector<std::vector<int32_t>> chosen(batch);
    parallel_for(
        settings.threads, static_cast<int64_t>(batch), 4, [&](int64_t first, int64_t last, int worker) {
          for (int64_t i = first; i < last; ++i)
            chosen[static_cast<size_t>(i)] =
                find_links(kernels, geometry, graph, near_keys,
                           static_cast<int32_t>(begin + static_cast<size_t>(i)), settings,
                           scratch[static_cast<size_t>(worker)]);
        });
    parallel_for(settings.threads, static_cast<int64_t>(batch), 64, [&](int64_t first, int64_t last, int worker) {
      for (int64_t i = first; i < last; ++i)
        add_links(kernels, geometry, graph, static_cast<int32_t>(begin + static_cast<size_t>(i)),
                  chosen[static_cast<size_t>(i)].data(), chosen[static_cast<size_t>(i)].size(), settings.fill,
                  scratch[static_cast<size_t>(worker)]);
    });
    link_back(kernels, geometry, group_by_target(chosen, begin, graph.n), settings, scratch, graph);
    begin += batch;
  }
}

}  // namespace ra_bench
