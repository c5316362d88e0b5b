// Callers, nested calls and failures at once, for the thread sanitizer; prints how many sums were right.
#include <atomic>
#include <cstdio>
#include <stdexcept>
#include <thread>
#include <vector>

#include "attention.hpp"
#include "pool.hpp"

using namespace ra_bench;

int main() {
  constexpr size_t n = 200, d = 16, m = 4, k = 20, num_heads = 6;
  std::vector<float> rows(n * d, 0.5f), queries(num_heads * m * d, 0.25f);
  const std::vector<int32_t> ids(m * k, 7);
  const Rows keys{rows.data(), kFloat32, n, d};
  const std::vector<HeadIds> heads(num_heads, HeadIds{keys, keys, ids.data(), k});
  std::atomic<int> right{0};
  const auto caller = [&](int number) {
    for (int call = 0; call < 300; ++call) {
      std::vector<int64_t> sums(4, 0);  // one a worker, no atomics: two threads of one number would race
      parallel_for(4, 100, 1, [&](int64_t begin, int64_t, int worker) { sums[static_cast<size_t>(worker)] += begin; });
      right += sums[0] + sums[1] + sums[2] + sums[3] == 4950;
      std::atomic<int> inner{0};
      parallel_for(3, 6, 1, [&](int64_t, int64_t, int) {
        parallel_for(2, 5, 1, [&](int64_t, int64_t, int) { ++inner; });
      });
      right += inner == 30;
      try {
        parallel_for(3, 50, 1, [&](int64_t begin, int64_t, int) {
          if (begin == 30) throw std::runtime_error("planned");
        });
      } catch (const std::runtime_error&) {
        ++right;
      }
      std::vector<float> output(num_heads * m * d), lse(num_heads * m);
      gather_attention(queries.data(), m, heads, 4, output.data(), lse.data());
      bool all = true;
      for (float x : output) all = all && x > 0.499f && x < 0.501f;
      right += all;
      if (call % 50 == number) std::this_thread::sleep_for(std::chrono::milliseconds(2));  // let them sleep
    }
  };
  std::vector<std::thread> callers;
  for (int i = 0; i < 3; ++i) callers.emplace_back(caller, i);
  for (std::thread& thread : callers) thread.join();
  std::printf("%d of %d\n", right.load(), 3 * 300 * 4);
  return right == 3 * 300 * 4 ? 0 : 1;
}
