// Images cut into windows, put together again, and neighbours taken together: see src/ops/windows. A thread has N channels of
// a pixel.
// hot windows_*
#include "common/types.cuh"

// Of the images, a window's side, and windows down and across an image.
struct Size {
  u32 images, height, width, channels, side, shift, rows, columns;

  // The place of a window among all: by kind, then by image.
  __device__ __forceinline__ u32 window(u32 image, u32 row, u32 column) const {
    if (!shift) return (image * rows + row) * columns + column;
    const u32 above = rows - 1, before = columns - 1;
    u32 first = 0;
    if (row < above && column < before) return (image * above + row) * before + column;
    first += images * above * before;
    if (row < above) return first + image * above + row;
    first += images * above;
    if (column < before) return first + image * before + column;
    return first + images * before + image;
  }
  // The first number, in the windows, of pixel (y, x) of the turned image.
  __device__ __forceinline__ u64 at(u32 image, u32 y, u32 x) const {
    const u64 pixel = (u64)window(image, y / side, x / side) * side * side + y % side * side + x % side;
    return pixel * channels;
  }
};

template <int N> __device__ __forceinline__ void partition(float* out, const float* x, const Size& p, u32 n) {
  using P = Pack<float, N>;
  const u32 i = global_thread();
  if (i >= n) return;
  const u32 packs = p.channels / N, pixel = i / packs, channel = (i - pixel * packs) * N;
  const u32 height = p.rows * p.side, width = p.columns * p.side, line = pixel / width, column = pixel - line * width;
  const u32 image = line / height, row = line - image * height;
  u32 from_y = row + p.shift, from_x = column + p.shift;
  if (from_y >= height) from_y -= height;
  if (from_x >= width) from_x -= width;
  P v = {};
  if (from_y < p.height && from_x < p.width)
    v = *(const P*)(x + (((u64)image * p.height + from_y) * p.width + from_x) * p.channels + channel);
  *(P*)(out + p.at(image, row, column) + channel) = v;
}

template <int N> __device__ __forceinline__ void add(float* x, const float* parts, const Size& p, u32 n) {
  using P = Pack<float, N>;
  const u32 i = global_thread();
  if (i >= n) return;
  const u32 packs = p.channels / N, pixel = i / packs, channel = (i - pixel * packs) * N;
  const u32 line = pixel / p.width, column = pixel - line * p.width, image = line / p.height, row = line - image * p.height;
  const u32 y = row < p.shift ? row + p.rows * p.side - p.shift : row - p.shift;
  const u32 x_at = column < p.shift ? column + p.columns * p.side - p.shift : column - p.shift;
  P v = *(const P*)(x + (u64)i * N);
  const P part = *(const P*)(parts + p.at(image, y, x_at) + channel);
#pragma unroll
  for (int e = 0; e < N; ++e) v.v[e] += part.v[e];
  *(P*)(x + (u64)i * N) = v;
}

// The parts of a pixel of the result: (0, 0), (1, 0), (0, 1), (1, 1) by row and column.
template <int N>
__device__ __forceinline__ void neighbours(float* out, const float* x, u32 height, u32 width, u32 channels, u32 n) {
  using P = Pack<float, N>;
  const u32 i = global_thread();
  if (i >= n) return;
  const u32 packs = channels / N, part = i / packs, channel = (i - part * packs) * N;
  const u32 columns = (width + 1) / 2, rows = (height + 1) / 2, pixel = part / 4, line = pixel / columns, image = line / rows;
  const u32 y = 2 * (line - image * rows) + part % 2, x_at = 2 * (pixel - line * columns) + part / 2 % 2;
  P v = {};
  if (y < height && x_at < width) v = *(const P*)(x + (((u64)image * height + y) * width + x_at) * channels + channel);
  *(P*)(out + (u64)i * N) = v;
}

#define WINDOWS(NAME, N)                                                                                                \
  extern "C" __global__ void windows_partition_##NAME(float* out, const float* x, const Size p, u32 n) {                \
    partition<N>(out, x, p, n);                                                                                         \
  }                                                                                                                     \
  extern "C" __global__ void windows_add_##NAME(float* x, const float* parts, const Size p, u32 n) { add<N>(x, parts, p, n); } \
  extern "C" __global__ void windows_neighbours_##NAME(float* out, const float* x, u32 height, u32 width, u32 channels, \
                                                       u32 n) {                                                         \
    neighbours<N>(out, x, height, width, channels, n);                                                                  \
  }
WINDOWS(packed, 4) WINDOWS(plain, 1)
