// Linear layers whose weights and activations are e4m3 with a scale for every row of both: see src/ops/fp8.
//
//   fp8_quantise   rows to e4m3, each with the scale that brings its largest number to 448
//   fp8_pack       low-rank factors to bf16, filled up with zeros
//   fp8_linear     then(scales (x W^T) + t B^T + bias): a producer warp brings stages of 128 bytes of depth by bulk copies, two warp
//                  groups have 64 rows of a tile each. Tensor cores keep fewer bits of sums of fp8 than of other products, so
//                  that those of 128 steps are added up in f32. t = s x A^T and B are further stages, in bf16, once the sums are scaled
// shared fp8_linear 164992
// hot fp8_*
#include "common/activations.cuh"
#include "common/hopper.cuh"

// ---- quantising ----

constexpr float LARGEST = 448.0f, NOTHING = 1e-30f;

__device__ __forceinline__ void load_eight(const float* x, float (&v)[8]) {
  const auto a = *(const Pack<float, 4>*)x, b = *(const Pack<float, 4>*)(x + 4);
#pragma unroll
  for (int i = 0; i < 4; ++i) v[i] = a.v[i], v[4 + i] = b.v[i];
}
template <typename T> __device__ __forceinline__ void load_eight(const T* x, float (&v)[8]) {
  const auto a = *(const Pack<T, 8>*)x;
#pragma unroll
  for (int i = 0; i < 8; ++i) v[i] = widen(a.v[i]);
}
// Four numbers, the first in the lowest byte; rounded half to even, what is larger than 448 is 448.
__device__ __forceinline__ u32 to_e4m3(float a, float b, float c, float d) {
  unsigned short lo, hi;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(lo) : "f"(b), "f"(a));
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(hi) : "f"(d), "f"(c));
  return lo | (u32)hi << 16;
}

// A warp per row, whose width is a multiple of 16.
template <typename T> __device__ __forceinline__ void quantise(u8* to, float* scales, const T* from, u32 rows, u32 width) {
  const u32 row = (u32)(global_thread() / 32), lane = threadIdx.x & 31;
  if (row >= rows) return;
  const T* x = from + (u64)row * width;
  float largest = 0.0f;
  for (u32 c = 8 * lane; c < width; c += 256) {
    float v[8];
    load_eight(x + c, v);
#pragma unroll
    for (int i = 0; i < 8; ++i) largest = fmaxf(largest, fabsf(v[i]));
  }
#pragma unroll
  for (int i = 16; i > 0; i /= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, i));
  const bool some = largest > NOTHING;
  const float times = some ? LARGEST / largest : 0.0f;
  if (lane == 0) scales[row] = some ? largest / LARGEST : 0.0f;
  for (u32 c = 8 * lane; c < width; c += 256) {
    float v[8];
    load_eight(x + c, v);
    *(uint2*)(to + (u64)row * width + c) = make_uint2(to_e4m3(v[0] * times, v[1] * times, v[2] * times, v[3] * times),
                                                      to_e4m3(v[4] * times, v[5] * times, v[6] * times, v[7] * times));
  }
}

#define QUANTISE(T, t)                                                                                                  \
  extern "C" __global__ void __launch_bounds__(256)                                                                     \
      fp8_quantise_##t(u8* to, float* scales, const T* from, u32 rows, u32 width) {                                     \
    quantise<T>(to, scales, from, rows, width);                                                                         \
  }
FOR_EACH_TYPE(QUANTISE)

// scale * from [rows, columns], in a matrix [to_rows, to_columns].
extern "C" __global__ void fp8_pack(bf16* to, const float* from, u32 rows, u32 columns, u32 to_rows, u32 to_columns, float scale) {
  const u64 i = global_thread();
  const u32 row = (u32)(i / to_columns), column = (u32)(i % to_columns);
  if (row >= to_rows) return;
  to[i] = narrow<bf16>(row < rows && column < columns ? scale * from[(u64)row * columns + column] : 0.0f);
}

// ---- products ----

constexpr int BM = 128, BN = 128, STAGES = 4;
constexpr u32 OPERAND = 128 * 128, STAGE = 2 * OPERAND, RESULT = 2 * OPERAND;

// d [64, 128] = a [64, 32] b [32, 128] (+ d) in e4m3.
__device__ __forceinline__ void wgmma_e4m3(float (&d)[64], u64 a, u64 b, int add) {
#define FOUR(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define SIXTEEN(i) FOUR(i), FOUR(i + 4), FOUR(i + 8), FOUR(i + 12)
  asm volatile(
      "{\n .reg .pred p;\n setp.ne.b32 p, %66, 0;\n wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
      "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,"
      "%62,%63}, %64, %65, p, 1, 1;\n}"
      : SIXTEEN(0), SIXTEEN(16), SIXTEEN(32), SIXTEEN(48)
      : "l"(a), "l"(b), "r"(add));
#undef SIXTEEN
#undef FOUR
}

// As src/ops/fp8/cuda.rs: what is done to a result; 0 is nothing.
enum Kind : u32 { NOTHING_MORE, GELU_TANH, GELU_ERF, QUICK_GELU, SILU, ADD, ADD_GATED };

struct Layer {
  const float* row_scales;
  const float* column_scales;
  const float* bias;
  const bf16* gate;
  u32 gate_stride, per_sample, m, n, k, rank, kind, _pad;
};

__device__ __forceinline__ float2 widen2(u32 v) { return make_float2(__uint_as_float(v << 16), __uint_as_float(v & 0xFFFF0000u)); }

__device__ __forceinline__ float active(float v, u32 kind) {
  if (kind == GELU_ERF) return GeluErf::of(v);
  return v * sigmoid(kind == GELU_TANH ? GeluTanh::inner(v) : kind == QUICK_GELU ? QuickGelu::inner(v) : Silu::inner(v));
}

// Blocks take one tile after another. n is a multiple of 8, k of 16. x and w are in boxes of 128 x 128 bytes, t and b in such of
// 64 numbers, y and the residual in boxes of 64 x 64 numbers.
extern "C" __global__ void __launch_bounds__(384, 1)
    fp8_linear(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap w, const __grid_constant__ TensorMap t,
               const __grid_constant__ TensorMap b, const __grid_constant__ TensorMap y, const __grid_constant__ TensorMap residual,
               const __grid_constant__ Layer a) {
  extern __shared__ unsigned char shared[];
  const u32 base = (smem_u32(shared) + 1023) & ~1023u, result = base + STAGES * STAGE, full = result + RESULT;
  const u32 empty = full + 8 * STAGES, added = empty + 8 * STAGES, stored = added + 8;
  const u32 across = (a.n + BN - 1) / BN, tiles = across * ((a.m + BM - 1) / BM);
  const u32 deep = (a.k + 127) / 128, stages = deep + a.rank / 64;
  const bool adds = a.kind == ADD || a.kind == ADD_GATED;
  const int group = threadIdx.x / 128;
  if (threadIdx.x == 0) {
    for (int s = 0; s < STAGES; ++s) {
      barrier_init(full + 8 * s, 1);
      barrier_init(empty + 8 * s, 8);
    }
    barrier_init(added, 1);
    barrier_init(stored, 2);
    barrier_init_fence();
  }
  __syncthreads();

  if (group == 0) {
    registers_give<40>();
    if (threadIdx.x != 0) return;
    u32 s = 0, phase = 0, result_phase = 0;
    for (u32 tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
      const int m0 = tile / across * BM, n0 = tile % across * BN;
      for (u32 i = 0; i < stages; ++i) {
        const bool low = i >= deep;
        const int at = low ? (i - deep) * 64 : i * 128;
        const u32 to = base + s * STAGE;
        barrier_wait(empty + 8 * s, phase ^ 1);
        barrier_expect(full + 8 * s, STAGE);
        tma_load(to, low ? &t : &x, full + 8 * s, at, m0);
        tma_load(to + OPERAND, low ? &b : &w, full + 8 * s, at, n0);
        if (++s == STAGES) s = 0, phase ^= 1;
      }
      // After the tile's stages: the wait for the last tile's result holds up nothing that is needed sooner.
      if (adds) {
        barrier_wait(stored, result_phase ^ 1);
        result_phase ^= 1;
        barrier_expect(added, RESULT);
        for (int i = 0; i < 4; ++i) tma_load(result + i * 8192, &residual, added, n0 + (i & 1) * 64, m0 + (i >> 1) * 64);
      }
    }
    return;
  }

  registers_take<232>();
  const int half = group - 1, lane = threadIdx.x & 31, warp = threadIdx.x / 32 & 3, q = lane & 3;
  const bool lead = (threadIdx.x & 127) == 0;
  u32 s = 0, phase = 0, result_phase = 0;
  for (u32 tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const int m0 = tile / across * BM, n0 = tile % across * BN;
    float sum[64], d[64];
#pragma unroll
    for (int i = 0; i < 64; ++i) sum[i] = d[i] = 0.0f;
    auto next = [&]() {
      if (lane == 0) barrier_arrive(empty + 8 * s);
      if (++s == STAGES) s = 0, phase ^= 1;
    };
    auto operands = [&](u64& rows, u64& columns) {
      barrier_wait(full + 8 * s, phase);
      rows = descriptor<128>(base + s * STAGE + half * 8192, 16, 1024);
      columns = descriptor<128>(base + s * STAGE + OPERAND, 16, 1024);
    };
    for (u32 i = 0; i < deep; ++i) {
      u64 rows, columns;
      operands(rows, columns);
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < 4; ++k) wgmma_e4m3(d, rows + 2 * k, columns + 2 * k, k > 0);
      wgmma_commit();
      wgmma_wait<0>();
      settle(d);
      next();
#pragma unroll
      for (int j = 0; j < 64; ++j) sum[j] += d[j];
    }

    const int r0 = warp * 16 + lane / 4;
    float of_row[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const u32 row = m0 + half * 64 + r0 + 8 * h;
      of_row[h] = row < a.m ? a.row_scales[row] : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      // Even, and n is a multiple of 8: both columns exist or neither.
      const u32 column = n0 + i * 8 + 2 * q;
      const float2 of_column = column < a.n ? *(const float2*)(a.column_scales + column) : make_float2(0.0f, 0.0f);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        sum[4 * i + 2 * h] = sum[4 * i + 2 * h] * of_row[h] * of_column.x;
        sum[4 * i + 2 * h + 1] = sum[4 * i + 2 * h + 1] * of_row[h] * of_column.y;
      }
    }
    for (u32 i = deep; i < stages; ++i) {
      u64 rows, columns;
      operands(rows, columns);
      settle(sum);
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < 4; ++k) Wgmma<bf16, 128>::ss(sum, rows + 2 * k, columns + 2 * k);
      wgmma_commit();
      wgmma_wait<0>();
      settle(sum);
      next();
    }

    // The result goes through shared memory, where the residual already is.
    if (adds) {
      barrier_wait(added, result_phase);
      result_phase ^= 1;
    } else {
      if (lead) tma_wait_read<0>();
      named_sync(1 + half, 128);
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int r = r0 + 8 * h;
      const u32 row = m0 + half * 64 + r;
      const bf16* gate = a.gate + (u64)(row < a.m ? row / a.per_sample : 0) * a.gate_stride;
#pragma unroll
      for (int i = 0; i < 16; ++i) {
        const u32 column = n0 + i * 8 + 2 * q;
        const u32 at = result + half * 16384 + i / 8 * 8192 + swizzled(r, i & 7) + 4 * q;
        float2 v = make_float2(sum[4 * i + 2 * h], sum[4 * i + 2 * h + 1]);
        if (a.bias && column < a.n) {
          const float2 bias = *(const float2*)(a.bias + column);
          v.x += bias.x, v.y += bias.y;
        }
        if (adds) {
          float2 of = make_float2(1.0f, 1.0f);
          if (a.kind == ADD_GATED && column < a.n) of = widen2(*(const u32*)(gate + column));
          const float2 there = widen2(load_shared(at));
          v.x = there.x + of.x * v.x, v.y = there.y + of.y * v.y;
        } else if (a.kind != NOTHING_MORE) {
          v.x = active(v.x, a.kind), v.y = active(v.y, a.kind);
        }
        store_shared(at, pack2<bf16>(v.x, v.y));
      }
    }
    fence_async();
    named_sync(1 + half, 128);
    if (lead) {
      tma_store(&y, result + half * 16384, n0, m0 + half * 64);
      tma_store(&y, result + half * 16384 + 8192, n0 + 64, m0 + half * 64);
      tma_commit();
      if (adds) {
        tma_wait_read<0>();
        barrier_arrive(stored);
      }
    }
  }
  if (lead) tma_wait_read<0>();
}
