// Softmax attention over token-major operands, forward: see src/ops/attention. A block has the queries of one tile and goes
// through all keys in order, so that a row's bits depend on nothing but the row and its keys.
// shared attention_forward_f32_d32 35840
// shared attention_forward_f32_d64 52224
// shared attention_forward_f32_d128 68608
// shared attention_forward_f32_d512 52224
// hot attention_forward_*
#include "common/attention.cuh"
#include "common/math.cuh"

extern __shared__ __align__(128) unsigned char shared[];

// In f32 throughout. Operands come in chunks of up to 64 columns; queries stay where they fit.
template <int D> __device__ __forceinline__ void forward(const Sequence& s, float* lse, const float* bias, u32 causal) {
  constexpr int TILE = 64, W = D < 64 ? D : 64, CHUNKS = D / W, VECTOR = Columns<W>::VECTOR;
  constexpr bool STAYS = D <= 128;
  constexpr int PITCH_Q = PITCH<STAYS ? D : W>, PITCH_P = PITCH<TILE>;
  float *q = (float*)shared, *kv = q + TILE * PITCH_Q, *p = kv + TILE * PITCH<W>;
  const u32 x = threadIdx.x % 16, y = threadIdx.x / 16;
  const Tile<TILE, true> own(s, blockIdx.x);
  const Part& mine = s.part[own.part];
  const u32 row0 = own.row + y * 4, depth = (s.d + 3) / 4 * 4;
  const u32 seen = causal ? min(mine.n, own.row + TILE) : 0xffffffffu;  // a causal tile sees no key beyond its last query

  float acc[CHUNKS][4][VECTOR] = {}, m[4], l[4] = {};
#pragma unroll
  for (int i = 0; i < 4; ++i) m[i] = -infinity();
  if (STAYS) load_tile<TILE, STAYS ? D : W>(q, mine.q, s, own.row, mine.n, 0);
  for (Tile<TILE, false> t(s, 0); t.exists(s) && t.row < seen; t.next(s)) {
    const Part& other = s.part[t.part];
    const u32 keys = min(other.n - t.row, TILE);
    float scores[4][4] = {};
    for (u32 c = 0; c < depth; c += W) {
      __syncthreads();
      if (!STAYS) load_tile<TILE, W>(q, mine.q, s, own.row, mine.n, c);
      load_tile<TILE, W>(kv, other.k, s, t.row, other.n, c);
      __syncthreads();
      add_dots<4, 4, PITCH_Q, PITCH<W>>(scores, STAYS ? q + c : q, kv, min(depth - c, W));
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float most = m[i];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const u32 row = row0 + i, key = x + 16 * j;
        float& score = scores[i][j];
        score *= s.scale;
        if (bias && row < s.n && key < keys) score += bias[((u64)blockIdx.y * s.n + row) * s.n + t.row + key];
        if (key >= keys || (causal && t.row + key > row)) score = -infinity();
        most = fmaxf(most, score);
      }
#pragma unroll
      for (int lanes = 8; lanes; lanes /= 2) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, lanes));
      const float correction = exp_exact(m[i] - most);
      m[i] = most;
      l[i] *= correction;
#pragma unroll
      for (int j = 0; j < 4; ++j) l[i] += scores[i][j] = exp_exact(scores[i][j] - most);
#pragma unroll
      for (int c = 0; c < CHUNKS; ++c)
#pragma unroll
        for (int e = 0; e < VECTOR; ++e) acc[c][i][e] *= correction;
    }
    put_scores<4, 4, PITCH_P>(p, scores);
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
      if (c * W >= s.d) break;
      __syncthreads();
      load_tile<TILE, W>(kv, other.v, s, t.row, other.n, c * W);
      __syncthreads();
      add_rows<4, VECTOR, PITCH_P, PITCH<W>>(acc[c], p, kv, (keys + 3) / 4 * 4);
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int lanes = 8; lanes; lanes /= 2) l[i] += __shfl_xor_sync(0xffffffffu, l[i], lanes);
    const u32 row = row0 + i;
    if (x == 0 && row < mine.n) lse[((u64)blockIdx.z * s.heads + blockIdx.y) * s.n + mine.first + row] = m[i] + logf(l[i]);
    const float inverse = __fdiv_rn(1.0f, l[i]);
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) store_row<VECTOR>(mine.out, s, row, mine.n, acc[c][i], inverse, c * W + x * VECTOR);
  }
}

#define FORWARD(D, BLOCKS)                                                                                              \
  extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) attention_forward_f32_d##D(                              \
      const __grid_constant__ Sequence s, float* lse, const float* bias, u32 causal) {                                  \
    forward<D>(s, lse, bias, causal);                                                                                   \
  }
FORWARD(32, 2) FORWARD(64, 2) FORWARD(128, 2) FORWARD(512, 1)
