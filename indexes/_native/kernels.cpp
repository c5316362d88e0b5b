#include "kernels.hpp"

#include <atomic>
#include <stdexcept>

namespace ra_bench {

const Kernels* avx512_kernels();  // null where the compiler's target has no such instructions
const Kernels* avx2_kernels();    // the same
const Kernels* plain_kernels();

namespace {

std::vector<const Kernels*> find_available() {
  std::vector<const Kernels*> found;
  for (const Kernels* candidate : {avx512_kernels(), avx2_kernels(), plain_kernels()})
    if (candidate && candidate->supported()) found.push_back(candidate);
  return found;
}

std::atomic<const Kernels*> forced{nullptr};

}  // namespace

const std::vector<const Kernels*>& available_kernels() {
  static const std::vector<const Kernels*> found = find_available();
  return found;
}

const Kernels& kernels() {
  const Kernels* choice = forced.load(std::memory_order_relaxed);
  return choice ? *choice : *available_kernels().front();
}

const Kernels& kernels_named(const std::string& name) {
  for (const Kernels* candidate : available_kernels())
    if (name == candidate->name) return *candidate;
  throw std::invalid_argument("kernel must be one that this CPU has, got '" + name + "'");
}

void force_kernels(const std::string& name) { forced = name.empty() ? nullptr : &kernels_named(name); }

}  // namespace ra_bench
