#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "build.hpp"
#include "pool.hpp"

namespace ra_bench {
namespace {

constexpr int kRounds = 8;
constexpr size_t kSample = 128;  // queries a centroid that take part in the rounds

void to_unit(float* vector, size_t d) {
  double squares = 0;
  for (size_t j = 0; j < d; ++j) squares += static_cast<double>(vector[j]) * vector[j];
  const float scale = squares > 0 ? static_cast<float>(1 / std::sqrt(squares)) : 0.0f;
  for (size_t j = 0; j < d; ++j) vector[j] *= scale;
}

// The centroid of largest inner product for each query in `which`.
std::vector<int32_t> assign(const Kernels& kernels, const float* queries, const std::vector<size_t>& which,
                            const Graph& graph, int threads) {
  std::vector<int32_t> nearest(which.size());
  const Rows centroids{graph.centroids.data(), kFloat32, graph.num_centroids, graph.dim};
  parallel_for(threads, static_cast<int64_t>(which.size()), 64, [&](int64_t begin, int64_t end, int) {
    std::vector<float> scores(graph.num_centroids);
    for (int64_t i = begin; i < end; ++i) {
      kernels.dot(queries + which[static_cast<size_t>(i)] * graph.dim, centroids, graph.every_centroid.data(),
                  graph.num_centroids, scores.data());
      nearest[static_cast<size_t>(i)] =
          static_cast<int32_t>(std::max_element(scores.begin(), scores.end()) - scores.begin());
    }
  });
  return nearest;
}

// Spherical k-means over a sample; serial sums, so that threads change nothing.
void cluster(const Kernels& kernels, const float* queries, const std::vector<size_t>& sample, int threads,
             Graph& graph) {
  const size_t d = graph.dim;
  for (size_t c = 0; c < graph.num_centroids; ++c) {
    std::copy_n(queries + sample[c] * d, d, graph.centroids.begin() + c * d);
    to_unit(graph.centroids.data() + c * d, d);
  }
  for (int round = 0; round < kRounds; ++round) {
    const std::vector<int32_t> nearest = assign(kernels, queries, sample, graph, threads);
    std::vector<float> sums(graph.centroids.size(), 0.0f);
    std::vector<size_t> counts(graph.num_centroids, 0);
    std::vector<float> unit(d);
    for (size_t i = 0; i < sample.size(); ++i) {
      std::copy_n(queries + sample[i] * d, d, unit.begin());
      to_unit(unit.data(), d);
      ++counts[static_cast<size_t>(nearest[i])];
      for (size_t j = 0; j < d; ++j) sums[static_cast<size_t>(nearest[i]) * d + j] += unit[j];
    }
    for (size_t c = 0; c < graph.num_centroids; ++c) {
      if (!counts[c]) continue;  // an empty group keeps its place
      std::copy_n(sums.begin() + c * d, d, graph.centroids.begin() + c * d);
      to_unit(graph.centroids.data() + c * d, d);
    }
  }
}

// The keys that the rows of `members` name most often; -1 padded.
void most_named(const Neighbors& neighbors, const std::vector<size_t>& members, size_t n, size_t count,
                int32_t* out) {
  std::vector<uint32_t> times(n, 0);
  std::vector<int32_t> named;
  for (size_t q : members) {
    for (size_t r = 0; r < neighbors.width && neighbors.row(q)[r] >= 0; ++r) {
      const int32_t id = neighbors.row(q)[r];
      if (!times[static_cast<size_t>(id)]++) named.push_back(id);
    }
  }
  const auto oftener = [&](int32_t a, int32_t b) {
    const uint32_t times_a = times[static_cast<size_t>(a)], times_b = times[static_cast<size_t>(b)];
    return times_a > times_b || (times_a == times_b && a < b);
  };
  const size_t found = std::min(count, named.size());
  std::partial_sort(named.begin(), named.begin() + static_cast<std::ptrdiff_t>(found), named.end(), oftener);
  std::copy_n(named.begin(), found, out);
  std::fill(out + found, out + count, -1);
}

}  // namespace

void choose_seeds(const Kernels& kernels, const float* queries, const Neighbors& neighbors, size_t dim,
                  size_t num_centroids, size_t seeds_each, uint64_t seed, int threads, Graph& graph) {
  std::vector<size_t> all(neighbors.m);
  std::iota(all.begin(), all.end(), size_t{0});
  most_named(neighbors, all, graph.n, 1, &graph.entry);
  if (graph.entry < 0) graph.entry = 0;
  graph.dim = dim;
  graph.num_centroids = seeds_each ? std::min(num_centroids, neighbors.m) : 0;
  graph.seeds_each = std::min(seeds_each, graph.n);
  if (!graph.num_centroids) return;
  graph.centroids.assign(graph.num_centroids * dim, 0.0f);
  graph.seeds.assign(graph.num_centroids * graph.seeds_each, -1);
  graph.every_centroid.resize(graph.num_centroids);
  std::iota(graph.every_centroid.begin(), graph.every_centroid.end(), 0);
  std::vector<size_t> sample = all;
  std::mt19937_64 random(seed);
  // Not std::shuffle: its use of the generator differs between standard libraries.
  for (size_t i = 0; i + 1 < sample.size(); ++i)
    std::swap(sample[i], sample[i + random() % (sample.size() - i)]);
  sample.resize(std::min(sample.size(), kSample * graph.num_centroids));
  cluster(kernels, queries, sample, threads, graph);
  const std::vector<int32_t> nearest = assign(kernels, queries, all, graph, threads);
  std::vector<std::vector<size_t>> members(graph.num_centroids);
  for (size_t q = 0; q < all.size(); ++q) members[static_cast<size_t>(nearest[q])].push_back(q);
  parallel_for(threads, static_cast<int64_t>(graph.num_centroids), 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t c = begin; c < end; ++c)
      most_named(neighbors, members[static_cast<size_t>(c)], graph.n, graph.seeds_each,
                 graph.seeds.data() + static_cast<size_t>(c) * graph.seeds_each);
  });
}

}  // namespace ra_bench
