#include <algorithm>

#include "build.hpp"
#include "search.hpp"

namespace ra_bench {
namespace {

void reach_from(const Graph& graph, int32_t start, std::vector<char>& seen) {
  std::vector<int32_t> waiting{start};
  seen[static_cast<size_t>(start)] = 1;
  while (!waiting.empty()) {
    const int32_t* to = graph.row(static_cast<size_t>(waiting.back()));
    waiting.pop_back();
    for (size_t j = 0; j < graph.degree && to[j] >= 0; ++j) {
      if (seen[static_cast<size_t>(to[j])]) continue;
      seen[static_cast<size_t>(to[j])] = 1;
      waiting.push_back(to[j]);
    }
  }
}

bool links_to(const Graph& graph, size_t from, int32_t key) {
  const int32_t* row = graph.row(from);
  return std::find(row, row + graph.count(from), key) != row + graph.count(from);
}

// Links the keys [from, graph.n) that are not `seen`. Returns how many there were.
size_t link_lost(const Kernels& kernels, const Geometry& geometry, const BuildSettings& settings, size_t from,
                 std::vector<char>& seen, Graph& graph) {
  Beam beam;
  std::vector<float> vector(geometry.keys.d);
  size_t lost = 0;
  const size_t width = std::max<size_t>(settings.beam, 16);
  for (size_t x = from; x < graph.n; ++x) {
    if (seen[x]) continue;
    ++lost;
    const int32_t key = static_cast<int32_t>(x);
    kernels.widen_row(geometry.keys, x, vector.data());
    search_graph(kernels, geometry, graph, {vector.data(), geometry.extra_of(x)}, &graph.entry, 1, width,
                 width, false, beam);
    size_t host = 0;
    while (host < beam.size && graph.count(static_cast<size_t>(beam.id(host))) == graph.degree) ++host;
    if (host < beam.size) {
      const size_t h = static_cast<size_t>(beam.id(host));
      graph.mutable_row(h)[graph.count(h)] = key;
    } else {
      // No room nearby: the key steps in between the nearest one and its last neighbour. What was reached
      // stays reached, through the key; what the key loses was not reached before.
      int32_t* last = graph.mutable_row(static_cast<size_t>(beam.id(0))) + graph.degree - 1;
      const size_t place = std::min(graph.count(x), graph.degree - 1);
      int32_t* row = graph.mutable_row(x);
      if (std::find(row, row + graph.count(x), *last) == row + graph.count(x)) row[place] = *last;
      *last = key;
    }
    reach_from(graph, key, seen);
  }
  return lost;
}

}  // namespace

std::vector<char> reached(const Graph& graph) {
  std::vector<char> seen(graph.n, 0);
  reach_from(graph, graph.entry, seen);
  return seen;
}

size_t connect(const Kernels& kernels, const Geometry& geometry, const BuildSettings& settings,
               Graph& graph) {
  std::vector<char> seen = reached(graph);
  graph.unwalked = 0;
  return link_lost(kernels, geometry, settings, 0, seen, graph);
}

void connect_new(const Kernels& kernels, const Geometry& geometry, const BuildSettings& settings, size_t from,
                 Graph& graph) {
  std::vector<char> seen(graph.n, 1);
  std::fill(seen.begin() + static_cast<std::ptrdiff_t>(from), seen.end(), 0);
  for (size_t x = from; x < graph.n; ++x) {
    const int32_t* row = graph.row(x);
    for (size_t j = 0; j < graph.count(x) && !seen[x]; ++j) {
      const size_t other = static_cast<size_t>(row[j]);  // links mostly go both ways
      if (other < from && links_to(graph, other, static_cast<int32_t>(x)))
        reach_from(graph, static_cast<int32_t>(x), seen);
    }
  }
  link_lost(kernels, geometry, settings, from, seen, graph);
}

}  // namespace ra_bench
