//! Finds objects in photographs, as the benchmark does: Mask2Former trained on COCO finds them, CLIP tells their colours.

mod colors;
mod input;
mod masks;

use std::borrow::Cow;
use std::path::Path;

use anyhow::{Result, bail, ensure};

use self::colors::Colors;
use self::input::{Channels, Ready, ready};
use self::masks::{Object, Sizes, objects};
use super::{Detection, Detector, Look};
use crate::device::{Device, workers};
use crate::io::TensorFile;
use crate::io::image::RgbImage;
use crate::models::clip::HiddenAct;
use crate::models::mask2former::Mask2Former;
use crate::rewards::options::nowhere;
use crate::rewards::similarity::OPENAI_CLIP_PLACE;
use crate::rewards::{Dtype, Options, jpeg};

/// What the key `model` names.
pub const MODEL: &str = "the weights of Mask2Former with Swin-S trained on COCO instances";
/// Files of mmdetection 3.x and 2.x.
const FILES: [&str; 2] = [
    "mask2former_swin-s-p4-w7-224_8xb2-lsj-50e_coco_20220504_001756-c9d0c4f2.pth",
    "mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco_20220504_001756-743b7d99.pth",
];
/// Where the model is looked for.
pub const PLACES: [&str; 3] = [
    "models/mask2former_swin-s-p4-w7-224_8xb2-lsj-50e_coco_20220504_001756-c9d0c4f2.pth",
    "models/mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco_20220504_001756-743b7d99.pth",
    "models/mask2former-swin-small-coco-instance",
];
/// What the key `clip` names.
pub const CLIP: &str = "CLIP ViT-L/14, which tells colours";

/// Most pictures that are looked at side by side: each takes about half a gigabyte.
const TOGETHER: usize = 8;

/// The classes of COCO in the words of the benchmark.
const CLASSES: [&str; 80] = [
    "person",
    "bicycle",
    "car",
    "motorcycle",
    "airplane",
    "bus",
    "train",
    "truck",
    "boat",
    "traffic light",
    "fire hydrant",
    "stop sign",
    "parking meter",
    "bench",
    "bird",
    "cat",
    "dog",
    "horse",
    "sheep",
    "cow",
    "elephant",
    "bear",
    "zebra",
    "giraffe",
    "backpack",
    "umbrella",
    "handbag",
    "tie",
    "suitcase",
    "frisbee",
    "skis",
    "snowboard",
    "sports ball",
    "kite",
    "baseball bat",
    "baseball glove",
    "skateboard",
    "surfboard",
    "tennis racket",
    "bottle",
    "wine glass",
    "cup",
    "fork",
    "knife",
    "spoon",
    "bowl",
    "banana",
    "apple",
    "sandwich",
    "orange",
    "broccoli",
    "carrot",
    "hot dog",
    "pizza",
    "donut",
    "cake",
    "chair",
    "couch",
    "potted plant",
    "bed",
    "dining table",
    "toilet",
    "tv",
    "laptop",
    "computer mouse",
    "tv remote",
    "computer keyboard",
    "cell phone",
    "microwave",
    "oven",
    "toaster",
    "sink",
    "refrigerator",
    "book",
    "clock",
    "vase",
    "scissors",
    "teddy bear",
    "hair drier",
    "toothbrush",
];

/// The detector.
pub enum Photographs {
    /// With its networks.
    Seeing(Box<Eyes>),
    /// In a plan, with what of them is at hand: as if there were one object in every picture.
    Planned { network: Option<Box<Mask2Former>>, colors: Option<Box<Colors>>, channels: Channels, device: Device },
}

/// The networks, and how pictures come to them.
pub struct Eyes {
    device: Device,
    network: Mask2Former,
    colors: Colors,
    channels: Channels,
    /// At which quality pictures are sent as JPEG files to who judges them, if they are.
    jpeg: Option<f32>,
}

impl Photographs {
    /// The detector for the reward's `options`, its networks on `device`.
    ///
    /// # Errors
    /// Names what is missing, where it was looked for, and where it comes from; or the file that is not as expected.
    pub fn build(options: &Options, device: &Device) -> Result<Self> {
        let activation = match options.choice("color_activation") {
            "gelu" => HiddenAct::Gelu,
            _ => HiddenAct::QuickGelu,
        };
        let dtype = Dtype::of(options);
        let colors = |clip: &Path| Colors::load(clip, activation, dtype, device);
        let channels = match options.choice("channels") {
            "bgr" => Channels::Bgr,
            _ => Channels::Rgb,
        };
        let network = |model: &Path| Mask2Former::load(&weights(model)?, device, dtype.precision());
        if device.is_plan() {
            let network = options.path("model").map(network).transpose()?.map(Box::new);
            let colors = options.path("clip").map(colors).transpose()?.map(Box::new);
            return Ok(Self::Planned { network, colors, channels, device: device.clone() });
        }
        let needed = |key: &str, places: &[&str], what: &str| match options.path(key) {
            Some(path) => Ok(path.to_path_buf()),
            None => bail!(
                "{}; detector = \"shapes\" needs no weights, for the tiny models",
                nowhere(&format!("rewards.geneval.{key}"), what, places)
            ),
        };
        let model = needed("model", &PLACES, MODEL)?;
        let clip = needed("clip", &[OPENAI_CLIP_PLACE], CLIP)?;
        let network = network(&model)?;
        let classes = network.config().classes;
        let (path, count) = (model.display(), CLASSES.len());
        ensure!(classes == count, "{path}: tells {classes} classes apart, expected the {count} of COCO");
        let quality = options.whole("jpeg_quality");
        let jpeg = (quality > 0).then_some(quality as f32);
        let device = device.clone();
        Ok(Self::Seeing(Box::new(Eyes { device, network, colors: colors(&clip)?, channels, jpeg })))
    }
}

/// The tensors at `path`, a file or the folder that holds one.
fn weights(path: &Path) -> Result<TensorFile> {
    if !path.is_dir() {
        return TensorFile::open(path);
    }
    match FILES.iter().map(|name| path.join(name)).find(|file| file.exists()) {
        Some(file) => TensorFile::open(&file),
        None => TensorFile::open_component(path, "model", None),
    }
}

impl Detector for Photographs {
    fn classes(&self) -> &[&str] {
        &CLASSES
    }

    /// As many pictures at a time as there are threads for, at most [`TOGETHER`]; one is the same alone and among others.
    fn detect(&self, images: &[RgbImage], looks: &[Look]) -> Result<Vec<Vec<Detection>>> {
        match self {
            Self::Seeing(eyes) => {
                let together = workers().min(TOGETHER);
                let some = images.chunks(together).zip(looks.chunks(together));
                Ok(some.map(|(images, looks)| eyes.detect(images, looks)).collect::<Result<Vec<_>>>()?.concat())
            }
            Self::Planned { network, colors, channels, device } => {
                for image in images {
                    if let Some(network) = network {
                        let found = network.forward(&ready(image, network.layout(), *channels, device).pixels);
                        [&found.classes, &found.masks].into_iter().for_each(|t| drop(t.to_host()));
                    }
                    if let Some(colors) = colors {
                        let bounds = [0, 0, image.width, image.height];
                        let mask = vec![true; image.width * image.height];
                        colors.tell(image, &[(&Object { class: 0, score: 1.0, bounds, mask }, CLASSES[0])])?;
                    }
                }
                Ok(vec![Vec::new(); images.len()])
            }
        }
    }
}

impl Eyes {
    /// What is in some pictures, which are looked at together.
    fn detect(&self, images: &[RgbImage], looks: &[Look]) -> Result<Vec<Vec<Detection>>> {
        let pictures = images.iter().zip(looks).collect();
        let seen = self.device.side_by_side(pictures, |(image, look)| self.find(image, look));
        let seen: Vec<(Cow<RgbImage>, Vec<Object>)> = seen.into_iter().collect::<Result<_>>()?;
        seen.iter().zip(looks).map(|((image, objects), look)| self.describe(image, objects, look)).collect()
    }

    /// The picture as it is judged, and the objects in it.
    fn find<'a>(&self, image: &'a RgbImage, look: &Look) -> Result<(Cow<'a, RgbImage>, Vec<Object>)> {
        let image = match self.jpeg {
            Some(quality) => Cow::Owned(jpeg::sent(image, quality)?),
            None => Cow::Borrowed(image),
        };
        let Ready { pixels, size } = ready(&image, self.network.layout(), self.channels, &self.device);
        let padded = [pixels.dim(2), pixels.dim(3)];
        let sizes = Sizes { original: [image.height, image.width], resized: size, padded };
        let found = objects(&self.network.forward(&pixels), sizes, look.least);
        Ok((image, found))
    }

    /// The objects by name, with the colours that are asked for.
    fn describe(&self, image: &RgbImage, objects: &[Object], look: &Look) -> Result<Vec<Detection>> {
        let wanted = |o: &&Object| look.wants_color(CLASSES[o.class], o.score);
        let asked: Vec<(&Object, &str)> = objects.iter().filter(wanted).map(|o| (o, CLASSES[o.class])).collect();
        let mut told = self.colors.tell(image, &asked)?.into_iter();
        let detection = |o: &Object| Detection {
            class: CLASSES[o.class].to_string(),
            score: o.score,
            bounds: o.bounds.map(|v| v as f64),
            color: wanted(&o).then(|| told.next().expect("one for each that was asked")),
        };
        Ok(objects.iter().map(detection).collect())
    }
}
