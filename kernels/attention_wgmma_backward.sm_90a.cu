// The gradients of softmax attention on Hopper: see src/ops/attention and attention_mma_backward.cu. Heads narrower than a kernel
// is for are read as if they ended in zeros. Two kernels, each of which owns what it writes, so that nothing is added up across
// blocks:
//   queries  a tile is of queries: dq += ds k. It also makes the statistics that the other one reads, and comes first.
//   keys     a tile is of keys. Scores are transposed, so that what they become in registers is at once the left operand of
//            the next product: dv += pT dout, dk += dsT q.
// A block takes tiles in turn. One thread copies, ahead into the next tile; each of the other warp groups has 64 tokens of the
// tile. A product is left under way for as long as nothing needs it: the sums of a step while the scores of the next are made.
// shared attention_wgmma_backward_keys_*_d64 117312
// shared attention_wgmma_backward_keys_*_d80 105024
// shared attention_wgmma_backward_keys_*_d96 125504
// shared attention_wgmma_backward_keys_*_d128 166464
// shared attention_wgmma_backward_keys_*_d64_read 84544
// shared attention_wgmma_backward_keys_*_d64_q128 101424
// shared attention_wgmma_backward_queries_*_d64 167016
// shared attention_wgmma_backward_queries_*_d80 167040
// shared attention_wgmma_backward_queries_*_d96 199808
// shared attention_wgmma_backward_queries_*_d128 198768
// shared attention_wgmma_backward_queries_*_d64_held 134272
// shared attention_wgmma_backward_queries_*_d64_q192 151656
// hot attention_wgmma_backward_*
#include "common/attention_wgmma_backward.cuh"

extern __shared__ __align__(16) unsigned char shared[];

// ---- keys ----

// What of a step's sums is under way while other work is done, as registers allow: nothing, dv while ds is made, or both sums
// until the scores of the next step are there.
enum Overlap { ALONE, WITHIN, ACROSS };

template <typename T, int D, int STEP, int STAGES, Overlap OVERLAP, bool HELD>
__device__ __forceinline__ void keys(const Sequence& s, const Maps& maps, const float* stats, u32 samples) {
  constexpr u32 TILE = Head<D>::template BYTES<64>, SIZE = Head<D>::template BYTES<STEP>, ROWS = STEP * 4;
  constexpr int GROUPS = 2;
  const u32 own_k = (smem_u32(shared) + 1023) & ~1023u, own_v = own_k + GROUPS * TILE;
  const u32 results = HELD ? own_v + GROUPS * TILE : own_k, ring = (HELD ? results : own_k) + 2 * GROUPS * TILE;
  const u32 stat_ring = ring + STAGES * 2 * SIZE, own_full = stat_ring + STAGES * 2 * ROWS, own_empty = own_full + 8;
  const u32 full = own_empty + 8, empty = full + 8 * STAGES;
  u32 of_head = 0;
  for (u32 i = 0; i < s.parts; ++i) of_head += (s.part[i].n + 64 * GROUPS - 1) / (64 * GROUPS);
  const u32 tiles = of_head * s.heads * samples;
  if (threadIdx.x == 0) {
    barrier_init(own_full, 1);
    barrier_init(own_empty, HELD ? 4 * GROUPS : GROUPS);
    for (int i = 0; i < STAGES; ++i) barrier_init(full + 8 * i, 1), barrier_init(empty + 8 * i, 4 * GROUPS);
    barrier_init_fence();
  }
  __syncthreads();
  if (threadIdx.x < GROUP) {
    registers_give<24>();
    if (threadIdx.x == 0) {
      u32 stage = 0, parity = 1, own_parity = 1;
#pragma unroll 1
      for (u32 index = blockIdx.x; index < tiles; index += gridDim.x, own_parity ^= 1) {
        const u32 which = index / of_head;
        const Place of = {which % s.heads, which / s.heads};
        const Tile<64 * GROUPS, false> own(s, index - which * of_head);
        barrier_wait(own_empty, own_parity);
        barrier_expect(own_full, 2 * GROUPS * TILE);
#pragma unroll 1
        for (int g = 0; g < GROUPS; ++g) {
          begin_rows<D, 64>(own_k + g * TILE, Head<D>::map(maps, own.part, K), own_full, of, own.row + 64 * g);
          begin_rows<D, 64>(own_v + g * TILE, Head<D>::map(maps, own.part, V), own_full, of, own.row + 64 * g);
        }
        const float* lse = stats + ((u64)of.sample * s.heads + of.head) * s.stats;
        const float* delta = lse + (u64)samples * s.heads * s.stats;
#pragma unroll 1
        for (Tile<STEP, true> t(s, 0); t.exists(s); t.next(s)) {
          const u32 to = ring + stage * 2 * SIZE, stats_to = stat_ring + stage * 2 * ROWS, barrier = full + 8 * stage;
          const u32 first = s.part[t.part].stats + t.row;
          barrier_wait(empty + 8 * stage, parity);
          barrier_expect(barrier, 2 * SIZE + 2 * ROWS);
          begin_rows<D, STEP>(to, Head<D>::map(maps, t.part, Q), barrier, of, t.row);
          bulk_load(stats_to, lse + first, ROWS, barrier);
          begin_rows<D, STEP>(to + SIZE, Head<D>::map(maps, t.part, DOUT), barrier, of, t.row);
          bulk_load(stats_to + ROWS, delta + first, ROWS, barrier);
          if (++stage == STAGES) stage = 0, parity ^= 1;
        }
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
  const u32 dk_to = results + group * TILE, dv_to = dk_to + GROUPS * TILE;
  u32 stage = 0, parity = 0, own_parity = 0;
#pragma unroll 1
  for (u32 index = blockIdx.x; index < tiles; index += gridDim.x, own_parity ^= 1) {
    u32 before = 0;
    Sums<D> dk, dv;
    dk.begin();
    dv.begin();
    barrier_wait(own_full, own_parity);
    const Left<T, D, HELD> k(my_k), v(my_v);
    if (HELD && lane == 0) barrier_arrive(own_empty);
#pragma unroll 1
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
    if (OVERLAP == ACROSS) {
      wgmma_wait<0>();
      if (steps && lane == 0) barrier_arrive(empty + 8 * before);
    }
    // The results go over keys and values, which every warp of the group is to be done with, or over those before.
    if (HELD && threadIdx.x % GROUP == 0) tma_wait_read<0>();
    named_sync(1 + group, GROUP);
    dk.template put<T>(dk_to, s.scale);
    dv.template put<T>(dv_to, 1.0f);
    fence_async();
    named_sync(1 + group, GROUP);
    if (threadIdx.x % GROUP == 0) {
      const u32 which = index / of_head;
      const Place of = {which % s.heads, which / s.heads};
      const Tile<64 * GROUPS, false> own(s, index - which * of_head);
      store_rows<D>(Head<D>::map(maps, own.part, RESULT), dk_to, of, own.row + 64 * group);
      store_rows<D>(Head<D>::map(maps, own.part, DV), dv_to, of, own.row + 64 * group);
      tma_commit();
      if (!HELD) {
        tma_wait_read<0>();
        barrier_arrive(own_empty);
      }
    }
  }
  if (HELD && threadIdx.x % GROUP == 0) tma_wait_read<0>();
}

// ---- queries ----

// The sum of the products of `out` and `dout` over a head, of the token `at` elements into them, for the four lanes of a row.
template <typename T>
__device__ __forceinline__ float dot(const void* out, const void* dout, u64 at, u32 d) {
  float sum = 0.0f;
#pragma unroll 1
  for (u32 column = threadIdx.x % 4 * 8; column < d; column += 32) {
    const auto a = *(const Pack<T, 8>*)((const T*)out + at + column), b = *(const Pack<T, 8>*)((const T*)dout + at + column);
#pragma unroll
    for (int k = 0; k < 8; ++k) sum = fmaf(widen(a.v[k]), widen(b.v[k]), sum);
  }
  sum += __shfl_xor_sync(0xffffffffu, sum, 1);
  return sum + __shfl_xor_sync(0xffffffffu, sum, 2);
}

// Makes the statistics of a tile of owned queries, [2][TOKENS] to shared memory for their own block and to `stats` for keys:
// the work of three warps. The lanes that write, 8 of a warp, arrive.
template <typename T, int TOKENS>
__device__ __forceinline__ void make_statistics(
    const Sequence& s, const float* lse, float* stats, u32 samples, Place of, u32 part, u32 row, u32 to, u32 barrier) {
  const Part& mine = s.part[part];
  const u32 heads = of.sample * s.heads + of.head, end = part + 1 < s.parts ? s.part[part + 1].stats : s.stats;
  const u64 first = ((u64)of.sample * mine.n * s.heads + of.head) * s.d;
#pragma unroll 1
  for (u32 i = (threadIdx.x / 32 - 1) * 8 + threadIdx.x % 32 / 4; i < TOKENS; i += 24) {
    const bool exists = row + i < mine.n;
    const u32 slot = mine.stats + row + i;
    // Lanes of a warp go together; what there is not is as the first token, and is not taken.
    const float sum = dot<T>(mine.out, mine.dout, first + (u64)(exists ? row + i : 0) * token_stride(s), s.d);
    if (threadIdx.x % 4) continue;
    const float unit_lse = exists ? lse[(u64)heads * s.n + mine.first + row + i] * LOG2_E : infinity();
    const float delta = exists ? sum : 0.0f;
    store_shared(to + 4 * i, __float_as_uint(unit_lse));
    store_shared(to + 4 * (TOKENS + i), __float_as_uint(delta));
    if (slot < end) {
      stats[(u64)heads * s.stats + slot] = unit_lse;
      stats[((u64)samples * s.heads + heads) * s.stats + slot] = delta;
    }
  }
  if (threadIdx.x % 4 == 0) barrier_arrive(barrier);
}

// With OWN tiles of owned queries at a time.
template <typename T, int D, int GROUPS, int OWN, int STEP, int STAGES, bool HELD>
__device__ __forceinline__ void queries(const Sequence& s, const Maps& maps, const float* lse, float* stats, u32 samples) {
  constexpr u32 TILE = Head<D>::template BYTES<64>, SIZE = Head<D>::template BYTES<STEP>;
  constexpr int TOKENS = 64 * GROUPS, WRITERS = 3 * 8;
  const u32 own_ring = (smem_u32(shared) + 1023) & ~1023u, ring = own_ring + OWN * 2 * GROUPS * TILE;
  const u32 own_stats = ring + STAGES * 2 * SIZE, own_full = own_stats + OWN * 2 * TOKENS * 4, own_empty = own_full + 8 * OWN;
  const u32 full_k = own_empty + 8 * OWN, full_v = full_k + 8 * STAGES, empty = full_v + 8 * STAGES;
  u32 of_head = 0;
  for (u32 i = 0; i < s.parts; ++i) of_head += (s.part[i].queries + TOKENS - 1) / TOKENS;
  const u32 tiles = of_head * s.heads * samples;
  if (threadIdx.x == 0) {
    for (int i = 0; i < OWN; ++i) barrier_init(own_full + 8 * i, 1 + WRITERS), barrier_init(own_empty + 8 * i, GROUPS);
    for (int i = 0; i < STAGES; ++i)
      barrier_init(full_k + 8 * i, 1), barrier_init(full_v + 8 * i, 1), barrier_init(empty + 8 * i, 4 * GROUPS);
    barrier_init_fence();
  }
  __syncthreads();
  u32 turn = 0, own_parity = 0;  // of owned queries
  if (threadIdx.x < GROUP) {
    registers_give<56>();
    if (threadIdx.x == 0) {
      u32 stage = 0, parity = 1;
#pragma unroll 1
      for (u32 index = blockIdx.x; index < tiles; index += gridDim.x) {
        const u32 which = index / of_head, own_q = own_ring + turn * 2 * GROUPS * TILE, barrier = own_full + 8 * turn;
        const Place of = {which % s.heads, which / s.heads};
        const Tile<TOKENS, true> own(s, index - which * of_head);
        barrier_wait(own_empty + 8 * turn, own_parity ^ 1);
        barrier_expect(barrier, 2 * GROUPS * TILE);
#pragma unroll 1
        for (int g = 0; g < GROUPS; ++g) {
          begin_rows<D, 64>(own_q + g * TILE, Head<D>::map(maps, own.part, Q), barrier, of, own.row + 64 * g);
          begin_rows<D, 64>(own_q + (GROUPS + g) * TILE, Head<D>::map(maps, own.part, DOUT), barrier, of, own.row + 64 * g);
        }
#pragma unroll 1
        for (Tile<STEP, false> t(s, 0); t.exists(s); t.next(s)) {
          const u32 to = ring + stage * 2 * SIZE;
          barrier_wait(empty + 8 * stage, parity);
          barrier_expect(full_k + 8 * stage, SIZE);
          begin_rows<D, STEP>(to, Head<D>::map(maps, t.part, K), full_k + 8 * stage, of, t.row);
          barrier_expect(full_v + 8 * stage, SIZE);
          begin_rows<D, STEP>(to + SIZE, Head<D>::map(maps, t.part, V), full_v + 8 * stage, of, t.row);
          if (++stage == STAGES) stage = 0, parity ^= 1;
        }
        if (++turn == OWN) turn = 0, own_parity ^= 1;
      }
    } else if (threadIdx.x >= 32) {
#pragma unroll 1
      for (u32 index = blockIdx.x; index < tiles; index += gridDim.x) {
        const u32 which = index / of_head;
        const Tile<TOKENS, true> own(s, index - which * of_head);
        barrier_wait(own_empty + 8 * turn, own_parity ^ 1);
        make_statistics<T, TOKENS>(s, lse, stats, samples, {which % s.heads, which / s.heads}, own.part, own.row,
                                      own_stats + turn * 2 * TOKENS * 4, own_full + 8 * turn);
        if (++turn == OWN) turn = 0, own_parity ^= 1;
      }
    }
    return;
  }
  registers_take<GROUPS == 3 ? 152 : 224>();
  const u32 group = threadIdx.x / GROUP - 1, lane = threadIdx.x % 32;
  const bool stores = threadIdx.x % GROUP == 0;
  const float to_log2 = s.scale * LOG2_E;
  u32 stage = 0, parity = 0;
#pragma unroll 1
  for (u32 index = blockIdx.x; index < tiles; index += gridDim.x) {
    const u32 my_q = own_ring + (turn * 2 * GROUPS + group) * TILE, my_dout = my_q + GROUPS * TILE;
    float row_lse[2], row_delta[2];
    Sums<D> dq;
    dq.begin();
    barrier_wait(own_full + 8 * turn, own_parity);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const u32 at = own_stats + (turn * 2 * TOKENS + threadIdx.x / 32 * 16 - GROUP / 2 + lane / 4 + 8 * h) * 4;
      row_lse[h] = __uint_as_float(load_shared(at));
      row_delta[h] = __uint_as_float(load_shared(at + 4 * TOKENS));
    }
    const Left<T, D, HELD> q(my_q), dout(my_dout);
    if (OWN > 1 && stores && index != blockIdx.x) {  // by now, the tile before has been read
      tma_wait_read<0>();
      barrier_arrive(own_empty + 8 * (turn ^ 1));
    }
    u32 before = 0;
#pragma unroll 1
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
    if (lane == 0) barrier_arrive(empty + 8 * before);
    // dq goes over the queries, which every warp of the group is to be done with, if it has not held its own.
    if (!HELD) named_sync(1 + group, GROUP);
    dq.template put<T>(my_q, s.scale);
    fence_async();
    named_sync(1 + group, GROUP);
    if (stores) {
      const u32 which = index / of_head;
      const Tile<TOKENS, true> own(s, index - which * of_head);
      store_rows<D>(Head<D>::map(maps, own.part, RESULT), my_q, {which % s.heads, which / s.heads}, own.row + 64 * group);
      tma_commit();
      if (OWN == 1) {
        tma_wait_read<0>();
        barrier_arrive(own_empty);
      }
    }
    if (++turn == OWN) turn = 0, own_parity ^= 1;
  }
  if (OWN > 1 && stores) tma_wait_read<0>();
}

#define KEYS(T, t, D, NAME, ...)                                                                                        \
  extern "C" __global__ void __launch_bounds__(3 * GROUP, 1) attention_wgmma_backward_keys_##t##_##NAME(                \
      const __grid_constant__ Sequence s, const __grid_constant__ Maps maps, const float* stats, u32 samples) {         \
    keys<T, D, __VA_ARGS__>(s, maps, stats, samples);                                                                   \
  }
#define QUERIES(T, t, D, NAME, GROUPS, ...)                                                                             \
  extern "C" __global__ void __launch_bounds__((GROUPS + 1) * GROUP, 1) attention_wgmma_backward_queries_##t##_##NAME(  \
      const __grid_constant__ Sequence s, const __grid_constant__ Maps maps, const float* lse, float* stats,            \
      u32 samples) {                                                                                                    \
    queries<T, D, GROUPS, __VA_ARGS__>(s, maps, lse, stats, samples);                                                   \
  }
#define ALL(T, t)                                                                                                       \
  KEYS(T, t, 64, d64, 64, 3, ACROSS, true) KEYS(T, t, 80, d80, 64, 3, ACROSS, false)                                    \
  KEYS(T, t, 96, d96, 64, 3, ACROSS, false) KEYS(T, t, 128, d128, 64, 3, WITHIN, false)                                 \
  QUERIES(T, t, 64, d64, 2, 2, 128, 3, false) QUERIES(T, t, 80, d80, 2, 2, 64, 4, false)                                \
  QUERIES(T, t, 96, d96, 2, 2, 64, 4, false) QUERIES(T, t, 128, d128, 2, 1, 64, 4, false)
ALL(bf16, bf16)
ALL(f16, f16)
// Other ways for heads of 64, to be timed: src/ops/attention/cuda/hopper_backward.rs lists them.
KEYS(bf16, bf16, 64, d64_read, 64, 3, ACROSS, false)
KEYS(bf16, bf16, 64, d64_q128, 128, 2, ALONE, false)
QUERIES(bf16, bf16, 64, d64_held, 2, 2, 64, 4, true)
QUERIES(bf16, bf16, 64, d64_q192, 3, 2, 64, 3, false)
