//! Kernels that do the same in different ways, at the shapes of Stable Diffusion 3.5 Medium: which is the fastest. What the
//! engine itself takes comes first; all others are only called here and by the tests.

use std::path::Path;

use anyhow::Result;
use engine::device::{DType, Tensor};
use engine::ops::attention::{self, Heads, Mask, OutputGrad, Part};
use engine::ops::linear::{self, Layer, Then};

use super::measure::{Session, Variant, Work};
use super::ops::{Bench, SETS, Sizes, each, moved, product, sizes};

pub const ALL: &[(&str, Bench)] = &[("linear", linear), ("attention", attention)];

fn linear(s: &mut Session, _: Option<&Path>) -> Result<()> {
    if !s.gpu.is_hopper() {
        return Ok(());
    }
    let Sizes { batch, image, text, width: d, .. } = sizes(s);
    let (images, texts) = (batch * image, batch * text);
    for [m, n, k] in
        [[images, 3 * d, d], [images, d, d], [images, 4 * d, d], [images, d, 4 * d], [texts, 4 * d, d], [images, 64, d]]
    {
        let (x, w) = (each(s, &[m, k]), s.weight(n, k));
        let layer = Layer { weight: &w, bias: None };
        let x = &x;
        let w = &w;
        let mut ways = vec![Variant::new("as taken", |i: usize| drop(linear::forward(&x[i], layer, Then::Nothing)))];
        ways.extend(linear::variants().into_iter().map(|v| {
            let name = format!("{} columns, {}, {} rows of tiles", v.columns, v.name, v.group);
            Variant::new(name, move |i: usize| drop(linear::product_by(v, &x[i], w)))
        }));
        s.rank(&format!("{m}x{n}x{k}"), product(m, n, k), SETS, ways)?;
    }
    Ok(())
}

/// Both ways of attention over parts of the lengths of the model, with heads of 64 and of 128.
fn attention(s: &mut Session, _: Option<&Path>) -> Result<()> {
    if !s.gpu.is_hopper() {
        return Ok(());
    }
    let Sizes { batch: b, image, text, width: d, .. } = sizes(s);
    for (lengths, of_head) in [(&[image, text][..], 64), (&[image], 64), (&[image, text], 128)] {
        let n: usize = lengths.iter().sum();
        let heads = Heads { count: d / of_head, scale: 1.0 / (of_head as f32).sqrt(), compute: DType::Bf16 };
        let mut operands = || lengths.iter().map(|n| [0; 4].map(|_| s.normal(&[b, *n, d], 1.0))).collect();
        let sets: [Vec<[Tensor; 4]>; SETS] = std::array::from_fn(|_| operands());
        let parts = |set: usize| sets[set].iter().map(|[q, k, v, _]| Part { q, k, v }).collect::<Vec<_>>();
        let parts = &parts;
        let tokens = lengths.iter().map(usize::to_string).collect::<Vec<_>>().join("+");
        let name = format!("{b}x{tokens}, {} heads of {of_head}", heads.count);
        let flop = 4.0 * (b * n * n * d) as f64;

        let taken = |i: usize| drop(attention::forward(&parts(i), heads, Mask::default()));
        let mut ways = vec![Variant::new("as taken", taken)];
        let others = attention::forward_variants().into_iter().filter(|v| v.width as usize == of_head);
        ways.extend(others.map(|v| {
            let name = format!("{}, {} queries", v.name, v.rows);
            Variant::new(name, move |i: usize| drop(attention::forward_by(v, &parts(i), heads)))
        }));
        s.rank(&format!("forward {name}"), Work { flop, ..moved(4, b * n * d) }, SETS, ways)?;
        if of_head != 64 {
            continue;
        }
        let done: Vec<_> = (0..SETS).map(|i| attention::forward(&parts(i), heads, Mask::default())).collect();
        let read = |i: usize| -> Vec<Option<OutputGrad>> {
            let outputs = done[i].out.iter().zip(&sets[i]);
            outputs.map(|(out, [.., dout])| Some(OutputGrad { out, dout })).collect()
        };
        let (done, read) = (&done, &read);
        let taken = |i: usize| drop(attention::backward(&read(i), &done[i].lse, &parts(i), heads));
        let mut ways = vec![Variant::new("as taken", taken)];
        ways.extend(attention::backward_variants().iter().map(|v| {
            let name = format!("{}: {} queries a step, blocks of {}", v.name, v.query_step, v.query_block);
            Variant::new(name, move |i: usize| {
                drop(attention::backward_by(*v, &read(i), &done[i].lse, &parts(i), heads));
            })
        }));
        let work = Work { flop: 2.5 * flop, ..moved(8, b * n * d) };
        s.rank(&format!("backward {name}"), work, SETS, ways)?;
    }
    Ok(())
}
