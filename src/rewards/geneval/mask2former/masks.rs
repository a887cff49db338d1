//! What the queries found as objects with masks, as mmdetection decides it (`MaskFormerFusionHead.instance_postprocess`).

use rayon::prelude::*;

use crate::models::mask2former::Found;
use crate::ops::resize::between;

/// Most objects of a picture: the pairs of a query and a class that are surest of all.
const MOST: usize = 100;

/// An object in a picture.
#[derive(Clone, Debug)]
pub struct Object {
    /// The number of its class.
    pub class: usize,
    /// How sure it is: that of the class times that of the mask.
    pub score: f64,
    /// Left, top, right, bottom of the mask, the latter two exclusive; zeros if it is empty.
    pub bounds: [usize; 4],
    /// Whether each pixel of the picture is its.
    pub mask: Vec<bool>,
}

/// Sizes of a picture on its way, height and width each.
#[derive(Clone, Copy)]
pub struct Sizes {
    /// As it came.
    pub original: [usize; 2],
    /// As it was resized ..
    pub resized: [usize; 2],
    /// .. and continued to.
    pub padded: [usize; 2],
}

/// A query and one of its classes.
struct Pair {
    query: usize,
    class: usize,
    score: f32,
}

/// The objects in one picture, of which `found` is a batch, but for those of a score of at most `least`: pairs of query and class
/// in the order of the class's score, which the masks change afterwards.
pub fn objects(found: &Found, sizes: Sizes, least: f64) -> Vec<Object> {
    let &[1, height, width, queries] = found.masks.shape() else { panic!("one picture: {:?}", found.masks) };
    let masks = found.masks.to_host();
    let pairs = surest(&found.classes.to_host(), queries);
    // A mask can only make an object less sure.
    let wanted: Vec<Pair> = pairs.into_iter().filter(|p| f64::from(p.score) > least).collect();
    let object = |pair: &Pair| {
        let plane: Vec<f32> = masks[pair.query..].iter().step_by(queries).copied().collect();
        let padded = resized(&plane, [height, width], sizes.padded, sizes.resized);
        let logits = resized(&padded, sizes.resized, sizes.original, sizes.original);
        let (quality, mask) = quality(&logits);
        let score = f64::from(pair.score) * quality;
        Object { class: pair.class, score, bounds: bounds(&mask, sizes.original[1]), mask }
    };
    let objects: Vec<Object> = wanted.par_iter().map(object).collect();
    objects.into_iter().filter(|o| o.score > least).collect()
}

/// The pairs with the highest score, the surest first; the last class is nothing.
fn surest(logits: &[f32], queries: usize) -> Vec<Pair> {
    let outputs = logits.len() / queries;
    let mut pairs: Vec<Pair> = Vec::with_capacity(queries * (outputs - 1));
    for (query, row) in logits.chunks_exact(outputs).enumerate() {
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let shares: Vec<f32> = row.iter().map(|v| (v - max).exp()).collect();
        let total: f32 = shares.iter().sum();
        let of = |(class, share): (usize, &f32)| Pair { query, class, score: share / total };
        pairs.extend(shares[..outputs - 1].iter().enumerate().map(of));
    }
    pairs.sort_by(|a, b| b.score.total_cmp(&a.score));
    pairs.truncate(MOST);
    pairs
}

/// The corner of size `kept` of an image of `size`, resized to `to` (bilinear, as torch's `interpolate`).
fn resized(image: &[f32], size: [usize; 2], to: [usize; 2], kept: [usize; 2]) -> Vec<f32> {
    let width = size[1];
    let (rows, columns) = (between(size[0], to[0]), between(size[1], to[1]));
    let mut out = Vec::with_capacity(kept[0] * kept[1]);
    for (above, below, down) in &rows[..kept[0]] {
        let (above, below) = (&image[above * width..][..width], &image[below * width..][..width]);
        out.extend(columns[..kept[1]].iter().map(|(left, right, across)| {
            let upper = (1.0 - across) * above[*left] + across * above[*right];
            let lower = (1.0 - across) * below[*left] + across * below[*right];
            (1.0 - down) * upper + down * lower
        }));
    }
    out
}

/// How sure the mask is, the mean of its pixels' probabilities, and the mask.
fn quality(logits: &[f32]) -> (f64, Vec<bool>) {
    let mask: Vec<bool> = logits.iter().map(|v| *v > 0.0).collect();
    let inside = logits.iter().zip(&mask).filter(|(_, inside)| **inside);
    let (sum, count) = inside.fold((0.0, 0.0), |(s, n), (v, _)| (s + 1.0 / (1.0 + f64::from(-v).exp()), n + 1.0));
    (sum / (count + 1e-6), mask)
}

fn bounds(mask: &[bool], width: usize) -> [usize; 4] {
    let mut bounds = [usize::MAX, usize::MAX, 0, 0];
    for (i, _) in mask.iter().enumerate().filter(|(_, inside)| **inside) {
        let (x, y) = (i % width, i / width);
        bounds = [bounds[0].min(x), bounds[1].min(y), bounds[2].max(x + 1), bounds[3].max(y + 1)];
    }
    if bounds[0] == usize::MAX { [0; 4] } else { bounds }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{Device, Tensor};
    use crate::io::{TensorFile, read_json};
    use crate::ops::testing::fixture;

    #[derive(serde::Deserialize)]
    struct Want {
        class: usize,
        score: f64,
        #[serde(rename = "box")]
        bounds: [usize; 4],
        pixels: usize,
    }

    #[derive(serde::Deserialize)]
    struct Case {
        name: String,
        original: [usize; 2],
        resized: [usize; 2],
        padded: [usize; 2],
        objects: Vec<Want>,
    }

    /// The fixture is a transcription of mmdetection's own lines in torch.
    #[test]
    fn objects_are_those_of_mmdetection() {
        let cases: Vec<Case> = read_json(&fixture("geneval/objects.json")).unwrap();
        let file = TensorFile::open(&fixture("geneval/objects.safetensors")).unwrap();
        for Case { name, original, resized, padded, objects: want } in cases {
            let [classes, masks] =
                ["classes", "masks"].map(|what| file.tensor(&format!("{name}.{what}"), &Device::Cpu).unwrap());
            let found = Found { classes, masks };
            let sizes = Sizes { original, resized, padded };
            let got = objects(&found, sizes, -1.0);
            assert_eq!(got.len(), want.len(), "{name}");
            for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                let pixels = got.mask.iter().filter(|m| **m).count();
                let same = (got.class, got.bounds, pixels) == (want.class, want.bounds, want.pixels);
                assert!(same && (got.score - want.score).abs() < 1e-6, "{name} {i}: {got:?}");
            }
            // What is left out is what is less sure, whatever the order.
            let sure: Vec<f64> = objects(&found, sizes, 0.1).iter().map(|o| o.score).collect();
            assert_eq!(sure, got.iter().map(|o| o.score).filter(|s| *s > 0.1).collect::<Vec<_>>());
        }
    }

    #[test]
    fn an_empty_mask_is_worth_nothing() {
        let found = Found {
            classes: Tensor::from_slice(&Device::Cpu, &[3.0, 0.0, -1.0], &[1, 1, 3]),
            masks: Tensor::from_slice(&Device::Cpu, &[-1.0; 4], &[1, 2, 2, 1]),
        };
        let sizes = Sizes { original: [3, 5], resized: [8, 8], padded: [8, 8] };
        let all = objects(&found, sizes, -1.0);
        assert_eq!(
            all.iter().map(|o| (o.class, o.score, o.bounds)).collect::<Vec<_>>(),
            [(0, 0.0, [0; 4]), (1, 0.0, [0; 4])]
        );
        assert!(objects(&found, sizes, 0.0).is_empty());
    }
}
