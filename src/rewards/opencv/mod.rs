//! Pictures and shapes as OpenCV 4.11 treats them, to the bit where pixels are concerned: PaddleOCR's models were trained
//! and are used behind it.

mod contours;
mod fill;
mod rectangle;
mod resize;
mod warp;

pub use contours::{Bitmap, contours};
pub use fill::mean_inside;
pub use rectangle::min_area_rectangle;
pub use resize::bilinear;
pub use warp::straightened;
