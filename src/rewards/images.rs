use std::ops::Range;
use std::sync::OnceLock;

use crate::device::{DType, Device, Tensor};
use crate::io::image::RgbImage;
use crate::ops::affine::{self, Affine};
use crate::ops::copy;
use crate::ops::patchify::{self, Order, Patches};
use crate::ops::{normalise, quantise};

/// From decoded numbers to those from 0 to 1.
const TO_UNIT: Affine = Affine { before: 0.0, scale: 0.5, after: 0.5, limits: [0.0, 1.0] };

/// Pictures of one size where they lie. Bytes are made when a reward asks for them, and come to this process's memory when
/// it asks for that.
pub struct Images {
    decoded: Option<Tensor>,
    bytes: OnceLock<Tensor>,
    pictures: OnceLock<Vec<RgbImage>>,
}

impl Images {
    /// Decoded pictures, `[b, h, w, 3]` in about -1..1.
    pub fn decoded(images: Tensor) -> Self {
        Self { decoded: Some(images), bytes: OnceLock::new(), pictures: OnceLock::new() }
    }

    /// Pictures from files, all of one size; at least one.
    pub fn from_pictures(pictures: Vec<RgbImage>, device: &Device) -> Self {
        let (height, width) = (pictures[0].height, pictures[0].width);
        let alike = pictures.iter().all(|p| (p.height, p.width) == (height, width));
        assert!(alike, "pictures of different sizes are not one batch");
        let data: Vec<u8> = pictures.iter().flat_map(|p| &p.data).copied().collect();
        let bytes = Tensor::from_bytes(device, &data, &[pictures.len(), height, width, 3]);
        Self { decoded: None, bytes: bytes.into(), pictures: pictures.into() }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.bytes.get().or(self.decoded.as_ref()).expect("one of the two is there").dim(0)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The pictures in 8 bits, `[b, h, w, 3]`.
    pub fn bytes(&self) -> &Tensor {
        self.bytes.get_or_init(|| quantise::forward(self.decoded.as_ref().expect("one of the two is there")))
    }

    /// The pictures `range` as numbers from 0 to 1, `[n, 3, h, w]` in single precision: not rounded if they are decoded, else
    /// bytes over 255.
    pub fn planes(&self, range: Range<usize>) -> Tensor {
        match &self.decoded {
            Some(decoded) => planes(&decoded.slice(range)),
            None => {
                let bytes = self.bytes().slice(range);
                normalise::forward(&bytes, [0, 0], [bytes.dim(1), bytes.dim(2)], [0.0; 3], [1.0; 3])
            }
        }
    }

    /// The pictures in 8 bits, in this process's memory.
    pub fn pictures(&self) -> &[RgbImage] {
        self.pictures.get_or_init(|| pictures_of(self.bytes()))
    }

    /// As [`Images::pictures`], for whoever keeps them.
    pub fn into_pictures(self) -> Vec<RgbImage> {
        self.pictures();
        self.pictures.into_inner().expect("just made")
    }
}

/// Decoded pictures `[b, h, w, 3]` as [`Images::planes`].
pub(super) fn planes(decoded: &Tensor) -> Tensor {
    let unit = affine::forward(&copy::cast(decoded, DType::F32), TO_UNIT);
    let (b, h, w) = (unit.dim(0), unit.dim(1), unit.dim(2));
    patchify::inverse(&unit.reshape(&[b, h * w, 3]), &pixels(h, w), Order::ChannelLast)
}

/// The gradient to decoded pictures, if `d` is that to their [`planes`].
pub(super) fn planes_backward(decoded: &Tensor, d: &Tensor) -> Tensor {
    let (h, w) = (decoded.dim(1), decoded.dim(2));
    let mut d = patchify::forward(d, &pixels(h, w), Order::ChannelLast).reshape(decoded.shape());
    affine::backward(&mut d, decoded, TO_UNIT);
    d
}

/// One patch a pixel.
fn pixels(height: usize, width: usize) -> Patches {
    Patches { channels: 3, size: 1, grid: (height, width) }
}

/// Pictures `[b, h, w, 3]` of bytes in this process's memory.
pub(super) fn pictures_of(bytes: &Tensor) -> Vec<RgbImage> {
    debug_assert_eq!(bytes.dtype(), DType::U8);
    let (height, width) = (bytes.dim(1), bytes.dim(2));
    let all = bytes.to_raw();
    let pictures = all.chunks_exact((3 * height * width).max(1));
    pictures.map(|data| RgbImage { width, height, data: data.to_vec() }).collect()
}
