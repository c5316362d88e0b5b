#include "search.hpp"

#include "four_bits.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace ra_bench {
namespace {

constexpr float kNothing = -std::numeric_limits<float>::infinity();
constexpr float kLeast = -1e29f;  // above an empty list's logit, below any other
constexpr int kHalvings = 14;     // of an interval of kSpan logits: to a thousandth
constexpr float kSpan = 24.0f;    // lists this far below the best hold nothing (exp(-24))
constexpr size_t kSlack = 16;     // vector stores may pass the end
constexpr size_t kQuadratic = 512;  // up to here, ranking by counting beats sorting
constexpr size_t kUrgencies = 32;

// Rounds a rotated query to 8 bits.
void round_query(const ScanKernels& scan, const float* rotated, size_t d, size_t padded, int8_t* rounded,
                 Scanner& scanner) {
  float low, high;
  scan.range(rotated, d, &low, &high);
  const float largest = std::max(high, -low);
  const float inverse = largest > 0 ? 127.0f / largest : 0.0f;
  int32_t sum = 0;
  std::fill(rounded, rounded + padded, int8_t{0});
  for (size_t j = 0; j < d; ++j) {
    const int32_t level = static_cast<int32_t>(std::lrintf(rotated[j] * inverse));
    rounded[j] = static_cast<int8_t>(level);
    sum += level;
  }
  scanner.q = rounded;
  scanner.scale = largest / 127.0f;
  scanner.middle = kMiddleLevel * static_cast<float>(sum);
}

// The largest threshold on `gain` for which the lists from it on hold `share` of the neighbours. `gain` is the
// logarithm of neighbours a key: the best lists for their cost come first. `weights` are exp(logit - largest).
float threshold_for(const ScanKernels& scan, const float* gain, const float* weights, size_t count, float top,
                    float wanted) {
  float low = top - kSpan, high = top;
  if (scan.sum_from(gain, weights, count, low) < wanted) return kLeast;
  for (int i = 0; i < kHalvings; ++i) {  // the lists from `low` on hold enough
    const float middle = 0.5f * (low + high);
    (scan.sum_from(gain, weights, count, middle) >= wanted ? low : high) = middle;
  }
  return low;
}

// Marks the lists that query g wants.
void choose_lists(const Routed& index, const ScanKernels& scan, const Kernels& kernels, size_t g, float share,
                  float* logits, Workspace& space) {
  const size_t count = index.bias.size();
  float* weights = space.weights.data();
  std::copy(logits, logits + count, weights);
  float least, top;
  scan.range(logits, count, &least, &top);
  const float all = kernels.exp_sum(weights, count, top);
  for (size_t i = 0; i < count; ++i) logits[i] -= index.log_sizes[i];
  scan.range(logits, count, &least, &top);
  least = share >= 1.0f ? kLeast : threshold_for(scan, logits, weights, count, top, share * all);
  const size_t chosen = scan.find_from(logits, count, least, space.chosen.data());
  for (size_t i = 0; i < chosen; ++i) {
    const size_t l = static_cast<size_t>(space.chosen[i]);
    const float behind = std::min(static_cast<float>(kUrgencies - 1), 4.0f * (top - logits[l]));
    const uint8_t soon = static_cast<uint8_t>(behind);
    if (!space.asking[l]) space.wanted.push_back(static_cast<int32_t>(l));
    space.urgency[l] = space.asking[l] ? std::min(space.urgency[l], soon) : soon;
    space.asking[l] = static_cast<uint8_t>(space.asking[l] | (1u << g));
  }
}

// The lists somebody wants, the most promising first: thresholds rise early then.
void sort_wanted(Workspace& space) {
  size_t begin[kUrgencies + 1] = {};
  for (int32_t l : space.wanted) ++begin[space.urgency[static_cast<size_t>(l)] + 1];
  for (size_t u = 0; u < kUrgencies; ++u) begin[u + 1] += begin[u];
  space.sorted.resize(space.wanted.size());
  for (int32_t l : space.wanted) space.sorted[begin[space.urgency[static_cast<size_t>(l)]]++] = l;
}

// Cuts the candidates down to the best `keep`; whatever comes next must beat the last of them.
void keep_best(const ScanKernels& scan, size_t keep, Candidates& found) {
  if (found.size <= keep) return;
  float low, high;
  scan.range(found.scores, found.size, &low, &high);
  const size_t enough = keep + keep / 16;
  for (int i = 0; i < 24; ++i) {  // low keeps at least `keep`
    const float middle = 0.5f * (low + high);
    const size_t count = scan.count_from(found.scores, found.size, middle);
    if (count >= keep) low = middle;
    else high = middle;
    if (count >= keep && count <= enough) break;
  }
  found.size = scan.compress(found.scores, found.ids, found.size, low);
  if (found.size > enough) {  // many equal scores: whoever was first
    found.size = keep;
  }
  found.threshold = std::max(found.threshold, low);
}

// The k best of few candidates by space.exact, best first; false where equal scores leave places open.
bool rank_few(const ScanKernels& scan, size_t k, const int32_t* ids, size_t count, Workspace& space, int32_t* out) {
  space.ranks.resize(kQuadratic + 2 * kSlack);
  scan.rank(space.exact.data(), count, space.ranks.data());
  size_t sum = 0;
  for (size_t i = 0; i < count; ++i) {
    const size_t rank = static_cast<size_t>(space.ranks[i]);
    sum += rank;
    if (rank < k) out[rank] = ids[i];
  }
  return sum == count * (count - 1) / 2;  // less where two share a rank
}

// The k best candidates by their exact scores, best first.
void finish(const ScanKernels& scan, const Kernels& kernels, const Rows& rows, const float* query, size_t k,
            const Candidates& found, Workspace& space, int32_t* out) {
  const size_t count = found.size;
  space.exact.resize(std::max(space.exact.size(), count + kSlack));
  kernels.dot(query, rows, found.ids, count, space.exact.data());
  const size_t real = std::min(count, k);
  std::fill(out + real, out + k, -1);
  if (count <= kQuadratic && rank_few(scan, k, found.ids, count, space, out)) return;
  space.packed.resize(count);
  for (size_t i = 0; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, &space.exact[i], 4);
    bits ^= (bits >> 31) ? 0xffffffffu : 0x80000000u;  // larger scores, larger integers
    space.packed[i] = static_cast<uint64_t>(~bits) << 32 | static_cast<uint32_t>(found.ids[i]);
  }
  std::nth_element(space.packed.begin(), space.packed.begin() + static_cast<std::ptrdiff_t>(real),
                   space.packed.end());
  std::sort(space.packed.begin(), space.packed.begin() + static_cast<std::ptrdiff_t>(real));
  for (size_t i = 0; i < real; ++i) out[i] = static_cast<int32_t>(space.packed[i]);
}

}  // namespace

void Routed::measure_lists() {
  log_sizes.assign(bias.size(), 0.0f);
  for (size_t l = 0; l < num_routed; ++l)
    log_sizes[l] = lists.size(l) ? std::log(static_cast<float>(lists.size(l))) : -kNothing;
}

void search_together(const Routed& index, const Rows& rows, const float* queries, size_t count,
                     const Settings& settings, Workspace& space, int32_t* ids, Cost* costs) {
  const ScanKernels& scan = scan_kernels();
  const Kernels& table = kernels();
  const size_t d = index.d(), slices = slices_of(d), nlist = index.lists.nlist(), width = index.bias.size();
  const size_t padded = slices * 8;
  space.logits.resize(kMaxTogether * width);
  space.weights.resize(width);
  space.asking.assign(nlist, 0);
  space.urgency.resize(nlist);
  space.wanted.clear();
  const size_t turned_width = (d + 15) / 16 * 16;
  space.rotated.resize(kMaxTogether * turned_width);
  space.chosen.resize(width + kSlack);
  space.no_bias.assign(turned_width, 0.0f);
  space.rounded.resize(kMaxTogether * padded);
  Scanner scanners[kMaxTogether];
  Candidates found[kMaxTogether];
  const float* query_rows[kMaxTogether];
  float *logits[kMaxTogether], *turned[kMaxTogether];
  for (size_t g = 0; g < count; ++g) {
    query_rows[g] = queries + g * d;
    logits[g] = space.logits.data() + g * width;
    turned[g] = space.rotated.data() + g * turned_width;
    costs[g] = {0, 0, static_cast<double>(width * d * 4) / static_cast<double>(count)};
  }
  scan.panel_scores(index.turner.data(), space.no_bias.data(), turned_width / 16, d, query_rows, count, turned);
  for (size_t g = 0; g < count; ++g)
    round_query(scan, turned[g], d, padded, space.rounded.data() + g * padded, scanners[g]);
  scan.panel_scores(index.panels.data(), index.bias.data(), index.num_panels(), d, query_rows, count, logits);
  for (size_t g = 0; g < count; ++g) choose_lists(index, scan, table, g, settings.share, logits[g], space);
  sort_wanted(space);
  for (size_t l = index.num_routed; l < nlist; ++l) {
    space.asking[l] = static_cast<uint8_t>((1u << count) - 1);
    space.sorted.push_back(static_cast<int32_t>(l));
  }

  size_t longest = 0;
  for (int32_t l : space.sorted) longest = std::max(longest, index.lists.size(static_cast<size_t>(l)));
  const size_t keep = settings.candidates, limit = keep + std::max<size_t>(keep, 512);
  const size_t room = limit + longest + 2 * kSlack;
  space.scores.resize(std::max(space.scores.size(), kMaxTogether * room));
  space.ids.resize(std::max(space.ids.size(), kMaxTogether * room));
  for (size_t g = 0; g < count; ++g)
    found[g] = {space.scores.data() + g * room, space.ids.data() + g * room, 0, kNothing};

  // base = query · centroid for the lists that each query wants, all lists of one query in one call.
  const size_t lists_wanted = space.sorted.size();
  space.base.resize(kMaxTogether * (lists_wanted + kSlack));
  space.list_of_query.resize(lists_wanted + kSlack);
  const Rows centroids{index.centroids.data(), kFloat32, nlist, d};
  for (size_t g = 0; g < count; ++g) {
    size_t mine = 0;
    for (int32_t l : space.sorted)
      if (space.asking[static_cast<size_t>(l)] >> g & 1) space.list_of_query[mine++] = l;
    table.dot(query_rows[g], centroids, space.list_of_query.data(), mine,
              space.base.data() + g * (lists_wanted + kSlack));
    costs[g].bytes += static_cast<double>(mine * d * 4);
  }
  size_t next[kMaxTogether] = {};
  const double key_bytes = static_cast<double>(index.lists.block_bytes()) / kBlockKeys + 8;
  for (size_t w = 0; w < lists_wanted; ++w) {
    const size_t l = static_cast<size_t>(space.sorted[w]);
    if (w + 1 < lists_wanted) {
      const Segment ahead = index.lists.built(static_cast<size_t>(space.sorted[w + 1]));
      prefetch_row(reinterpret_cast<const char*>(ahead.codes), std::min<size_t>(2048, blocks_of(ahead.count) * index.lists.block_bytes()));
    }
    Scanner active[kMaxTogether];
    size_t together = 0, who[kMaxTogether];
    for (size_t g = 0; g < count; ++g) {
      if (!(space.asking[l] >> g & 1)) continue;
      who[together] = g;
      active[together] = scanners[g];
      active[together].base = space.base[g * (lists_wanted + kSlack) + next[g]++];
      active[together++].found = &found[g];
    }
    const Segment built = index.lists.built(l), inserted = index.lists.inserted(l);
    if (built.count) scan.scan(built, slices, active, together);
    if (inserted.count) scan.scan(inserted, slices, active, together);
    const size_t keys = built.count + inserted.count;
    for (size_t i = 0; i < together; ++i) {
      Cost& cost = costs[who[i]];
      cost.keys += static_cast<int64_t>(keys);
      cost.bytes += static_cast<double>(keys) * key_bytes / static_cast<double>(together);
      Candidates& mine = found[who[i]];
      if (mine.size > limit) keep_best(scan, keep, mine);
    }
  }
  for (size_t g = 0; g < count; ++g) {
    keep_best(scan, keep, found[g]);
    finish(scan, table, rows, query_rows[g], settings.k, found[g], space, ids + g * settings.k);
    costs[g].exact = static_cast<int64_t>(found[g].size);
    costs[g].bytes += static_cast<double>(found[g].size * rows.row_bytes());
  }
}

}  // namespace ra_bench
