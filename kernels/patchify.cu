// Between latents and tokens: see src/ops/patchify. Nothing is computed, so a type is a size. A thread moves the pixels of one
// row of one patch; what it writes lies beside what its neighbours write.
// hot patchify_*
#include "common/types.cuh"

struct Patches {
  u32 channels, size, columns, height, width;  // the last two of the latent
};

// Where a row of a patch lies: first number in the latent of a sample, first in its tokens, and the distance there.
struct Run {
  u64 latent, tokens;
  u32 step;
};

// Row `y` of channel `c` of the patch at (row, column).
__device__ __forceinline__ Run run(const Patches& p, bool channel_last, u32 row, u32 column, u32 c, u32 y) {
  u64 latent = ((u64)c * p.height + row * p.size + y) * p.width + column * p.size;
  u64 token = ((u64)row * p.columns + column) * (p.size * p.size * p.channels);
  u32 inside = channel_last ? y * p.size * p.channels + c : (c * p.size + y) * p.size;
  return {latent, token + inside, channel_last ? p.channels : 1};
}

// A row of blocks per row of tokens, a layer of them per sample; neighbours are neighbours in a token.
template <typename T>
__device__ __forceinline__ void forward(T* tokens, const T* latent, const Patches& p, bool channel_last) {
  u32 runs = p.channels * p.size, i = global_thread();
  if (i >= runs * p.columns) return;
  u32 column = i / runs, rest = i - column * runs, inner = channel_last ? p.channels : p.size, outer = rest / inner;
  rest -= outer * inner;
  Run at = run(p, channel_last, blockIdx.y, column, channel_last ? rest : outer, channel_last ? outer : rest);
  tokens += (u64)blockIdx.z * gridDim.y * p.columns * runs * p.size + at.tokens;
  latent += (u64)blockIdx.z * p.channels * p.height * p.width + at.latent;
  for (u32 x = 0; x < p.size; ++x) tokens[x * at.step] = latent[x];
}

// A row of blocks per row of pixels; neighbours are neighbours in it.
template <typename T>
__device__ __forceinline__ void inverse(T* latent, const T* tokens, const Patches& p, bool channel_last) {
  u32 i = global_thread();
  if (i >= p.channels * p.columns) return;
  u32 c = i / p.columns, column = i - c * p.columns, row = blockIdx.y / p.size;
  Run at = run(p, channel_last, row, column, c, blockIdx.y - row * p.size);
  u64 sample = (u64)blockIdx.z * p.channels * p.height * p.width;
  latent += sample + at.latent, tokens += sample + at.tokens;
  for (u32 x = 0; x < p.size; ++x) latent[x] = tokens[x * at.step];
}

#define KERNELS(T, bytes)                                                                                               \
  extern "C" __global__ void patchify_forward_##bytes(T* tokens, const T* latent, Patches p, u32 channel_last) {        \
    forward(tokens, latent, p, channel_last);                                                                           \
  }                                                                                                                     \
  extern "C" __global__ void patchify_inverse_##bytes(T* latent, const T* tokens, Patches p, u32 channel_last) {        \
    inverse(latent, tokens, p, channel_last);                                                                           \
  }
KERNELS(u16, 2) KERNELS(u32, 4)
