// 1x1 convolutions with what follows them, and that alone: see src/ops/pointwise. In single precision without tensor cores,
// by the tiles of common/conv.cuh: the CPU's chains of fused multiply-adds.
// hot pointwise_*
#include "common/bend.cuh"
#include "common/conv.cuh"
#include "common/map.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, 2)
    pointwise_wide_f32(float* y, const float* x, const float* w, const float* bias, const float* add, const Conv p, const Bend bend) {
  simt<4>(y, x, w, bias, add, p, bend);
}
// For few channels of the result.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    pointwise_narrow_f32(float* y, const float* x, const float* w, const float* bias, const float* add, const Conv p, const Bend bend) {
  simt<1>(y, x, w, bias, add, p, bend);
}

extern "C" __global__ void pointwise_apply_f32(float* x, u64 n, const Bend bend) { map(x, x, n, bend); }
