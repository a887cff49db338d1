// The backward of the gated residual: see src/ops/gate.
// hot gate_*
#include "common/elementwise.cuh"

// dy <- gate * dx, a row of blocks per sample, whose rows are `d` wide and whose gates begin `stride` after one another.
template <typename T>
__device__ __forceinline__ void backward(T* dy, const T* dx, const T* gate, u64 stride, u32 per_sample, u32 d) {
  constexpr u32 N = 16 / sizeof(T);
  u64 sample = blockIdx.y, at = global_thread() * N;
  if (at >= per_sample) return;
  dy += sample * per_sample, dx += sample * per_sample, gate += sample * stride;
  u32 i = at, column = i % d;
  if (d % N == 0 && are_aligned(dy, dx, gate)) {
    auto a = *(const Pack<T, N>*)(dx + i);
    auto g = *(const Pack<T, N>*)(gate + column);
#pragma unroll
    for (int k = 0; k < N; ++k) a.v[k] = narrow<T>(widen(g.v[k]) * widen(a.v[k]));
    *(Pack<T, N>*)(dy + i) = a;
  } else {
    for (u32 end = min(i + N, per_sample); i < end; ++i, column = column + 1 == d ? 0 : column + 1)
      dy[i] = narrow<T>(widen(gate[column]) * widen(dx[i]));
  }
}

#define KERNELS(T, t)                                                                                                   \
  extern "C" __global__ void gate_backward_##t(T* dy, const T* dx, const T* gate, u64 stride, u32 per_sample, u32 d) {  \
    backward(dy, dx, gate, stride, per_sample, d);                                                                      \
  }
FOR_EACH_TYPE(KERNELS)
