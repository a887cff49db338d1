/// Which pixels are set.
pub struct Bitmap {
    width: usize,
    height: usize,
    /// `[height + 2, width + 2]`: with a rim of zeros.
    marks: Vec<u8>,
}

/// A pixel that no border has met yet.
const NEW: u8 = 1;
/// One that a border has met.
const MET: u8 = 2;
/// One whose right neighbour a border found empty: no hole begins to the right of it again.
const RIGHT: u8 = 0x82;

/// Steps to the eight neighbours, counter-clockwise from the right (on a screen).
const AROUND: [(i32, i32); 8] = [(1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1)];

impl Bitmap {
    /// The pixels of `values` `[height, width]` above `threshold`.
    pub fn above(values: &[f32], width: usize, threshold: f32) -> Self {
        let height = values.len() / width.max(1);
        let mut marks = vec![0; (width + 2) * (height + 2)];
        for (row, values) in marks.chunks_exact_mut(width + 2).skip(1).zip(values.chunks_exact(width.max(1))) {
            row[1..].iter_mut().zip(values).for_each(|(mark, v)| *mark = u8::from(*v > threshold));
        }
        Self { width, height, marks }
    }
}

/// The borders of all regions and of their holes (Suzuki and Abe 1985) without what lies inside straight pieces, as
/// `findContours` with `RETR_LIST` and `CHAIN_APPROX_SIMPLE` gives them: the last one that a scan from the top finds first.
pub fn contours(mut bitmap: Bitmap) -> Vec<Vec<[i32; 2]>> {
    let mut found = Vec::new();
    let pitch = bitmap.width + 2;
    for y in 1..=bitmap.height {
        let mut before = 0;
        for x in 1..=bitmap.width {
            let here = bitmap.marks[y * pitch + x];
            if before == 0 && here == NEW {
                found.push(bitmap.border(x, y, false));
            } else if here == 0 && (before == NEW || before == MET) {
                found.push(bitmap.border(x - 1, y, true));
            }
            before = bitmap.marks[y * pitch + x];
        }
    }
    found.reverse();
    found
}

impl Bitmap {
    /// Walks along the border that begins at a pixel and marks it.
    fn border(&mut self, x: usize, y: usize, hole: bool) -> Vec<[i32; 2]> {
        let pitch = (self.width + 2) as i32;
        let start = y as i32 * pitch + x as i32;
        let step = |direction: usize| AROUND[direction % 8].0 + AROUND[direction % 8].1 * pitch;
        let (mut point, mut points) = ([x as i32 - 1, y as i32 - 1], Vec::new());
        let side = if hole { 0 } else { 4 };
        let first = (1..=8).map(|i| (side + 8 - i) % 8).find(|d| self.marks[(start + step(*d)) as usize] != 0);
        let Some(first) = first.filter(|d| *d != side) else {
            self.marks[start as usize] = RIGHT;
            return vec![point];
        };
        let last = start + step(first);
        let (mut at, mut came) = (start, first);
        let mut along = first ^ 4;
        loop {
            let set = |d: &usize| self.marks[(at + step(*d)) as usize] != 0;
            let direction = (came + 1..=15).find(set).unwrap_or(15);
            let next = at + step(direction);
            let direction = direction % 8;
            let mark = &mut self.marks[at as usize];
            if direction > 0 && direction - 1 < came {
                *mark = RIGHT;
            } else if *mark == NEW {
                *mark = MET;
            }
            if direction != along {
                points.push(point);
            }
            along = direction;
            point = [point[0] + AROUND[direction].0, point[1] + AROUND[direction].1];
            if next == start && at == last {
                return points;
            }
            (at, came) = (next, (direction + 4) % 8);
        }
    }
}
