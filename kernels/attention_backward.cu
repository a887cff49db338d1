// The gradients of softmax attention: see src/ops/attention. Two kernels recompute the probabilities, each over what it owns
// (keys and values, or queries), so that nothing is added up across blocks and bits do not depend on their order. Both go
// through the other side's tokens in order.
// shared attention_backward_f32_*_d32 54272
// shared attention_backward_f32_*_d64 87040
// shared attention_backward_f32_*_d128 72192
// hot attention_backward_*
#include "common/attention.cuh"
#include "common/math.cuh"

extern __shared__ __align__(128) unsigned char shared[];

// stats [2][b, heads, s.stats] = lse * unit and delta = sum(out * dout) of every query whose result was read: 8 threads each.
template <typename T>
__device__ __forceinline__ void statistics(const Sequence& s, const float* lse, float* stats, float unit) {
  constexpr int N = 16 / sizeof(T);
  const u32 lane = threadIdx.x % 8, head = blockIdx.y;
  u32 slot = blockIdx.x * (THREADS / 8) + threadIdx.x / 8, part = 0;
  while (part + 1 < s.parts && slot >= s.part[part + 1].stats) ++part;
  const Part& p = s.part[part];
  const u32 row = slot - p.stats;
  float delta = 0.0f;
  if (row < p.queries) {
    const u64 at = head_at(s, p.n) + row * token_stride(s);
    const T *out = (const T*)p.out + at, *dout = (const T*)p.dout + at;
    for (u32 c = lane * N; c < s.d; c += 8 * N) {
      if (s.vectors) {
        auto a = *(const Pack<T, N>*)(out + c), b = *(const Pack<T, N>*)(dout + c);
#pragma unroll
        for (int k = 0; k < N; ++k) delta = fmaf(widen(a.v[k]), widen(b.v[k]), delta);
      } else {
        for (u32 k = c; k < min(c + N, s.d); ++k) delta = fmaf(widen(out[k]), widen(dout[k]), delta);
      }
    }
  }
#pragma unroll
  for (int lanes = 4; lanes; lanes /= 2) delta += __shfl_xor_sync(0xffffffffu, delta, lanes);
  if (lane || slot >= s.stats) return;
  const u64 heads = (u64)blockIdx.z * s.heads + head, to = heads * s.stats + slot;
  stats[to] = row < p.queries ? lse[heads * s.n + p.first + row] * unit : infinity();
  stats[(u64)gridDim.z * s.heads * s.stats + to] = delta;
}
#define STATISTICS(T, t)                                                                                                \
  extern "C" __global__ void __launch_bounds__(THREADS) attention_backward_statistics_##t(                              \
      const __grid_constant__ Sequence s, const float* lse, float* stats, float unit) {                                 \
    statistics<T>(s, lse, stats, unit);                                                                                 \
  }
FOR_EACH_TYPE(STATISTICS)

// For heads whose scores are written out, p [rows, columns] = q k or k q and ds = dout v or v dout as products have left them:
// p becomes the probabilities, ds the gradients to what these are made of. Queries are rows, or columns.
extern "C" __global__ void __launch_bounds__(THREADS)
    attention_backward_weights(float* p, float* ds, const float* lse, const float* delta, u32 rows, u32 columns, float scale,
                               u32 by_column) {
  const u32 column = blockIdx.x * THREADS + threadIdx.x;
  if (column >= columns) return;
  for (u32 row = blockIdx.y; row < rows; row += gridDim.y) {
    const u64 at = (u64)row * columns + column;
    const u32 query = by_column ? column : row;
    const float e = exp_exact(p[at] * scale - lse[query]);
    p[at] = e;
    ds[at] = e * (ds[at] - delta[query]) * scale;
  }
}

// In f32 throughout. With KEYS a block owns keys and goes through queries: scores are transposed,
//   dv += p dout, dk += ds q;
// without, it owns queries and goes through keys: dq += ds k.
template <int D, bool KEYS> __device__ __forceinline__ void backward(const Sequence& s, const float* stats) {
  constexpr int TILE = D <= 64 ? 64 : 32, M = TILE / 16, PITCH_P = PITCH<TILE>, SIZE = TILE * PITCH<D>;
  constexpr int VECTOR = Columns<D>::VECTOR, GROUPS = Columns<D>::GROUPS;
  float *a1 = (float*)shared, *a2 = a1 + SIZE, *b1 = a2 + SIZE, *b2 = b1 + SIZE, *p = b2 + SIZE;
  const u32 x = threadIdx.x % 16, y = threadIdx.x / 16, depth = (s.d + 3) / 4 * 4;
  const Tile<TILE, !KEYS> own(s, blockIdx.x);
  const Part& mine = s.part[own.part];
  const bool busy = warp_has_rows<M>(own.row, mine.n);
  const float* lse = stats + ((u64)blockIdx.z * s.heads + blockIdx.y) * s.stats;
  const float* delta = lse + (u64)gridDim.z * s.heads * s.stats;

  float first[GROUPS][M][VECTOR] = {}, second[GROUPS][M][VECTOR] = {};
  load_tile<TILE, D>(a1, KEYS ? mine.k : mine.q, s, own.row, mine.n, 0);
  load_tile<TILE, D>(a2, KEYS ? mine.v : mine.dout, s, own.row, mine.n, 0);
  for (Tile<TILE, KEYS> t(s, 0); t.exists(s); t.next(s)) {
    const Part& other = s.part[t.part];
    const u32 rows = min(other.n - t.row, TILE), up = (rows + 3) / 4 * 4;
    const u32 query = KEYS ? other.stats + t.row + x : mine.stats + own.row + y * M;
    __syncthreads();
    load_tile<TILE, D>(b1, KEYS ? other.q : other.k, s, t.row, other.n, 0);
    load_tile<TILE, D>(b2, KEYS ? other.dout : other.v, s, t.row, other.n, 0);
    __syncthreads();
    if (!busy) continue;
    float scores[M][M] = {}, grads[M][M] = {};
    add_dots<M, M, PITCH<D>, PITCH<D>>(scores, a1, b1, depth);
    add_dots<M, M, PITCH<D>, PITCH<D>>(grads, a2, b2, depth);
#pragma unroll
    for (int i = 0; i < M; ++i)
#pragma unroll
      for (int j = 0; j < M; ++j) {
        const u32 at = query + (KEYS ? 16 * j : i);
        float e = exp_exact(scores[i][j] * s.scale - lse[at]);
        if (!KEYS && x + 16 * j >= rows) e = 0.0f;
        scores[i][j] = e;
        grads[i][j] = e * (grads[i][j] - delta[at]);
      }
    if (KEYS) {
      put_scores<M, M, PITCH_P>(p, scores);
#pragma unroll
      for (int g = 0; g < GROUPS; ++g)
        add_rows<M, VECTOR, PITCH_P, PITCH<D>>(second[g], p, b2 + g * (D / GROUPS), up);
    }
    put_scores<M, M, PITCH_P>(p, grads);
#pragma unroll
    for (int g = 0; g < GROUPS; ++g)
      add_rows<M, VECTOR, PITCH_P, PITCH<D>>(first[g], p, b1 + g * (D / GROUPS), up);
  }
#pragma unroll
  for (int i = 0; i < M; ++i)
#pragma unroll
    for (int g = 0; g < GROUPS; ++g) {
      const u32 row = own.row + y * M + i, column = g * (D / GROUPS) + x * VECTOR;
      store_row<VECTOR>(KEYS ? mine.dk : mine.dq, s, row, mine.n, first[g][i], s.scale, column);
      if (KEYS) store_row<VECTOR>(mine.dv, s, row, mine.n, second[g][i], 1.0f, column);
    }
}

#define BACKWARD(D, BLOCKS)                                                                                             \
  extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) attention_backward_f32_keys_d##D(                       \
      const __grid_constant__ Sequence s, const float* stats) {                                                         \
    backward<D, true>(s, stats);                                                                                        \
  }                                                                                                                     \
  extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) attention_backward_f32_queries_d##D(                    \
      const __grid_constant__ Sequence s, const float* stats) {                                                         \
    backward<D, false>(s, stats);                                                                                       \
  }
BACKWARD(32, 2) BACKWARD(64, 2) BACKWARD(128, 2)
