//! The kernels for Hopper by themselves: lists of products with all that may follow them.

use std::ops::Range;

use super::Rounding;
use crate::device::{DType, Device, Tensor};
use crate::ops::activation::{self, Activation};
use crate::ops::linear::cuda::hopper::{self, Epilogue, Kept, Low, Product, Variant};
use crate::ops::linear::cuda::{Matrix, Weight};
use crate::ops::linear::rounded;
use crate::ops::testing::{bits, check_precision, devices, on_vm, random, wide};

/// What follows, and of how many rows what it is given is kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum After {
    Nothing,
    Activate(Activation, usize),
    Add,
    AddGated,
    Normalise(usize),
    GeluBackward,
}

const EPS: f32 = 1e-3;
/// Rows of a sample.
const SAMPLE: usize = 37;

/// A product with its operands.
#[derive(Clone)]
pub struct Given {
    /// Rows, depth, columns, depth of the addition.
    size: [usize; 4],
    lies: Weight,
    after: After,
    scale: f32,
    x: Tensor,
    w: Tensor,
    t: Tensor,
    b: Tensor,
    bias: Option<Tensor>,
    residual: Tensor,
    modulation: Tensor,
    weight: Tensor,
}

fn matrix(t: &Tensor) -> Matrix {
    Matrix { at: t.address(), ld: t.width() as u32 }
}

impl Given {
    fn new(size: [usize; 4], lies: Weight, after: After, dtype: DType) -> Self {
        let [m, k, n, depth] = size;
        let seed = (m * 31 + k * 7 + n * 3 + depth) as u64;
        let of = |shape: [usize; 2], i| rounded(&random(&shape, seed + i), dtype);
        let weight = |depth, i| match lies {
            Weight::Along => of([n, depth], i),
            Weight::Across => of([depth, n], i),
        };
        // One scale and no bias is what most products have; the others are met as well.
        let plain = matches!(after, After::Add);
        Self {
            size,
            lies,
            after,
            scale: if plain { 0.75 } else { 1.0 },
            x: of([m, k], 1),
            w: weight(k, 2),
            t: of([m, depth], 3),
            b: weight(depth, 4),
            bias: (!plain).then(|| random(&[n], seed + 5)),
            residual: of([m, n], 6),
            modulation: of([m.div_ceil(SAMPLE), 2 * n], 7),
            weight: random(&[hopper::HEAD], seed + 8),
        }
    }

    fn to(&self, device: &Device) -> Self {
        let [x, w, t, b] = [&self.x, &self.w, &self.t, &self.b].map(|t| t.to(device));
        let [residual, modulation, weight] = [&self.residual, &self.modulation, &self.weight].map(|t| t.to(device));
        let bias = self.bias.as_ref().map(|b| b.to(device));
        Self { x, w, t, b, bias, residual, modulation, weight, ..self.clone() }
    }

    /// Some rows, that begin where a sample does.
    fn slice(&self, rows: Range<usize>) -> Self {
        let [_, k, n, depth] = self.size;
        let [x, t, residual] = [&self.x, &self.t, &self.residual].map(|t| t.slice(rows.clone()));
        let modulation = self.modulation.slice(rows.start / SAMPLE..rows.end.div_ceil(SAMPLE));
        Self { size: [rows.len(), k, n, depth], x, t, residual, modulation, ..self.clone() }
    }

    /// Of operands on a device: the product, and where its results go: `y`, what is kept, reciprocals.
    fn product(&self) -> (Product, Vec<Tensor>) {
        let [m, k, n, depth] = self.size;
        let (device, dtype) = (self.x.device(), self.x.dtype());
        let mut y = Tensor::scratch_of(&device, dtype, &[m, n]);
        let rows = match self.after {
            After::Activate(_, rows) | After::Normalise(rows) => rows,
            _ => 0,
        };
        let mut hidden = Tensor::scratch_of(&device, dtype, &[rows, n]);
        let mut inverse = Tensor::scratch(&device, &[rows, n / hopper::HEAD]);
        let kept = match rows {
            0 => Kept::NOTHING,
            _ => Kept { rows, to: Matrix { at: hidden.address_mut(), ld: n as u32 } },
        };
        let residual = matrix(&self.residual);
        let then = match self.after {
            After::Nothing => Epilogue::Nothing,
            After::Activate(activation, _) => Epilogue::Activate { activation, kept },
            After::Add => Epilogue::Add { residual },
            After::AddGated => {
                let gate = self.modulation.address() + dtype.bytes(n) as u64;
                Epilogue::AddGated { residual, gate, stride: 2 * n, per_sample: SAMPLE }
            }
            After::Normalise(_) => {
                let inverse = if rows > 0 { inverse.address_mut() } else { 0 };
                Epilogue::Normalise { weight: self.weight.address(), eps: EPS, kept, inverse }
            }
            After::GeluBackward => Epilogue::GeluBackward { hidden: residual },
        };
        let extra = (depth > 0).then(|| Low { t: matrix(&self.t), b: matrix(&self.b), depth });
        let product = Product {
            x: matrix(&self.x),
            m,
            k,
            w: matrix(&self.w),
            lies: self.lies,
            n,
            extra,
            scale: self.scale,
            bias: self.bias.as_ref().map_or(0, Tensor::address),
            y: Matrix { at: y.address_mut(), ld: n as u32 },
            then,
        };
        let results = match self.after {
            After::Normalise(1..) => vec![y, hidden, inverse],
            After::Activate(_, 1..) => vec![y, hidden],
            _ => vec![y],
        };
        (product, results)
    }

    /// What [`Given::product`] gives.
    fn reference(&self, r: Rounding) -> Vec<Vec<f64>> {
        let [m, k, n, depth] = self.size;
        let rounding = Rounding { operand: Some(self.x.dtype()), tf32: false, sum: true };
        let [x, w, t, b, residual, modulation] =
            [&self.x, &self.w, &self.t, &self.b, &self.residual, &self.modulation].map(wide);
        let of = |w: &[f64], depth: usize, s: usize, j: usize| match self.lies {
            Weight::Along => w[j * depth + s],
            Weight::Across => w[s * n + j],
        };
        let mut y = vec![0.0; m * n];
        r.multiply(&mut y, n, k, |i, s| x[i * k + s], |s, j| of(&w, k, s, j));
        r.multiply(&mut y, n, depth, |i, s| t[i * depth + s], |s, j| of(&b, depth, s, j));
        let bias = self.bias.as_ref().map_or(vec![0.0; n], wide);
        y.iter_mut().enumerate().for_each(|(i, y)| *y = *y * f64::from(self.scale) + bias[i % n]);
        let single = |y: &[f64]| {
            let y: Vec<f32> = y.iter().map(|v| *v as f32).collect();
            Tensor::from_slice(&Device::Cpu, &y, &[m, n])
        };
        match self.after {
            After::Nothing => vec![y],
            After::Activate(activation, rows) => {
                let mut after = single(&y);
                activation::forward(&mut after, activation);
                y.truncate(rows * n);
                [wide(&after), y].into_iter().take(1 + usize::from(rows > 0)).collect()
            }
            After::Add => vec![y.iter().zip(&residual).map(|(y, r)| y + r).collect()],
            After::AddGated => {
                let gate = |i: usize| modulation[i / n / SAMPLE * 2 * n + n + i % n];
                vec![(0..m * n).map(|i| residual[i] + gate(i) * y[i]).collect()]
            }
            After::Normalise(rows) => {
                y.iter_mut().for_each(|y| *y = if r.sum { rounding.operand(*y) } else { *y });
                let weight = wide(&self.weight);
                let mean = |v: &[f64]| v.iter().fold(0.0, |sum, v| r.sum(sum + v * v)) / hopper::HEAD as f64;
                let inverse = |v: &[f64]| r.sum(1.0 / (mean(v) + f64::from(EPS)).sqrt());
                let inverse: Vec<f64> = y.chunks(hopper::HEAD).map(inverse).collect();
                let of = |(i, y): (usize, &f64)| y * inverse[i / hopper::HEAD] * weight[i % hopper::HEAD];
                let after = y.iter().enumerate().map(of).collect();
                let first = |v: &[f64], of: usize| v[..rows * of].to_vec();
                let all = [after, first(&y, n), first(&inverse, n / hopper::HEAD)];
                all.into_iter().take(if rows > 0 { 3 } else { 1 }).collect()
            }
            After::GeluBackward => {
                let mut after = single(&y);
                activation::gelu_tanh_backward(&mut after, &single(&residual));
                vec![wide(&after)]
            }
        }
    }
}

/// Does all products in one list, each width by the kernel for it or all by one.
fn run(device: &Device, by: Option<Variant>, all: &[Given]) -> Vec<Tensor> {
    let Device::Gpu(gpu) = device else { unreachable!("kernels run on a GPU") };
    let all: Vec<Given> = all.iter().map(|g| g.to(device)).collect();
    let (products, results): (Vec<_>, Vec<_>) = all.iter().map(Given::product).unzip();
    assert!(products.iter().all(Product::fits));
    let dtype = all[0].x.dtype();
    match by {
        None => hopper::launch(gpu, dtype, &products),
        Some(variant) => hopper::launch_as(gpu, dtype, variant, &products),
    }
    results.into_iter().flatten().collect()
}

const HALVES: [DType; 2] = [DType::Bf16, DType::F16];

/// All that may follow a product of `m` rows and `n` columns.
fn all_after(lies: Weight, m: usize, n: usize) -> Vec<After> {
    if lies == Weight::Across {
        // Several times: blocks go through all slots more than once.
        return [After::Nothing, After::GeluBackward, After::Add].repeat(3);
    }
    let activate = |(i, a)| After::Activate(a, [0, 1, m, m / 2][i]);
    let activations = [Activation::GeluErf, Activation::QuickGelu, Activation::Silu, Activation::GeluTanh];
    let mut all: Vec<After> = activations.into_iter().enumerate().map(activate).collect();
    if n.is_multiple_of(hopper::HEAD) {
        all.extend([After::Normalise(0), After::Normalise(m.min(70))]);
    }
    all.extend([After::AddGated, After::Nothing, After::Add]);
    all
}

/// Products of all that may follow, for each tile and both lies of weights: whole tiles, or ragged ones.
pub fn lists(dtype: DType, is_even: bool) -> Vec<Vec<Given>> {
    let mut lists = Vec::new();
    for lies in [Weight::Along, Weight::Across] {
        let widths: &[usize] = if is_even { &[64, 192, 256] } else { &[40, 64, 192, 136, 256, 200] };
        lists.extend(widths.iter().map(|n| {
            // Rings that are not filled and rings that wrap; one and several tiles of rows.
            let sizes: &[[usize; 3]] =
                if is_even { &[[256, 256, 64]] } else { &[[130, 72, 0], [20, 400, 32], [3, 8, 96], [65, 64, 24]] };
            let of = |(i, after): (usize, After)| {
                let [m, k, depth] = sizes[i % sizes.len()];
                let after = match after {
                    After::Activate(a, rows) => After::Activate(a, rows.min(m)),
                    After::Normalise(rows) => After::Normalise(rows.min(m)),
                    after => after,
                };
                Given::new([m, k, *n, depth], lies, after, dtype)
            };
            all_after(lies, 130, *n).into_iter().enumerate().map(of).collect()
        }));
    }
    lists
}

/// What the kernels give for a list, by those for its widths or by one variant, on a device that has them.
pub fn exercise(device: &Device, by: Option<Variant>, list: &[Given]) -> Vec<Tensor> {
    let Device::Gpu(gpu) = device else { return Vec::new() };
    if gpu.is_hopper() { run(device, by, list) } else { Vec::new() }
}

#[test]
fn products_and_what_follows_are_as_exact_as_their_type_allows() {
    let [of_bf16, of_f16] = HALVES.map(|dtype| lists(dtype, false));
    let run = |device: &Device, lists: &[Vec<Given>]| lists.iter().flat_map(|list| run(device, None, list)).collect();
    // The order of things is the same of both types.
    let mut got: Vec<Tensor> = on_vm(|device| run(device, &of_bf16));
    let [_, device] = devices();
    got.extend::<Vec<_>>(run(&device, &of_f16));
    device.check().unwrap();
    let lists = [of_bf16, of_f16].concat();
    let mut got = got.iter();
    for given in lists.iter().flatten() {
        let [want, reference] = [Rounding::EXACT, Rounding { operand: None, tf32: false, sum: true }]
            .map(|rounding| given.reference(rounding));
        for (i, (want, reference)) in want.iter().zip(&reference).enumerate() {
            let reference: Vec<f32> = reference.iter().map(|v| *v as f32).collect();
            let reference = Tensor::from_slice(&Device::Cpu, &reference, &[reference.len()]);
            let Given { size, lies, after, .. } = given;
            let name = format!("result {i} of {size:?} {lies:?} {after:?}");
            check_precision(&name, got.next().expect("as many"), &reference, want);
        }
    }
    assert!(got.next().is_none());
}

#[test]
fn rows_have_the_same_bits_alone_in_any_list_and_by_any_tile() {
    let [_, device] = devices();
    // More products than a launch takes, of several tiles of rows and columns.
    let given = |n| {
        let sizes = [[150, 136, n, 32], [300, 40, n, 64], [74, 400, n, 0]];
        let all = [After::AddGated, After::Nothing, After::Activate(Activation::GeluTanh, 0)];
        (0..27).map(move |i| {
            Given::new(if i < 3 { sizes[i] } else { [5, 8, n, 0] }, Weight::Along, all[i % 3], DType::Bf16)
        })
    };
    for n in [72, 328] {
        let all: Vec<Given> = given(n).collect();
        let whole = run(&device, None, &all);
        for (given, whole) in all.iter().zip(&whole).take(3) {
            let rows = given.size[0];
            for rows in [0..1, 37..39, 37..rows, 0..rows] {
                let alone = run(&device, None, &[given.slice(rows.clone())]);
                assert_eq!(bits(&alone[0]), bits(&whole.slice(rows.clone())), "{rows:?} of {:?}", given.size);
            }
        }
        for variant in hopper::variants() {
            let got = run(&device, Some(variant), &all[..3]);
            assert!(got.iter().zip(&whole).all(|(a, b)| bits(a) == bits(b)), "{variant:?} gives other bits");
        }
    }
    device.check().unwrap();
}

#[test]
fn tiles_are_chosen_for_the_columns_they_waste() {
    let columns = [8, 64, 96, 136, 192, 256, 768, 1280, 1536, 2432, 4096, 4608, 6144].map(|n| hopper::tile(n).columns);
    assert_eq!(columns, [64, 64, 64, 192, 192, 256, 192, 256, 192, 192, 256, 256, 256]);
}
