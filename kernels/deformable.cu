// Multi-scale deformable attention: see src/ops/deformable. A warp has a head of a token: its lanes work out a point each, and
// then go through all points together, a lane having a channel in every 32.
// hot deformable_*
#include "common/math.cuh"
#include "common/reduce.cuh"

constexpr int LEVELS = 8, SLICES = 4;
struct Pyramid {
  u32 levels, tokens;
  u32 height[LEVELS], width[LEVELS], first[LEVELS];
};

// Four pixels around a place, -1 for one outside of the image, and their parts.
struct Corners {
  int token[4];
  float part[4];

  __device__ __forceinline__ Corners(float x, float y, int height, int width, int first, float share) {
    const float left = floorf(x), top = floorf(y), across = x - left, down = y - top;
    part[0] = (1.0f - across) * (1.0f - down);
    part[1] = across * (1.0f - down);
    part[2] = (1.0f - across) * down;
    part[3] = across * down;
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const float column = left + c % 2, row = top + c / 2;
      // Also false for what is not a number.
      const bool inside = column >= 0.0f && row >= 0.0f && column < (float)width && row < (float)height;
      token[c] = inside ? first + (int)row * width + (int)column : -1;
      part[c] = inside ? share * part[c] : 0.0f;
    }
  }
};

// values and out [b, tokens, heads * d]; offsets [b, tokens, heads * points * 2]; weights [b, tokens, heads * points].
extern "C" __global__ void __launch_bounds__(256)
    deformable_forward_f32(float* out, const float* values, const float* offsets, const float* weights, const __grid_constant__ Pyramid p,
                           u32 heads, u32 d, u32 points, u32 n) {
  const u32 warp = global_thread() / 32, lane = threadIdx.x % 32;
  if (warp >= n) return;
  const u32 token = warp / heads, head = warp - token * heads, sample = token / p.tokens, width = heads * d;
  weights += (u64)warp * points;
  offsets += (u64)warp * points * 2;
  values += (u64)sample * p.tokens * width + head * d;

  // Where the token lies in its own level, from 0 to 1.
  u32 own = 0, at = token - sample * p.tokens;
  while (own + 1 < p.levels && at >= p.first[own + 1]) ++own;
  at -= p.first[own];
  const u32 row = at / p.width[own];
  const float center_x = __fdiv_rn((float)(at - row * p.width[own]) + 0.5f, (float)p.width[own]);
  const float center_y = __fdiv_rn((float)row + 0.5f, (float)p.height[own]);

  float most = __int_as_float(0xff800000), total[1] = {0.0f};
  for (u32 i = lane; i < points; i += 32) most = fmaxf(most, weights[i]);
  for (int step = 16; step > 0; step /= 2) most = fmaxf(most, __shfl_xor_sync(0xFFFFFFFF, most, step));
  for (u32 i = lane; i < points; i += 32) total[0] += exp_exact(weights[i] - most);
  lane_sums(total, 32);

  float sums[SLICES] = {};
  const u32 per_level = points / p.levels;
  for (u32 first = 0; first < points; first += 32) {
    // Lanes without a point have the last one, and nobody asks them.
    const u32 i = min(first + lane, points - 1), level = i / per_level;
    const float x = center_x * (float)p.width[level] + offsets[2 * i] - 0.5f;
    const float y = center_y * (float)p.height[level] + offsets[2 * i + 1] - 0.5f;
    const float share = __fdiv_rn(exp_exact(weights[i] - most), total[0]);
    const Corners mine(x, y, p.height[level], p.width[level], p.first[level], share);
#pragma unroll 2
    for (u32 k = 0; k < min(points - first, 32u); ++k)
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const int corner = __shfl_sync(0xFFFFFFFF, mine.token[c], k);
        const float part = __shfl_sync(0xFFFFFFFF, mine.part[c], k);
        const float* value = values + (long long)corner * width + lane;
#pragma unroll
        for (int s = 0; s < SLICES; ++s)
          if (s * 32 < d) {
            const float v = corner >= 0 && s * 32 + lane < d ? value[s * 32] : 0.0f;
            sums[s] = fmaf(part, v, sums[s]);
          }
      }
  }
  out += (u64)token * width + head * d + lane;
#pragma unroll
  for (int s = 0; s < SLICES; ++s)
    if (s * 32 + lane < d) out[s * 32] = sums[s];
}
