// Threads that work through the same tasks, and wait for each other.
#pragma once
#include <immintrin.h>
#include <omp.h>
#include <sched.h>

#include <atomic>

namespace rest_pg {

// The threads of PyTorch's own pool, so that its idle ones don't spin beside ours.
class Team {
   public:
    explicit Team(int size) : size_(size) {}
    template <class Work>
    void run(Work &&work) {
#pragma omp parallel num_threads(size_)
        {
#pragma omp single
            size_ = omp_get_num_threads();  // fewer than asked for, if the machine is short of them
            work(omp_get_thread_num());
        }
    }
    // All threads wait for each other; the next set of tasks starts at 0.
    void meet() {
        const int phase = phase_.load(std::memory_order_acquire);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
            arrived_.store(0, std::memory_order_relaxed);
            next_.store(0, std::memory_order_relaxed);
            phase_.store(phase + 1, std::memory_order_release);
            return;
        }
        for (int spins = 0; phase_.load(std::memory_order_acquire) == phase; spins++) {
            _mm_pause();
            if (spins > 4000) sched_yield();  // the other thread may have lost its core
        }
    }
    template <class Task>
    void share(int tasks, Task &&task) {
        for (int i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < tasks;) task(i);
        meet();
    }
    int size() const { return size_; }

   private:
    int size_;
    std::atomic<int> arrived_{0}, next_{0}, phase_{0};
};

}  // namespace rest_pg
