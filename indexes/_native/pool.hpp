// A persistent thread pool for native methods: no OpenMP, whose several runtimes in one process (torch's,
// faiss's) are a trap.
#pragma once

#include <cstdint>
#include <functional>

namespace ra_bench {

// Calls body(begin, end, worker) until [0, count) is covered, in chunks of `grain` that threads take as they
// become free. `worker` is in [0, threads) and no two calls that run at once share it: use it for scratch
// space. The caller takes part; with one thread, or one chunk, all runs in the caller. The first exception
// ends the loop and is thrown here. Safe from several threads at once, nested, and after a fork.
void parallel_for(int threads, int64_t count, int64_t grain,
                  const std::function<void(int64_t, int64_t, int)>& body);

}  // namespace ra_bench
