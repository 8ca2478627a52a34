// How many threads a call has: those of OpenMP, which oneDNN uses.

#ifndef JAXMATCH_THREADS_H_
#define JAXMATCH_THREADS_H_

#include <algorithm>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <utility>

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

// Those of one of the ``devices`` that share them.
inline int Threads(int64_t devices) { return std::max<int>(1, Cores() / devices); }

// While it lives, this thread computes with the threads of one device. As many calls as there are
// devices compute at a time: more would only take cores from each other.
class Turn {
 public:
  explicit Turn(int64_t devices) {
    std::unique_lock<std::mutex> lock(mutex);
    left.wait(lock, [&] { return inside < devices; });
    ++inside;
    omp_set_num_threads(Threads(devices));  // of this thread's parallel regions
  }
  ~Turn() {
    {
      std::lock_guard<std::mutex> lock(mutex);
      --inside;
    }
    left.notify_one();
  }
  Turn(const Turn&) = delete;

 private:
  static inline std::mutex mutex;
  static inline std::condition_variable left;
  static inline int64_t inside = 0;
};

// body(part, parts) on each of ``threads`` threads; it must not throw.
template <typename Body>
void Parallel(int threads, Body& body) {
  GOMP_parallel(
      [](void* data) { (*static_cast<Body*>(data))(omp_get_thread_num(), omp_get_num_threads()); },
      &body, threads, 0);
}

#endif  // JAXMATCH_THREADS_H_
