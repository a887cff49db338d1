use std::collections::BTreeMap;
use std::path::PathBuf;

use super::*;
use crate::io::image::read_rgb;
use crate::io::read_json;

/// Above this a detection counts even where GenEval is strictest.
const SURE: f64 = 0.9;
/// Below this it never counts.
const NOTHING: f64 = 0.3;

#[derive(serde::Deserialize)]
struct Object {
    class: String,
    color: String,
}

fn fixtures() -> (PathBuf, BTreeMap<String, Vec<Object>>) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/shapes");
    let truth = read_json(&folder.join("truth.json")).unwrap();
    (folder, truth)
}

fn flat(width: usize, height: usize, color: [u8; 3]) -> RgbImage {
    RgbImage { width, height, data: color.repeat(width * height) }
}

/// Paints the pixels whose centres satisfy `inside`.
fn paint(image: &mut RgbImage, color: [u8; 3], inside: impl Fn(f64, f64) -> bool) {
    for (i, pixel) in image.data.chunks_mut(3).enumerate() {
        if inside((i % image.width) as f64 + 0.5, (i / image.width) as f64 + 0.5) {
            pixel.copy_from_slice(&color);
        }
    }
}

#[test]
fn drawings_are_seen_right_even_soft_noisy_or_large_and_other_figures_are_nothing() {
    let (folder, truth) = fixtures();
    assert!(truth.len() > 20);
    for (name, objects) in truth {
        let seen = detect(&read_rgb(&folder.join(format!("{name}.png"))).unwrap());
        assert!(seen.iter().all(|d| d.score > SURE || d.score < NOTHING), "{name}: {seen:?}");
        let sure = seen.iter().filter(|d| d.score > SURE);
        let mut found: Vec<_> = sure.map(|d| (d.class.as_str(), d.color.map_or("none", Color::name))).collect();
        let mut wanted: Vec<_> = objects.iter().map(|o| (o.class.as_str(), o.color.as_str())).collect();
        found.sort_unstable();
        wanted.sort_unstable();
        assert_eq!(found, wanted, "{name}: {seen:?}");
    }
}

#[test]
fn the_box_is_the_shapes_own_in_the_pictures_pixels() {
    for scale in [1usize, 5] {
        let s = scale as f64;
        let mut image = flat(64 * scale, 48 * scale, [240, 240, 240]);
        paint(&mut image, [220, 35, 40], |x, y| (10.0 * s..26.0 * s).contains(&x) && (20.0 * s..36.0 * s).contains(&y));
        let seen = detect(&image);
        assert_eq!(seen.len(), 1);
        assert_eq!((seen[0].class.as_str(), seen[0].color), ("square", Some(Color::Red)));
        for (found, wanted) in seen[0].bounds.iter().zip([10.0, 20.0, 26.0, 36.0]) {
            assert!((found - wanted * s).abs() <= 0.5 * s, "{:?}", seen[0].bounds);
        }
    }
}

#[test]
fn an_empty_picture_shows_nothing_whatever_its_size_and_color() {
    for (width, height) in [(64, 64), (1, 1), (3, 200), (0, 0), (512, 300)] {
        for color in [[255; 3], [0; 3], [240, 235, 230], [220, 35, 40]] {
            assert_eq!(detect(&flat(width, height, color)), []);
        }
    }
}

#[test]
fn random_bytes_show_nothing() {
    let mut state = 1u32;
    // The whole range, and a light ground with strong noise.
    for (low, range) in [(0, 255), (160, 90)] {
        for _ in 0..10 {
            let mut image = flat(64, 64, [0; 3]);
            for byte in &mut image.data {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                *byte = (low + (state >> 24) * range / 255) as u8;
            }
            assert!(detect(&image).iter().all(|d| d.score < NOTHING));
        }
    }
}

#[test]
fn a_color_between_two_is_neither() {
    let circle = |color| {
        let mut image = flat(64, 64, [240, 240, 240]);
        paint(&mut image, color, |x, y| (x - 30.0).hypot(y - 30.0) <= 9.0);
        let seen = detect(&image);
        assert_eq!((seen.len(), seen[0].class.as_str()), (1, "circle"));
        seen[0].color
    };
    for (color, [r, g, b]) in PALETTE {
        assert_eq!(circle([r, g, b].map(|v| v as u8)), Some(color));
    }
    for neither in [[232, 82, 32], [243, 170, 33], [120, 120, 120], [10, 10, 10], [230, 140, 140], [30, 200, 220]] {
        assert_eq!(circle(neither), None, "{neither:?}");
    }
}
