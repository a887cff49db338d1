//! How mmdetection makes a picture ready, in the way of the generation that a file is of.

use rayon::prelude::*;

use crate::device::{Device, Tensor};
use crate::io::image::RgbImage;
use crate::models::mask2former::Layout;
use crate::rewards::opencv::bilinear;

/// Most pixels of the longer and of the shorter side.
const LONGEST: f64 = 1333.0;
const SHORTEST: f64 = 800.0;
/// Sides are continued to multiples of this.
const MULTIPLE: usize = 32;
/// Of red, green and blue, if the picture comes as it should.
const MEAN: [f32; 3] = [123.675, 116.28, 103.53];
const STD: [f32; 3] = [58.395, 57.12, 57.375];
/// What the second generation continues pictures with, before it normalises them.
const GREY: f32 = 128.0;

/// The order in which the network gets the channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channels {
    /// As it was trained: the benchmark's own script reads files so.
    Rgb,
    /// Red and blue exchanged: what the reward servers of flow_grpo and NFT make of arrays.
    Bgr,
}

/// A picture as the network takes it.
pub struct Ready {
    /// `[1, 3, h, w]`, both sides multiples of 32.
    pub pixels: Tensor,
    /// Height and width of the picture in it; the rest is padding.
    pub size: [usize; 2],
}

/// Makes a picture ready for a network on `device` whose file is of `layout`.
pub fn ready(image: &RgbImage, layout: Layout, channels: Channels, device: &Device) -> Ready {
    let size = fitting([image.height, image.width]);
    let resized = match layout {
        // Of floats, which are not rounded.
        Layout::Mmdet3 => resize_floats(image, size),
        Layout::Mmdet2 | Layout::HuggingFace => {
            bilinear(image, size[1], size[0]).data.into_iter().map(f32::from).collect()
        }
    };
    let beyond = |c: usize| match layout {
        Layout::Mmdet3 => 0.0,
        Layout::Mmdet2 | Layout::HuggingFace => (GREY - MEAN[c]) / STD[c],
    };
    let [h, w] = size;
    let padded = size.map(|n| n.next_multiple_of(MULTIPLE));
    let mut pixels = vec![0.0; 3 * padded[0] * padded[1]];
    pixels.par_chunks_exact_mut(padded[1]).enumerate().for_each(|(line, out)| {
        let (c, y) = (line / padded[0], line % padded[0]);
        let from = if channels == Channels::Rgb { c } else { 2 - c };
        out.fill(beyond(c));
        if y < h {
            let row = resized[y * w * 3..][..w * 3].as_chunks::<3>().0;
            out.iter_mut().zip(row).for_each(|(o, pixel)| *o = (pixel[from] - MEAN[c]) / STD[c]);
        }
    });
    Ready { pixels: Tensor::from_slice(device, &pixels, &[1, 3, padded[0], padded[1]]), size }
}

/// The largest size of the same shape that fits (`mmcv.rescale_size`).
fn fitting([h, w]: [usize; 2]) -> [usize; 2] {
    let (long, short) = (h.max(w) as f64, h.min(w) as f64);
    let scale = (LONGEST / long).min(SHORTEST / short);
    [h, w].map(|side| ((side as f64 * scale + 0.5) as usize).max(1))
}

/// Two pixels along an axis and their shares of what lies between.
type Between = ([usize; 2], [f32; 2]);

/// The places of `to` pixels along an axis of `from`: the pixel before, and the share of the one after.
fn places(from: usize, to: usize) -> impl Iterator<Item = (i64, f32)> {
    let scale = from as f64 / to as f64;
    (0..to).map(move |i| {
        let at = (i as f64 + 0.5) * scale - 0.5;
        (at.floor() as i64, (at - at.floor()) as f32)
    })
}

/// Along a row: places stop at the first and the last pixel.
fn columns(from: usize, to: usize) -> Vec<Between> {
    let last = from as i64 - 1;
    let column = |(first, share): (i64, f32)| match first {
        i64::MIN..0 => ([0, 0], [1.0, 0.0]),
        _ if first >= last => ([last as usize; 2], [1.0, 0.0]),
        _ => ([first as usize, first as usize + 1], [1.0 - share, share]),
    };
    places(from, to).map(column).collect()
}

/// Down a column: beyond the edge both are the same pixel.
fn rows(from: usize, to: usize) -> Vec<Between> {
    let within = |i: i64| i.clamp(0, from as i64 - 1) as usize;
    places(from, to).map(|(i, share)| ([within(i), within(i + 1)], [1.0 - share, share])).collect()
}

/// The picture's values in another size, as OpenCV's `resize` has them on x86 with `INTER_LINEAR` (by Intel's primitives): places are
/// exact, nothing is rounded.
fn resize_floats(image: &RgbImage, [h, w]: [usize; 2]) -> Vec<f32> {
    let columns = columns(image.width, w);
    let across = |y: usize| -> Vec<f32> {
        let row = &image.data[y * image.width * 3..][..image.width * 3];
        let pixel = |([a, b], [first, second]): &Between| {
            [0, 1, 2].map(|c| f32::from(row[a * 3 + c]) * first + f32::from(row[b * 3 + c]) * second)
        };
        columns.iter().flat_map(pixel).collect()
    };
    let lines: Vec<Vec<f32>> = (0..image.height).into_par_iter().map(across).collect();
    let mut out = vec![0.0; h * w * 3];
    out.par_chunks_exact_mut(w * 3).zip(rows(image.height, h)).for_each(|(out, ([a, b], [first, second]))| {
        let both = lines[a].iter().zip(&lines[b]);
        out.iter_mut().zip(both).for_each(|(out, (a, b))| *out = a * first + b * second);
    });
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::read_json;
    use crate::ops::testing::fixture;

    /// The picture of the fixture (`tools/oracle/geneval.py`).
    fn picture(height: usize, width: usize) -> RgbImage {
        let byte = |i: usize| (((i * i * 31) >> 3) ^ i) as u8;
        RgbImage { width, height, data: (0..height * width * 3).map(byte).collect() }
    }

    #[derive(serde::Deserialize)]
    struct Case {
        from: [usize; 2],
        to: [usize; 2],
        crc32: u32,
        floats: Vec<f32>,
    }

    #[derive(serde::Deserialize)]
    struct Whole {
        from: [usize; 2],
        size: [usize; 2],
        shape: [usize; 2],
        mmdet2: Vec<f32>,
        mmdet3: Vec<f32>,
    }

    #[derive(serde::Deserialize)]
    struct Fixture {
        resized: Vec<Case>,
        ready: Vec<Whole>,
        step: usize,
    }

    fn fixture_of() -> Fixture {
        read_json(&fixture("geneval/input.json")).unwrap()
    }

    fn check(what: &str, got: &[f32], want: &[f32], step: usize, bound: f32) {
        let got: Vec<f32> = got.iter().copied().step_by(step).collect();
        assert_eq!(got.len(), want.len(), "{what}");
        let error = got.iter().zip(want).map(|(g, w)| (g - w).abs()).fold(0.0, f32::max);
        assert!(error <= bound, "{what}: off by {error:e}");
    }

    #[test]
    fn pictures_are_resized_as_opencv_does_to_the_byte() {
        let Fixture { resized, step, .. } = fixture_of();
        for Case { from, to, crc32, floats } in resized {
            let picture = picture(from[0], from[1]);
            assert_eq!(crc32fast::hash(&bilinear(&picture, to[1], to[0]).data), crc32, "{from:?} to {to:?}");
            check(&format!("{from:?} to {to:?}"), &resize_floats(&picture, to), &floats, step, 1e-4);
        }
    }

    #[test]
    fn each_generation_makes_pictures_ready_in_its_own_way() {
        let Fixture { ready: cases, step, .. } = fixture_of();
        for Whole { from, size, shape, mmdet2, mmdet3 } in cases {
            for (layout, want) in [(Layout::Mmdet2, &mmdet2), (Layout::HuggingFace, &mmdet2), (Layout::Mmdet3, &mmdet3)]
            {
                let Ready { pixels, size: got } =
                    ready(&picture(from[0], from[1]), layout, Channels::Rgb, &Device::Cpu);
                assert_eq!((got, pixels.shape()), (size, &[1, 3, shape[0], shape[1]][..]));
                check(&format!("{layout:?} {from:?}"), &pixels.to_host(), want, step, 2e-6);
            }
        }
    }

    #[test]
    fn exchanged_channels_keep_the_means_of_their_places() {
        let one = RgbImage { width: 1, height: 1, data: vec![200, 100, 50] };
        let first = |channels| {
            let Ready { pixels, .. } = ready(&one, Layout::Mmdet3, channels, &Device::Cpu);
            let pixels = pixels.to_host();
            [0, 1, 2].map(|c| pixels[c * pixels.len() / 3])
        };
        let at = |values: [f32; 3]| [0, 1, 2].map(|c| (values[c] - MEAN[c]) / STD[c]);
        assert_eq!(first(Channels::Rgb), at([200.0, 100.0, 50.0]));
        assert_eq!(first(Channels::Bgr), at([50.0, 100.0, 200.0]));
    }
}
