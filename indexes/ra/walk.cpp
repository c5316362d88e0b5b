#include "walk.hpp"

#include <algorithm>
#include <cmath>

namespace ra_bench {
namespace {

// Keys expanded at once: their links and vectors are fetched together.
constexpr size_t kTogether = 4;

// The lowest bucket that still holds one of the best `wanted` keys; rises as better ones come.
struct Bound {
  size_t wanted;
  size_t bucket = 0;
  size_t above = 0;  // keys in buckets from `bucket` on

  void count(size_t b, const uint32_t* held) {
    if (b < bucket) return;
    ++above;
    while (above - held[bucket] >= wanted) above -= held[bucket++];
  }
};

// Scores fall into buckets of equal width; the seeds' scores tell where the good ones lie.
struct Scale {
  float low = 0, per_unit = 0;

  Scale(const float* scores, size_t count) {
    const auto ends = std::minmax_element(scores, scores + count);
    const float spread = std::max(*ends.second - *ends.first, 1e-6f + 1e-6f * std::fabs(*ends.second));
    low = *ends.first - 2 * spread;
    per_unit = static_cast<float>(kBuckets) / (5 * spread);
  }

  int32_t bucket(float score) const {
    const float place = (score - low) * per_unit;
    return static_cast<int32_t>(std::min(std::max(place, 0.0f), static_cast<float>(kBuckets - 1)));
  }
};

void reset(const Graph& graph, size_t num_starts, Walk& walk) {
  walk.visited.assign((graph.n + 63) / 64, 0);
  const size_t most = std::max(kTogether * graph.degree, num_starts) + 1;
  if (walk.fresh.size() < most) {
    walk.fresh.resize(most);
    walk.buckets.resize(most);
    walk.fresh_scores.resize(most);
  }
  std::fill(walk.waiting, walk.waiting + kBuckets, -1);
  std::fill(walk.held, walk.held + kBuckets, 0u);
  walk.size = 0;
  walk.dots = walk.expansions = 0;
}

inline size_t gather_fresh(const Graph& graph, int32_t id, size_t count, Walk& walk) {
  const int32_t* to = graph.row(static_cast<size_t>(id));
  int32_t* fresh = walk.fresh.data();
  uint64_t* visited = walk.visited.data();
  for (size_t j = 0; j < graph.degree && to[j] >= 0; ++j) {
    uint64_t& word = visited[to[j] >> 6];
    const uint64_t bit = uint64_t{1} << (to[j] & 63);
    fresh[count] = to[j];
    count += !(word & bit);
    word |= bit;
  }
  return count;
}

// The queue of one walk.
class Queue {
 public:
  Queue(const Effort& effort, const Scale& scale, Walk& walk)
      : walk_(walk), scale_(scale), keep_{std::max(effort.ef, effort.k)}, expand_{effort.ef}, best_{effort.k} {}

  // Takes in the fresh keys that are good enough.
  void push(size_t count) {
    if (walk_.ids.size() < walk_.size + count) grow(count);
    int32_t* buckets = walk_.buckets.data();
    const float* scores = walk_.fresh_scores.data();
    for (size_t i = 0; i < count; ++i) buckets[i] = scale_.bucket(scores[i]);
    for (size_t i = 0; i < count; ++i) {
      const size_t b = static_cast<size_t>(buckets[i]);
      if (b < keep_.bucket) continue;
      const int32_t entry = static_cast<int32_t>(walk_.size++);
      walk_.ids[static_cast<size_t>(entry)] = walk_.fresh[i];
      walk_.scores[static_cast<size_t>(entry)] = scores[i];
      walk_.next[static_cast<size_t>(entry)] = walk_.waiting[b];
      walk_.waiting[b] = entry;
      ++walk_.held[b];
      top_ = std::max(top_, b);
      best_.count(b, walk_.held);
      keep_.count(b, walk_.held);
      expand_.count(b, walk_.held);
    }
  }

  // The best key that awaits expansion, or -1 where none is good enough.
  int32_t pop() {
    while (walk_.waiting[top_] < 0) {
      if (top_ <= expand_.bucket) return -1;
      --top_;
    }
    if (top_ < expand_.bucket) return -1;
    const int32_t entry = walk_.waiting[top_];
    walk_.waiting[top_] = walk_.next[static_cast<size_t>(entry)];
    return walk_.ids[static_cast<size_t>(entry)];
  }

  // Fetches the links of the keys that are likely next.
  void look_ahead(const Graph& graph) const {
    size_t ahead = 0, b = top_;
    for (size_t looked = 0; looked < 16 && ahead < kTogether && b >= expand_.bucket; ++looked) {
      for (int32_t e = walk_.waiting[b]; e >= 0 && ahead < kTogether; e = walk_.next[static_cast<size_t>(e)], ++ahead)
        prefetch_row(reinterpret_cast<const char*>(graph.row(static_cast<size_t>(walk_.ids[static_cast<size_t>(e)]))),
                     graph.degree * 4);
      if (!b--) break;
    }
  }

  size_t worst_of_best() const { return best_.bucket; }
  int32_t bucket_of(float score) const { return scale_.bucket(score); }

 private:
  void grow(size_t count) {
    const size_t room = 2 * (walk_.size + count);
    walk_.ids.resize(room);
    walk_.next.resize(room);
    walk_.scores.resize(room);
  }

  Walk& walk_;
  Scale scale_;
  Bound keep_, expand_, best_;
  size_t top_ = 0;
};

// The k best of the keys that were kept, in order.
void take_best(const Queue& queue, size_t k, Walk& walk, int32_t* ids) {
  walk.best.clear();
  const int32_t least = static_cast<int32_t>(queue.worst_of_best());
  for (size_t i = 0; i < walk.size; ++i)
    if (queue.bucket_of(walk.scores[i]) >= least) walk.best.push_back({walk.scores[i], walk.ids[i]});
  const size_t found = std::min(k, walk.best.size());
  std::partial_sort(walk.best.begin(), walk.best.begin() + static_cast<std::ptrdiff_t>(found), walk.best.end());
  for (size_t i = 0; i < found; ++i) ids[i] = walk.best[i].id;
  std::fill(ids + found, ids + k, -1);
}

}  // namespace

void walk_graph(const Kernels& kernels, const Rows& keys, const Graph& graph, const float* query,
                const Effort& effort, Walk& walk, int32_t* ids) {
  find_starts(kernels, graph, query, walk.beam, walk.starts);
  reset(graph, walk.starts.size(), walk);
  size_t count = walk.starts.size();
  for (size_t i = 0; i < count; ++i) {
    walk.fresh[i] = walk.starts[i];
    walk.visited[static_cast<size_t>(walk.starts[i]) >> 6] |= uint64_t{1} << (walk.starts[i] & 63);
  }
  kernels.dot(query, keys, walk.fresh.data(), count, walk.fresh_scores.data());
  walk.dots = static_cast<int64_t>(count);
  Queue queue(effort, Scale(walk.fresh_scores.data(), count), walk);
  queue.push(count);
  while (true) {
    size_t chosen = 0;
    count = 0;
    for (; chosen < kTogether; ++chosen) {
      const int32_t id = queue.pop();
      if (id < 0) break;
      count = gather_fresh(graph, id, count, walk);
    }
    if (!chosen) break;
    walk.expansions += static_cast<int64_t>(chosen);
    if (!count) continue;
    queue.look_ahead(graph);
    kernels.dot(query, keys, walk.fresh.data(), count, walk.fresh_scores.data());
    walk.dots += static_cast<int64_t>(count);
    queue.push(count);
  }
  take_best(queue, effort.k, walk, ids);
}

}  // namespace ra_bench
