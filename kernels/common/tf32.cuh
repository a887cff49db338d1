// Products of matrices in TF32: operands in f32, rounded to 10 bits of mantissa on their way to tensor cores (from sm_80 on).
#pragma once
#include "common/gemm.cuh"

// Single precision that is multiplied with 10 bits of mantissa.
struct tf32 {
  float v;
};
// The bits of an f32, rounded to tf32: half away from zero.
__device__ __forceinline__ u32 to_tf32(u32 v) {
  u32 r;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(__uint_as_float(v)));
  return r;
}
// d [16, 8] += a [16, 8] b [8, 8], summed in f32.
__device__ __forceinline__ void mma1688(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Single precision in TF32 on tensor cores, warps as for the halves: 16 bytes of a line are what ldmatrix takes for a row, and a
// fragment's four numbers of depth.
template <int SIZE, bool B_ALONG> struct Tile<tf32, SIZE, true, B_ALONG> {
  using A = Operand<tf32, SIZE, true>;
  using B = Operand<tf32, SIZE, B_ALONG>;
  static constexpr int ROWS = SIZE == 128 ? 64 : 16, COLUMNS = 32, I = ROWS / 16, J = COLUMNS / 8, N_WARPS = SIZE / COLUMNS;
  static constexpr int CHAIN = 1 << 30;
  float d[I][J][4] = {};

  static __device__ __forceinline__ int row() { return threadIdx.x / 32 / N_WARPS * ROWS; }
  static __device__ __forceinline__ int column() { return threadIdx.x / 32 % N_WARPS * COLUMNS; }
  // Which column of the warp's is column `c` of product `j`. Across the depth, products have columns from two places, so that
  // neither the four lines a warp reads at once nor results of four rows meet in a bank.
  static __device__ __forceinline__ int column_of(int j, int c) { return B_ALONG ? 8 * j + c : 4 * (j ^ (c >> 2) * 5) + (c & 3); }

  __device__ __forceinline__ void multiply(u32 sa, u32 sb) {
    const int lane = threadIdx.x & 31, m = row(), n = column();
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      u32 a[I][4], b[J / 2][4];
#pragma unroll
      for (int i = 0; i < I; ++i) {
        ldmatrix4(a[i], sa + A::at(m + 16 * i + (lane & 15), 2 * k + (lane >> 4)));
#pragma unroll
        for (int r = 0; r < 4; ++r) a[i][r] = to_tf32(a[i][r]);
      }
#pragma unroll
      for (int j = 0; j < J / 2; ++j) {
        if (B_ALONG)
          ldmatrix4(b[j], sb + B::at(n + 16 * j + (lane & 7) + 8 * (lane >> 4), 2 * k + ((lane >> 3) & 1)));
        else
#pragma unroll
          for (int r = 0; r < 4; ++r) {
            const int column = n + column_of(2 * j + r / 2, lane / 4);
            b[j][r] = read(sb + B::at(8 * k + 4 * (r & 1) + (lane & 3), column / 4) + 4 * (column & 3));
          }
#pragma unroll
        for (int r = 0; r < 4; ++r) b[j][r] = to_tf32(b[j][r]);
      }
#pragma unroll
      for (int i = 0; i < I; ++i)
#pragma unroll
        for (int j = 0; j < J; ++j) mma1688(d[i][j], a[i], b[j / 2][2 * (j & 1)], b[j / 2][2 * (j & 1) + 1]);
    }
  }

  static __device__ __forceinline__ u32 read(u32 at) {
    u32 v;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(at) : "memory");
    return v;
  }

  __device__ __forceinline__ void close() {}

  __device__ __forceinline__ void stage(float* staged) const {
    const int lane = threadIdx.x & 31, m = row() + lane / 4;
#pragma unroll
    for (int i = 0; i < I; ++i)
#pragma unroll
      for (int j = 0; j < J; ++j)
#pragma unroll
        for (int h = 0; h < 2; ++h)
          *(float2*)(staged + staged_at<SIZE>(m + 16 * i + 8 * h, column() + column_of(j, 2 * (lane & 3)))) =
              make_float2(d[i][j][2 * h], d[i][j][2 * h + 1]);
  }
};
