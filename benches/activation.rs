//! Pointwise non-linearities (criterion's "elements" are numbers).

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use engine::device::Tensor;
use engine::ops::activation::{gelu_tanh, gelu_tanh_backward, silu};

#[path = "shapes/mod.rs"]
mod shapes;
use shapes::{TOKENS, filled};

/// An op by name.
type Op<'a> = (&'a str, &'a dyn Fn(&mut Tensor));

fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group("activation");
    for (name, b, n, d, _) in TOKENS {
        let x: Tensor = filled(&[b, n, 4 * d]);
        group.throughput(Throughput::Elements(x.len() as u64));
        let ops: [Op; 3] =
            [("gelu_tanh", &gelu_tanh), ("gelu_tanh_backward", &|d| gelu_tanh_backward(d, &x)), ("silu", &silu)];
        for (op, f) in ops {
            // A copy for each round: in place again and again, the numbers would shrink until they are subnormal.
            group.bench_function(BenchmarkId::new(op, name), |bench| {
                bench.iter_batched_ref(|| x.clone(), |y| f(y), BatchSize::LargeInput);
            });
        }
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
