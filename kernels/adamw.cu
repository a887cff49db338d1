// One step of AdamW over flat buffers: see src/ops/adamw. What is fused is what the CPU, and PyTorch, fuse.
#include "common/types.cuh"

// hot adamw_*

struct alignas(16) Numbers {
  float factor, step_size, correction, shrink, beta1_rest, beta2, beta2_rest, eps;
};

__device__ __forceinline__ void update(float& p, float g, float& m, float& v, const Numbers& n) {
  g = g * n.factor;
  m = fmaf(n.beta1_rest, g - m, m);
  v = fmaf(n.beta2_rest * g, g, v * n.beta2);
  float denominator = __fdiv_rn(__fsqrt_rn(v), n.correction) + n.eps;
  p = p * n.shrink + __fdiv_rn(n.step_size * m, denominator);
}

extern "C" __global__ void __launch_bounds__(256)
    adamw_step(float* params, const float* __restrict__ grads, float* means, float* squares, const Numbers* numbers, u64 n) {
  u64 i = 4 * global_thread();
  const Numbers s = *numbers;
  bool aligned = (((u64)params | (u64)grads | (u64)means | (u64)squares) & 15) == 0;
  if (i + 4 <= n && aligned) {
    auto p = *(float4*)(params + i), m = *(float4*)(means + i), v = *(float4*)(squares + i);
    const auto g = *(const float4*)(grads + i);
    update(p.x, g.x, m.x, v.x, s);
    update(p.y, g.y, m.y, v.y, s);
    update(p.z, g.z, m.z, v.z, s);
    update(p.w, g.w, m.w, v.w, s);
    *(float4*)(params + i) = p;
    *(float4*)(means + i) = m;
    *(float4*)(squares + i) = v;
  } else {
    for (u64 end = min(i + 4, n); i < end; ++i) update(params[i], grads[i], means[i], squares[i], s);
  }
}
