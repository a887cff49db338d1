// Softmax attention in f32 throughout. A block has the queries of one tile and goes through all keys in order, so that a row's
// bits depend on nothing but the row and its keys.
#pragma once
#include "common/attention.cuh"
#include "common/math.cuh"

extern __shared__ __align__(128) unsigned char shared[];

// Operands come in chunks of up to 64 columns; queries stay where they fit. Keys are those of the parts from
// KEYS on; `Scores` says how they are seen: until `end(the end of the tile of queries)`, each with the score that `of` makes of
// its product; least() is below all scores, and -inf where every query sees some key of the first tile.
template <int D, int KEYS, typename Scores> __device__ __forceinline__ void forward(const Sequence& s, float* lse, const Scores scores_of) {
  constexpr int TILE = 64, W = D < 64 ? D : 64, CHUNKS = D / W, VECTOR = Columns<W>::VECTOR;
  constexpr bool STAYS = D <= 128;
  constexpr int PITCH_Q = PITCH<STAYS ? D : W>, PITCH_P = PITCH<TILE>;
  float *q = (float*)shared, *kv = q + TILE * PITCH_Q, *p = kv + TILE * PITCH<W>;
  const u32 x = threadIdx.x % 16, y = threadIdx.x / 16;
  const Tile<TILE, true> own(s, blockIdx.x);
  const Part& mine = s.part[own.part];
  const bool busy = warp_has_rows<4>(own.row, mine.n);
  const u32 row0 = own.row + y * 4, depth = (s.d + 3) / 4 * 4;
  const u32 seen = scores_of.end(own.row + TILE, mine.n);

  float acc[CHUNKS][4][VECTOR] = {}, m[4], l[4] = {};
#pragma unroll
  for (int i = 0; i < 4; ++i) m[i] = Scores::least();
  if (STAYS) load_tile<TILE, STAYS ? D : W>(q, mine.q, s, own.row, mine.n, 0);
  Tile<TILE, false> t(s, 0);
  if (KEYS > 0) t.part = KEYS, t.row = 0;
  for (; t.exists(s) && t.row < seen; t.next(s)) {
    const Part& other = s.part[t.part];
    const u32 keys = min(other.n - t.row, TILE);
    float scores[4][4] = {};
    for (u32 c = 0; c < depth; c += W) {
      __syncthreads();
      if (!STAYS) load_tile<TILE, W>(q, mine.q, s, own.row, mine.n, c);
      load_tile<TILE, W>(kv, other.k, s, t.row, other.n, c);
      __syncthreads();
      if (busy) add_dots<4, 4, PITCH_Q, PITCH<W>>(scores, STAYS ? q + c : q, kv, min(depth - c, W));
    }
    if (busy) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float most = m[i];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const u32 row = row0 + i, key = x + 16 * j;
          float& score = scores[i][j];
          score *= s.scale;
          scores_of.see(score, s, row, t.row, key, keys);
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
    }
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
      if (c * W >= s.d) break;
      __syncthreads();
      load_tile<TILE, W>(kv, other.v, s, t.row, other.n, c * W);
      __syncthreads();
      if (busy) add_rows<4, VECTOR, PITCH_P, PITCH<W>>(acc[c], p, kv, (keys + 3) / 4 * 4);
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int lanes = 8; lanes; lanes /= 2) l[i] += __shfl_xor_sync(0xffffffffu, l[i], lanes);
    const u32 row = row0 + i;
    if (lse && x == 0 && row < mine.n) lse[((u64)blockIdx.z * s.heads + blockIdx.y) * s.n + mine.first + row] = m[i] + logf(l[i]);
    const float inverse = __fdiv_rn(1.0f, l[i]);
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) store_row<VECTOR>(mine.out, s, row, mine.n, acc[c][i], inverse, c * W + x * VECTOR);
  }
}
