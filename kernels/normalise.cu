// Bytes of pictures to the numbers a vision model was trained on: see src/ops/normalise.
// hot normalise_*
#include "common/types.cuh"

// One thread per pixel of a crop of `height` (the grid's) by `width` that begins at `first` of pictures of `h` by `w`;
// `table` has the number for each byte of each channel.
extern "C" __global__ void normalise_forward(float* out, const u8* images, const float* table, u64 first, u32 h, u32 w,
                                             u32 width) {
  u64 x = global_thread(), y = blockIdx.y, height = gridDim.y, image = blockIdx.z, plane = height * width;
  if (x >= width) return;
  const u8* pixel = images + (image * h * w + y * w + first + x) * 3;
  out += (image * 3 * height + y) * width + x;
#pragma unroll
  for (int c = 0; c < 3; ++c) out[c * plane] = table[256 * c + pixel[c]];
}
