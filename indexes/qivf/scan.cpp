#include "scan.hpp"

#include <string>

#include "kernels.hpp"

namespace ra_bench {

const ScanKernels* scan_avx512vnni();  // null where the compiler's target has no such instructions
const ScanKernels* scan_avx2();
const ScanKernels* scan_plain();

const ScanKernels& scan_kernels() {
  const std::string best = kernels().name;
  if (best == "avx512" && scan_avx512vnni() && scan_avx512vnni()->supported()) return *scan_avx512vnni();
  if (best != "plain" && scan_avx2() && scan_avx2()->supported()) return *scan_avx2();
  return *scan_plain();
}

}  // namespace ra_bench
