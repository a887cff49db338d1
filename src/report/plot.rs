//! Curves with their spread as a figure that stands alone: SVG, and the same drawing as PNG.

use std::fmt::Write;

use anyhow::{Context, Result};
use image::{DynamicImage, ImageFormat, RgbaImage};
use maud::{Markup, PreEscaped, html};
use resvg::{tiny_skia, usvg};

use super::chart::{COLOURS, tick_label};
use super::page::STYLE;
use super::series::Scale;

/// Where a curve is at one `x`: the mean of several runs, the lowest and the highest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// Where.
    pub x: f64,
    /// Mean of the runs.
    pub mean: f64,
    /// The lowest of them.
    pub low: f64,
    /// The highest.
    pub high: f64,
}

/// A line and the band around it.
#[derive(Clone, Debug)]
pub struct Curve {
    /// What it is of; curves of equal place in their panels have one name and one colour.
    pub name: String,
    /// In the order of x.
    pub points: Vec<Spread>,
}

/// One of the drawings that are beside each other.
#[derive(Clone, Debug)]
pub struct Panel {
    /// What x is.
    pub x: String,
    /// The curves.
    pub curves: Vec<Curve>,
}

const WIDTH: f64 = 480.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 60.0;
const TOP: f64 = 32.0;
/// Below a drawing: the numbers on its axis and what they are.
const BELOW: f64 = 48.0;
const LEGEND_LINE: f64 = 20.0;
/// Room of a name in the legend.
const LEGEND_COLUMN: f64 = 200.0;
/// Pixels of the PNG for each unit of the drawing.
const ZOOM: f32 = 2.0;

/// The colour of curve `i` on white: the page's.
fn colour(i: usize) -> &'static str {
    let declared = STYLE.split_once(&format!("--c{}:", i % COLOURS)).map(|(_, rest)| rest);
    declared.and_then(|rest| rest.split(';').next()).map_or("black", str::trim)
}

/// Beside each other the `panels`, whose curves have `y` in common, over one legend.
pub fn svg(y: &str, panels: &[Panel]) -> String {
    let all = || panels.iter().flat_map(|panel| &panel.curves).flat_map(|curve| &curve.points);
    let heights = Scale::over(all().flat_map(|p| [p.low, p.high]), 5, true);
    let names: Vec<&str> = panels.first().into_iter().flat_map(|p| &p.curves).map(|c| c.name.as_str()).collect();
    let width = panels.len() as f64 * (LEFT + WIDTH) + 20.0;
    let columns = ((width - LEFT) / LEGEND_COLUMN).max(1.0) as usize;
    let legend = TOP + HEIGHT + BELOW;
    let height = legend + names.len().div_ceil(columns) as f64 * LEGEND_LINE + 8.0;
    let figure = html! {
        svg xmlns="http://www.w3.org/2000/svg" width=(width) height=(height) viewBox={ "0 0 " (width) " " (height) }
            font-family="Ubuntu, sans-serif" font-size="13" fill="#1c1b1a" {
            rect width="100%" height="100%" fill="white" {}
            text x="8" y="16" { (y) }
            @for (i, panel) in panels.iter().enumerate() {
                g transform={ "translate(" (i as f64 * (LEFT + WIDTH) + LEFT) " " (TOP) ")" } { (drawing(panel, &heights)) }
            }
            @for (i, name) in names.iter().enumerate() {
                @let (x, y) = (LEFT + (i % columns) as f64 * LEGEND_COLUMN, legend + (i / columns) as f64 * LEGEND_LINE);
                path d={ "M" (x) " " (y) "h24" } stroke=(colour(i)) stroke-width="3" {}
                text x=(x + 32.0) y=(y + 4.0) { (name) }
            }
        }
    };
    figure.into_string()
}

/// A place in a drawing, without digits that no screen shows.
fn spot((x, y): (&Scale, &Scale), at: f64, value: f64) -> String {
    format!("{:.1} {:.1}", x.at(at) * WIDTH, (1.0 - y.at(value)) * HEIGHT)
}

fn drawing(panel: &Panel, y: &Scale) -> Markup {
    let places = panel.curves.iter().flat_map(|curve| &curve.points).map(|p| p.x);
    let x = &Scale::over(places, 5, false);
    let mut grid = String::new();
    for tick in &y.ticks {
        let _ = write!(grid, "M{}H{WIDTH}", spot((x, y), x.low, *tick));
    }
    let lines = panel.curves.iter().map(|curve| {
        let through = |of: &dyn Fn(&Spread) -> f64| -> Vec<String> {
            curve.points.iter().map(|p| spot((x, y), p.x, of(p))).collect()
        };
        let (high, mut low) = (through(&|p| p.high), through(&|p| p.low));
        low.reverse();
        let band = if high.is_empty() { String::new() } else { format!("M{}L{}Z", high.join("L"), low.join("L")) };
        let mean = through(&|p| p.mean);
        let line = if mean.is_empty() { String::new() } else { format!("M{}", mean.join("L")) };
        (band, line)
    });
    let lines: Vec<(String, String)> = lines.collect();
    html! {
        path d=(grid) stroke="#ece8e2" fill="none" {}
        @for tick in &y.ticks {
            text x="-8" y=((1.0 - y.at(*tick)) * HEIGHT + 4.0) text-anchor="end" { (tick_label(*tick, y)) }
        }
        @for tick in &x.ticks {
            text x=(format!("{:.1}", x.at(*tick) * WIDTH)) y=(HEIGHT + 18.0) text-anchor="middle" { (tick_label(*tick, x)) }
        }
        text x=(WIDTH) y=(HEIGHT + 36.0) text-anchor="end" { (panel.x) }
        @for (i, (band, _)) in lines.iter().enumerate() { path d=(band) fill=(colour(i)) fill-opacity="0.15" {} }
        @for (i, (_, line)) in lines.iter().enumerate() {
            path d=(line) stroke=(colour(i)) stroke-width="2" stroke-linejoin="round" fill="none" {}
        }
        path d=(PreEscaped(format!("M0 {HEIGHT}H{WIDTH}"))) stroke="#66615b" {}
    }
}

/// The drawing `svg`, made by [`svg()`], as a PNG file.
///
/// # Errors
/// If it is no drawing.
pub fn png(svg: &str) -> Result<Vec<u8>> {
    let mut options = usvg::Options { font_family: "Ubuntu".into(), ..usvg::Options::default() };
    options.fontdb_mut().load_font_data(epaint_default_fonts::UBUNTU_LIGHT.to_vec());
    let tree = usvg::Tree::from_str(svg, &options).context("not a drawing")?;
    let (width, height) = ((tree.size().width() * ZOOM) as u32, (tree.size().height() * ZOOM) as u32);
    let mut pixels = tiny_skia::Pixmap::new(width, height).context("a drawing without area")?;
    resvg::render(&tree, tiny_skia::Transform::from_scale(ZOOM, ZOOM), &mut pixels.as_mut());
    let picture = RgbaImage::from_raw(width, height, pixels.take()).context("a drawing of another size")?;
    let mut out = std::io::Cursor::new(Vec::new());
    // Nothing shines through the white ground.
    DynamicImage::ImageRgba8(picture).to_rgb8().write_to(&mut out, ImageFormat::Png)?;
    Ok(out.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn panel(name: &str) -> Panel {
        let at = |x: f64, mean: f64| Spread { x, mean, low: mean - 0.1, high: mean + 0.1 };
        Panel {
            x: "updates".into(),
            curves: vec![Curve { name: name.into(), points: vec![at(0.0, 0.3), at(10.0, 0.7)] }],
        }
    }

    #[test]
    fn means_and_bands_are_where_they_belong_and_names_are_escaped() {
        let figure = svg("reward", &[panel("a <b>")]);
        assert!(figure.contains("d=\"M0.0 250.0L480.0 50.0\""), "{figure}");
        assert!(figure.contains("d=\"M0.0 200.0L480.0 0.0L480.0 100.0L0.0 300.0Z\""), "{figure}");
        assert!(figure.contains("a &lt;b&gt;") && !figure.contains("<b>"), "{figure}");
    }

    #[test]
    fn the_png_shows_lines_in_their_colours_and_letters() {
        let bytes = png(&svg("reward", &[panel("ram"), panel("ram")])).unwrap();
        let picture = image::load_from_memory(&bytes).unwrap().to_rgb8();
        let count = |of: [u8; 3]| picture.pixels().filter(|p| p.0 == of).count();
        let line = u32::from_str_radix(colour(0).trim_start_matches('#'), 16).unwrap().to_be_bytes();
        assert!(count([line[1], line[2], line[3]]) > 1000);
        // The darkest pixels are those of letters.
        let ink = picture.pixels().filter(|p| p.0.iter().all(|v| *v < 80)).count();
        assert!(ink > 300, "{ink}");
    }

    #[test]
    fn curves_without_points_leave_a_drawing() {
        let empty = Panel { x: "seconds".into(), curves: vec![Curve { name: "a".into(), points: Vec::new() }] };
        png(&svg("reward", &[empty])).unwrap();
    }
}
