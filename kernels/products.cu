// Inner products of differences: see src/ops/products. A block has 1024 elements of one row, a thread four of them.
#include "common/difference.cuh"
#include "common/ordered_sum.cuh"

// hot products_*

// sums[row][chunk]: for each difference its products with those up to itself, then the sum of its magnitudes.
template <int N>
__device__ __forceinline__ void products(double* sums, const Term* terms, const float* weights, u32 length) {
  constexpr int VALUES = N * (N + 1) / 2 + N;
  __shared__ double warps[8][VALUES];
  BlockSums<VALUES> block{warps};
  u32 first = 4 * (blockIdx.x * 256 + threadIdx.x), count = four_of(first, length);
  u64 at = (u64)blockIdx.y * length + first;
  float4 d[N];
#pragma unroll
  for (int i = 0; i < N; ++i) {
    d[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (count > 0) d[i] = difference(terms + MOST * i, weights + MOST * (N * blockIdx.y + i), at, count);
  }
#pragma unroll
  for (int i = 0, k = 0; i < N; ++i) {
#pragma unroll
    for (int j = 0; j <= i; ++j) block.give(k++, dot_four(d[i], d[j]));
    const float4 size = make_float4(fabsf(d[i].x), fabsf(d[i].y), fabsf(d[i].z), fabsf(d[i].w));
    block.give(k++, dot_four(size, make_float4(1.0f, 1.0f, 1.0f, 1.0f)));
  }
  block.finish(sums + VALUES * ((u64)blockIdx.y * gridDim.x + blockIdx.x));
}

// At least four blocks, because ptxas aims at eight by itself and spills for it.
#define KERNEL(N)                                                                                \
  extern "C" __global__ void __launch_bounds__(256, 4)                                           \
      products_forward_##N(double* sums, const Term* terms, const float* weights, u32 length) {  \
    products<N>(sums, terms, weights, length);                                                   \
  }
KERNEL(1) KERNEL(2) KERNEL(3) KERNEL(4)
