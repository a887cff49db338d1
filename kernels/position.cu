// Rows of a table added to tokens: see src/ops/position.
// hot position_*
#include "common/map.cuh"

struct Sum {
  static __device__ float of(float x, float p) { return x + p; }
};

// A row of blocks per line of tokens and a layer of them per sample; a line is `n` numbers, its rows begin at `starts`.
template <typename T, typename P> __device__ __forceinline__ void add(T* x, const P* table, const u32* starts, u64 n, u32 d) {
  u64 line = blockIdx.y, lines = gridDim.y, sample = blockIdx.z;
  x += (sample * lines + line) * n;
  zip<Sum>(x, x, table + (u64)starts[line] * d, n);
}

#define KERNEL(T, t, P, p)                                                                                              \
  extern "C" __global__ void position_add_##t##_##p(T* x, const P* table, const u32* starts, u64 n, u32 d) {            \
    add(x, table, starts, n, d);                                                                                        \
  }
#define KERNELS(P, p) KERNEL(float, f32, P, p) KERNEL(f16, f16, P, p) KERNEL(bf16, bf16, P, p)
FOR_EACH_TYPE(KERNELS)
