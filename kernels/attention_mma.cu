// Softmax attention on tensor cores, forward: see src/ops/attention. A block has the queries of one tile and goes through all
// keys in order, so that a row's bits depend on nothing but the row and its keys. Keys and values have a buffer each: values
// arrive while scores are made, the next keys while those are used.
// shared attention_mma_*_d32 20480
// shared attention_mma_*_d64 36864
// shared attention_mma_*_d80 45056
// shared attention_mma_*_d128 69632
// hot attention_mma_*
#include "common/attention_mma.cuh"

extern __shared__ __align__(128) unsigned char shared[];

constexpr int QUERIES = 128, KEYS = 64;

// Each warp has M times 16 queries.
template <typename T, int D, int M, bool MASKED>
__device__ __forceinline__ void forward(const Sequence& s, float* lse, const float* bias, u32 causal) {
  constexpr int THREADS = QUERIES / M * 2;
  const u32 q = smem_u32(shared), k = q + QUERIES * ROW<D>, v = k + KEYS * ROW<D>;
  const u32 lane = threadIdx.x & 31, mine0 = threadIdx.x / 32 * 16 * M;
  const Tile<QUERIES, true> own(s, blockIdx.x);
  const Part& mine = s.part[own.part];
  const u32 row0 = own.row + mine0 + lane / 4;
  const u32 seen = MASKED && causal ? min(mine.n, own.row + QUERIES) : 0xffffffffu;
  const bool busy = D > 64 || own.row + mine0 < mine.n;  // a warp without queries only helps to copy, if registers allow
  // Scores become powers of two; a bias is added before the largest is looked for.
  const float to_log2 = s.scale * LOG2_E, unit = MASKED ? 1.0f : to_log2;

  Tile<KEYS, false> t(s, 0);
  begin_tile<QUERIES, D, THREADS, T>(q, mine.q, s, own.row, mine.n);
  begin_tile<KEYS, D, THREADS, T>(k, s.part[t.part].k, s, 0, s.part[t.part].n);
  cp_async_commit();
  float acc[M][D / 8][4] = {}, most[M][2], total[M][2] = {};
#pragma unroll
  for (int m = 0; m < M; ++m) most[m][0] = most[m][1] = -infinity();
  while (t.exists(s) && t.row < seen) {
    const Part& other = s.part[t.part];
    const u32 first = t.row, keys = min(other.n - first, KEYS);
    cp_async_wait<0>();
    __syncthreads();  // keys are here, and every warp is done with the last values
    begin_tile<KEYS, D, THREADS, T>(v, other.v, s, first, other.n);
    cp_async_commit();
    float scores[M][KEYS / 8][4];
    if (busy) dots<T, D>(scores, q + mine0 * ROW<D> + lane_of_a<D>(), k + lane_of_b<D>());
    cp_async_wait<0>();
    __syncthreads();  // values are here, and every warp is done with the keys
    t.next(s);
    if (t.exists(s) && t.row < seen) begin_tile<KEYS, D, THREADS, T>(k, s.part[t.part].k, s, t.row, s.part[t.part].n);
    cp_async_commit();
    if (!busy) continue;

    u32 p[M][KEYS / 16][4];
#pragma unroll
    for (int m = 0; m < M; ++m) {
      if (MASKED) {
#pragma unroll
        for (int j = 0; j < KEYS / 8; ++j)
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const u32 row = row0 + m * 16 + e / 2 * 8, key = first + j * 8 + lane % 4 * 2 + e % 2;
            float& score = scores[m][j][e];
            score *= to_log2;
            if (bias && row < s.n && key < s.n) score = fmaf(bias[((u64)blockIdx.y * s.n + row) * s.n + key], LOG2_E, score);
            if (causal && key > row) score = -infinity();
          }
      }
      if (keys < KEYS) {
#pragma unroll
        for (int j = 0; j < KEYS / 8; ++j)
#pragma unroll
          for (int e = 0; e < 4; ++e)
            if (j * 8 + lane % 4 * 2 + e % 2 >= keys) scores[m][j][e] = -infinity();
      }
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float now = most[m][h];
#pragma unroll
        for (int j = 0; j < KEYS / 8; ++j) now = fmaxf(now, fmaxf(scores[m][j][2 * h], scores[m][j][2 * h + 1]));
        now = fmaxf(now, __shfl_xor_sync(0xffffffffu, now, 1));
        now = fmaxf(now, __shfl_xor_sync(0xffffffffu, now, 2));
        const float correction = ex2((most[m][h] - now) * unit), shift = -now * unit;
        most[m][h] = now;
        float sum = 0.0f;
#pragma unroll
        for (int j = 0; j < KEYS / 8; ++j)
#pragma unroll
          for (int e = 2 * h; e < 2 * h + 2; ++e) sum += scores[m][j][e] = ex2(fmaf(scores[m][j][e], unit, shift));
        total[m][h] = fmaf(total[m][h], correction, sum);
#pragma unroll
        for (int j = 0; j < D / 8; ++j) acc[m][j][2 * h] *= correction, acc[m][j][2 * h + 1] *= correction;
      }
      as_operand<T>(p[m], scores[m]);
    }
    add_rows<T, D>(acc, p, v + lane_of_bt<D>());
  }
#pragma unroll
  for (int m = 0; m < M; ++m) {
    float factor[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float sum = total[m][h];
      sum += __shfl_xor_sync(0xffffffffu, sum, 1);
      sum += __shfl_xor_sync(0xffffffffu, sum, 2);
      const u32 row = row0 + m * 16 + 8 * h;
      if (lane % 4 == 0 && row < mine.n)
        lse[((u64)blockIdx.z * s.heads + blockIdx.y) * s.n + mine.first + row] = fmaf(most[m][h] * unit, LN_2, logf(sum));
      factor[h] = __fdiv_rn(1.0f, sum);
    }
    const u32 at = mine0 + m * 16;  // this warp's queries, which it no longer needs
    store_rows<T, D>(mine.out, s, own.row + at, mine.n, acc[m], factor, shared + at * ROW<D>);
  }
}

#define ENTRY(T, t, D, M, NAME, MASKED, BLOCKS)                                                                         \
  extern "C" __global__ void __launch_bounds__(QUERIES / M * 2, BLOCKS) attention_mma_##NAME##_##t##_d##D(              \
      const __grid_constant__ Sequence s, float* lse, const float* bias, u32 causal) {                                  \
    forward<T, D, M, MASKED>(s, lse, bias, causal);                                                                     \
  }
#define ENTRIES(T, t)                                                                                                   \
  ENTRY(T, t, 32, 2, forward, false, 2)                                                                                 \
  ENTRY(T, t, 64, 2, forward, false, 2)                                                                                 \
  ENTRY(T, t, 80, 1, forward, false, 2)                                                                                 \
  ENTRY(T, t, 128, 1, forward, false, 2)                                                                                \
  ENTRY(T, t, 32, 2, masked, true, 2)                                                                                   \
  ENTRY(T, t, 64, 2, masked, true, 2)                                                                                   \
  ENTRY(T, t, 128, 1, masked, true, 1)
ENTRIES(f16, f16)
ENTRIES(bf16, bf16)
