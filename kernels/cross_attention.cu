// Attention of one sequence to another, in f32: see src/ops/cross_attention. Part 0 are the queries, part 1 the keys.
//
//   cross_attention_words  what may be seen, a bit for each key
//   cross_attention_blind  queries that may see nothing see everything
// shared cross_attention_f32_d32 35840
// shared cross_attention_f32_d64 52224
// shared cross_attention_f32_d128 68608
// hot cross_attention_*
#include "common/attention_forward.cuh"

// Of words [b, n / 32, m]; null where all is seen.
struct Seen {
  const u32* words;
  u32 m;

  // Finite, as a query may see nothing of a tile.
  static __device__ __forceinline__ float least() { return -1e30f; }
  __device__ __forceinline__ u32 end(u32, u32) const { return 0xffffffffu; }
  __device__ __forceinline__ void see(float& score, const Sequence& s, u32 row, u32 tile, u32 key, u32 keys) const {
    bool there = key < keys;
    if (words && row < m && there) there = words[(u64)((tile + key) / 32) * m + row] >> key % 32 & 1;
    if (!there) score = -infinity();
  }
};

#define FORWARD(D)                                                                                                      \
  extern "C" __global__ void __launch_bounds__(THREADS, 2)                                                              \
      cross_attention_f32_d##D(const __grid_constant__ Sequence s, const u32* words) {                                  \
    const u32 m = s.part[0].n;                                                                                          \
    if (words) words += (u64)blockIdx.z * ((s.part[1].n + 31) / 32) * m;                                                \
    forward<D, 1>(s, nullptr, Seen{words, m});                                                                          \
  }
FORWARD(32) FORWARD(64) FORWARD(128)

// A thread has a word of a query: sees [b, n, m] at least 1/2 after the sigmoid. Blocks: (queries, words, samples).
extern "C" __global__ void __launch_bounds__(THREADS) cross_attention_words(u32* words, const float* sees, u32 n, u32 m) {
  const u32 query = global_thread(), first = blockIdx.y * 32;
  if (query >= m) return;
  sees += ((u64)blockIdx.z * n + first) * m + query;
  u32 word = 0;
#pragma unroll 8
  for (u32 k = 0; k < min(n - first, 32u); ++k) word |= (u32) !(sigmoid(sees[(u64)k * m]) < 0.5f) << k;
  words[((u64)blockIdx.z * gridDim.y + blockIdx.y) * m + query] = word;
}

// Blocks: (tiles of 32 queries, samples).
extern "C" __global__ void __launch_bounds__(THREADS) cross_attention_blind(u32* words, u32 count, u32 m) {
  constexpr u32 COLUMNS = 32, ROWS = THREADS / COLUMNS;
  __shared__ u32 seen[ROWS][COLUMNS];
  const u32 column = threadIdx.x % COLUMNS, row = threadIdx.x / COLUMNS, query = blockIdx.x * COLUMNS + column;
  const bool there = query < m;
  words += (u64)blockIdx.y * count * m + query;
  u32 any = 0;
  if (there)
#pragma unroll 8
    for (u32 i = row; i < count; i += ROWS) any |= words[(u64)i * m];
  seen[row][column] = any;
  __syncthreads();
#pragma unroll
  for (int r = 0; r < ROWS; ++r) any |= seen[r][column];
  if (there && !any)
    for (u32 i = row; i < count; i += ROWS) words[(u64)i * m] = 0xffffffffu;
}
