//! 8-bit images, to and from files.

use std::io::Cursor;
use std::path::Path;

use anyhow::{Context, Result};

use super::write_atomic;

/// Pixels between the images of a grid, and around them.
const GAP: usize = 2;

/// An 8-bit RGB image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RgbImage {
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `[height, width, 3]`, row-major.
    pub data: Vec<u8>,
}

impl RgbImage {
    /// The pixel in column `x` of row `y`.
    pub fn pixel(&self, x: usize, y: usize) -> [u8; 3] {
        let at = (y * self.width + x) * 3;
        [self.data[at], self.data[at + 1], self.data[at + 2]]
    }
}

/// `image` as the bytes of a PNG file.
///
/// # Errors
/// If the image cannot be encoded, as one without pixels.
pub fn png(image: &RgbImage) -> Result<Vec<u8>> {
    let (width, height) = (u32::try_from(image.width)?, u32::try_from(image.height)?);
    let mut bytes = Cursor::new(Vec::new());
    let (color, format) = (image::ExtendedColorType::Rgb8, image::ImageFormat::Png);
    image::write_buffer_with_format(&mut bytes, &image.data, width, height, color, format)
        .with_context(|| format!("cannot encode an image of {width}x{height}"))?;
    Ok(bytes.into_inner())
}

/// Writes `image` as a PNG file, whole or not at all.
///
/// # Errors
/// Names the file if it cannot be written.
pub fn write_png(path: &Path, image: &RgbImage) -> Result<()> {
    let bytes = png(image).with_context(|| path.display().to_string())?;
    write_atomic(path, &bytes)
}

/// Reads a PNG or JPEG file, told apart by its content; transparency is dropped.
///
/// # Errors
/// Names the file if it is missing, damaged or of another kind.
pub fn read_rgb(path: &Path) -> Result<RgbImage> {
    let reader = image::ImageReader::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let reader = reader.with_guessed_format().with_context(|| format!("cannot read {}", path.display()))?;
    let image = reader.decode().with_context(|| format!("{}: not a readable PNG or JPEG", path.display()))?.into_rgb8();
    let (width, height) = (image.width() as usize, image.height() as usize);
    Ok(RgbImage { width, height, data: image.into_raw() })
}

/// The images (all of the same size) in rows of `columns` on white.
pub fn grid(images: &[RgbImage], columns: usize) -> RgbImage {
    let (w, h) = images.first().map_or((0, 0), |i| (i.width, i.height));
    assert!(columns > 0 && images.iter().all(|i| (i.width, i.height) == (w, h)), "grid of unlike images");
    let rows = images.len().div_ceil(columns);
    let (width, height) = (GAP + columns * (w + GAP), GAP + rows * (h + GAP));
    let mut data = vec![255; width * height * 3];
    for (i, image) in images.iter().enumerate() {
        let (left, top) = (GAP + i % columns * (w + GAP), GAP + i / columns * (h + GAP));
        for (y, line) in image.data.chunks_exact((3 * w).max(1)).enumerate() {
            data[((top + y) * width + left) * 3..][..3 * w].copy_from_slice(line);
        }
    }
    RgbImage { width, height, data }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gradient(width: usize, height: usize) -> RgbImage {
        let data = (0..width * height * 3).map(|i| (i * 7 % 256) as u8).collect();
        RgbImage { width, height, data }
    }

    #[test]
    fn what_is_written_is_read_back_and_nothing_else_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image.png");
        write_png(&path, &gradient(5, 3)).unwrap();
        assert_eq!(read_rgb(&path).unwrap(), gradient(5, 3));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn files_that_are_no_images_are_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in [("text.png", &b"not an image"[..]), ("cut.png", &b"\x89PNG\r\n\x1a\n\0\0"[..])] {
            let path = folder.path().join(name);
            std::fs::write(&path, content).unwrap();
            assert!(format!("{:#}", read_rgb(&path).unwrap_err()).contains(name));
        }
        assert!(format!("{:#}", read_rgb(&folder.path().join("none.png")).unwrap_err()).contains("none.png"));
    }

    #[test]
    fn a_grid_holds_every_image_between_white_lines() {
        let image = gradient(4, 3);
        let grid = grid(&vec![image.clone(); 5], 3);
        assert_eq!((grid.width, grid.height), (GAP + 3 * (4 + GAP), GAP + 2 * (3 + GAP)));
        let (left, top) = (GAP + 4 + GAP, GAP + 3 + GAP);
        assert_eq!(grid.pixel(left + 3, top + 2), image.pixel(3, 2));
        assert_eq!(grid.pixel(left - 1, top), [255; 3]);
        assert_eq!(grid.pixel(left + 4 + GAP, top), [255; 3]);
    }
}
