#include "pool.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace ra_bench {
namespace {

constexpr int kMaxThreads = 256;
// How often an idle thread looks for work before it sleeps, some 20 µs: a spinning thread takes a core from others.
constexpr int kSpins = 500;
// For so long it looks, and lets others run meanwhile, where the wait before was no longer: the calls of a decode loop
// follow each other in less time than it takes a virtual machine to wake a thread.
constexpr auto kPatience = std::chrono::milliseconds(1);
constexpr int kWakes = 2;  // threads that one thread wakes

inline void relax() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

// One parallel_for; lives on its caller's stack.
struct Job {
  const std::function<void(int64_t, int64_t, int)>* body;
  int64_t count, grain;
  int workers;                  // as many threads as may take part, the caller included
  int joined = 1;               // guarded by Pool::lock
  std::atomic<int> running{0};  // workers inside, the caller not counted
  std::atomic<int64_t> next{0};
  std::exception_ptr error;  // guarded by error_mutex
  std::mutex error_mutex;

  void run(int worker) {
    while (true) {
      const int64_t begin = next.fetch_add(grain, std::memory_order_relaxed);
      if (begin >= count) return;
      try {
        (*body)(begin, std::min(begin + grain, count), worker);
      } catch (...) {
        const std::lock_guard<std::mutex> lock(error_mutex);
        if (!error) error = std::current_exception();
        next.store(count, std::memory_order_relaxed);
      }
    }
  }
};

// For the few instructions that pass a job on: a std::mutex would put threads to sleep that meet here.
class SpinLock {
 public:
  void lock() {
    for (int spin = 0; taken_.test_and_set(std::memory_order_acquire); ++spin) {
      if (spin < kSpins) relax();
      else std::this_thread::yield();  // the holder may have lost its core
    }
  }
  void unlock() { taken_.clear(std::memory_order_release); }

 private:
  std::atomic_flag taken_ = ATOMIC_FLAG_INIT;
};

struct Pool {
  SpinLock lock;
  std::vector<Job*> jobs;   // that still want workers; guarded by lock
  std::atomic<int> open{0};  // jobs.size(), to be looked at without the lock
  std::mutex sleep_mutex;
  std::condition_variable wake;
  std::atomic<int> sleepers{0};
  std::mutex start_mutex;
  int started = 0, wanted = 0;  // threads; guarded by start_mutex

  void work() {
    using Clock = std::chrono::steady_clock;
    bool is_patient = false;
    while (true) {
      const Clock::time_point idle_since = Clock::now();
      for (int spin = 0; spin < kSpins && !open.load(std::memory_order_relaxed); ++spin) relax();
      while (is_patient && !open.load(std::memory_order_relaxed) && Clock::now() - idle_since < kPatience)
        std::this_thread::yield();
      if (!open.load(std::memory_order_seq_cst)) sleep();
      is_patient = Clock::now() - idle_since < kPatience;
      int worker;
      Job* job = join(worker);
      if (!job) continue;  // others were faster
      job->run(worker);
      job->running.fetch_sub(1, std::memory_order_release);  // the job may be gone from here on
    }
  }

  void sleep() {
    {
      std::unique_lock<std::mutex> guard(sleep_mutex);
      sleepers.fetch_add(1, std::memory_order_seq_cst);
      wake.wait(guard, [&] { return open.load(std::memory_order_seq_cst) > 0; });
      sleepers.fetch_sub(1, std::memory_order_seq_cst);
    }
    wake_some(kWakes);
  }

  // Waking a thread costs its waker some microseconds, so those that wake up wake others in their turn.
  void wake_some(int most) {
    if (!open.load(std::memory_order_seq_cst)) return;
    for (int i = 0; i < most && sleepers.load(std::memory_order_seq_cst) > i; ++i) {
      // Whoever counts as a sleeper but does not wait yet holds the mutex: after it, none can miss the call.
      { const std::lock_guard<std::mutex> guard(sleep_mutex); }
      wake.notify_one();
    }
  }

  Job* join(int& worker) {
    const std::lock_guard<SpinLock> guard(lock);
    if (jobs.empty()) return nullptr;
    Job* job = jobs.front();
    worker = job->joined++;
    job->running.fetch_add(1, std::memory_order_relaxed);
    if (job->joined == job->workers) close(job);
    return job;
  }

  void close(Job* job) {  // under the lock
    const auto at = std::find(jobs.begin(), jobs.end(), job);
    if (at == jobs.end()) return;
    jobs.erase(at);
    open.store(static_cast<int>(jobs.size()), std::memory_order_seq_cst);
  }

  // Callers that run at once need threads of their own each: with as many as one job asks for, eight callers of
  // two threads had nine in all.
  void want(int more) {
    const std::lock_guard<std::mutex> guard(start_mutex);
    wanted += more;
    try {
      for (; started < std::min(wanted, kMaxThreads); ++started) std::thread([this] { work(); }).detach();
    } catch (...) {
      wanted -= more;  // or each later job would try to start the threads of this one again
      throw;
    }
  }

  void run(Job& job) {
    want(job.workers - 1);
    {
      const std::lock_guard<SpinLock> guard(lock);
      jobs.push_back(&job);
      open.store(static_cast<int>(jobs.size()), std::memory_order_seq_cst);
    }
    wake_some(std::min(kWakes, job.workers - 1));
    job.run(0);
    {
      const std::lock_guard<SpinLock> guard(lock);
      close(&job);
    }
    for (int spin = 0; job.running.load(std::memory_order_acquire); ++spin) {
      if (spin < kSpins) relax();
      else std::this_thread::yield();
    }
    want(1 - job.workers);
  }
};

// Never destroyed: its detached threads may wait on it until the process is gone.
std::atomic<Pool*> the_pool{nullptr};

void forget_pool() { the_pool = nullptr; }  // a forked child has none of the threads, and maybe a held lock

Pool& pool() {
  Pool* found = the_pool.load(std::memory_order_acquire);
  if (found) return *found;
  static std::mutex making;
  const std::lock_guard<std::mutex> lock(making);
  if (!the_pool.load()) {
#if defined(__unix__) || defined(__APPLE__)
    static const int registered = pthread_atfork(nullptr, nullptr, forget_pool);
    (void)registered;
#endif
    the_pool = new Pool;
  }
  return *the_pool.load();
}

}  // namespace

void parallel_for(int threads, int64_t count, int64_t grain,
                  const std::function<void(int64_t, int64_t, int)>& body) {
  grain = std::max<int64_t>(grain, 1);
  const int64_t chunks = (count + grain - 1) / grain;
  const int workers = static_cast<int>(std::min<int64_t>({threads, chunks, kMaxThreads}));
  if (workers <= 1) {
    for (int64_t begin = 0; begin < count; begin += grain) body(begin, std::min(begin + grain, count), 0);
    return;
  }
  Job job;
  job.body = &body;
  job.count = count;
  job.grain = grain;
  job.workers = workers;
  pool().run(job);
  if (job.error) std::rethrow_exception(job.error);
}

}  // namespace ra_bench
