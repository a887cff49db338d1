use engine::io::TensorFile;
use engine::io::image::read_rgb;

use super::fixture;

#[test]
fn every_kind_of_picture_has_the_pixels_that_pillow_and_transformers_give_it() {
    let folder = fixture("pictures");
    let expected = TensorFile::open(&folder.join("rgb.safetensors")).unwrap();
    assert_eq!(expected.entries().count(), 15);
    for (name, want) in expected.entries() {
        let got = read_rgb(&folder.join(name)).unwrap();
        assert_eq!([got.height, got.width, 3], want.shape(), "{name}");
        let differ = got.data.iter().zip(want.raw()).filter(|(a, b)| a != b).count();
        assert_eq!(differ, 0, "{name}: {differ} of {} bytes differ", got.data.len());
    }
}
