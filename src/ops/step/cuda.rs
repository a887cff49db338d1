use super::{Inputs, Row};
use crate::device::Tensor;
use crate::device::gpu::{Arg, Grid, Results, Table, type_code};

pub(super) fn forward(next: &mut Tensor, inputs: Inputs, row: Row) {
    let gpu = next.gpu();
    let words: Vec<[u32; 4]> = inputs.noise.iter().map(|key| key.words()).collect();
    let keys = (row.s != 0.0).then(|| gpu.table(&words));
    let numbers = numbers(&inputs, row);
    let args = [next.arg_mut(), formula(&inputs, row, &numbers), keys.as_ref().map_or(Arg::Ptr(0), Arg::from)];
    gpu.launch("step", "step_forward", grid(inputs.x), args);
}

pub(super) fn residuals(means: &mut [f64], next: &Tensor, inputs: Inputs, row: Row) {
    let (gpu, grid) = (next.gpu(), grid(next));
    let [chunks, samples, _] = grid.blocks.map(|n| n as usize);
    let sums = Results::<f64>::scratch(&gpu, samples * chunks);
    let numbers = numbers(&inputs, row);
    gpu.launch("step", "step_residuals", grid, [(&sums).into(), next.arg(), formula(&inputs, row, &numbers)]);
    let (sums, length) = (sums.read(), next.len() / samples.max(1));
    for (mean, sums) in means.iter_mut().zip(sums.chunks(chunks.max(1))) {
        *mean = sums.iter().sum::<f64>() / length as f64;
    }
}

/// A block for 1024 elements of a sample.
fn grid(x: &Tensor) -> Grid {
    let length = x.len() / x.dim(0).max(1);
    Grid::of([length.div_ceil(1024), x.dim(0), 1], 256)
}

/// `Numbers` of kernels/step.cu.
fn numbers(inputs: &Inputs, row: Row) -> Table {
    let Row { a, b, history, s } = row;
    inputs.x.gpu().table(&[inputs.guidance.unwrap_or(0.0), a, b, history[0], history[1], s])
}

/// `Inputs` of kernels/step.cu.
fn formula(inputs: &Inputs, row: Row, numbers: &Table) -> Arg {
    let Inputs { x, velocity, guidance, history, .. } = *inputs;
    let samples = x.dim(0);
    let (unconditional, conditional) = match guidance {
        Some(_) => (velocity.arg(), velocity.slice(samples..2 * samples).arg()),
        None => (Arg::Ptr(0), velocity.arg()),
    };
    let history = [0, 1].map(|k| match row.history[k] {
        0.0 => Arg::Ptr(0),
        _ => {
            let m = history[k].expect("a row with a factor for history is given it");
            assert_eq!(m.dtype(), x.dtype(), "step: history for {x:?}");
            m.arg()
        }
    });
    let tensors = [x.arg(), conditional, unconditional].into_iter().chain(history);
    let sizes =
        [type_code(x.dtype()), type_code(velocity.dtype()), (x.len() / samples.max(1)) as u32, 0].map(Arg::from);
    let fields = tensors.chain([Arg::from(numbers)]).chain(sizes);
    Arg::Bytes(fields.flat_map(|field| field.bytes()).collect())
}
