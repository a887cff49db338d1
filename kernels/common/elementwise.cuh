// Loops over flat buffers: a thread has the 16 bytes that lie side by side, and the last one what is left over. Buffers
// begin at multiples of 16 bytes or are read one by one.
#pragma once
#include "common/types.cuh"

template <typename... P> __device__ __forceinline__ bool are_aligned(const P*... p) { return (((u64)p | ...) & 15) == 0; }

// x[i] <- F::of(x[i])
template <typename F, typename T> __device__ __forceinline__ void map_in_place(T* x, u64 n) {
  constexpr int N = 16 / sizeof(T);
  u64 i = global_thread() * N;
  if (i + N <= n && are_aligned(x)) {
    auto a = *(Pack<T, N>*)(x + i);
#pragma unroll
    for (int k = 0; k < N; ++k) a.v[k] = narrow<T>(F::of(widen(a.v[k])));
    *(Pack<T, N>*)(x + i) = a;
  } else {
    for (u64 end = min(i + N, n); i < end; ++i) x[i] = narrow<T>(F::of(widen(x[i])));
  }
}

// x[i] <- F::of(x[i], y[i])
template <typename F, typename T> __device__ __forceinline__ void zip_in_place(T* x, const T* y, u64 n) {
  constexpr int N = 16 / sizeof(T);
  u64 i = global_thread() * N;
  if (i + N <= n && are_aligned(x, y)) {
    auto a = *(Pack<T, N>*)(x + i);
    auto b = *(const Pack<T, N>*)(y + i);
#pragma unroll
    for (int k = 0; k < N; ++k) a.v[k] = narrow<T>(F::of(widen(a.v[k]), widen(b.v[k])));
    *(Pack<T, N>*)(x + i) = a;
  } else {
    for (u64 end = min(i + N, n); i < end; ++i) x[i] = narrow<T>(F::of(widen(x[i]), widen(y[i])));
  }
}
