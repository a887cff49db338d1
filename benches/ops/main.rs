//! Every op alone, in one file each: `cargo bench --bench ops -- <op>`. Criterion's "elements" are numbers of the result
//! where a file does not say otherwise.

mod activation;
mod adaln;
mod adamw;
mod attention;
mod conv2d;
mod embedding;
mod gate;
mod group_norm;
mod layer_norm;
mod linear;
mod matmul;
mod noise;
mod patchify;
mod products;
mod resize;
mod rms_norm;
mod shapes;
mod step;

criterion::criterion_group!(
    benches,
    activation::bench,
    adaln::bench,
    adamw::bench,
    attention::bench,
    conv2d::bench,
    embedding::bench,
    gate::bench,
    group_norm::bench,
    layer_norm::bench,
    linear::bench,
    matmul::bench,
    noise::bench,
    patchify::bench,
    products::bench,
    resize::bench,
    rms_norm::bench,
    step::bench,
);

// As the commands do: the ops' own threads run the whole.
fn main() {
    engine::device::with_threads(0, benches).expect("threads");
}
