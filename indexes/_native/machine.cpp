#include "machine.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <memory>
#include <new>
#include <thread>
#include <vector>

#include "kernels.hpp"
#include "pool.hpp"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace ra_bench {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

constexpr size_t kHugePage = size_t{1} << 21;
constexpr size_t kRound = 1024;        // rows between two looks at the clock
constexpr size_t kAheadBytes = 2048;   // as many bytes are on their way at once: 32 cache lines

// Zeroed memory in huge pages where the system grants them, as NumPy asks for them too.
struct WorkingSet {
  explicit WorkingSet(size_t wanted) : bytes((wanted + kHugePage - 1) / kHugePage * kHugePage) {
    data = static_cast<char*>(std::aligned_alloc(kHugePage, bytes));
    if (!data) throw std::bad_alloc();
#if defined(__linux__)
    madvise(data, bytes, MADV_HUGEPAGE);
#endif
  }
  ~WorkingSet() { std::free(data); }
  WorkingSet(const WorkingSet&) = delete;
  WorkingSet& operator=(const WorkingSet&) = delete;
  size_t bytes;
  char* data;
};

uint64_t sum_row(const char* row, size_t bytes) {
  const auto* words = reinterpret_cast<const uint64_t*>(row);
  uint64_t sums[4] = {};  // independent, so that the compiler may use vectors
  for (size_t i = 0; i < bytes / 8; i += 4)
    for (size_t lane = 0; lane < 4; ++lane) sums[lane] += words[i + lane];
  return sums[0] + sums[1] + sums[2] + sums[3];
}

// Reads random rows for `seconds`; returns bytes per second of this thread.
double read_rows(const WorkingSet& set, size_t row_bytes, uint64_t seed, double seconds, uint64_t& sum) {
  const uint64_t rows = set.bytes / row_bytes;
  const size_t ahead = std::max<size_t>(kAheadBytes / row_bytes, 2);
  std::vector<const char*> address(kRound + ahead);
  uint64_t state = seed * 0x9e3779b97f4a7c15u + 1;
  const auto draw = [&] {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return set.data + ((state >> 32) * rows >> 32) * row_bytes;
  };
  size_t rounds = 0;
  double elapsed = 0;
  const Clock::time_point start = Clock::now();
  for (const char*& a : address) a = draw();
  do {
    std::copy(address.end() - static_cast<std::ptrdiff_t>(ahead), address.end(), address.begin());
    for (size_t i = ahead; i < address.size(); ++i) address[i] = draw();
    for (size_t i = 0; i < kRound; ++i) {
      prefetch_row(address[i + ahead], row_bytes);
      sum += sum_row(address[i], row_bytes);
    }
    ++rounds;
    elapsed = seconds_since(start);
  } while (elapsed < seconds);
  return static_cast<double>(rounds * kRound * row_bytes) / elapsed;
}

// One call of `body(t)` on each of `threads` threads of their own, which begin together.
template <class Body>
void on_threads(int threads, const Body& body) {
  std::atomic<int> waiting{threads};
  std::vector<std::thread> all;
  for (int t = 0; t < threads; ++t)
    all.emplace_back([&, t] {
      for (--waiting; waiting.load() > 0;) std::this_thread::yield();
      body(t);
    });
  for (std::thread& thread : all) thread.join();
}

}  // namespace

double random_read_bytes_per_s(int threads, size_t row_bytes, size_t working_set_bytes, double seconds) {
  const WorkingSet set(std::max(working_set_bytes, row_bytes));
  const size_t share = (set.bytes / static_cast<size_t>(threads) + kHugePage) / kHugePage * kHugePage;
  on_threads(threads, [&](int t) {  // each page by the thread that gets there first: spread over NUMA nodes
    const size_t begin = std::min(share * static_cast<size_t>(t), set.bytes);
    std::fill(set.data + begin, set.data + std::min(begin + share, set.bytes), static_cast<char>(t + 1));
  });
  std::vector<double> rates(static_cast<size_t>(threads));
  std::atomic<uint64_t> keep{0};  // so that no read can be left out
  on_threads(threads, [&](int t) {
    uint64_t sum = 0;
    rates[static_cast<size_t>(t)] = read_rows(set, row_bytes, static_cast<uint64_t>(t) + 1, seconds, sum);
    keep += sum;
  });
  double total = 0;
  for (double rate : rates) total += rate;
  return total;
}

std::vector<double> pool_call_us(int threads, int calls, double busy_us, double pause_us) {
  std::vector<double> times;
  const std::function<void(int64_t, int64_t, int)> body = [&](int64_t, int64_t, int) {
    const Clock::time_point start = Clock::now();
    while (busy_us > 0 && seconds_since(start) * 1e6 < busy_us) {
    }
  };
  for (int call = 0; call < calls; ++call) {
    if (pause_us > 0) std::this_thread::sleep_for(std::chrono::duration<double, std::micro>(pause_us));
    const Clock::time_point start = Clock::now();
    parallel_for(threads, threads, 1, body);
    times.push_back(seconds_since(start) * 1e6);
  }
  return times;
}

}  // namespace ra_bench
