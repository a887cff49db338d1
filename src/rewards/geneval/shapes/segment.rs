//! A picture's regions of one colour, with soft edges.

use super::{PALETTE, distance};
use crate::io::image::RgbImage;

/// Larger pictures are averaged down to at most this many pixels a side.
const WORKING_SIDE: usize = 96;
/// The darkest a channel of the ground may be, and how far its channels may lie apart: it is light and nearly grey.
const DARKEST_GROUND: f32 = 150.0;
const MOST_TINTED_GROUND: f32 = 60.0;
/// How much of the picture must be ground; three of the largest shapes leave 0.64.
const LEAST_GROUND: f64 = 0.35;
/// Nearer than this to the ground, in RGB, a pixel belongs to it. A shape's full colour is 200 or more away.
const FAINTEST: f32 = 45.0;
/// A pixel with less than this part of the strongest contrast nearby is the soft edge of what is there.
const EDGE: f32 = 0.45;
/// How far away nearby is.
const NEAR: usize = 3;
/// A region with fewer pixels is a speck; the smallest drawn triangle has 84.
const SPECK: usize = 12;
/// The label of a pixel whose hue is none of the palette's; the palette's are 0 to 5.
const OTHER: u8 = 6;
const GROUND: u8 = 7;
/// The least cosine between the way from the ground to a pixel and to a colour that makes it this hue.
const SAME_HUE: f32 = 0.9;

/// A region of one colour.
pub struct Region {
    /// Where the first pixel of `coverage` lies.
    pub origin: [isize; 2],
    /// Pixels in a row of `coverage`.
    pub width: usize,
    /// How much of each pixel the region covers, 0 to 1: `[rows, width]`, with a margin.
    pub coverage: Vec<f32>,
    /// The colour inside.
    pub color: [f32; 3],
    /// Its distance from the ground's.
    pub contrast: f32,
    /// Which part of the inside has that colour.
    pub uniform: f64,
}

struct Picture {
    width: usize,
    height: usize,
    pixels: Vec<[f32; 3]>,
}

impl Picture {
    /// The window of `reach` around pixel `i`, cut at the borders.
    fn around(&self, i: usize, reach: usize) -> impl Iterator<Item = usize> + '_ {
        let (x, y) = (i % self.width, i / self.width);
        let columns = x.saturating_sub(reach)..(x + reach + 1).min(self.width);
        let rows = y.saturating_sub(reach)..(y + reach + 1).min(self.height);
        rows.flat_map(move |y| columns.clone().map(move |x| y * self.width + x))
    }

    /// The up to four pixels that share a side with pixel `i`.
    fn beside(&self, i: usize) -> impl Iterator<Item = usize> + '_ {
        let (x, y, w) = (i % self.width, i / self.width, self.width);
        let sides = [(x > 0, 1, 0), (x + 1 < w, 0, 1), (y > 0, w, 0), (y + 1 < self.height, 0, w)];
        sides.into_iter().filter(|s| s.0).map(move |(_, minus, plus)| i + plus - minus)
    }
}

/// The regions of `image`, and how many of its pixels a pixel of theirs is wide. None if the ground is not plain and
/// light.
pub fn regions(image: &RgbImage) -> (Vec<Region>, f64) {
    let scale = image.width.max(image.height).div_ceil(WORKING_SIDE).max(1);
    let picture = shrink(image, scale);
    let none = (Vec::new(), scale as f64);
    let Some(ground) = ground(&picture) else { return none };
    let contrast: Vec<f32> = picture.pixels.iter().map(|p| distance(*p, ground)).collect();
    let mut labels = labels(&picture, ground, &contrast);
    smooth(&picture, &mut labels);
    absorb_specks(&picture, &mut labels);
    let parts = components(&picture, &labels);
    let found = parts.iter().filter(|p| p.len() >= SPECK).map(|p| region(&picture, ground, &labels, p));
    (found.collect(), scale as f64)
}

/// Averages blocks of `scale` x `scale` pixels.
fn shrink(image: &RgbImage, scale: usize) -> Picture {
    let (width, height) = (image.width.div_ceil(scale), image.height.div_ceil(scale));
    let mut sums = vec![([0.0f32; 3], 0.0f32); width * height];
    for (i, pixel) in image.data.chunks(3).enumerate() {
        let (sum, count) = &mut sums[i / image.width / scale * width + i % image.width / scale];
        (0..3).for_each(|c| sum[c] += f32::from(pixel[c]));
        *count += 1.0;
    }
    Picture { width, height, pixels: sums.into_iter().map(|(sum, n)| sum.map(|v| v / n)).collect() }
}

/// The colour of the ground: the middle of the border's colours.
fn ground(picture: &Picture) -> Option<[f32; 3]> {
    let (w, h) = (picture.width, picture.height);
    let border: Vec<[f32; 3]> = (0..w * h)
        .filter(|i| i % w < 2 || i % w + 2 >= w || i / w < 2 || i / w + 2 >= h)
        .map(|i| picture.pixels[i])
        .collect();
    let ground = median(&border)?;
    let (low, high) = (ground.into_iter().fold(f32::MAX, f32::min), ground.into_iter().fold(0.0, f32::max));
    let plain = picture.pixels.iter().filter(|p| distance(**p, ground) < FAINTEST).count() as f64;
    let enough = plain >= LEAST_GROUND * (w * h) as f64;
    (low >= DARKEST_GROUND && high - low <= MOST_TINTED_GROUND && enough).then_some(ground)
}

fn median(colors: &[[f32; 3]]) -> Option<[f32; 3]> {
    if colors.is_empty() {
        return None;
    }
    Some([0, 1, 2].map(|c| {
        let mut values: Vec<f32> = colors.iter().map(|p| p[c]).collect();
        let middle = values.len() / 2;
        *values.select_nth_unstable_by(middle, f32::total_cmp).1
    }))
}

/// Which hue each pixel has. A soft edge mixes the shape's colour with the ground's, which moves a pixel towards the
/// ground and does not turn its direction from there.
fn labels(picture: &Picture, ground: [f32; 3], contrast: &[f32]) -> Vec<u8> {
    let ways = PALETTE.map(|(_, p)| {
        let way = [0, 1, 2].map(|c| p[c] - ground[c]);
        let length = distance(p, ground);
        way.map(|v| v / length)
    });
    let hue = |i: usize| {
        let strongest = picture.around(i, NEAR).map(|j| contrast[j]).fold(0.0, f32::max);
        if contrast[i] < FAINTEST || contrast[i] < EDGE * strongest {
            return GROUND;
        }
        let cosine = |way: &[f32; 3]| -> f32 {
            (0..3).map(|c| (picture.pixels[i][c] - ground[c]) * way[c]).sum::<f32>() / contrast[i]
        };
        let cosines = ways.each_ref().map(cosine);
        let best = (0..6).max_by(|a, b| cosines[*a].total_cmp(&cosines[*b])).expect("six colours");
        if cosines[best] < SAME_HUE { OTHER } else { best as u8 }
    };
    (0..picture.pixels.len()).map(hue).collect()
}

/// Gives each pixel of a region the label that most pixels around it have.
fn smooth(picture: &Picture, labels: &mut [u8]) {
    let before = labels.to_vec();
    for i in (0..labels.len()).filter(|i| before[*i] != GROUND) {
        let mut votes = [0; GROUND as usize];
        // Its own label wins a draw.
        votes[usize::from(before[i])] = 1;
        picture.around(i, 1).filter(|j| before[*j] != GROUND).for_each(|j| votes[usize::from(before[j])] += 2);
        labels[i] = (0..GROUND).max_by_key(|l| votes[usize::from(*l)]).expect("seven labels");
    }
}

/// Gives specks the label of the region they touch most.
fn absorb_specks(picture: &Picture, labels: &mut [u8]) {
    for part in components(picture, labels).into_iter().filter(|p| p.len() < SPECK) {
        let own = labels[part[0]];
        let mut votes = [0; GROUND as usize];
        for j in part.iter().flat_map(|i| picture.beside(*i)) {
            if labels[j] != own && labels[j] != GROUND {
                votes[usize::from(labels[j])] += 1;
            }
        }
        let most = (0..GROUND).max_by_key(|l| votes[usize::from(*l)]).expect("seven labels");
        if votes[usize::from(most)] > 0 {
            part.iter().for_each(|i| labels[*i] = most);
        }
    }
}

/// The pixels of each connected region of one label, ground apart.
fn components(picture: &Picture, labels: &[u8]) -> Vec<Vec<usize>> {
    let mut seen: Vec<bool> = labels.iter().map(|l| *l == GROUND).collect();
    let mut parts = Vec::new();
    for start in 0..labels.len() {
        if std::mem::replace(&mut seen[start], true) {
            continue;
        }
        let mut part = vec![start];
        let mut next = 0;
        while let Some(&i) = part.get(next) {
            next += 1;
            for j in picture.beside(i) {
                if labels[j] == labels[start] && !std::mem::replace(&mut seen[j], true) {
                    part.push(j);
                }
            }
        }
        parts.push(part);
    }
    parts
}

fn region(picture: &Picture, ground: [f32; 3], labels: &[u8], part: &[usize]) -> Region {
    const MARGIN: usize = 2;
    /// Farther than this from the region's colour, a pixel inside is another's. A drawn shape is flat.
    const OFF: f32 = 60.0;
    let mut own = vec![false; labels.len()];
    part.iter().for_each(|i| own[*i] = true);
    let inside: Vec<[f32; 3]> = {
        let inner = part.iter().filter(|i| picture.beside(**i).all(|j| own[j]));
        inner.map(|i| picture.pixels[*i]).collect()
    };
    let all: Vec<[f32; 3]> = part.iter().map(|i| picture.pixels[*i]).collect();
    let inside = if inside.is_empty() { all } else { inside };
    let color = median(&inside).expect("a region has pixels");
    let same = inside.iter().filter(|p| distance(**p, color) < OFF).count();

    let way = [0, 1, 2].map(|c| color[c] - ground[c]);
    let length = distance(color, ground).max(1.0);
    let columns = part.iter().map(|i| i % picture.width);
    let rows = part.iter().map(|i| i / picture.width);
    let left = columns.clone().min().expect("pixels") as isize - MARGIN as isize;
    let top = rows.clone().min().expect("pixels") as isize - MARGIN as isize;
    let width = (columns.max().expect("pixels") + MARGIN + 1).wrapping_add_signed(-left);
    let height = (rows.max().expect("pixels") + MARGIN + 1).wrapping_add_signed(-top);
    let cover = |k: usize| {
        let (x, y) = (left + (k % width) as isize, top + (k / width) as isize);
        if x < 0 || y < 0 || x >= picture.width as isize || y >= picture.height as isize {
            return 0.0;
        }
        let i = y as usize * picture.width + x as usize;
        let edge = || labels[i] == GROUND && picture.around(i, MARGIN).any(|j| own[j]);
        if !own[i] && !edge() {
            return 0.0;
        }
        let along: f32 = (0..3).map(|c| (picture.pixels[i][c] - ground[c]) * way[c]).sum();
        (along / (length * length)).clamp(0.0, 1.0)
    };
    Region {
        origin: [left, top],
        width,
        coverage: (0..width * height).map(cover).collect(),
        color,
        contrast: length,
        uniform: same as f64 / inside.len() as f64,
    }
}
