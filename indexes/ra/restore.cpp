// A saved graph, back from its parts.

#include <algorithm>
#include <memory>
#include <numeric>

#include "built.hpp"

namespace ra_bench {

void set_codes(const Array& to_key, const Array& to_query, const Array& offset, size_t d, Codes& codes) {
  const Matrix<float> key("to_key", to_key), query("to_query", to_query), mean("offset", offset);
  const size_t kept = key.m;
  if (kept > most_kept(d) || key.columns != d || query.m != kept || query.columns != d || mean.m != 1 ||
      mean.columns != kept)
    refuse("to_key and to_query must be (kept, " + std::to_string(d) + ") and offset (1, kept), with kept at most " +
           std::to_string(most_kept(d)));
  codes.set_transform(key.data, query.data, mean.data, kept, d);
}

void set_sample(const Array& sample, const Array& sample_ids, Graph& graph) {
  const Rows rows = rows_of("sample", sample);
  if (rows.type != kFloat16 || rows.d != graph.dim)
    refuse("sample must be (any, " + std::to_string(graph.dim) + ") float16");
  const Matrix<int32_t> near("sample_ids", sample_ids);
  if (near.m != rows.n) refuse("sample_ids must have a row for each row of sample");
  check_ids("sample_ids", near.data, near.m * near.columns, graph.n);
  const uint16_t* vectors = static_cast<const uint16_t*>(rows.data);
  graph.sample.count = near.m;
  graph.sample.width = near.columns;
  graph.sample.vectors.assign(vectors, vectors + rows.n * rows.d);
  graph.sample.ids.assign(near.data, near.data + near.m * near.columns);
}

Built* restore(const Array& links, const Array& kept, const Array& centroids, const Array& seeds,
               const Array& sample, const Array& sample_ids, const Array& codes,
               const Array& steps, const Array& to_key, const Array& to_query, const Array& offset, int64_t entry,
               float radius, size_t query_degree, size_t lists, size_t candidates, size_t beam, bool copy) {
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
  set_sample(sample, sample_ids, graph);
  for (size_t c = 0; c < graph.num_centroids; ++c) {  // a search must not meet a key twice among its starts
    std::vector<int32_t> row(seed_rows.row(c), seed_rows.row(c) + graph.seeds_each);
    row.erase(std::remove(row.begin(), row.end(), -1), row.end());
    std::sort(row.begin(), row.end());
    if (std::adjacent_find(row.begin(), row.end()) != row.end()) refuse("seeds must be distinct");
  }
  set_codes(to_key, to_query, offset, graph.dim, built->codes);
  if (codes.ndim() != 2 || !is_uint8(codes) || !is_contiguous(codes) || codes.shape(0) != graph.n ||
      codes.shape(1) != built->codes.stride)
    refuse("codes must be (n, " + std::to_string(built->codes.stride) + ") uint8, C-contiguous");
  const Matrix<float> step_row("steps", steps);
  if (step_row.m != 1 || step_row.columns != (built->codes.empty() ? 0 : kSteps))
    refuse("steps must be (1, " + std::to_string(kSteps) + ")");
  built->codes.steps.assign(step_row.data, step_row.data + step_row.columns);
  for (size_t i = 1; i < step_row.columns; ++i)
    if (!(step_row.data[i - 1] > 0 && step_row.data[i] >= step_row.data[i - 1]))
      refuse("steps must be positive and grow");
  built->codes.rows = static_cast<const uint8_t*>(codes.data());
  built->mapped_codes = codes;
  built->radius = radius;
  built->settings = settings_from(graph.degree, query_degree, 1, lists, candidates, beam, 1);
  if (copy) built->own_tables();
  return built.release();  // Python owns it
}

}  // namespace ra_bench
