// What the kernels of attention on tensor cores share: tiles of f16 or bf16 in shared memory, and products of their fragments.
// Rows are an odd number of 16 bytes apart, so that ldmatrix meets no bank twice.
#pragma once
#include "common/attention.cuh"
#include "common/math.cuh"
#include "common/mma.cuh"

// Bytes from row to row of a tile of D columns.
template <int D> constexpr u32 ROW = (D / 8 | 1) * 16;

// Begins to copy rows row.. of a head into a tile [ROWS][D]; zeros where there is none.
template <int ROWS, int D, int THREADS, typename T>
__device__ __forceinline__ void begin_tile(u32 tile, const void* x, const Sequence& s, u32 row, u32 n) {
  constexpr int CHUNKS = D / 8;
  const T* head = (const T*)x + head_at(s, n);
#pragma unroll
  for (u32 i = threadIdx.x; i < ROWS * CHUNKS; i += THREADS) {
    const u32 r = i / CHUNKS, c = i % CHUNKS;
    const bool exists = row + r < n && c * 8 < s.d;
    cp_async16(tile + r * ROW<D> + c * 16, exists ? head + (row + r) * token_stride(s) + c * 8 : head, exists ? 16 : 0);
  }
}

// Where this lane's row of the matrices of a fragment begins: of an A operand [16 rows][16 columns], of a B operand that
// lies as [16 n][16 k] and of one that lies as [16 k][16 n] (to be transposed).
template <int D> __device__ __forceinline__ u32 lane_of_a() { return (threadIdx.x & 15) * ROW<D> + (threadIdx.x >> 4 & 1) * 16; }
template <int D> __device__ __forceinline__ u32 lane_of_b() {
  return ((threadIdx.x & 7) + (threadIdx.x >> 4 & 1) * 8) * ROW<D> + (threadIdx.x >> 3 & 1) * 16;
}
template <int D> __device__ __forceinline__ u32 lane_of_bt() { return lane_of_a<D>(); }

// acc [16 M][8 N] = rows of a times rows of b, over D columns; `a` and `b` are with lane_of_a and lane_of_b.
template <typename T, int D, int M, int N>
__device__ __forceinline__ void dots(float (&acc)[M][N][4], u32 a, u32 b) {
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) acc[m][n][e] = 0.0f;
#pragma unroll
  for (int k = 0; k < D / 16; ++k) {
    u32 u[M][4];
#pragma unroll
    for (int m = 0; m < M; ++m) ldmatrix4(u[m], a + m * 16 * ROW<D> + k * 32);
#pragma unroll
    for (int n = 0; n < N; n += 2) {
      u32 v[4];
      ldmatrix4(v, b + n * 8 * ROW<D> + k * 32);
#pragma unroll
      for (int m = 0; m < M; ++m) {
        mma16816<T>(acc[m][n], u[m], v[0], v[1]);
        mma16816<T>(acc[m][n + 1], u[m], v[2], v[3]);
      }
    }
  }
}

// Accumulators [16][8 N] as the A operands of a product over their columns.
template <typename T, int N> __device__ __forceinline__ void as_operand(u32 (&p)[N / 2][4], const float (&acc)[N][4]) {
#pragma unroll
  for (int n = 0; n < N; ++n)
#pragma unroll
    for (int h = 0; h < 2; ++h) p[n / 2][2 * (n & 1) + h] = pack2<T>(acc[n][2 * h], acc[n][2 * h + 1]);
}

// acc [16 M][D] += p times the rows of b, which is with lane_of_bt.
template <typename T, int D, int M, int K>
__device__ __forceinline__ void add_rows(float (&acc)[M][D / 8][4], const u32 (&p)[M][K][4], u32 b) {
#pragma unroll
  for (int k = 0; k < K; ++k)
#pragma unroll
    for (int n = 0; n < D / 8; n += 2) {
      u32 v[4];
      ldmatrix4_t(v, b + k * 16 * ROW<D> + n * 16);
#pragma unroll
      for (int m = 0; m < M; ++m) {
        mma16816<T>(acc[m][n], p[m][k], v[0], v[1]);
        mma16816<T>(acc[m][n + 1], p[m][k], v[2], v[3]);
      }
    }
}

// acc times the factors of its rows (`factor[h]` for row lane / 4 + 8 h of 16) as rows row.. of a head, by one warp. `tile` is
// room for 16 rows that the warp has to itself.
template <typename T, int D>
__device__ __forceinline__ void store_rows(
    void* x, const Sequence& s, u32 row, u32 n, const float (&acc)[D / 8][4], const float (&factor)[2], unsigned char* tile) {
  const u32 lane = threadIdx.x & 31, column = lane % 4 * 2;
  const u64 stride = token_stride(s), first = head_at(s, n) + row * stride;
  if (s.wide) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const u32 r = lane / 4 + 8 * h;
      float* to = (float*)x + first + r * stride + column;
#pragma unroll
      for (int j = 0; j < D / 8; ++j)
        if (row + r < n && j * 8 < s.d)
          *(float2*)(to + j * 8) = make_float2(acc[j][2 * h] * factor[h], acc[j][2 * h + 1] * factor[h]);
    }
    return;
  }
  __syncwarp();
#pragma unroll
  for (int h = 0; h < 2; ++h)
#pragma unroll
    for (int j = 0; j < D / 8; ++j)
      *(u32*)(tile + (lane / 4 + 8 * h) * ROW<D> + j * 16 + column * 2) =
          pack2<T>(acc[j][2 * h] * factor[h], acc[j][2 * h + 1] * factor[h]);
  __syncwarp();
#pragma unroll
  for (u32 i = lane; i < 16 * D / 8; i += 32) {
    const u32 r = i / (D / 8), c = i % (D / 8);
    if (row + r < n && c * 8 < s.d) *(uint4*)((T*)x + first + r * stride + c * 8) = *(uint4*)(tile + r * ROW<D> + c * 16);
  }
}
