//! Points that a loss looks at together: those of a pair of images, or of a group of them, at one time.

use std::collections::BTreeMap;
use std::ops::Range;

use super::strata::Strata;
use super::{Point, Scored};
use crate::device::philox::{Key, Purpose};

/// `count` things in `parts` runs that are as equal as can be.
pub(super) fn shares(count: usize, parts: usize) -> impl Iterator<Item = Range<usize>> {
    (0..parts).map(move |i| count * i / parts..count * (i + 1) / parts)
}

/// Which of `points` are seen together, in order; those that are alone by themselves.
pub(super) fn units(points: &[Point]) -> Vec<Vec<usize>> {
    let (mut units, mut of): (Vec<Vec<usize>>, BTreeMap<usize, usize>) = (Vec::new(), BTreeMap::new());
    for (i, point) in points.iter().enumerate() {
        match point.together.and_then(|number| of.get(&number)) {
            Some(unit) => units[*unit].push(i),
            None => {
                point.together.map(|number| of.insert(number, units.len()));
                units.push(vec![i]);
            }
        }
    }
    units
}

/// `points` in parts of at most `most` that no unit is divided by, which follow each other; a unit of more is a part of its own.
pub fn parts(points: &[Point], most: usize) -> Vec<&[Point]> {
    let is_one = |pair: &[Point]| pair[0].together.is_some() && pair[0].together == pair[1].together;
    let mut ends = (1..points.len()).filter(|i| !is_one(&points[i - 1..=*i])).chain([points.len()]).peekable();
    let (mut parts, mut start) = (Vec::new(), 0);
    while let Some(end) = ends.next() {
        if end > start && ends.peek().is_none_or(|next| next - start > most) {
            parts.push(&points[start..end]);
            start = end;
        }
    }
    parts
}

/// The images of each group of an epoch, groups in the order of their first images.
pub(super) fn groups(epoch: &Scored) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for (image, group) in epoch.groups.iter().enumerate() {
        groups.resize_with(groups.len().max(group + 1), Vec::new);
        groups[*group].push(image);
    }
    groups
}

/// Which points share their noise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Noise {
    /// None.
    Own,
    /// Those of a unit at one time.
    OfTime,
    /// Those of a unit at all times.
    OfUnit,
}

/// The points of units of images, all of which are trained at the same times.
pub(super) struct Draws {
    pub times: Strata,
    pub noise: Noise,
}

impl Draws {
    /// The groups of an epoch shared out to `updates`, each at its `times` times.
    pub fn of_groups(&self, epoch: &Scored, times: usize, updates: usize) -> Vec<Vec<Point>> {
        let groups = groups(epoch);
        shares(groups.len(), updates).map(|share| self.points(epoch, &groups[share], 0..times)).collect()
    }

    /// All `units` in each of `updates`, at its share of their `times` times.
    pub fn of_units(&self, epoch: &Scored, units: &[Vec<usize>], times: usize, updates: usize) -> Vec<Vec<Point>> {
        shares(times, updates).map(|share| self.points(epoch, units, share)).collect()
    }

    /// Of `units` at those of their times that are numbered `draws`: unit by unit, time by time.
    fn points(&self, epoch: &Scored, units: &[Vec<usize>], draws: Range<usize>) -> Vec<Point> {
        let of_unit = |unit: &Vec<usize>| -> Vec<Point> {
            let first = unit[0];
            let times = self.times.draw(&mut (epoch.key)(Purpose::Timestep, first, 0).stream());
            let noise = |image: usize, draw: usize| -> Key {
                let (image, draw) = match self.noise {
                    Noise::Own => (image, draw),
                    Noise::OfTime => (first, draw),
                    Noise::OfUnit => (first, 0),
                };
                (epoch.key)(Purpose::ForwardNoise, image, draw as u32)
            };
            let together = |draw: usize| (unit.len() > 1).then_some(first * times.len() + draw);
            let point = |image: usize, draw: usize| Point {
                noise: noise(image, draw),
                together: together(draw),
                ..Point::new(image, times[draw], epoch.advantages[image])
            };
            draws
                .clone()
                .flat_map(|draw| unit.iter().map(move |image| (*image, draw)))
                .map(|(i, d)| point(i, d))
                .collect()
        };
        units.iter().flat_map(of_unit).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(together: &[Option<usize>]) -> Vec<Point> {
        let point = |(i, together): (usize, &Option<usize>)| Point { together: *together, ..Point::new(i, 0.5, 1.0) };
        together.iter().enumerate().map(point).collect()
    }

    #[test]
    fn a_part_holds_whole_units_and_as_many_as_it_can() {
        let lengths = |together: &[Option<usize>], most| -> Vec<usize> {
            let points = points(together);
            let parts = parts(&points, most);
            let all: Vec<Point> = parts.concat();
            assert_eq!(all, points);
            parts.into_iter().map(<[Point]>::len).collect()
        };
        assert_eq!(lengths(&[None; 7], 3), [3, 3, 1]);
        let groups = [0, 0, 1, 1, 1, 2, 3, 3].map(Some);
        assert_eq!(lengths(&groups, 4), [2, 4, 2]);
        assert_eq!(lengths(&groups, 5), [5, 3]);
        // A group that is larger than a part is one nevertheless.
        assert_eq!(lengths(&groups, 2), [2, 3, 1, 2]);
        assert_eq!(lengths(&groups, 1), [2, 3, 1, 2]);
        assert!(lengths(&[], 4).is_empty());
    }

    #[test]
    fn units_are_found_also_where_their_points_do_not_follow_each_other() {
        assert_eq!(units(&points(&[Some(4), None, Some(2), Some(4), None])), [vec![0, 3], vec![1], vec![2], vec![4]]);
    }

    #[test]
    fn shares_are_all_there_is() {
        assert_eq!(shares(7, 3).collect::<Vec<_>>(), [0..2, 2..4, 4..7]);
    }
}
