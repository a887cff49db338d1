// What is asked of flat buffers: see src/ops/norm.
#include "common/elementwise.cuh"

// hot norm_*

// sums[block]: the squares of 4096 numbers in the order of src/ops/norm/cpu.rs, eight sums that are then added one after
// another. The block's threads fetch, eight of them add: several blocks are on a processor, and one's additions hide behind
// another's loads.
template <typename T> __device__ __forceinline__ void sum_of_squares(double* sums, const T* x, u64 n) {
  constexpr u32 BLOCK = 4096, THREADS = 128, SUMS = 8, N = 16 / sizeof(T);
  __shared__ alignas(16) T numbers[BLOCK];
  __shared__ double partial[SUMS];
  const u64 first = (u64)blockIdx.x * BLOCK;
  const u32 length = (u32)min((u64)BLOCK, n - first), t = threadIdx.x;
  x += first;
  if (length == BLOCK && are_aligned(x)) {
#pragma unroll
    for (u32 i = 0; i < BLOCK / N / THREADS; ++i) {
      const u32 at = N * (i * THREADS + t);
      *(Pack<T, N>*)(numbers + at) = *(const Pack<T, N>*)(x + at);
    }
  } else {
    for (u32 i = t; i < length; i += THREADS) numbers[i] = x[i];
  }
  __syncthreads();
  if (t < SUMS) {
    double sum = 0.0;
#pragma unroll 8
    for (u32 i = t; i < length; i += SUMS) {
      const double v = widen(numbers[i]);
      sum = sum + v * v;
    }
    partial[t] = sum;
  }
  __syncthreads();
  if (t == 0) {
    double sum = 0.0;
#pragma unroll
    for (u32 i = 0; i < SUMS; ++i) sum = sum + partial[i];
    sums[blockIdx.x] = sum;
  }
}

// The smallest index of a number that is not finite, if it is below what `found` holds.
template <typename T> __device__ __forceinline__ void first_non_finite(u64* found, const T* x, u64 n) {
  constexpr u32 N = 16 / sizeof(T);
  const u64 first = global_thread() * N;
  u32 at = N;
  const auto finite = [](float v) { return (__float_as_uint(v) & 0x7F800000) != 0x7F800000; };
  if (first + N <= n && are_aligned(x)) {
    const auto a = *(const Pack<T, N>*)(x + first);
#pragma unroll
    for (int k = N - 1; k >= 0; --k) at = finite(widen(a.v[k])) ? at : k;
  } else if (first < n) {
    for (u32 k = (u32)min((u64)N, n - first); k > 0; --k) at = finite(widen(x[first + k - 1])) ? at : k - 1;
  }
  // Of a warp only its first says so, or a buffer of NaN would be one long queue.
  const u32 lanes = __ballot_sync(0xFFFFFFFF, at < N);
  if (lanes && threadIdx.x % 32 == __ffs(lanes) - 1) atomicMin(found, first + at);
}

#define KERNELS(T, t)                                                                                                      \
  extern "C" __global__ void __launch_bounds__(128) norm_sum_of_squares_##t(double* sums, const T* x, u64 n) {             \
    sum_of_squares(sums, x, n);                                                                                            \
  }                                                                                                                        \
  extern "C" __global__ void __launch_bounds__(256) norm_first_non_finite_##t(u64* found, const T* x, u64 n) {             \
    first_non_finite(found, x, n);                                                                                         \
  }
FOR_EACH_TYPE(KERNELS)
