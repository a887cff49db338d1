// The gradients of softmax attention on Hopper: see src/ops/attention and attention_mma_backward.cu. Heads narrower than a kernel
// is for are read as if they ended in zeros. Two kernels, each of which owns what it writes, so that nothing is added up across blocks:
//   queries  a block owns queries: dq += ds k. It also makes the statistics that the other one reads, and comes first.
//   keys     a block owns keys. Scores are transposed, so that what they become in registers is at once the left operand of
//            the next product: dv += pT dout, dk += dsT q.
// One warp group copies, the others multiply. A product is left under way for as long as nothing needs it: the sums of a step
// while the scores of the next are made.
// shared attention_wgmma_backward_keys_*_d64 84536
// shared attention_wgmma_backward_keys_*_d80 105016
// shared attention_wgmma_backward_keys_*_d96 125496
// shared attention_wgmma_backward_keys_*_d128 166456
// shared attention_wgmma_backward_keys_*_d64_read 84536
// shared attention_wgmma_backward_keys_*_d64_q128 101416
// shared attention_wgmma_backward_queries_*_d64 132176
// shared attention_wgmma_backward_queries_*_d80 164944
// shared attention_wgmma_backward_queries_*_d96 148536
// shared attention_wgmma_backward_queries_*_d128 197736
// shared attention_wgmma_backward_queries_*_d64_held 99432
// shared attention_wgmma_backward_queries_*_d64_q192 99408
// hot attention_wgmma_backward_*
#include "common/attention_mma.cuh"
#include "common/hopper.cuh"

extern __shared__ __align__(16) unsigned char shared[];

// Of boxes of 64 tokens: for each part in turn, and each of these in turn, Head<D>::MAPS.
struct Maps {
  TensorMap of[24];
};
enum Operand { Q, K, V, DOUT, RESULT, DV, OPERANDS };  // the result is dq or dk

// A tile of ROWS tokens lies as a panel of 64 columns, in 128-byte swizzle, and behind it the rest of them, in the swizzle of
// its own width.
template <int D> struct Head {
  static constexpr int REST = D - 64, SWIZZLE = 2 * REST;
  static constexpr int MAPS = REST % 64 ? 2 : 1;
  template <int ROWS> static constexpr u32 BYTES = ROWS * D * 2;
  static __device__ __forceinline__ const TensorMap* map(const Maps& maps, u32 part, Operand of) {
    return &maps.of[(part * OPERANDS + of) * MAPS];
  }
};
constexpr int GROUP = 128;                // threads of a warp group
constexpr u32 PANEL = 64 * 128;           // bytes of 64 rows of the first panel

// Begins to copy tokens row.. of this block's head.
template <int D, int ROWS> __device__ __forceinline__ void begin_rows(u32 tile, const TensorMap* m, u32 barrier, u32 row) {
#pragma unroll
  for (int i = 0; i < ROWS / 64; ++i) {
    tma_load(tile + i * PANEL, m, barrier, 0, blockIdx.y, row + 64 * i, blockIdx.z);
    if constexpr (D > 64)
      tma_load(tile + ROWS * 128 + i * 64 * Head<D>::SWIZZLE, m + Head<D>::MAPS - 1, barrier, 64, blockIdx.y, row + 64 * i, blockIdx.z);
  }
}
// Begins to write 64 tokens row.. of this block's head.
template <int D> __device__ __forceinline__ void store_rows(const TensorMap* m, u32 tile, u32 row) {
  tma_store(m, tile, 0, blockIdx.y, row, blockIdx.z);
  if constexpr (D > 64) tma_store(m + Head<D>::MAPS - 1, tile + PANEL, 64, blockIdx.y, row, blockIdx.z);
}

// A descriptor `bytes` further on. There is no carry into its upper half, which the compiler cannot know.
__device__ __forceinline__ u64 further(u64 descriptor, u32 bytes) {
  return (descriptor & 0xffffffff00000000ull) | (u32)((u32)descriptor + (bytes >> 4));
}

// 64 rows of a group, the left operand of products with tiles of other rows: read from shared memory every time, or HELD in
// registers, which spares it what it has no bandwidth for if there are only 64 other rows at a time.
template <typename T, int D, bool HELD> struct Left {
  u32 tile;

  __device__ __forceinline__ Left(u32 tile) : tile(tile) {}
  // acc = rows times N rows of b.
  template <int N> __device__ __forceinline__ void begin_scores(float (&acc)[N / 2], u32 b) const {
    const u64 left = descriptor<128>(tile, 16, 1024), right = descriptor<128>(b, 16, 1024);
#pragma unroll
    for (int k = 0; k < 4; ++k) Wgmma<T, N>::ss(acc, further(left, 32 * k), further(right, 32 * k), k);
    if constexpr (D > 64) {
      constexpr int SWIZZLE = Head<D>::SWIZZLE;
      const u64 left = descriptor<SWIZZLE>(tile + PANEL, 16, 8 * SWIZZLE), right = descriptor<SWIZZLE>(b + N * 128, 16, 8 * SWIZZLE);
#pragma unroll
      for (int k = 0; k < Head<D>::REST / 16; ++k) Wgmma<T, N>::ss(acc, further(left, 32 * k), further(right, 32 * k), 1);
    }
  }
};
template <typename T> struct Left<T, 64, true> {
  u32 rows[4][4];

  __device__ __forceinline__ Left(u32 tile) {
    const u32 row = threadIdx.x % GROUP / 32 * 16 + threadIdx.x % 16;
#pragma unroll
    for (int k = 0; k < 4; ++k) ldmatrix4(rows[k], tile + swizzled(row, 2 * k + threadIdx.x % 32 / 16));
  }
  template <int N> __device__ __forceinline__ void begin_scores(float (&acc)[N / 2], u32 b) const {
    const u64 right = descriptor<128>(b, 16, 1024);
#pragma unroll
    for (int k = 0; k < 4; ++k) Wgmma<T, N>::template rs<0>(acc, rows[k], further(right, 32 * k), k);
  }
};

// Sums [64, D] of a warp group.
template <int D> struct Sums {
  static constexpr int WIDE = D == 128 ? 128 : 64, NARROW = D == 128 ? 0 : D - 64;
  float wide[WIDE / 2] = {}, narrow[NARROW ? NARROW / 2 : 1] = {};

  // += p [64, N] times N rows of b.
  template <typename T, int N> __device__ __forceinline__ void begin_adding(const u32 (&p)[N / 16][4], u32 b) {
    const u64 right = descriptor<128>(b, N * 128, 1024);
#pragma unroll
    for (int k = 0; k < N / 16; ++k) Wgmma<T, WIDE>::template rs<1>(wide, p[k], further(right, k * 16 * 128));
    if constexpr (NARROW != 0) {
      constexpr int SWIZZLE = Head<D>::SWIZZLE;
      const u64 right = descriptor<SWIZZLE>(b + N * 128, 16, 8 * SWIZZLE);
#pragma unroll
      for (int k = 0; k < N / 16; ++k) Wgmma<T, NARROW>::template rs<1>(narrow, p[k], further(right, k * 16 * SWIZZLE));
    }
  }

  __device__ __forceinline__ void begin() {
    settle(wide);
    if (NARROW) settle(narrow);
  }

  // Times `factor` to a tile of 64 rows.
  template <typename T> __device__ __forceinline__ void put(u32 tile, float factor) const {
#pragma unroll
    for (int c = 0; c < WIDE; c += 64) put_columns<T, 128, 64>(wide, c / 2, tile + c * 128, factor);
    if constexpr (NARROW != 0) put_columns<T, Head<D>::SWIZZLE, NARROW>(narrow, 0, tile + PANEL, factor);
  }

 private:
  template <typename T, int SWIZZLE, int COLUMNS, int M>
  static __device__ __forceinline__ void put_columns(const float (&acc)[M], int first, u32 panel, float factor) {
    const u32 row = threadIdx.x % GROUP / 32 * 16 + threadIdx.x % 32 / 4;
#pragma unroll
    for (int i = 0; i < COLUMNS / 8; ++i)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const u32 at = (row + 8 * h) * SWIZZLE + i * 16, e = first + 4 * i + 2 * h;
        store_shared(panel + (at ^ (at >> 7 & (SWIZZLE / 16 - 1)) << 4) + threadIdx.x % 4 * 4,
                     pack2<T>(acc[e] * factor, acc[e + 1] * factor));
      }
  }
};

// A number each of two neighbouring tokens.
__device__ __forceinline__ float2 load_two(u32 at) {
  float2 v;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(at) : "memory");
  return v;
}

// ---- keys ----

// What of a step's sums is under way while other work is done, as registers allow: nothing, dv while ds is made, or both sums
// until the scores of the next step are there.
enum Overlap { ALONE, WITHIN, ACROSS };

template <typename T, int D, int STEP, int STAGES, Overlap OVERLAP, bool HELD>
__device__ __forceinline__ void keys(const Sequence& s, const Maps& maps, const float* stats) {
  constexpr u32 TILE = Head<D>::template BYTES<64>, SIZE = Head<D>::template BYTES<STEP>, ROWS = STEP * 4;
  constexpr int GROUPS = 2;
  const u32 own_k = (smem_u32(shared) + 1023) & ~1023u, own_v = own_k + GROUPS * TILE, ring = own_v + GROUPS * TILE;
  const u32 stat_ring = ring + STAGES * 2 * SIZE, own_full = stat_ring + STAGES * 2 * ROWS, full = own_full + 8, empty = full + 8 * STAGES;
  const Tile<64 * GROUPS, false> own(s, blockIdx.x);
  if (threadIdx.x == 0) {
    barrier_init(own_full, 1);
    for (int i = 0; i < STAGES; ++i) barrier_init(full + 8 * i, 1), barrier_init(empty + 8 * i, 4 * GROUPS);
    barrier_init_fence();
  }
  __syncthreads();
  if (threadIdx.x < GROUP) {
    registers_give<24>();
    if (threadIdx.x == 0) {
      barrier_expect(own_full, 2 * GROUPS * TILE);
      for (int g = 0; g < GROUPS; ++g) {
        begin_rows<D, 64>(own_k + g * TILE, Head<D>::map(maps, own.part, K), own_full, own.row + 64 * g);
        begin_rows<D, 64>(own_v + g * TILE, Head<D>::map(maps, own.part, V), own_full, own.row + 64 * g);
      }
      const float* lse = stats + ((u64)blockIdx.z * s.heads + blockIdx.y) * s.stats;
      const float* delta = lse + (u64)gridDim.z * s.heads * s.stats;
      u32 stage = 0, parity = 1;
      for (Tile<STEP, true> t(s, 0); t.exists(s); t.next(s)) {
        const u32 to = ring + stage * 2 * SIZE, stats_to = stat_ring + stage * 2 * ROWS, barrier = full + 8 * stage;
        const u32 first = s.part[t.part].stats + t.row;
        barrier_wait(empty + 8 * stage, parity);
        barrier_expect(barrier, 2 * SIZE + 2 * ROWS);
        begin_rows<D, STEP>(to, Head<D>::map(maps, t.part, Q), barrier, t.row);
        bulk_load(stats_to, lse + first, ROWS, barrier);
        begin_rows<D, STEP>(to + SIZE, Head<D>::map(maps, t.part, DOUT), barrier, t.row);
        bulk_load(stats_to + ROWS, delta + first, ROWS, barrier);
        if (++stage == STAGES) stage = 0, parity ^= 1;
      }
    }
    return;
  }
  registers_take<240>();
  const u32 group = threadIdx.x / GROUP - 1, lane = threadIdx.x % 32;
  const u32 my_k = own_k + group * TILE, my_v = own_v + group * TILE;
  const float to_log2 = s.scale * LOG2_E;
  u32 steps = 0;
  for (u32 i = 0; i < s.parts; ++i) steps += (s.part[i].queries + STEP - 1) / STEP;
  Sums<D> dk, dv;
  dk.begin();
  dv.begin();
  barrier_wait(own_full, 0);
  const Left<T, D, HELD> k(my_k), v(my_v);
  u32 stage = 0, parity = 0, before = 0;
  for (u32 step = 0; step < steps; ++step) {
    const u32 q = ring + stage * 2 * SIZE, dout = q + SIZE, columns = stat_ring + stage * 2 * ROWS + lane % 4 * 8;
    float p[STEP / 2], dp[STEP / 2];
    u32 left[STEP / 16][4], ds[STEP / 16][4];
    barrier_wait(full + 8 * stage, parity);
    wgmma_fence();
    k.template begin_scores<STEP>(p, q);
    wgmma_commit();
    v.template begin_scores<STEP>(dp, dout);
    wgmma_commit();
    wgmma_wait<1>();  // the scores are there, and what was left under way of the step before
    if (OVERLAP == ACROSS && step && lane == 0) barrier_arrive(empty + 8 * before);
#pragma unroll
    for (int i = 0; i < STEP / 8; ++i) {
      const float2 l = load_two(columns + i * 32);
#pragma unroll
      for (int e = 0; e < 4; ++e) p[4 * i + e] = ex2(fmaf(p[4 * i + e], to_log2, -(e % 2 ? l.y : l.x)));
#pragma unroll
      for (int h = 0; h < 2; ++h) left[i / 2][2 * (i & 1) + h] = pack2<T>(p[4 * i + 2 * h], p[4 * i + 2 * h + 1]);
    }
    if (OVERLAP != ALONE) {
      wgmma_fence();
      dv.template begin_adding<T, STEP>(left, dout);
      wgmma_commit();
      wgmma_wait<1>();
    } else {
      wgmma_wait<0>();
    }
#pragma unroll
    for (int i = 0; i < STEP / 8; ++i) {
      const float2 l = load_two(columns + ROWS + i * 32);
#pragma unroll
      for (int h = 0; h < 2; ++h)
        ds[i / 2][2 * (i & 1) + h] =
            pack2<T>(p[4 * i + 2 * h] * (dp[4 * i + 2 * h] - l.x), p[4 * i + 2 * h + 1] * (dp[4 * i + 2 * h + 1] - l.y));
    }
    wgmma_fence();
    if (OVERLAP == ALONE) dv.template begin_adding<T, STEP>(left, dout);
    dk.template begin_adding<T, STEP>(ds, q);
    wgmma_commit();
    if (OVERLAP != ACROSS) {
      wgmma_wait<0>();
      if (lane == 0) barrier_arrive(empty + 8 * stage);
    }
    before = stage;
    if (++stage == STAGES) stage = 0, parity ^= 1;
  }
  if (OVERLAP == ACROSS) wgmma_wait<0>();
  if (!HELD) named_sync(1 + group, GROUP);  // the results go over keys and values, which every warp is to be done with
  dk.template put<T>(my_k, s.scale);
  dv.template put<T>(my_v, 1.0f);
  fence_async();
  named_sync(1 + group, GROUP);
  if (threadIdx.x % GROUP == 0) {
    store_rows<D>(Head<D>::map(maps, own.part, RESULT), my_k, own.row + 64 * group);
    store_rows<D>(Head<D>::map(maps, own.part, DV), my_v, own.row + 64 * group);
    tma_commit();
    tma_wait_read<0>();
  }
}

// ---- queries ----

// The sum of the products of `out` and `dout` over a head, of the token `at` elements into them, for the four lanes of a row.
template <typename T, int D>
__device__ __forceinline__ float dot(const void* out, const void* dout, u64 at, u32 d) {
  float sum = 0.0f;
#pragma unroll
  for (int c = 0; c < (D + 31) / 32; ++c) {
    const u32 column = (4 * c + threadIdx.x % 4) * 8;
    if (column >= d) continue;
    const auto a = *(const Pack<T, 8>*)((const T*)out + at + column), b = *(const Pack<T, 8>*)((const T*)dout + at + column);
#pragma unroll
    for (int k = 0; k < 8; ++k) sum = fmaf(widen(a.v[k]), widen(b.v[k]), sum);
  }
  sum += __shfl_xor_sync(0xffffffffu, sum, 1);
  return sum + __shfl_xor_sync(0xffffffffu, sum, 2);
}

template <typename T, int D, int GROUPS, int STEP, int STAGES, bool HELD>
__device__ __forceinline__ void queries(const Sequence& s, const Maps& maps, const float* lse, float* stats) {
  constexpr u32 TILE = Head<D>::template BYTES<64>, SIZE = Head<D>::template BYTES<STEP>;
  const u32 own_q = (smem_u32(shared) + 1023) & ~1023u, own_dout = own_q + GROUPS * TILE, ring = own_dout + GROUPS * TILE;
  const u32 own_full = ring + STAGES * 2 * SIZE, full_k = own_full + 8, full_v = full_k + 8 * STAGES, empty = full_v + 8 * STAGES;
  const Tile<64 * GROUPS, true> own(s, blockIdx.x);
  if (threadIdx.x == 0) {
    barrier_init(own_full, 1);
    for (int i = 0; i < STAGES; ++i)
      barrier_init(full_k + 8 * i, 1), barrier_init(full_v + 8 * i, 1), barrier_init(empty + 8 * i, 4 * GROUPS);
    barrier_init_fence();
  }
  __syncthreads();
  if (threadIdx.x < GROUP) {
    registers_give<GROUPS == 3 ? 32 : 24>();
    if (threadIdx.x == 0) {
      barrier_expect(own_full, 2 * GROUPS * TILE);
      for (int g = 0; g < GROUPS; ++g) {
        begin_rows<D, 64>(own_q + g * TILE, Head<D>::map(maps, own.part, Q), own_full, own.row + 64 * g);
        begin_rows<D, 64>(own_dout + g * TILE, Head<D>::map(maps, own.part, DOUT), own_full, own.row + 64 * g);
      }
      u32 stage = 0, parity = 1;
      for (Tile<STEP, false> t(s, 0); t.exists(s); t.next(s)) {
        const u32 to = ring + stage * 2 * SIZE;
        barrier_wait(empty + 8 * stage, parity);
        barrier_expect(full_k + 8 * stage, SIZE);
        begin_rows<D, STEP>(to, Head<D>::map(maps, t.part, K), full_k + 8 * stage, t.row);
        barrier_expect(full_v + 8 * stage, SIZE);
        begin_rows<D, STEP>(to + SIZE, Head<D>::map(maps, t.part, V), full_v + 8 * stage, t.row);
        if (++stage == STAGES) stage = 0, parity ^= 1;
      }
    }
    return;
  }
  registers_take<GROUPS == 3 ? 160 : 240>();
  const u32 group = threadIdx.x / GROUP - 1, lane = threadIdx.x % 32;
  const u32 my_q = own_q + group * TILE, my_dout = own_dout + group * TILE;
  const float to_log2 = s.scale * LOG2_E;
  float row_lse[2], row_delta[2];
  {
    // While the first tiles are on their way.
    const Part& mine = s.part[own.part];
    const u64 head = (u64)blockIdx.z * s.heads + blockIdx.y;
    const u32 end = own.part + 1 < s.parts ? s.part[own.part + 1].stats : s.stats;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const u32 row = own.row + 64 * group + threadIdx.x % GROUP / 32 * 16 + lane / 4 + 8 * h, slot = mine.stats + row;
      const bool exists = row < mine.n;
      row_lse[h] = exists ? lse[head * s.n + mine.first + row] * LOG2_E : infinity();
      const float sum = dot<T, D>(mine.out, mine.dout, head_at(s, mine.n) + (exists ? row : 0) * token_stride(s), s.d);
      row_delta[h] = exists ? sum : 0.0f;
      if (lane % 4 == 0 && slot < end) {
        stats[head * s.stats + slot] = row_lse[h];
        stats[((u64)gridDim.z * s.heads + head) * s.stats + slot] = row_delta[h];
      }
    }
  }
  Sums<D> dq;
  dq.begin();
  barrier_wait(own_full, 0);
  const Left<T, D, HELD> q(my_q), dout(my_dout);
  u32 stage = 0, parity = 0, before = 0;
  for (Tile<STEP, false> t(s, 0); t.exists(s); t.next(s)) {
    const u32 k = ring + stage * 2 * SIZE, v = k + SIZE;
    const u32 rows = s.part[t.part].n - t.row;
    float p[STEP / 2], dp[STEP / 2];
    u32 ds[STEP / 16][4];
    barrier_wait(full_k + 8 * stage, parity);
    wgmma_fence();
    q.template begin_scores<STEP>(p, k);
    wgmma_commit();
    barrier_wait(full_v + 8 * stage, parity);
    dout.template begin_scores<STEP>(dp, v);
    wgmma_commit();
    wgmma_wait<1>();  // the scores are there, and the sums of the step before
    if ((t.part || t.row) && lane == 0) barrier_arrive(empty + 8 * before);
#pragma unroll
    for (int i = 0; i < STEP / 2; ++i) p[i] = ex2(fmaf(p[i], to_log2, -row_lse[i / 2 % 2]));
    if (rows < STEP) {  // elsewhere no key is missing, whose score of 0 may be out of all proportion
#pragma unroll
      for (int i = 0; i < STEP / 2; ++i)
        if (i / 4 * 8 + lane % 4 * 2 + i % 2 >= rows) p[i] = 0.0f;
    }
    wgmma_wait<0>();
#pragma unroll
    for (int i = 0; i < STEP / 8; ++i)
#pragma unroll
      for (int h = 0; h < 2; ++h)
        ds[i / 2][2 * (i & 1) + h] = pack2<T>(p[4 * i + 2 * h] * (dp[4 * i + 2 * h] - row_delta[h]),
                                              p[4 * i + 2 * h + 1] * (dp[4 * i + 2 * h + 1] - row_delta[h]));
    wgmma_fence();
    dq.template begin_adding<T, STEP>(ds, k);
    wgmma_commit();
    before = stage;
    if (++stage == STAGES) stage = 0, parity ^= 1;
  }
  wgmma_wait<0>();
  if (!HELD) named_sync(1 + group, GROUP);  // dq goes over the queries, which every warp is to be done with
  dq.template put<T>(my_q, s.scale);
  fence_async();
  named_sync(1 + group, GROUP);
  if (threadIdx.x % GROUP == 0) {
    store_rows<D>(Head<D>::map(maps, own.part, RESULT), my_q, own.row + 64 * group);
    tma_commit();
    tma_wait_read<0>();
  }
}

#define KEYS(T, t, D, NAME, ...)                                                                                        \
  extern "C" __global__ void __launch_bounds__(3 * GROUP, 1) attention_wgmma_backward_keys_##t##_##NAME(                \
      const __grid_constant__ Sequence s, const __grid_constant__ Maps maps, const float* stats) {                      \
    keys<T, D, __VA_ARGS__>(s, maps, stats);                                                                            \
  }
#define QUERIES(T, t, D, NAME, GROUPS, ...)                                                                             \
  extern "C" __global__ void __launch_bounds__((GROUPS + 1) * GROUP, 1) attention_wgmma_backward_queries_##t##_##NAME(  \
      const __grid_constant__ Sequence s, const __grid_constant__ Maps maps, const float* lse, float* stats) {          \
    queries<T, D, GROUPS, __VA_ARGS__>(s, maps, lse, stats);                                                            \
  }
#define ALL(T, t)                                                                                                       \
  KEYS(T, t, 64, d64, 64, 3, ACROSS, true) KEYS(T, t, 80, d80, 64, 3, ACROSS, false)                                    \
  KEYS(T, t, 96, d96, 64, 3, ACROSS, false) KEYS(T, t, 128, d128, 64, 3, WITHIN, false)                                 \
  QUERIES(T, t, 64, d64, 2, 128, 3, false) QUERIES(T, t, 80, d80, 2, 128, 3, false)                                     \
  QUERIES(T, t, 96, d96, 2, 128, 2, false) QUERIES(T, t, 128, d128, 2, 64, 4, false)
ALL(bf16, bf16)
ALL(f16, f16)
// Other ways for heads of 64, to be timed: src/ops/attention/cuda/hopper_backward.rs lists them.
KEYS(bf16, bf16, 64, d64_read, 64, 3, ACROSS, false)
KEYS(bf16, bf16, 64, d64_q128, 128, 2, ALONE, false)
QUERIES(bf16, bf16, 64, d64_held, 2, 64, 4, true)
QUERIES(bf16, bf16, 64, d64_q192, 3, 64, 3, false)
