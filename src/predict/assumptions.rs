//! What predictions assume, each with its reason. A visit to a GPU replaces them one by one.

/// A number that was not measured here.
pub struct Assumption {
    /// What it is.
    pub name: &'static str,
    /// How much, and of what.
    pub value: f64,
    /// The unit, in words.
    pub unit: &'static str,
    /// Where it comes from.
    pub why: &'static str,
}

macro_rules! assumptions {
    ($($id:ident = $value:expr, $unit:literal, $name:literal, $why:literal;)*) => {
        $(pub const $id: Assumption = Assumption { name: $name, value: $value, unit: $unit, why: $why };)*
        /// All of them.
        pub const TABLE: &[&Assumption] = &[$(&$id),*];
    };
}

assumptions! {
    PRODUCT = 0.80, "of the half-precision peak", "products on Hopper, whole waves",
        "cuBLAS on an H200 measured 769-798 of 989 TFLOP/s on random data (performance.md 4.1); ours is assumed to be as good";
    PRODUCT_PORTABLE = 0.67, "of the half-precision peak", "products with mma.sync, whole waves",
        "200-230 of 312 TFLOP/s expected on an A100 (cuda.md 4.2)";
    CONVOLUTION = 0.60, "of the half-precision peak", "convolutions, whole waves of 128 x 128 tiles",
        "the loop of the products with tiles that shared memory feeds at 96 of 128 B/clock (cuda.md 4.1), and halos";
    ROW_SUM = 0.40, "of the half-precision peak", "gradients of low-rank factors",
        "a guess: one side is 32 wide; memory limits them anyway";
    SINGLE = 0.50, "of the f32 peak", "products in f32", "a guess: operands come from shared memory, one load for four products";
    SOFTMAX = 4.7, "f32 operations per score", "attention beside products and ex2",
        "300 of 1,324 clocks of a tile of 64 x 128 at 128 lanes (cuda.md 4.1); no overlap: 39 % of peak at width 64";
    SOFTMAX_GRAD = 15.6, "f32 operations per score", "its gradient beside products and ex2",
        "2 x 1,000 clocks of a tile of 128 x 128, seven products and two ex2, as two kernels do it (cuda.md 4.1, 4.3); no overlap";
    BANDWIDTH = 0.90, "of the memory's peak", "global memory",
        "device copy on an H200 measured 4.3 of 4.8 TB/s (performance.md 4.1)";
    ISSUE = 0.75, "of 4 instructions in a clock", "kernels that stream: instructions of src/exercises/counts.txt per byte",
        "a guess: ex2, divisions and dependent loads leave slots empty";
    GRAPH_NODE = 2.0, "µs", "a launch in a graph", "a guess: the last blocks of one kernel and the first of the next; not hidden";
    LAUNCH = 4.0, "µs", "a launch by itself", "2,500-3,000 launches take 12-15 ms (performance.md 4.6); not hidden";
    ANSWER = 20.0, "µs", "a result that the host waits for", "a guess: a copy, a wake-up and an idle device";
}
