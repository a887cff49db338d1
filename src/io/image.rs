//! 8-bit images, to and from files.

use std::io::Cursor;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader};

use super::{read, write_atomic};

/// Pixels between the images of a grid, and around them.
pub const GAP: usize = 2;

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

/// Most pixels of a picture that is read, as in Pillow (`Image.MAX_IMAGE_PIXELS`, twice).
const MOST_PIXELS: u64 = 178_956_970;
/// A picture's longer side in shorter ones: beyond it, resizing the shorter one to a model's size takes all memory.
const MOST_OBLONG: u32 = 200;

/// Reads a PNG or JPEG file, told apart by its content, as Pillow and transformers see it: JPEG decoded as libjpeg does,
/// turned as its EXIF data says, transparency on white, the high bytes of 16-bit colours, grey of 16 bits clipped at 255.
///
/// # Errors
/// Names the file if it is missing, damaged, of another kind, or too large or too oblong to be looked at.
pub fn read_rgb(path: &Path) -> Result<RgbImage> {
    let bytes = read::bytes(path)?;
    let unreadable = || format!("{}: not a readable PNG or JPEG", path.display());
    let reader = ImageReader::new(Cursor::new(&bytes)).with_guessed_format().with_context(unreadable)?;
    let format = reader.format();
    let mut decoder = reader.into_decoder().with_context(unreadable)?;
    let (width, height) = decoder.dimensions();
    ensure!(
        u64::from(width) * u64::from(height) <= MOST_PIXELS && width.max(height) / MOST_OBLONG <= width.min(height),
        "{}: a picture of {width}x{height} pixels, expected at most {MOST_PIXELS} and sides at most {MOST_OBLONG} to 1",
        path.display()
    );
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    // This decoder notices what is missing from a file; libjpeg, whose pixels count, fills it with grey.
    let image = DynamicImage::from_decoder(decoder).with_context(unreadable)?;
    let mut image = match format {
        Some(ImageFormat::Jpeg) => jpeg(&bytes).unwrap_or(image),
        _ => rgb(image),
    };
    image.apply_orientation(orientation);
    let image = image.into_rgb8();
    Ok(RgbImage { width: image.width() as usize, height: image.height() as usize, data: image.into_raw() })
}

/// The picture in the bytes of a JPEG file, as libjpeg decodes it, if that has colours that turn into RGB.
pub fn decode_jpeg(bytes: &[u8]) -> Option<RgbImage> {
    let image = jpeg(bytes)?.into_rgb8();
    Some(RgbImage { width: image.width() as usize, height: image.height() as usize, data: image.into_raw() })
}

/// A JPEG as libjpeg decodes it; nothing if it has colours that this does not turn into RGB, such as CMYK.
fn jpeg(bytes: &[u8]) -> Option<DynamicImage> {
    // The library's fatal errors are panics.
    let decode = || -> std::io::Result<(usize, usize, Vec<[u8; 3]>)> {
        let mut started = mozjpeg::Decompress::new_mem(bytes)?.rgb()?;
        let pixels = started.read_scanlines()?;
        Ok((started.width(), started.height(), pixels))
    };
    let (width, height, pixels) = std::panic::catch_unwind(decode).ok()?.ok()?;
    let data = bytemuck::cast_slice(&pixels).to_vec();
    image::RgbImage::from_raw(width as u32, height as u32, data).map(DynamicImage::ImageRgb8)
}

/// Pillow's `convert("RGB")`, with what is transparent on white as transformers has it (`convert_to_rgb`).
fn rgb(image: DynamicImage) -> DynamicImage {
    let high = |v: u16| (v >> 8) as u8;
    let rgba = match image {
        DynamicImage::ImageLuma16(grey) => {
            let clipped = grey.pixels().flat_map(|p| [p.0[0].min(255) as u8; 3]).collect();
            let image = image::RgbImage::from_raw(grey.width(), grey.height(), clipped);
            return DynamicImage::ImageRgb8(image.expect("three bytes a pixel"));
        }
        DynamicImage::ImageRgb16(image) => {
            let data = image.iter().map(|v| high(*v)).collect();
            let image = image::RgbImage::from_raw(image.width(), image.height(), data);
            return DynamicImage::ImageRgb8(image.expect("three bytes a pixel"));
        }
        DynamicImage::ImageLumaA16(_) | DynamicImage::ImageRgba16(_) => {
            let image = image.into_rgba16();
            let data = image.iter().map(|v| high(*v)).collect();
            image::RgbaImage::from_raw(image.width(), image.height(), data).expect("four bytes a pixel")
        }
        _ if image.color().has_alpha() => image.into_rgba8(),
        _ => return image,
    };
    let on_white = rgba.pixels().flat_map(|p| {
        let [r, g, b, alpha] = p.0;
        [r, g, b].map(|v| over_white(v, alpha))
    });
    let image = image::RgbImage::from_raw(rgba.width(), rgba.height(), on_white.collect());
    DynamicImage::ImageRgb8(image.expect("three bytes a pixel"))
}

/// Pillow's `alpha_composite` of `v` over opaque white, in its whole numbers.
fn over_white(v: u8, alpha: u8) -> u8 {
    const BITS: u32 = 7;
    let (v, alpha) = (u32::from(v), u32::from(alpha));
    // The result is opaque: what is divided by there is 255 squared.
    let share = alpha * 255 * 255 * (1 << BITS) / (255 * 255);
    let sum = v * share + 255 * (255 * (1 << BITS) - share) + (0x80 << BITS);
    ((((sum >> 8) + sum) >> 8) >> BITS) as u8
}

/// `image` with its longer side at most `longest` pixels, its proportions kept.
pub fn within(image: &RgbImage, longest: u32) -> RgbImage {
    let (width, height) = (image.width as u32, image.height as u32);
    let most = width.max(height);
    let buffer = image::RgbImage::from_raw(width, height, image.data.clone()).filter(|_| most > longest);
    let Some(buffer) = buffer else { return image.clone() };
    let side = |side: u32| ((u64::from(side) * u64::from(longest) / u64::from(most)) as u32).max(1);
    let small = image::imageops::resize(&buffer, side(width), side(height), image::imageops::FilterType::Triangle);
    RgbImage { width: small.width() as usize, height: small.height() as usize, data: small.into_raw() }
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
