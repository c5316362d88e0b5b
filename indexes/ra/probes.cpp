#include "probes.hpp"

#include <nanobind/stl/vector.h>

#include <string>
#include <vector>

#include "arrays.hpp"
#include "built.hpp"
#include "code_kernels.hpp"
#include "prune.hpp"
#include "rounded.hpp"

namespace ra_bench {
namespace {

// The loop over codes alone, by the kernels that are in force.
nb::ndarray<nb::numpy, float> score_codes(const Array& codes, const Array& steps, const Array& levels,
                                          const Array& middles, const Array& ids) {
  const Matrix<float> table("steps", steps), middle("middles", middles);
  const Matrix<int32_t> wide("levels", levels), chosen("ids", ids);
  if (codes.ndim() != 2 || !is_uint8(codes) || !is_contiguous(codes) || !codes.shape(1) || codes.shape(1) % kChunkBytes)
    refuse("codes must be (n, bytes) uint8, C-contiguous, whole chunks of " + std::to_string(kChunkBytes) + " bytes");
  const size_t stride = codes.shape(1);
  if (table.m != 1 || table.columns != kSteps || wide.columns != 2 * stride)
    refuse("steps must be (1, " + std::to_string(kSteps) + ") and levels (queries, " + std::to_string(2 * stride) + ")");
  if (middle.m != 1 || middle.columns != wide.m || chosen.m != 1) refuse("middles must be (1, queries), ids (1, m)");
  check_ids("ids", chosen.data, chosen.columns, codes.shape(0), 0);
  const std::vector<int8_t> narrow(wide.data, wide.data + wide.m * wide.columns);
  std::vector<const int8_t*> of_query;
  for (size_t q = 0; q < wide.m; ++q) of_query.push_back(narrow.data() + q * wide.columns);
  float* scores;
  auto out = new_array<float>(scores, wide.m, chosen.columns);
  code_kernels().score(static_cast<const uint8_t*>(codes.data()), stride, table.data, of_query.data(), middle.data, wide.m,
                       chosen.data, chosen.columns, scores, chosen.columns);
  return out;
}

// The loop over rows of bytes alone, by the kernels that are in force.
nb::ndarray<nb::numpy, float> dot_bytes(const Array& rows, int32_t by, const Array& ids) {
  const Matrix<int32_t> chosen("ids", ids);
  if (rows.ndim() != 2 || !is_uint8(rows) || !is_contiguous(rows) || !rows.shape(1) || rows.shape(1) % kByteRows)
    refuse("rows must be (n, width) uint8, C-contiguous, width a multiple of " + std::to_string(kByteRows));
  if (chosen.m != 1) refuse("ids must be (1, count)");
  check_ids("ids", chosen.data, chosen.columns, rows.shape(0), 0);
  check_ids("by", &by, 1, rows.shape(0), 0);
  float* dots;
  auto out = new_array<float>(dots, chosen.columns);
  code_kernels().dot_bytes(static_cast<const uint8_t*>(rows.data()), rows.shape(1), by, chosen.data, chosen.columns,
                           dots);
  return out;
}

// Which of some keys a walk keeps.
std::vector<int32_t> keep_good(const Array& ids, const Array& scores, float least) {
  const Matrix<int32_t> keys("ids", ids);
  const Matrix<float> of_keys("scores", scores);
  if (keys.m != 1 || of_keys.m != 1 || of_keys.columns != keys.columns) refuse("ids and scores must be (1, count)");
  std::vector<int32_t> good(keys.columns);
  std::vector<float> good_scores(keys.columns);
  good.resize(code_kernels().keep_good(least, keys.columns, keys.data, of_keys.data, good.data(), good_scores.data()));
  return good;
}

// The pruning rule alone.
std::vector<int32_t> prune_one(const Array& keys, int32_t node, const std::vector<int32_t>& ids, float radius,
                               size_t most, bool fill, bool rounded) {
  Built built;
  built.radius = radius;
  const Rows rows = rows_of("keys", keys);
  check_ids("ids", ids.data(), ids.size(), rows.n, 0);
  check_ids("node", &node, 1, rows.n, 0);
  built.lift(rows);
  Geometry geometry = built.geometry(rows);
  RoundedKeys rounded_keys;
  if (rounded && geometry.extra) {
    rounded_keys.round(kernels(), rows, geometry.extra, 1);
    geometry.rounded = &rounded_keys;
  }
  std::vector<int32_t> distinct = ids, chosen;
  make_distinct(node, distinct);
  PruneScratch scratch;
  prune(kernels(), geometry, node, distinct, most, fill, scratch, chosen);
  return chosen;
}

}  // namespace

void add_probes(nb::module_& m) {
  using namespace nb::literals;
  m.def("score_codes", &score_codes, "codes"_a, "steps"_a, "levels"_a, "middles"_a, "ids"_a,
        "For tests: what the codes ids (1, m) score for queries of levels (queries, 2 * bytes) int32.");
  m.def("keep_good", &keep_good, "ids"_a, "scores"_a, "least"_a, "For tests: the keys that a walk keeps.");
  m.def("prune", &prune_one, "keys"_a, "node"_a, "ids"_a, nb::kw_only(), "radius"_a, "most"_a, "fill"_a,
        "rounded"_a = false, "For tests: the ids that pruning keeps, by the keys or by them rounded to 8 bits.");
  m.def("dot_bytes", &dot_bytes, "rows"_a, "by"_a, "ids"_a,
        "For tests: the inner products of row `by` of rows (n, width) uint8 with the rows ids (1, m).");
}

}  // namespace ra_bench
