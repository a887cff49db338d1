//! Pointwise non-linearities.

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput};
use engine::device::Tensor;
use engine::ops::activation::{Activation, forward, gelu_tanh_backward};
use engine::ops::copy;

use crate::shapes::{TOKENS, filled};

/// An op by name.
type Op<'a> = (&'a str, &'a dyn Fn(&mut Tensor));

pub fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group("activation");
    for (name, b, n, d, _) in TOKENS {
        let x = filled(&[b, n, 4 * d]);
        group.throughput(Throughput::Elements(x.len() as u64));
        let ops: [Op; 5] = [
            ("gelu_tanh", &|x| forward(x, Activation::GeluTanh)),
            ("gelu_tanh_backward", &|d| gelu_tanh_backward(d, &x)),
            ("gelu_erf", &|x| forward(x, Activation::GeluErf)),
            ("quick_gelu", &|x| forward(x, Activation::QuickGelu)),
            ("silu", &|x| forward(x, Activation::Silu)),
        ];
        for (op, f) in ops {
            // A copy for each round: in place again and again, the numbers would shrink until they are subnormal.
            group.bench_function(BenchmarkId::new(op, name), |bench| {
                bench.iter_batched_ref(|| copy::owned(&x), |y| f(y), BatchSize::LargeInput);
            });
        }
    }
    group.finish();
}
