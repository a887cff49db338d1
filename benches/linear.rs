//! A linear layer with a LoRA of rank 32, forward and backward, in floating-point operations (criterion's "elements").

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use engine::ops::linear::{InputGrad, LoraGrad, LoraRef, backward, forward};

#[path = "shapes/mod.rs"]
mod shapes;
use shapes::{TOKENS, filled};

fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group("linear");
    for (name, b, n, d, _) in TOKENS {
        let (x, w, rank) = (filled(&[b * n, d]), filled(&[d, d]), 32);
        let (a, b_) = (filled(&[rank, d]), filled(&[d, rank]));
        let lora = Some(LoraRef { a: &a, b: &b_, scale: 2.0 });
        let (base, low) = (2 * b * n * d * d, 4 * b * n * d * rank);
        group.throughput(Throughput::Elements((base + low) as u64));
        group.bench_function(BenchmarkId::new("forward", name), |bench| bench.iter(|| forward(&x, &w, None, lora)));
        let (mut da, mut db, mut dx) = (a.clone(), b_.clone(), x.clone());
        group.throughput(Throughput::Elements((base + 3 * low) as u64));
        group.bench_function(BenchmarkId::new("backward", name), |bench| {
            bench.iter(|| {
                let grad = Some(LoraGrad { a: &mut da, b: &mut db });
                backward(&x, &w, Some(&x), lora, grad, InputGrad::Overwrite(&mut dx));
            });
        });
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
