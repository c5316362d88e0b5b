// ra_bench.indexes._native._native: what several native methods, and every method's `attend`, share.

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <stdexcept>

#include "arrays.hpp"
#include "attention.hpp"
#include "kernels.hpp"
#include "machine.hpp"
#include "pool.hpp"

namespace ra_bench {
namespace {

using FloatArray = nb::ndarray<nb::numpy, float>;

void check_ids(const int32_t* ids, size_t count, size_t n, int32_t least) {
  int32_t low = 0, high = -1;
  for (size_t i = 0; i < count; ++i) {
    low = ids[i] < low ? ids[i] : low;
    high = ids[i] > high ? ids[i] : high;
  }
  if (low < least) refuse("ids must be at least " + std::to_string(least) + ", got " + std::to_string(low));
  if (high >= static_cast<int64_t>(n))
    refuse("ids must be less than the " + std::to_string(n) + " keys, got " + std::to_string(high));
}

void check_threads(int threads) {
  if (threads < 1) refuse("threads must be at least 1, got " + std::to_string(threads));
}

// The rows of one head, and the ids (m, k) that its m queries of d numbers found, once all of it is checked.
HeadIds checked_head(const Matrix<int32_t>& ids, const Array& keys, const Array& values, size_t m, size_t d) {
  const HeadIds head{rows_of("keys", keys), rows_of("values", values), ids.data, ids.columns};
  check_queries(d, head.keys);
  if (ids.m != m)
    refuse("ids must have a row for each of the " + std::to_string(m) + " queries, got " +
           std::to_string(ids.m));
  if (head.values.n != head.keys.n || head.values.d != d) refuse("values must have the shape of keys");
  check_ids(ids.data, ids.m * ids.columns, head.keys.n, -1);
  return head;
}

nb::tuple gather(const Array& queries, const Array& ids, const Array& keys, const Array& values,
                 int threads) {
  const Matrix<float> query_rows("queries", queries);
  const Matrix<int32_t> id_rows("ids", ids);
  const std::vector<HeadIds> head{checked_head(id_rows, keys, values, query_rows.m, query_rows.columns)};
  check_threads(threads);
  float *output, *lse;
  auto output_array = new_array<float>(output, query_rows.m, query_rows.columns);
  auto lse_array = new_array<float>(lse, query_rows.m);
  {
    nb::gil_scoped_release release;
    gather_attention(query_rows.data, query_rows.m, head, threads, output, lse);
  }
  return nb::make_tuple(output_array, lse_array);
}

void gather_layer(const Array& queries, const std::vector<Array>& ids, const std::vector<Array>& keys,
                  const std::vector<Array>& values, const Writable& output, const Writable& lse,
                  int threads) {
  const LayerQueries layer(queries, output, lse);
  if (ids.size() != layer.heads || keys.size() != layer.heads || values.size() != layer.heads)
    refuse("ids, keys and values must be one each for " + std::to_string(layer.heads) + " heads");
  check_threads(threads);
  std::vector<std::unique_ptr<Matrix<int32_t>>> id_rows;
  std::vector<HeadIds> heads;
  for (size_t h = 0; h < layer.heads; ++h) {
    id_rows.push_back(std::make_unique<Matrix<int32_t>>("ids", ids[h]));
    heads.push_back(checked_head(*id_rows.back(), keys[h], values[h], layer.m, layer.d));
  }
  nb::gil_scoped_release release;
  gather_attention(layer.queries, layer.m, heads, threads, layer.output, layer.lse);
}

FloatArray dot_rows(const Array& query, const Array& rows, const Array& ids, const std::string& kernel) {
  const Rows all = rows_of("rows", rows);
  if (query.ndim() != 1 || !is_float(query, 32) || !is_contiguous(query) || query.shape(0) != all.d)
    refuse("query must be (" + std::to_string(all.d) + ",) float32, C-contiguous");
  if (ids.ndim() != 1 || !is_int32(ids) || !is_contiguous(ids))
    refuse("ids must be (count,) int32, C-contiguous");
  const int32_t* chosen = static_cast<const int32_t*>(ids.data());
  check_ids(chosen, ids.shape(0), all.n, 0);
  const Kernels& table = kernel.empty() ? kernels() : kernels_named(kernel);
  float* scores;
  auto out = new_array<float>(scores, ids.shape(0));
  {
    nb::gil_scoped_release release;  // heads are searched by several threads
    table.dot(static_cast<const float*>(query.data()), all, chosen, ids.shape(0), scores);
  }
  return out;
}

// The ids (m, k) of m queries into rows of one head, checked.
void check_found(const Matrix<int32_t>& ids, size_t m, const Rows& rows) {
  if (ids.m != m)
    refuse("ids must have a row for each of " + std::to_string(m) + ", got " + std::to_string(ids.m));
  check_ids(ids.data, ids.m * ids.columns, rows.n, -1);
}

FloatArray logits_of_found(const Array& queries, const Array& ids, const Array& keys) {
  const Matrix<float> query_rows("queries", queries);
  const Matrix<int32_t> id_rows("ids", ids);
  const Rows rows = rows_of("keys", keys);
  check_queries(query_rows.columns, rows);
  check_found(id_rows, query_rows.m, rows);
  float* logits;
  auto out = new_array<float>(logits, query_rows.m, id_rows.columns);
  {
    nb::gil_scoped_release release;
    for (size_t i = 0; i < query_rows.m; ++i)
      gather_logits(kernels(), query_rows.data + i * rows.d, id_rows.data + i * id_rows.columns,
                    id_rows.columns, rows, logits + i * id_rows.columns);
  }
  return out;
}

FloatArray mix_found(const Array& weights, const Array& ids, const Array& values) {
  const Matrix<float> weight_rows("weights", weights);
  const Matrix<int32_t> id_rows("ids", ids);
  const Rows rows = rows_of("values", values);
  check_found(id_rows, weight_rows.m, rows);
  if (weight_rows.columns != id_rows.columns) refuse("weights must have the shape of ids");
  float* output;
  auto out = new_array<float>(output, weight_rows.m, rows.d);
  {
    nb::gil_scoped_release release;
    for (size_t i = 0; i < weight_rows.m; ++i)
      mix_rows(kernels(), weight_rows.data + i * id_rows.columns, id_rows.data + i * id_rows.columns,
               id_rows.columns, rows, output + i * rows.d);
  }
  return out;
}

std::vector<std::string> kernel_names() {
  std::vector<std::string> names;
  for (const Kernels* table : available_kernels()) names.push_back(table->name);
  return names;
}

double random_read(int threads, size_t row_bytes, size_t working_set_bytes, double seconds) {
  check_threads(threads);
  if (!row_bytes || row_bytes % 64)
    refuse("row_bytes must be a multiple of 64, got " + std::to_string(row_bytes));
  nb::gil_scoped_release release;
  return random_read_bytes_per_s(threads, row_bytes, working_set_bytes, seconds);
}

std::vector<double> pool_calls(int threads, int calls, double busy_us, double pause_us) {
  check_threads(threads);
  nb::gil_scoped_release release;
  return pool_call_us(threads, calls, busy_us, pause_us);
}

// For the tests of the pool: a sum over chunks, a failure on demand.
int64_t pool_sum(int64_t count, int64_t grain, int threads, int64_t fail_at) {
  check_threads(threads);
  std::vector<int64_t> sums(static_cast<size_t>(threads) * 8);
  nb::gil_scoped_release release;
  parallel_for(threads, count, grain, [&](int64_t begin, int64_t end, int worker) {
    for (int64_t i = begin; i < end; ++i) {
      if (i == fail_at) throw std::runtime_error("failed at " + std::to_string(i));
      sums[static_cast<size_t>(worker) * 8] += i;
    }
  });
  int64_t sum = 0;
  for (int64_t part : sums) sum += part;
  return sum;
}

}  // namespace
}  // namespace ra_bench

NB_MODULE(_native, m) {
  using namespace ra_bench;
  using namespace nb::literals;
  m.doc() = "Distance kernels, thread pool and gather-attention that native methods share.";
  m.def(
      "gather_attention", &gather, "queries"_a, "ids"_a, "keys"_a, "values"_a, "threads"_a = 1,
      "Exact softmax attention of queries (m, d) float32 over the rows ids (m, k) int32 of keys and values\n"
      "(n, d) float16 or float32; -1 is skipped, wherever it stands. Returns output (m, d) and the natural\n"
      "logarithm of the summed exponentials (m,), float32: 0 and -inf for an empty row. Raises ValueError "
      "for\n"
      "a wrong shape, type or id, and for keys or values that are not C-contiguous.");
  m.def(
      "gather_attention_layer", &gather_layer, "queries"_a, "ids"_a, "keys"_a, "values"_a, "output"_a, "lse"_a,
      "threads"_a = 1,
      "gather_attention for all H heads of a layer: queries (H, m, d) float32, C-contiguous, and lists of H\n"
      "arrays ids (m, any), keys and values, into output (H, m, d) and lse (H, m) float32, C-contiguous.\n"
      "Raises ValueError as gather_attention does.");
  m.def("gather_logits", &logits_of_found, "queries"_a, "ids"_a, "keys"_a,
        "Inner products (m, k) float32 of queries (m, d) float32 and the rows ids (m, k) int32 of keys (n, d);\n"
        "-inf for -1. Raises ValueError as gather_attention does.");
  m.def("mix_rows", &mix_found, "weights"_a, "ids"_a, "values"_a,
        "The sums (m, d) float32 of the rows ids (m, k) int32 of values (n, d) by weights (m, k) float32; -1 is\n"
        "skipped, whatever its weight. Raises ValueError as gather_attention does.");
  m.def("kernels", &kernel_names, "Names of the instruction sets that this CPU has kernels for, best first.");
  m.def("dot_rows", &dot_rows, "query"_a, "rows"_a, "ids"_a, "kernel"_a = "",
        "Inner products (count,) float32 of query (d,) float32 with the rows ids (count,) int32 of rows (n, "
        "d),\n"
        "by the named kernel. Raises ValueError for a wrong shape, type, id or name.");
  m.def("force_kernel", &force_kernels, "name"_a,
        "Makes every native call of this module use the named kernel; '' goes back to the best. For tests.");
  m.def("random_read_bytes_per_s", &random_read, "threads"_a, "row_bytes"_a, "working_set_bytes"_a, "seconds"_a,
        "Bytes per second that threads read together from random rows of a working set, addresses known "
        "ahead.");
  m.def("pool_call_us", &pool_calls, "threads"_a, "calls"_a, "busy_us"_a = 0.0, "pause_us"_a = 0.0,
        "Microseconds of each call of the thread pool with one task a thread that is busy for busy_us, after a "
        "pause.");
  m.def("pool_sum", &pool_sum, "count"_a, "grain"_a, "threads"_a, "fail_at"_a = -1,
        "The sum of range(count) by the thread pool; raises RuntimeError at fail_at. For tests.");
}
