//! The size of a picture as a JPEG file, the reward of Black et al. 2023 (DDPO). The encoder is libjpeg in its
//! version-6 settings, and so gives the very bytes that Pillow writes at quality 95.

#[cfg(test)]
mod tests;

use anyhow::{Context, Result, bail};
use rayon::prelude::*;

use super::{Images, Reward, Score};
use crate::data::Prompt;
use crate::io::image::{self, RgbImage};

/// The quality of the published rewards.
const QUALITY: f32 = 95.0;
/// What the compressibility reward is divided by (flow_grpo, AWM, RSM and NFT).
const SCALE: f64 = 500.0;

/// Which way the size counts.
#[derive(Clone, Copy)]
pub enum Jpeg {
    /// Minus the size in kB (1000 bytes), over 500.
    Compressibility,
    /// The size in kB (1000 bytes).
    Incompressibility,
}

impl Reward for Jpeg {
    fn name(&self) -> &'static str {
        match self {
            Self::Compressibility => "jpeg_compressibility",
            Self::Incompressibility => "jpeg_incompressibility",
        }
    }

    fn score(&self, images: &Images, _: &[&Prompt]) -> Result<Vec<Score>> {
        let value = |image| {
            let kb = encode(image, QUALITY)?.len() as f64 / 1000.0;
            Ok(Score::of(match self {
                Self::Compressibility => -kb / SCALE,
                Self::Incompressibility => kb,
            }))
        };
        images.pictures().par_iter().map(value).collect()
    }
}

/// The picture that comes out of the file Pillow writes at `quality`: what who judges it elsewhere is sent.
///
/// # Errors
/// As [`encode`].
pub fn sent(image: &RgbImage, quality: f32) -> Result<RgbImage> {
    image::decode_jpeg(&encode(image, quality)?).context("JPEG decoder")
}

/// The file Pillow writes for `image.save(.., "JPEG", quality=quality)`: baseline, 4:2:0, standard Huffman tables.
///
/// # Errors
/// If a side is 0 or more than 65500, what libjpeg takes.
pub fn encode(image: &RgbImage, quality: f32) -> Result<Vec<u8>> {
    let sides = 1..=65500;
    if !sides.contains(&image.width) || !sides.contains(&image.height) {
        bail!("cannot write {}x{} pixels as JPEG, expected 1 to 65500 a side", image.width, image.height);
    }
    let mut jpeg = mozjpeg::Compress::new(mozjpeg::ColorSpace::JCS_RGB);
    jpeg.set_size(image.width, image.height);
    jpeg.set_fastest_defaults();
    jpeg.set_quality(quality);
    let mut started = jpeg.start_compress(Vec::new()).context("JPEG encoder")?;
    started.write_scanlines(&image.data).context("JPEG encoder")?;
    started.finish().context("JPEG encoder")
}
