// Loops over flat buffers that write elsewhere, and in another type, than they read: a thread has as many numbers as make
// 16 bytes of the wider type.
#pragma once
#include "common/elementwise.cuh"

// y[i] <- F::of(x[i]), in whatever types
template <typename F, typename T, typename U> __device__ __forceinline__ void map(U* y, const T* x, u64 n, F f = {}) {
  constexpr int N = 16 / (sizeof(T) > sizeof(U) ? sizeof(T) : sizeof(U));
  u64 i = global_thread() * N;
  if (i + N <= n && are_aligned(x, y)) {
    auto a = *(const Pack<T, N>*)(x + i);
    Pack<U, N> b;
#pragma unroll
    for (int k = 0; k < N; ++k) b.v[k] = narrow<U>(f.of(widen(a.v[k])));
    *(Pack<U, N>*)(y + i) = b;
  } else {
    for (u64 end = min(i + N, n); i < end; ++i) y[i] = narrow<U>(f.of(widen(x[i])));
  }
}
