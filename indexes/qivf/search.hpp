// Search of inverted lists for the queries of one token together.
#pragma once

#include <vector>

#include "kernels.hpp"
#include "lists.hpp"
#include "scan.hpp"

namespace ra_bench {

// Everything that a search reads. The router says, for each list, which share of a query's neighbours lies in
// it: softmax over lists of query · weights + bias.
struct Routed {
  Lists lists;
  std::vector<float> key_map;    // (d, d): a residual times this is what its code stands for
  std::vector<float> turner;     // the map of queries to match, the transposed inverse, as panels of 16 columns
  std::vector<float> centroids;  // (nlist, d)
  size_t num_routed = 0;         // lists that the router knows; those after them, of later keys, are always read
  std::vector<float> panels;     // (panels, d, 16): the router's weights, 16 lists side by side
  std::vector<float> bias;       // (panels * 16); -inf where there is no list
  std::vector<float> log_sizes;  // (panels * 16); infinite for an empty list

  size_t d() const { return lists.d; }
  size_t num_panels() const { return bias.size() / 16; }
  void measure_lists();  // log_sizes; after a change of the lists
};

struct Settings {
  size_t k = 100;
  float share = 0.95f;     // of a query's neighbours, as the router predicts, that the scanned lists hold
  size_t candidates = 200;  // of the scanned keys, those scored exactly
};

// What one query's search read.
struct Cost {
  int64_t keys = 0, exact = 0;
  double bytes = 0;  // what queries read together is divided among them
};

// Working space of one thread, kept from call to call.
struct Workspace {
  std::vector<float> logits, weights, scores, exact;
  std::vector<int32_t> ids, ranks, order;
  std::vector<int8_t> rounded;
  std::vector<float> rotated;            // (kMaxTogether, d rounded up to panels)
  std::vector<float> no_bias;
  std::vector<int32_t> chosen;
  std::vector<uint8_t> asking;           // (nlist): a bit for each query that wants the list
  std::vector<uint8_t> urgency;          // (nlist): how soon; less is sooner
  std::vector<int32_t> wanted, sorted;   // lists that any query wants
  std::vector<uint64_t> packed;
  std::vector<int32_t> list_of_query;
  std::vector<float> base;
  std::vector<size_t> base_begin;
};

// The `settings.k` best of each of `count` (at most kMaxTogether) queries (count, d) into `ids` (count, k), best
// first, -1 after the last; their costs into `costs`. `rows` are the keys.
void search_together(const Routed& index, const Rows& rows, const float* queries, size_t count,
                     const Settings& settings, Workspace& space, int32_t* ids, Cost* costs);

}  // namespace ra_bench
