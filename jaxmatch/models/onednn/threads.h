// The threads that compute: those of OpenMP, which oneDNN uses.

#ifndef JAXMATCH_THREADS_H_
#define JAXMATCH_THREADS_H_

#include <algorithm>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

// Declared here, so that the compiler needs no OpenMP of its own: oneDNN brings the library.
extern "C" {
int omp_get_max_threads();
int omp_get_num_threads();
int omp_get_thread_num();
void omp_set_num_threads(int);
void GOMP_parallel(void (*body)(void*), void* data, unsigned threads, unsigned flags);
}

// The cores that this process may use, or OMP_NUM_THREADS.
inline int Cores() {
  static const int cores = std::max(1, omp_get_max_threads());
  return cores;
}

// The cores of one of the ``devices`` that share them.
inline int Threads(int64_t devices) { return std::max<int>(1, Cores() / devices); }

// OpenMP keeps the threads of a parallel region for the thread that began it. As XLA may call from
// any of its threads, a machine of n cores would have n * n threads. So on machines of at least so
// many cores only leaders begin regions. That costs a step about 5%.
#ifndef JAXMATCH_MANY_CORES
#define JAXMATCH_MANY_CORES 17
#endif

// A thread that does the jobs of others.
class Leader {
 public:
  explicit Leader(int threads) {
    std::thread([this, threads] {
      omp_set_num_threads(threads);
      std::unique_lock<std::mutex> lock(mutex_);
      for (;;) {
        changed_.wait(lock, [&] { return job_ != nullptr; });
        try {
          (*job_)();
        } catch (...) {
          error_ = std::current_exception();
        }
        job_ = nullptr;
        changed_.notify_all();
      }
    }).detach();
  }

  void Run(const std::function<void()>& job) {
    std::unique_lock<std::mutex> lock(mutex_);
    job_ = &job;
    changed_.notify_all();
    changed_.wait(lock, [&] { return job_ == nullptr; });
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  const std::function<void()>* job_ = nullptr;
  std::exception_ptr error_;
};

// Lets one job for each device compute at a time; more jobs would only compete for the cores.
class Turns {
 public:
  // Runs the job with the threads of one device; rethrows what the job throws.
  static void Run(int64_t devices, const std::function<void()>& job) {
    static Turns& turns = *new Turns;  // never destroyed: threads may compute at exit
    const Turn turn(turns, devices);
    if (turn.leader) return turn.leader->Run(job);
    omp_set_num_threads(Threads(devices));  // of the regions that this thread begins
    job();
  }

 private:
  struct Turn {
    Turn(Turns& turns, int64_t devices) : turns(turns) {
      std::unique_lock<std::mutex> lock(turns.mutex_);
      turns.ended_.wait(lock, [&] { return turns.running_ < devices; });
      ++turns.running_;
      if (Cores() < JAXMATCH_MANY_CORES) return;
      if (turns.idle_.empty()) turns.idle_.push_back(new Leader(Threads(devices)));
      leader = turns.idle_.back();
      turns.idle_.pop_back();
    }
    ~Turn() {
      {
        std::lock_guard<std::mutex> lock(turns.mutex_);
        --turns.running_;
        if (leader) turns.idle_.push_back(leader);
      }
      turns.ended_.notify_one();
    }
    Turn(const Turn&) = delete;

    Turns& turns;
    Leader* leader = nullptr;
  };

  std::mutex mutex_;
  std::condition_variable ended_;
  int64_t running_ = 0;
  std::vector<Leader*> idle_;
};

// body(part, parts) on each of ``threads`` threads; it must not throw.
template <typename Body>
void Parallel(int threads, Body& body) {
  GOMP_parallel(
      [](void* data) { (*static_cast<Body*>(data))(omp_get_thread_num(), omp_get_num_threads()); },
      &body, threads, 0);
}

#endif  // JAXMATCH_THREADS_H_
