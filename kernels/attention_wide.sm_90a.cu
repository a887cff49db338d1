// Attention of one sequence with heads of 256 or 512, those of autoencoders, on wgmma: see src/ops/attention.
//
// A block has 64 queries and 256 columns of the result. Its two groups take every second tile of 128 keys, each with a maximum,
// a denominator and a result of its own, so that one's softmax runs under the other's products; they are put together at the
// end. Keys and values come as panels of 64 columns through a ring of each group.
// shared attention_wide_* 230656
// hot attention_wide_*
#include "common/hopper.cuh"
#include "common/math.cuh"

struct Maps {
  TensorMap q, k, v;
};

constexpr int THREADS = 384, QUERIES = 64, KEYS = 128, PANEL = 64, COLUMNS = 256, STAGES = 5, WIDEST = 512;
constexpr u32 STAGE = KEYS * PANEL * 2, OF_QUERIES = QUERIES * PANEL * 2, LANES = 128;

// Over the four lanes that have a row.
__device__ __forceinline__ float row_max(float v) {
  v = fmaxf(v, __shfl_xor_sync(0xFFFFFFFF, v, 1));
  return fmaxf(v, __shfl_xor_sync(0xFFFFFFFF, v, 2));
}
__device__ __forceinline__ float row_sum(float v) {
  v += __shfl_xor_sync(0xFFFFFFFF, v, 1);
  return v + __shfl_xor_sync(0xFFFFFFFF, v, 2);
}

// `d` columns of a head, `parts` times COLUMNS. The grid: tiles of queries, parts of heads, samples.
template <typename T>
__device__ __forceinline__ void forward(const Maps& maps, T* out, float* lse, int n, int heads, int d, float scale) {
  extern __shared__ unsigned char raw[];
  const u32 queries = (smem_u32(raw) + 1023) & ~1023u, rings = queries + WIDEST / PANEL * OF_QUERIES;
  const u32 there = rings + 2 * STAGES * STAGE, fulls = there + 8, empties = fulls + 8 * 2 * STAGES;
  const int parts = d / COLUMNS, head = blockIdx.y / parts, column = blockIdx.y % parts * COLUMNS, first = blockIdx.x * QUERIES;
  const int panels = d / PANEL, tiles = (n + KEYS - 1) / KEYS, group = threadIdx.x / 128;
  if (threadIdx.x == 0) {
    barrier_init(there, 1);
    for (int s = 0; s < 2 * STAGES; ++s) {
      barrier_init(fulls + 8 * s, 1);
      barrier_init(empties + 8 * s, 4);
    }
    barrier_init_fence();
  }
  __syncthreads();

  if (group == 0) {
    registers_give<24>();
    const int g = threadIdx.x / 32;
    if (threadIdx.x % 32 != 0 || g >= 2) return;
    if (g == 0) {
      barrier_expect(there, panels * OF_QUERIES);
#pragma unroll 1
      for (int c = 0; c < panels; ++c)
        tma_load(queries + c * OF_QUERIES, &maps.q, there, c * PANEL, head, first, blockIdx.z);
    }
    const u32 ring = rings + g * STAGES * STAGE, full = fulls + 8 * g * STAGES, empty = empties + 8 * g * STAGES;
    int s = 0;
    u32 phase = 1;
#pragma unroll 1
    for (int tile = g; tile < tiles; tile += 2)
#pragma unroll 1
      for (int c = 0; c < panels + COLUMNS / PANEL; ++c) {
        const bool of_keys = c < panels;
        barrier_wait(empty + 8 * s, phase);
        barrier_expect(full + 8 * s, STAGE);
        tma_load(ring + s * STAGE, of_keys ? &maps.k : &maps.v, full + 8 * s, of_keys ? c * PANEL : column + (c - panels) * PANEL,
                 head, tile * KEYS, blockIdx.z);
        if (++s == STAGES) s = 0, phase ^= 1;
      }
    return;
  }

  registers_take<240>();
  const int g = group - 1, t = threadIdx.x % 128, lane = t % 32, row = t / 32 * 16 + lane / 4, q = lane % 4;
  const u32 ring = rings + g * STAGES * STAGE, full = fulls + 8 * g * STAGES, empty = empties + 8 * g * STAGES;
  const float to_log2 = scale * 1.4426950408889634f, infinity = __int_as_float(0x7F800000);
  float o[COLUMNS / PANEL][32], largest[2] = {-infinity, -infinity}, sums[2] = {0.0f, 0.0f};
#pragma unroll
  for (int v = 0; v < COLUMNS / PANEL; ++v)
#pragma unroll
    for (int i = 0; i < 32; ++i) o[v][i] = 0.0f;
  int s = 0, last = -1;
  u32 phase = 0;
  auto advance = [&]() {
    last = s;
    if (++s == STAGES) s = 0, phase ^= 1;
  };
  // And gives back the stage before, whose products are done when only the last are under way.
  auto next = [&]() {
    wgmma_wait<1>();
    if (last >= 0 && lane == 0) barrier_arrive(empty + 8 * last);
    advance();
  };
  auto finish = [&]() {
    wgmma_wait<0>();
    if (lane == 0) barrier_arrive(empty + 8 * last);
    last = -1;
  };
  barrier_wait(there, 0);
#pragma unroll 1
  for (int tile = g; tile < tiles; tile += 2) {
    float p[KEYS / 2];
#pragma unroll
    for (int i = 0; i < KEYS / 2; ++i) p[i] = 0.0f;
    settle(p);
#pragma unroll 1
    for (int c = 0; c < panels; ++c) {
      barrier_wait(full + 8 * s, phase);
      const u64 a = descriptor<128>(queries + c * OF_QUERIES, 16, 1024), b = descriptor<128>(ring + s * STAGE, 16, 1024);
      wgmma_fence();
#pragma unroll
      for (int kk = 0; kk < PANEL / 16; ++kk) Wgmma<T, KEYS>::ss(p, a + 2 * kk, b + 2 * kk);
      wgmma_commit();
      next();
    }
    finish();

    const int left = n - tile * KEYS - 2 * q;
    if (left < KEYS)
#pragma unroll
      for (int i = 0; i < KEYS / 2; ++i)
        if (8 * (i / 4) + i % 2 >= left) p[i] = -infinity;
    float offset[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float m = largest[h];
#pragma unroll
      for (int i = 0; i < KEYS / 2; i += 4) m = fmaxf(m, fmaxf(p[i + 2 * h], p[i + 2 * h + 1]));
      m = row_max(m);
      const float keep = ex2((largest[h] - m) * to_log2);
      largest[h] = m;
      offset[h] = -m * to_log2;
      sums[h] *= keep;
#pragma unroll
      for (int v = 0; v < COLUMNS / PANEL; ++v)
#pragma unroll
        for (int i = 0; i < 32; i += 4) {
          o[v][i + 2 * h] *= keep;
          o[v][i + 2 * h + 1] *= keep;
        }
    }
    u32 of_keys[KEYS / 16][4];
#pragma unroll
    for (int i = 0; i < KEYS / 2; i += 2) {
      const int h = i / 2 % 2;
      const float x = ex2(fmaf(p[i], to_log2, offset[h])), y = ex2(fmaf(p[i + 1], to_log2, offset[h]));
      sums[h] += x + y;
      u32& two = of_keys[i / 8][i / 2 % 4];
      two = pack2<T>(x, y);
      asm volatile("" : "+r"(two)::"memory");
    }
#pragma unroll
    for (int v = 0; v < COLUMNS / PANEL; ++v) settle(o[v]);
    wgmma_fence();
#pragma unroll
    for (int v = 0; v < COLUMNS / PANEL; ++v) {
      barrier_wait(full + 8 * s, phase);
      const u64 b = descriptor<128>(ring + s * STAGE, 8192, 1024);
#pragma unroll
      for (int kk = 0; kk < KEYS / 16; ++kk) Wgmma<T, PANEL>::template rs<1>(o[v], of_keys[kk], b + kk * (2048 / 16));
      wgmma_commit();
      if (v == 0) {
        advance();
      } else {
        next();
      }
    }
    finish();
  }

  // The second group's numbers go, thread by thread, through its ring.
  const u32 mine = rings + STAGES * STAGE + 4 * t;
  if (g == 1) {
    // All warps of the group have multiplied with what lies there.
    named_sync(2, LANES);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      store_shared(mine + 4 * LANES * h, __float_as_uint(largest[h]));
      store_shared(mine + 4 * LANES * (2 + h), __float_as_uint(sums[h]));
    }
#pragma unroll
    for (int v = 0; v < COLUMNS / PANEL; ++v)
#pragma unroll
      for (int i = 0; i < 32; ++i) store_shared(mine + 4 * LANES * (4 + 32 * v + i), __float_as_uint(o[v][i]));
    named_arrive(1, 256);
    return;
  }
  named_sync(1, 256);
  float by[2][2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const float other = __uint_as_float(load_shared(mine + 4 * LANES * h));
    const float m = fmaxf(largest[h], other);
    const float own_by = ex2((largest[h] - m) * to_log2), other_by = ex2((other - m) * to_log2);
    const float total = row_sum(sums[h] * own_by + __uint_as_float(load_shared(mine + 4 * LANES * (2 + h))) * other_by);
    by[h][0] = own_by / total;
    by[h][1] = other_by / total;
    const int token = first + row + 8 * h;
    if (q == 0 && column == 0 && token < n) lse[((u64)blockIdx.z * heads + head) * n + token] = m * scale + logf(total);
  }
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int token = first + row + 8 * h;
    if (token >= n) break;
    T* to = out + (((u64)blockIdx.z * n + token) * heads + head) * d + column + 2 * q;
#pragma unroll
    for (int v = 0; v < COLUMNS / PANEL; ++v)
#pragma unroll
      for (int i = 2 * h; i < 32; i += 4) {
        float both[2];
#pragma unroll
        for (int e = 0; e < 2; ++e)
          both[e] = fmaf(o[v][i + e], by[h][0], __uint_as_float(load_shared(mine + 4 * LANES * (4 + 32 * v + i + e))) * by[h][1]);
        *(u32*)(to + PANEL * v + 2 * (i - 2 * h)) = pack2<T>(both[0], both[1]);
      }
  }
}

#define KERNEL(T, t)                                                                                                    \
  extern "C" __global__ void __launch_bounds__(THREADS, 1) attention_wide_##t(                                          \
      const __grid_constant__ Maps maps, T* out, float* lse, int n, int heads, int d, float scale) {                    \
    forward(maps, out, lse, n, heads, d, scale);                                                                        \
  }
KERNEL(f16, f16)
KERNEL(bf16, bf16)
