#include "walk.hpp"

#include <algorithm>

namespace ra_bench {
namespace {

// Keys expanded at once, and how many of them at least are of one query: their links and vectors are fetched together.
constexpr size_t kAtOnce = 8, kOwn = 5, kMostChosen = kOwn * kMostTogether;

// The keys that a walk has met and expanded. Bytes, not bits: no shift for each link.
struct Visited {
  uint8_t* of_key;

  // Whether this is the first time.
  bool meet(int32_t id) { return mark(id, 1); }
  bool expand(int32_t id) { return mark(id, 2); }

 private:
  bool mark(int32_t id, uint8_t bit) {
    const uint8_t bits = of_key[id];
    of_key[id] = bits | bit;
    return !(bits & bit);
  }
};

class Walker {
 public:
  Walker(const Kernels& kernels, const Tasks& tasks, Walk& walk)
      : kernels_(kernels), coded_(code_kernels()), tasks_(tasks), graph_(*tasks.graph), codes_(*tasks.codes), walk_(walk),
        own_(std::max(kOwn, kAtOnce / tasks.count)) {
    walk.visited.assign(graph_.n, 0);
    visited_.of_key = walk.visited.data();
    walk.dots = walk.expansions = 0;
  }

  // Scores the starts of all queries for all, and fills the queues with them.
  void start() {
    size_t starts = 0;
    for (size_t q = 0; q < tasks_.count; ++q) {
      Walk::OfQuery& own = walk_.of_query[q];
      if (!codes_.empty()) codes_.turn(kernels_, tasks_.each[q].query, own.code);
      find_starts(kernels_, graph_, tasks_.each[q].query, walk_.beam, own.starts);
      starts += own.starts.size();
    }
    make_room(std::max(kMostChosen * graph_.degree, starts) + 1);
    count_ = 0;
    for (size_t q = 0; q < tasks_.count; ++q) {
      for (int32_t id : walk_.of_query[q].starts) {
        walk_.fresh[count_] = id;
        count_ += visited_.meet(id);
      }
    }
    score();
    const Effort& effort = tasks_.effort;
    const size_t best = codes_.empty() ? std::max<size_t>(effort.k, 1) : effort.reranked(graph_.n);
    for (size_t q = 0; q < tasks_.count; ++q)
      walk_.of_query[q].queue.reset(effort.ef, best, Scale(scores_of(q), count_));
    push();
  }

  // Chooses the keys that are expanded next; false where none is left.
  bool choose() {
    chosen_ = 0;
    for (size_t q = 0; q < tasks_.count; ++q) {
      for (size_t mine = 0; mine < own_;) {
        const int32_t id = walk_.of_query[q].queue.pop();
        if (id < 0) break;
        if (!visited_.expand(id)) continue;  // for another query, and its neighbours were scored for all
        prefetch_row(reinterpret_cast<const char*>(graph_.row(static_cast<size_t>(id))), graph_.degree * 4);
        together_[chosen_++] = id;
        ++mine;
      }
    }
    walk_.expansions += static_cast<int64_t>(chosen_);
    return chosen_ > 0;
  }

  // Collects those of their neighbours that were not met before.
  void gather() {
    int32_t* fresh = walk_.fresh.data();
    Visited visited = visited_;  // copies: for all the compiler knows, `fresh` may write into this object
    const uint8_t* codes = codes_.rows;
    const size_t stride = codes_.stride, degree = graph_.degree;
    size_t count = 0;
    for (size_t i = 0; i < chosen_; ++i) {
      const int32_t* to = graph_.row(static_cast<size_t>(together_[i]));
      for (size_t j = 0; j < degree; ++j) {
        const int32_t id = to[j];
        if (id < 0) break;
        if (stride) prefetch_second_level(codes + static_cast<size_t>(id) * stride);
        fresh[count] = id;
        count += visited.meet(id);
      }
    }
    count_ = count;
    for (size_t q = 0; q < tasks_.count; ++q) walk_.of_query[q].queue.look_ahead(graph_, own_);
  }

  void score_and_push() {
    if (!count_) return;
    score();
    push();
  }

  // The best of each query, by their rows, into its task's ids.
  void finish() {
    const size_t k = tasks_.effort.k;
    for (size_t q = 0; q < tasks_.count; ++q) {
      Walk::OfQuery& own = walk_.of_query[q];
      own.queue.take_best(walk_.best);
      own.exact = walk_.dots;
      if (!codes_.empty()) rerank(tasks_.each[q].query, own);
      const size_t found = std::min(k, walk_.best.size());
      walk_.sorter.best_first(walk_.best, found);
      int32_t* ids = tasks_.each[q].ids;
      for (size_t i = 0; i < found; ++i) ids[i] = walk_.best[i].id;
      std::fill(ids + found, ids + k, -1);
    }
  }

 private:
  float* scores_of(size_t q) { return walk_.scores.data() + q * walk_.apart; }

  void make_room(size_t fresh) {
    walk_.apart = fresh;
    if (walk_.fresh.size() < fresh) walk_.fresh.resize(fresh);
    if (walk_.scores.size() < fresh * tasks_.count) walk_.scores.resize(fresh * tasks_.count);
  }

  // The fresh keys for all queries.
  void score() {
    walk_.dots += static_cast<int64_t>(count_);
    if (codes_.empty()) {
      for (size_t q = 0; q < tasks_.count; ++q)
        kernels_.dot(tasks_.each[q].query, *tasks_.keys, walk_.fresh.data(), count_, scores_of(q));
      return;
    }
    const int8_t* levels[kMostTogether];
    float middles[kMostTogether];
    for (size_t q = 0; q < tasks_.count; ++q) {
      levels[q] = walk_.of_query[q].code.levels.data();
      middles[q] = walk_.of_query[q].code.middle;
    }
    coded_.score(codes_.rows, codes_.stride, codes_.steps.data(), levels, middles, tasks_.count, walk_.fresh.data(), count_,
                 walk_.scores.data(), walk_.apart);
  }

  void push() {
    for (size_t q = 0; q < tasks_.count; ++q)
      walk_.of_query[q].queue.push(coded_, walk_.fresh.data(), scores_of(q), count_);
  }

  // Scores the best by their rows in place of their codes.
  void rerank(const float* query, Walk::OfQuery& own) {
    const size_t count = walk_.best.size();
    if (walk_.rows.size() < count) {
      walk_.rows.resize(count);
      walk_.row_scores.resize(count);
    }
    for (size_t i = 0; i < count; ++i) walk_.rows[i] = walk_.best[i].id;
    kernels_.dot(query, *tasks_.keys, walk_.rows.data(), count, walk_.row_scores.data());
    for (size_t i = 0; i < count; ++i) walk_.best[i].near = walk_.row_scores[i];
    own.exact = static_cast<int64_t>(count);
  }

  Visited visited_{nullptr};
  const Kernels& kernels_;
  const CodeKernels& coded_;
  const Tasks& tasks_;
  const Graph& graph_;
  const Codes& codes_;
  Walk& walk_;
  const size_t own_;  // keys of a query that are expanded at once
  size_t count_ = 0, chosen_ = 0;
  int32_t together_[kMostChosen];
};

}  // namespace

void walk_graph(const Kernels& kernels, const Tasks& tasks, Walk& walk) {
  Walker walker(kernels, tasks, walk);
  walker.start();
  while (walker.choose()) {
    walker.gather();
    walker.score_and_push();
  }
  walker.finish();
}

}  // namespace ra_bench
