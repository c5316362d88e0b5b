#include "scan.hpp"

namespace ra_bench {
namespace {

#include "scan_plain.inl"

bool always() { return true; }

}  // namespace

const ScanKernels* scan_plain() {
  static const ScanKernels table = {"plain",          always,           scan_segment,   plain_panel_scores,
                                    plain_sum_from,   plain_count_from, plain_compress, plain_find_from,
                                    plain_range,      plain_rank};
  return &table;
}

}  // namespace ra_bench
