// The gradients of softmax attention on tensor cores: see src/ops/attention and attention_backward.cu, which also has the
// statistics that these start from. A block owns keys or queries and goes through the other side's tokens in order. Scores of
// keys are transposed, so that what they become in registers is at once the left operand of the next product:
//   dv += pT dout, dk += dsT q;   dq += ds k.
// shared attention_mma_backward_*_d32 41984
// shared attention_mma_backward_*_d64 74752
// shared attention_mma_backward_*_d80 68608
// shared attention_mma_backward_*_d128 70144
// hot attention_mma_backward_*
#include "common/attention_mma.cuh"

extern __shared__ __align__(128) unsigned char shared[];

constexpr int WARPS = 4, THREADS_MMA = WARPS * 32;

// Each warp owns M times 16 tokens. The others come in tiles of which there are two at a time, and are multiplied STEP at a
// time, which bounds the registers.
template <typename T, int D, int M, int STEP, bool KEYS>
__device__ __forceinline__ void backward(const Sequence& s, const float* stats) {
  constexpr int OWN = WARPS * 16 * M, TILE = D <= 80 ? 64 : 32;
  constexpr u32 SIZE = TILE * ROW<D>, ROWS_BYTES = TILE * 4;
  const u32 a1 = smem_u32(shared), a2 = a1 + OWN * ROW<D>, ring = a2 + OWN * ROW<D>, stat_ring = ring + 4 * SIZE;
  const u32 lane = threadIdx.x & 31, mine0 = threadIdx.x / 32 * 16 * M;
  const Tile<OWN, !KEYS> own(s, blockIdx.x);
  const Part& mine = s.part[own.part];
  const bool busy = own.row + mine0 < mine.n;  // a warp without tokens only helps to copy
  const float to_log2 = s.scale * LOG2_E;
  const float* lse = stats + ((u64)blockIdx.z * s.heads + blockIdx.y) * s.stats;
  const float* delta = lse + (u64)gridDim.z * s.heads * s.stats;

  auto begin = [&](const Tile<TILE, KEYS>& t, u32 stage) {
    const Part& other = s.part[t.part];
    const u32 to = ring + stage * 2 * SIZE;
    begin_tile<TILE, D, THREADS_MMA, T>(to, KEYS ? other.q : other.k, s, t.row, other.n);
    begin_tile<TILE, D, THREADS_MMA, T>(to + SIZE, KEYS ? other.dout : other.v, s, t.row, other.n);
    if (KEYS && threadIdx.x < TILE / 2) {
      const u32 i = threadIdx.x % (TILE / 4), which = threadIdx.x / (TILE / 4);
      const float* from = (which ? delta : lse) + other.stats + t.row + 4 * i;
      cp_async16(stat_ring + (2 * stage + which) * ROWS_BYTES + 16 * i, from, 16);
    }
  };
  Tile<TILE, KEYS> t(s, 0);
  begin_tile<OWN, D, THREADS_MMA, T>(a1, KEYS ? mine.k : mine.q, s, own.row, mine.n);
  begin_tile<OWN, D, THREADS_MMA, T>(a2, KEYS ? mine.v : mine.dout, s, own.row, mine.n);
  if (t.exists(s)) begin(t, 0);
  cp_async_commit();

  float row_lse[M][2], row_delta[M][2];  // of the queries this lane owns
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const u32 row = own.row + mine0 + m * 16 + lane / 4 + 8 * h;
      row_lse[m][h] = !KEYS && row < mine.n ? lse[mine.stats + row] : infinity();
      row_delta[m][h] = !KEYS && row < mine.n ? delta[mine.stats + row] : 0.0f;
    }
  float first[M][D / 8][4] = {}, second[KEYS ? M : 1][KEYS ? D / 8 : 1][4] = {};
  const u32 own1 = a1 + mine0 * ROW<D> + lane_of_a<D>(), own2 = a2 + mine0 * ROW<D> + lane_of_a<D>();
  for (u32 stage = 0; t.exists(s); stage ^= 1) {
    const u32 rows = min(s.part[t.part].n - t.row, TILE);
    cp_async_wait<0>();
    __syncthreads();  // the tile is here, and every warp is done with the one before
    t.next(s);
    if (t.exists(s)) begin(t, stage ^ 1);
    cp_async_commit();
    if (!busy) continue;
#pragma unroll 1
    for (u32 step = 0; step < rows; step += STEP) {
      const u32 b1 = ring + stage * 2 * SIZE + step * ROW<D>, b2 = b1 + SIZE;
      const float* columns = (const float*)(shared + (stat_ring - a1) + 2 * stage * ROWS_BYTES) + step + lane % 4 * 2;
      float scores[M][STEP / 8][4], grads[M][STEP / 8][4];
      u32 p[M][STEP / 16][4];
      dots<T, D>(scores, own1, b1 + lane_of_b<D>());
#pragma unroll
      for (int j = 0; j < STEP / 8; ++j) {
        float2 l = make_float2(0.0f, 0.0f);
        if (KEYS) l = *(const float2*)(columns + j * 8);
#pragma unroll
        for (int m = 0; m < M; ++m)
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            float& score = scores[m][j][e];
            score = ex2(fmaf(score, to_log2, -(KEYS ? e % 2 ? l.y : l.x : row_lse[m][e / 2])));
            if (!KEYS && step + j * 8 + lane % 4 * 2 + e % 2 >= rows) score = 0.0f;
          }
      }
      if constexpr (KEYS) {
#pragma unroll
        for (int m = 0; m < M; ++m) as_operand<T>(p[m], scores[m]);
        add_rows<T, D>(second, p, b2 + lane_of_bt<D>());
      }
      dots<T, D>(grads, own2, b2 + lane_of_b<D>());
#pragma unroll
      for (int j = 0; j < STEP / 8; ++j) {
        float2 l = make_float2(0.0f, 0.0f);
        if (KEYS) l = *(const float2*)(columns + TILE + j * 8);
#pragma unroll
        for (int m = 0; m < M; ++m)
#pragma unroll
          for (int e = 0; e < 4; ++e)
            grads[m][j][e] = scores[m][j][e] * (grads[m][j][e] - (KEYS ? e % 2 ? l.y : l.x : row_delta[m][e / 2]));
      }
#pragma unroll
      for (int m = 0; m < M; ++m) as_operand<T>(p[m], grads[m]);
      add_rows<T, D>(first, p, b1 + lane_of_bt<D>());
    }
  }
  if (KEYS) {  // without queries nobody has waited yet for what results are about to overwrite
    cp_async_wait<0>();
    __syncthreads();
  }
#pragma unroll
  for (int m = 0; m < M; ++m) {
    const u32 at = mine0 + m * 16;
    const float scale[2] = {s.scale, s.scale}, one[2] = {1.0f, 1.0f};
    store_rows<T, D>(KEYS ? mine.dk : mine.dq, s, own.row + at, mine.n, first[m], scale, shared + at * ROW<D>);
    if constexpr (KEYS) store_rows<T, D>(mine.dv, s, own.row + at, mine.n, second[m], one, shared + (OWN + at) * ROW<D>);
  }
}

#define ENTRY(T, t, D, M, NAME, KEYS)                                                                                   \
  extern "C" __global__ void __launch_bounds__(THREADS_MMA, 2) attention_mma_backward_##NAME##_##t##_d##D(              \
      const __grid_constant__ Sequence s, const float* stats) {                                                         \
    backward<T, D, M, 32, KEYS>(s, stats);                                                                              \
  }
#define ENTRIES(T, t, D, M) ENTRY(T, t, D, M, keys, true) ENTRY(T, t, D, M, queries, false)
#define ALL(T, t) ENTRIES(T, t, 32, 2) ENTRIES(T, t, 64, 2) ENTRIES(T, t, 80, 1) ENTRIES(T, t, 128, 1)
ALL(f16, f16)
ALL(bf16, bf16)
