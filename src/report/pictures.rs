//! Sample grids, cut into their pictures and put beside their prompts.

use std::path::Path;

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::run::Run;
use crate::io::image::{self, RgbImage};
use crate::io::read_json;
use crate::rewards::jpeg;

/// The file beside the grids that says what is in them.
pub const PROMPTS: &str = "prompts.json";

/// What a picture of a grid was made for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    /// The prompt.
    pub prompt: String,
    /// Its kind, if the prompts have kinds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
}

/// What the sample grids of a run show.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shows {
    /// Width and height of a picture.
    pub size: [usize; 2],
    /// Pixels between pictures and around them.
    pub gap: usize,
    /// What each picture was made for, row by row; later grids may have fewer pictures or more in a row.
    pub pictures: Vec<Shown>,
}

/// The pictures of one evaluation.
pub struct Sheet {
    /// After how many epochs.
    pub epoch: u64,
    /// Whether it is the first, the last, or the best one.
    pub label: &'static str,
    /// A data URI for each picture, or one for all where the run does not say what it shows.
    pub pictures: Vec<String>,
    /// The pictures' rewards, as far as the log has them.
    pub rewards: Vec<Option<f64>>,
}

/// Pictures of at most this many pixels a side go into the page as they are; larger ones smaller, as JPEG.
pub const LOSSLESS_SIDE: usize = 160;
/// The longer side of a picture in the page.
const LONGEST: u32 = 384;
const QUALITY: f32 = 85.0;
/// Most pictures of an evaluation.
const MOST: usize = 48;

/// What the grids of `run` show, if it says.
///
/// # Errors
/// Names the file if it is damaged.
pub fn shows(run: &Run) -> Result<Option<Shows>> {
    let path = run.folder.join("samples").join(PROMPTS);
    if path.exists() { read_json(&path).map(Some) } else { Ok(None) }
}

/// Where the grid of the evaluation after `epoch` epochs is.
pub fn grid(samples: &Path, epoch: u64) -> std::path::PathBuf {
    samples.join(format!("epoch-{epoch:06}.png"))
}

/// The pictures of the first, the best and the last evaluation that has any.
///
/// # Errors
/// Names a file that is damaged.
pub fn sheets(run: &Run, shows: Option<&Shows>) -> Result<Vec<Sheet>> {
    let samples = run.folder.join("samples");
    let there: Vec<u64> = run.evals.keys().copied().filter(|epoch| grid(&samples, *epoch).exists()).collect();
    let (Some(first), Some(last)) = (there.first().copied(), there.last().copied()) else { return Ok(Vec::new()) };
    let best =
        run.best().map(|(epoch, _)| epoch).filter(|epoch| there.contains(epoch) && ![first, last].contains(epoch));
    let mut labelled = vec![(first, "before")];
    labelled.extend(best.map(|epoch| (epoch, "best")));
    labelled.extend((last != first).then_some((last, "after")));
    let sheet = |(epoch, label)| {
        let path = grid(&samples, epoch);
        let whole = image::read_rgb(&path)?;
        let pictures = match shows {
            Some(shows) => cut(&whole, shows),
            None => vec![whole],
        };
        let pictures =
            pictures.iter().map(embedded).collect::<Result<_>>().with_context(|| path.display().to_string())?;
        let rewards = run.evals[&epoch]["shown"].as_array().into_iter().flatten().map(Value::as_f64).collect();
        Ok(Sheet { epoch, label, pictures, rewards })
    };
    labelled.into_iter().map(sheet).collect()
}

/// The pictures of a grid.
fn cut(grid: &RgbImage, shows: &Shows) -> Vec<RgbImage> {
    let [width, height] = shows.size;
    let fitting = |whole: usize, one: usize| whole.saturating_sub(shows.gap) / one.saturating_add(shows.gap).max(1);
    let (columns, rows) = (fitting(grid.width, width), fitting(grid.height, height));
    let spots = (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column)));
    let piece = |(row, column): (usize, usize)| {
        let (x, y) = (shows.gap + column * (width + shows.gap), shows.gap + row * (height + shows.gap));
        let line = |y: usize| &grid.data[(y * grid.width + x) * 3..][..width * 3];
        RgbImage { width, height, data: (y..y + height).flat_map(line).copied().collect() }
    };
    spots.take(shows.pictures.len().min(MOST)).map(piece).collect()
}

/// A picture as a data URI.
fn embedded(picture: &RgbImage) -> Result<String> {
    let (kind, bytes) = if picture.width.max(picture.height) <= LOSSLESS_SIDE {
        ("png", image::png(picture)?)
    } else {
        ("jpeg", jpeg::encode(&image::within(picture, LONGEST), QUALITY)?)
    };
    Ok(format!("data:image/{kind};base64,{}", STANDARD.encode(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(width: usize, height: usize, grey: u8) -> RgbImage {
        RgbImage { width, height, data: vec![grey; width * height * 3] }
    }

    #[test]
    fn a_grid_is_cut_into_what_it_was_made_of() {
        let pictures: Vec<RgbImage> = (1..=7).map(|i| plain(6, 4, i * 30)).collect();
        let shown = |i: usize| Shown { prompt: format!("{i}"), tag: None };
        let shows = Shows { size: [6, 4], gap: image::GAP, pictures: (0..7).map(shown).collect() };
        assert_eq!(cut(&image::grid(&pictures, 3), &shows), pictures);
        // A grid that an earlier part of the run made with fewer pictures in a row.
        assert_eq!(cut(&image::grid(&pictures[..2], 2), &shows), pictures[..2]);
        assert!(cut(&plain(3, 3, 0), &shows).is_empty());
    }

    #[test]
    fn small_pictures_stay_what_they_are_and_large_ones_become_smaller() {
        let bytes = |uri: &str| STANDARD.decode(uri.split_once(',').unwrap().1).unwrap();
        let small = plain(64, 64, 9);
        let uri = embedded(&small).unwrap();
        assert!(uri.starts_with("data:image/png;base64,") && bytes(&uri) == image::png(&small).unwrap());
        let uri = embedded(&plain(1024, 512, 9)).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes(&uri)).unwrap();
        let read = image::read_rgb(file.path()).unwrap();
        assert!(uri.starts_with("data:image/jpeg;base64,"));
        assert_eq!((read.width, read.height), (384, 192));
    }
}
