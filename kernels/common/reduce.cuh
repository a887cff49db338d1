// Sums in an order that depends on nothing but how many threads share them.
#pragma once
#include "common/types.cuh"

// Each of v over groups of `lanes` neighbours in a warp (a power of two, at most 32), by halves; all lanes get the same bits.
template <typename F, int K> __device__ __forceinline__ void lane_sums(F (&v)[K], int lanes) {
  for (int step = lanes >> 1; step > 0; step >>= 1)
#pragma unroll
    for (int k = 0; k < K; ++k) v[k] += __shfl_xor_sync(0xFFFFFFFF, v[k], step);
}

// Each of v over all `threads` of a block, whole warps: lanes by halves, then warps in order. A kernel numbers its rounds,
// so that each has memory of its own and one barrier does.
template <int ROUND, typename F, int K> __device__ __forceinline__ void block_sums(F (&v)[K], int threads) {
  __shared__ F of_warp[K][32];
  lane_sums(v, 32);
  if (threadIdx.x % 32 == 0)
#pragma unroll
    for (int k = 0; k < K; ++k) of_warp[k][threadIdx.x / 32] = v[k];
  __syncthreads();
#pragma unroll
  for (int k = 0; k < K; ++k) v[k] = of_warp[k][0];
#pragma unroll 4
  for (int warp = 1; warp < threads / 32; ++warp)
#pragma unroll
    for (int k = 0; k < K; ++k) v[k] += of_warp[k][warp];
}

// Over the threads of a row: `lanes` neighbours of a warp, or, if there are more, the block.
template <int ROUND, typename F, int K> __device__ __forceinline__ void row_sums(F (&v)[K], int lanes) {
  if (lanes <= 32) {
    lane_sums(v, lanes);
  } else {
    block_sums<ROUND>(v, lanes);
  }
}
