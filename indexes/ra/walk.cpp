#include "walk.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

namespace ra_bench {
namespace {

// Keys expanded at once: their links and vectors are fetched together.
constexpr size_t kTogether = 8;

// The lowest bucket that still holds one of the best `wanted` keys; rises as better ones come.
struct Bound {
  size_t wanted;
  int32_t bucket = 0;
  size_t above = 0;  // keys in buckets from `bucket` on

  // Keys have come to the buckets (count of them), and `held` counts them already.
  void count(const int32_t* buckets, size_t count, const uint32_t* held) {
    int32_t added = 0;
    for (size_t i = 0; i < count; ++i) added += buckets[i] >= bucket;
    above += static_cast<size_t>(added);
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
    return static_cast<int32_t>(std::min(std::max(0.0f, place), static_cast<float>(kBuckets - 1)));
  }

  // Scores below it belong to buckets below, but for rounding.
  float least(int32_t bucket) const {
    return bucket ? low + static_cast<float>(bucket) / per_unit : -std::numeric_limits<float>::infinity();
  }
};

// The keys that one walk has met, in an array that others share. Bytes, not bits: no shift for each link.
struct Visited {
  uint8_t* of_key;
  uint8_t mine;  // the walk's bit

  // Whether this is the walk's first time there.
  bool enter(int32_t id) {
    const uint8_t walks = of_key[id];
    of_key[id] = walks | mine;
    return !(walks & mine);
  }
};

void make_room(size_t fresh, Walk& walk) {
  if (walk.fresh.size() >= fresh) return;
  walk.fresh.resize(fresh);
  walk.fresh_scores.resize(fresh);
}

void reset(const Graph& graph, size_t num_starts, Walk& walk) {
  const size_t most = std::max(kTogether * graph.degree, num_starts) + 1;
  if (walk.buckets.size() < most) walk.buckets.resize(most);
  make_room(most, walk);
  std::fill(walk.waiting, walk.waiting + kBuckets, -1);
  std::fill(walk.held, walk.held + kBuckets, 0u);
  walk.size = 0;
  walk.dots = walk.expansions = walk.exact = 0;
}

// The queue of one walk.
class Queue {
 public:
  Queue(size_t ef, size_t best, const Scale& scale, Walk& walk)
      : walk_(walk), scale_(scale), keep_{std::max(ef, best)}, expand_{ef}, best_{best} {}

  // Takes in the fresh keys that are good enough.
  void push(const CodeKernels& kernels, size_t count) {
    if (walk_.ids.size() < walk_.size + count) grow(count);
    float* scores = walk_.scores.data() + walk_.size;
    const size_t good = kernels.keep_good(scale_.least(keep_.bucket), count, walk_.fresh.data(),
                                          walk_.fresh_scores.data(), walk_.ids.data() + walk_.size, scores);
    int32_t* buckets = walk_.buckets.data();
    for (size_t i = 0; i < good; ++i) buckets[i] = scale_.bucket(scores[i]);
    for (size_t i = 0; i < good; ++i) {
      const int32_t b = buckets[i];
      walk_.next[walk_.size + i] = walk_.waiting[b];
      walk_.waiting[b] = static_cast<int32_t>(walk_.size + i);
      ++walk_.held[b];
      top_ = std::max(top_, b);
    }
    walk_.size += good;
    best_.count(buckets, good, walk_.held);
    keep_.count(buckets, good, walk_.held);
    expand_.count(buckets, good, walk_.held);
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
    size_t ahead = 0;
    const int32_t last = std::max(expand_.bucket, top_ - 15);
    for (int32_t b = top_; ahead < kTogether && b >= last; --b) {
      for (int32_t e = walk_.waiting[b]; e >= 0 && ahead < kTogether; e = walk_.next[static_cast<size_t>(e)], ++ahead)
        prefetch_row(reinterpret_cast<const char*>(graph.row(static_cast<size_t>(walk_.ids[static_cast<size_t>(e)]))),
                     graph.degree * 4);
    }
  }

  int32_t worst_of_best() const { return best_.bucket; }
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
  int32_t top_ = 0;
};

// One walk, in steps that each end with asking for the memory that the next one reads.
class Walker {
 public:
  Walker(const Kernels& kernels, const Task& task, Walk& walk, Visited visited)
      : visited_(visited), kernels_(kernels), coded_(code_kernels()), task_(task), walk_(walk), queue_(start()) {
    queue_.push(coded_, count_);
  }

  // Chooses the keys that are expanded next; false where none is left.
  bool choose() {
    for (chosen_ = 0; chosen_ < kTogether; ++chosen_) {
      const int32_t id = together_[chosen_] = queue_.pop();
      if (id < 0) break;
      prefetch_row(reinterpret_cast<const char*>(graph().row(static_cast<size_t>(id))), graph().degree * 4);
    }
    walk_.expansions += static_cast<int64_t>(chosen_);
    return chosen_ > 0;
  }

  // Collects those of their neighbours that were not visited before.
  void gather() {
    const Graph& graph = this->graph();
    int32_t* fresh = walk_.fresh.data();
    Visited visited = visited_;  // copies: for all the compiler knows, `fresh` may write into this object
    const uint8_t* codes = codes_;
    const size_t stride = codes_bytes_, degree = graph.degree;
    size_t count = 0;
    for (size_t i = 0; i < chosen_; ++i) {
      const int32_t* to = graph.row(static_cast<size_t>(together_[i]));
      for (size_t j = 0; j < degree; ++j) {
        const int32_t id = to[j];
        if (id < 0) break;
        if (stride) prefetch_second_level(codes + static_cast<size_t>(id) * stride);
        fresh[count] = id;
        count += visited.enter(id);
      }
    }
    count_ = count;
    queue_.look_ahead(graph);
  }

  void score_and_push() {
    if (!count_) return;
    score(count_);
    queue_.push(coded_, count_);
  }

  // The best, by their rows, into the task's ids.
  void finish() {
    take_best();
    if (!task_.codes->empty()) rerank();
    walk_.exact = task_.codes->empty() ? walk_.dots : static_cast<int64_t>(walk_.best.size());
    const size_t k = task_.effort.k, found = std::min(k, walk_.best.size());
    walk_.sorter.best_first(walk_.best, found);
    for (size_t i = 0; i < found; ++i) task_.ids[i] = walk_.best[i].id;
    std::fill(task_.ids + found, task_.ids + k, -1);
  }

 private:
  const Graph& graph() const { return *task_.graph; }

  Queue start() {
    const Codes& codes = *task_.codes;
    codes_ = codes.rows;
    codes_bytes_ = codes.stride;
    if (!codes.empty()) codes.turn(kernels_, task_.query, walk_.code_query);
    find_starts(kernels_, graph(), task_.query, walk_.beam, walk_.starts);
    reset(graph(), walk_.starts.size(), walk_);
    count_ = walk_.starts.size();
    for (size_t i = 0; i < count_; ++i) {
      walk_.fresh[i] = walk_.starts[i];
      visited_.enter(walk_.starts[i]);
    }
    score(count_);
    const size_t best = codes.empty() ? std::max<size_t>(task_.effort.k, 1) : task_.effort.reranked(graph().n);
    return Queue(task_.effort.ef, best, Scale(walk_.fresh_scores.data(), count_), walk_);
  }

  void score(size_t count) {
    const Codes& codes = *task_.codes;
    if (codes.empty())
      kernels_.dot(task_.query, *task_.keys, walk_.fresh.data(), count, walk_.fresh_scores.data());
    else
      coded_.score(codes_, codes_bytes_, codes.steps.data(), walk_.code_query.levels.data(),
                   walk_.code_query.middle, walk_.fresh.data(), count, walk_.fresh_scores.data());
    walk_.dots += static_cast<int64_t>(count);
  }

  // The keys that are among the best, and some as good as the last of them.
  void take_best() {
    walk_.best.resize(walk_.size);
    Candidate* best = walk_.best.data();
    const int32_t least = queue_.worst_of_best();
    size_t found = 0;
    for (size_t i = 0; i < walk_.size; ++i) {  // no branch depends on a score
      best[found] = {walk_.scores[i], walk_.ids[i]};
      found += queue_.bucket_of(walk_.scores[i]) >= least;
    }
    walk_.best.resize(found);
  }

  // Scores them by their rows in place of their codes.
  void rerank() {
    const size_t count = walk_.best.size();
    make_room(count, walk_);
    for (size_t i = 0; i < count; ++i) walk_.fresh[i] = walk_.best[i].id;
    kernels_.dot(task_.query, *task_.keys, walk_.fresh.data(), count, walk_.fresh_scores.data());
    for (size_t i = 0; i < count; ++i) walk_.best[i].near = walk_.fresh_scores[i];
  }

  Visited visited_;
  const Kernels& kernels_;
  const CodeKernels& coded_;
  const Task& task_;
  Walk& walk_;
  const uint8_t* codes_ = nullptr;
  size_t codes_bytes_ = 0;
  size_t count_ = 0, chosen_ = 0;
  int32_t together_[kTogether];
  Queue queue_;  // last: start() fills what it needs
};

}  // namespace

void walk_graphs(const Kernels& kernels, const Task* tasks, size_t count, Walk* walks) {
  std::optional<Walker> walkers[kWalksTogether];
  Walker* active[kWalksTogether];
  size_t most_keys = 0;
  for (size_t i = 0; i < count; ++i) most_keys = std::max(most_keys, tasks[i].graph->n);
  walks[0].visited.assign(most_keys, 0);
  for (size_t i = 0; i < count; ++i) {
    const Visited visited{walks[0].visited.data(), static_cast<uint8_t>(1u << i)};
    active[i] = &walkers[i].emplace(kernels, tasks[i], walks[i], visited);
  }
  for (size_t left = count; left;) {
    size_t going = 0;
    for (size_t i = 0; i < left; ++i)
      if (active[i]->choose()) active[going++] = active[i];
    for (size_t i = 0; i < going; ++i) active[i]->gather();
    for (size_t i = 0; i < going; ++i) active[i]->score_and_push();
    left = going;
  }
  for (size_t i = 0; i < count; ++i) walkers[i]->finish();
}

}  // namespace ra_bench
