use std::sync::OnceLock;

use crate::device::{DType, Device, Tensor};
use crate::io::image::RgbImage;
use crate::ops::quantise;

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

/// Pictures `[b, h, w, 3]` of bytes in this process's memory.
pub(super) fn pictures_of(bytes: &Tensor) -> Vec<RgbImage> {
    debug_assert_eq!(bytes.dtype(), DType::U8);
    let (height, width) = (bytes.dim(1), bytes.dim(2));
    let all = bytes.to_raw();
    let pictures = all.chunks_exact((3 * height * width).max(1));
    pictures.map(|data| RgbImage { width, height, data: data.to_vec() }).collect()
}
