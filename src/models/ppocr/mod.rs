//! PP-OCR, the English models of PaddleOCR 2.9: a detector of lines of text and a recogniser of what they say, as written by
//! `tools/convert_ppocr.py`. Widths are those of the tensors; depth, strides and activations are the architecture's.

mod detector;
mod layers;
mod recogniser;

pub use detector::Detector;
pub use recogniser::Recogniser;
