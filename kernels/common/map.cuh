// Loops over flat buffers that write elsewhere, and in another type, than they read: a thread has as many numbers as make
// 16 bytes of the wider type.
#pragma once
#include "common/elementwise.cuh"

// y[i] <- f.of(x[i]), in whatever types
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

// z[i] <- f.of(x[i], y[i]), in whatever types; z may be x
template <typename F, typename X, typename Y, typename Z>
__device__ __forceinline__ void zip(Z* z, const X* x, const Y* y, u64 n, F f = {}) {
  constexpr unsigned WIDEST = sizeof(X) > sizeof(Y) ? sizeof(X) : sizeof(Y), N = 16 / (WIDEST > sizeof(Z) ? WIDEST : sizeof(Z));
  u64 i = global_thread() * N;
  if (i + N <= n && are_aligned(x, y, z)) {
    auto a = *(const Pack<X, N>*)(x + i);
    auto b = *(const Pack<Y, N>*)(y + i);
    Pack<Z, N> c;
#pragma unroll
    for (int k = 0; k < N; ++k) c.v[k] = narrow<Z>(f.of(widen(a.v[k]), widen(b.v[k])));
    *(Pack<Z, N>*)(z + i) = c;
  } else {
    for (u64 end = min(i + N, n); i < end; ++i) z[i] = narrow<Z>(f.of(widen(x[i]), widen(y[i])));
  }
}
