// A saved graph, back from its parts.

#include <algorithm>
#include <memory>
#include <numeric>

#include "built.hpp"

namespace ra_bench {

Built* restore(const Array& links, const Array& kept, const Array& centroids, const Array& seeds,
               const Array& sample, const Array& sample_ids, const Array& sample_scores, int64_t entry,
               float radius, size_t query_degree, size_t lists, size_t candidates, size_t beam) {
  auto built = std::make_unique<Built>();
  Graph& graph = built->graph;
  if (links.ndim() != 2 || !is_int32(links) || !is_contiguous(links) || !links.shape(0) || !links.shape(1))
    refuse("links must be (n, degree) int32, C-contiguous");
  graph.n = links.shape(0);
  graph.degree = links.shape(1);
  graph.links = static_cast<const int32_t*>(links.data());
  check_ids("links", graph.links, graph.n * graph.degree, graph.n);
  built->mapped = links;
  const Matrix<int32_t> kept_counts("kept", kept), seed_rows("seeds", seeds);
  if (kept_counts.m != graph.n || kept_counts.columns != 1) refuse("kept must be (n, 1)");
  for (size_t x = 0; x < graph.n; ++x) {
    const int32_t count = kept_counts.data[x];
    if (count < 0 || static_cast<size_t>(count) > graph.count(x))
      refuse("kept must not exceed a key's links");
    graph.kept.push_back(static_cast<uint16_t>(count));
  }
  const Matrix<float> centroid_rows("centroids", centroids);
  if (seed_rows.m != centroid_rows.m) refuse("seeds must have a row for each centroid");
  check_ids("seeds", seed_rows.data, seed_rows.m * seed_rows.columns, graph.n);
  if (entry < 0 || entry >= static_cast<int64_t>(graph.n)) refuse("entry must be a key");
  graph.entry = static_cast<int32_t>(entry);
  graph.dim = centroid_rows.columns;
  graph.num_centroids = centroid_rows.m;
  graph.seeds_each = seed_rows.columns;
  graph.centroids.assign(centroid_rows.data, centroid_rows.data + centroid_rows.m * centroid_rows.columns);
  graph.seeds.assign(seed_rows.data, seed_rows.data + seed_rows.m * seed_rows.columns);
  graph.every_centroid.resize(graph.num_centroids);
  std::iota(graph.every_centroid.begin(), graph.every_centroid.end(), 0);
  const Matrix<float> sample_rows("sample", sample);
  if (sample_rows.columns != graph.dim) refuse("sample must be as wide as centroids");
  const Matrix<int32_t> near_rows("sample_ids", sample_ids);
  const Matrix<float> score_rows("sample_scores", sample_scores);
  if (near_rows.m != sample_rows.m || score_rows.m != near_rows.m || score_rows.columns != near_rows.columns)
    refuse("sample_ids and sample_scores must have a row for each row of sample, and be of one width");
  check_ids("sample_ids", near_rows.data, near_rows.m * near_rows.columns, graph.n);
  graph.sample.count = sample_rows.m;
  graph.sample.width = near_rows.columns;
  graph.sample.vectors.assign(sample_rows.data, sample_rows.data + sample_rows.m * sample_rows.columns);
  graph.sample.ids.assign(near_rows.data, near_rows.data + near_rows.m * near_rows.columns);
  graph.sample.scores.assign(score_rows.data, score_rows.data + score_rows.m * score_rows.columns);
  for (size_t c = 0; c < graph.num_centroids; ++c) {  // a search must not meet a key twice among its starts
    std::vector<int32_t> row(seed_rows.row(c), seed_rows.row(c) + graph.seeds_each);
    row.erase(std::remove(row.begin(), row.end(), -1), row.end());
    std::sort(row.begin(), row.end());
    if (std::adjacent_find(row.begin(), row.end()) != row.end()) refuse("seeds must be distinct");
  }
  built->radius = radius;
  built->settings = settings_from(graph.degree, query_degree, 1, lists, candidates, beam, 1);
  return built.release();  // Python owns it
}

}  // namespace ra_bench
