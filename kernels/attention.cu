// Softmax attention over token-major operands, forward: see src/ops/attention.
// shared attention_forward_f32_d32 35840
// shared attention_forward_f32_d64 52224
// shared attention_forward_f32_d128 68608
// shared attention_forward_f32_d512 52224
// hot attention_forward_*
#include "common/attention_forward.cuh"

// With what is added to scores, and the triangle.
struct Scores {
  const float* bias;
  u32 causal;

  static __device__ __forceinline__ float least() { return -infinity(); }
  // A causal tile sees no key beyond its last query.
  __device__ __forceinline__ u32 end(u32 row, u32 n) const { return causal ? min(n, row) : 0xffffffffu; }
  __device__ __forceinline__ void see(float& score, const Sequence& s, u32 row, u32 tile, u32 key, u32 keys) const {
    if (bias && row < s.n && key < keys) score += bias[((u64)blockIdx.y * s.n + row) * s.n + tile + key];
    if (key >= keys || (causal && tile + key > row)) score = -infinity();
  }
};

#define FORWARD(D, BLOCKS)                                                                                              \
  extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) attention_forward_f32_d##D(                              \
      const __grid_constant__ Sequence s, float* lse, const float* bias, u32 causal) {                                  \
    forward<D, 0>(s, lse, Scores{bias, causal});                                                                        \
  }
FORWARD(32, 2) FORWARD(64, 2) FORWARD(128, 2) FORWARD(512, 1)
