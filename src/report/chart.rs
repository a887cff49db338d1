//! Curves as SVG. The drawing is stretched to whatever room it gets while lines keep their width and text stays HTML, so that
//! one drawing is right on a phone and on a desk.

use std::fmt::Write;

use maud::{Markup, html};

use super::series::{Points, Scale, Thinned, thinned, written};

/// Width and height of the drawing in its own units.
const SIDE: f64 = 1000.0;
/// Colours there are; the style sheet has them as `.c0` and so on.
pub const COLOURS: usize = 8;

/// How a line is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// A strong line with a mark at each point.
    Marked,
    /// A strong line.
    Plain,
    /// A thin line in the background.
    Faint,
    /// A dashed line with marks.
    Dashed,
}

/// One line of a chart.
#[derive(Clone, Debug)]
pub struct Line {
    /// What its values are.
    pub name: String,
    /// Which of the colours, and form of the marks.
    pub colour: usize,
    /// How it is drawn.
    pub look: Look,
    /// Its values.
    pub points: Points,
}

/// A chart with lines.
pub struct Chart<'a> {
    /// What it shows, in words: for readers who do not see it.
    pub title: &'a str,
    /// What x is, such as `epoch`.
    pub x: &'a str,
    /// Its lines.
    pub lines: &'a [Line],
    /// The range of y that is shown in any case.
    pub shown: &'a [f64],
    /// Whether it has the width of the page.
    pub is_wide: bool,
}

/// Marks are left out where they would touch one another.
const MOST_MARKS: usize = 60;

impl Look {
    fn class(self) -> &'static str {
        match self {
            Self::Marked => "marked",
            Self::Plain => "plain",
            Self::Faint => "faint",
            Self::Dashed => "dashed",
        }
    }
}

/// A share of the side, without digits that no screen shows.
fn place(share: f64) -> String {
    let text = format!("{:.1}", share * SIDE);
    text.strip_suffix(".0").unwrap_or(&text).to_string()
}

/// The SVG path of `points`, interrupted where values are missing. A value between two missing ones is a dot.
fn path(points: &Points, x: &Scale, y: &Scale) -> String {
    let mut out = String::new();
    for stretch in points.split(|(_, v)| v.is_none()) {
        for (i, (at, value)) in stretch.iter().filter_map(|(at, v)| Some((*at, (*v)?))).enumerate() {
            let letter = if i == 0 { 'M' } else { 'L' };
            let _ = write!(out, "{letter}{} {}", place(x.at(at)), place(1.0 - y.at(value)));
        }
        if stretch.len() == 1 {
            out += "h0";
        }
    }
    out
}

/// A dot at every value.
fn dots(points: &Points, x: &Scale, y: &Scale) -> String {
    let known = points.iter().filter_map(|(at, v)| Some((*at, (*v)?)));
    known.fold(String::new(), |mut out, (at, value)| {
        let _ = write!(out, "M{} {}h0", place(x.at(at)), place(1.0 - y.at(value)));
        out
    })
}

/// The values as the script reads them: `x value;x value`, as a person reads them.
fn values(points: &Points) -> String {
    let known = points.iter().filter_map(|(at, v)| Some((*at, (*v)?)));
    let texts: Vec<String> =
        known.map(|(at, value)| format!("{} {}", (at * 1e4).round() / 1e4, written(value))).collect();
    texts.join(";")
}

/// The number to be written beside a tick: with as many digits as tell ticks apart.
pub fn tick_label(value: f64, scale: &Scale) -> String {
    let step = scale.ticks.get(1).map_or(1.0, |second| second - scale.ticks[0]);
    if value.abs() < step * 1e-6 {
        return "0".into();
    }
    let digits = (value.abs().log10().floor() - step.log10().floor()).clamp(0.0, 12.0) as usize + 1;
    super::series::significant(value, digits)
}

impl Chart<'_> {
    /// The chart as a figure without its caption.
    pub fn draw(&self) -> Markup {
        let (most, x_ticks, y_ticks) = if self.is_wide { (240, 5, 5) } else { (120, 3, 3) };
        let lines: Vec<(&Line, Thinned)> = self.lines.iter().map(|line| (line, thinned(&line.points, most))).collect();
        let known = || self.lines.iter().flat_map(|line| &line.points).filter_map(|(at, v)| Some((*at, (*v)?)));
        if known().next().is_none() {
            return html! { p.none { "nothing yet" } };
        }
        let x = Scale::over(known().map(|(at, _)| at), x_ticks, false);
        let y = Scale::over(known().map(|(_, v)| v).chain(self.shown.iter().copied()), y_ticks, true);
        frame(
            self.is_wide,
            &x,
            &y,
            self.x,
            html! {
                svg viewBox="0 0 1000 1000" preserveAspectRatio="none" role="img" aria-label=(self.described()) {
                    (gridlines(&x, &y))
                    @for (line, thin) in &lines {
                        @if !thin.band.is_empty() {
                            path class={ "band c" (line.colour % COLOURS) } d=(band(&thin.band, &x, &y)) {}
                        }
                    }
                    @for (line, thin) in &lines { (stroke(line, &thin.points, &x, &y)) }
                }
            },
        )
    }

    /// The chart in words.
    fn described(&self) -> String {
        let words = |line: &Line| {
            let known: Vec<f64> = line.points.iter().filter_map(|(_, v)| *v).collect();
            let (first, last) = (known.first()?, known.last()?);
            Some(format!("{} from {} to {}", line.name, written(*first), written(*last)))
        };
        let parts: Vec<String> = self.lines.iter().filter_map(words).collect();
        format!("{}: {}", self.title, parts.join("; "))
    }
}

fn gridlines(x: &Scale, y: &Scale) -> Markup {
    let horizontal = y.ticks.iter().map(|t| format!("M0 {}H1000", place(1.0 - y.at(*t)))).collect::<String>();
    let vertical = x.ticks.iter().map(|t| format!("M{} 0V1000", place(x.at(*t)))).collect::<String>();
    html! { path.grid d={ (horizontal) (vertical) } {} }
}

/// The area between the lowest and the highest values.
fn band(band: &[(f64, Option<[f64; 2]>)], x: &Scale, y: &Scale) -> String {
    let mut out = String::new();
    for stretch in band.split(|(_, ends)| ends.is_none()) {
        let known: Vec<(f64, [f64; 2])> = stretch.iter().filter_map(|(at, ends)| Some((*at, (*ends)?))).collect();
        let there = known.iter().map(|(at, [_, high])| (*at, *high));
        let back = known.iter().rev().map(|(at, [low, _])| (*at, *low));
        for (i, (at, value)) in there.chain(back).enumerate() {
            let letter = if i == 0 { 'M' } else { 'L' };
            let _ = write!(out, "{letter}{} {}", place(x.at(at)), place(1.0 - y.at(value)));
        }
        out += if known.is_empty() { "" } else { "Z" };
    }
    out
}

fn stroke(line: &Line, points: &Points, x: &Scale, y: &Scale) -> Markup {
    let class = format!("line {} c{}", line.look.class(), line.colour % COLOURS);
    let known = points.iter().filter(|(_, v)| v.is_some()).count();
    let is_marked = matches!(line.look, Look::Marked | Look::Dashed) && known <= MOST_MARKS;
    // Colour alone tells nothing to those who do not see it: marks are round or square, full or hollow.
    let shape = ["round full", "square full", "round hollow", "square hollow"][line.colour % 4];
    html! {
        path class=(class) d=(path(points, x, y)) data-name=(line.name) data-values=(values(points)) {}
        @if is_marked {
            @let marks = dots(points, x, y);
            path class={ "mark " (shape) " c" (line.colour % COLOURS) } d=(marks) {}
            @if shape.ends_with("hollow") { path class={ "hole " (shape) } d=(marks) {} }
        }
    }
}

/// Axes around a drawing.
pub fn frame(is_wide: bool, x: &Scale, y: &Scale, x_name: &str, drawing: Markup) -> Markup {
    let percent = |share: f64| format!("{:.2}%", share * 100.0);
    html! {
        div.chart.wide[is_wide] {
            div.ys aria-hidden="true" {
                @for tick in &y.ticks {
                    span style={ "bottom:" (percent(y.at(*tick))) } { (tick_label(*tick, y)) }
                }
            }
            div.plot data-low=(x.low) data-high=(x.high) data-x=(x_name) { (drawing) }
            div.xs aria-hidden="true" {
                @for tick in &x.ticks {
                    span style={ "left:" (percent(x.at(*tick))) } { (tick_label(*tick, x)) }
                }
                em { (x_name) }
            }
        }
    }
}

/// Values stacked on one another over x: one name, colour and points of equal x for each.
pub fn stacked(title: &str, x_name: &str, parts: &[(String, Points)]) -> Markup {
    let length = parts.iter().map(|(_, points)| points.len()).min().unwrap_or(0);
    if length == 0 {
        return html! { p.none { "nothing yet" } };
    }
    let at: Vec<f64> = parts[0].1[..length].iter().map(|(x, _)| *x).collect();
    let mut edges = vec![vec![0.0; length]];
    for (_, points) in parts {
        let below = &edges[edges.len() - 1];
        edges.push(below.iter().zip(points).map(|(low, (_, y))| low + y.unwrap_or(0.0).max(0.0)).collect());
    }
    let (first, last) = (at[0], at[length - 1]);
    // A single epoch is a block, not a line.
    let x = Scale::over([first - 0.5, last + 0.5], 5, false);
    let y = Scale::over(edges[edges.len() - 1].iter().copied().chain([0.0]), 4, true);
    let spot = |x_at: f64, value: f64| format!("{} {}", place(x.at(x_at)), place(1.0 - y.at(value)));
    let edge = |values: &[f64]| -> Vec<String> {
        let ends = [(x.low, values[0]), (x.high, values[length - 1])];
        let middle = at.iter().copied().zip(values.iter().copied());
        [ends[0]].into_iter().chain(middle).chain([ends[1]]).map(|(x, v)| spot(x, v)).collect()
    };
    let area = |i: usize| {
        let (mut low, high) = (edge(&edges[i]), edge(&edges[i + 1]));
        low.reverse();
        format!("M{}L{}Z", high.join("L"), low.join("L"))
    };
    let drawing = html! {
        svg viewBox="0 0 1000 1000" preserveAspectRatio="none" role="img" aria-label=(title) {
            (gridlines(&Scale { ticks: Vec::new(), ..x.clone() }, &y))
            @for (i, (name, points)) in parts.iter().enumerate() {
                path class={ "area p" (i % COLOURS) } d=(area(i)) data-name=(name) data-values=(values(points)) {}
            }
        }
    };
    frame(true, &x, &y, x_name, drawing)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(lines: &[Line]) -> String {
        Chart { title: "reward", x: "epoch", lines, shown: &[], is_wide: false }.draw().into_string()
    }

    fn line(points: Points) -> Line {
        Line { name: "a <b> & \"c\"".into(), colour: 9, look: Look::Marked, points }
    }

    #[test]
    fn points_are_drawn_where_they_are_and_gaps_stay_gaps() {
        let points = vec![(0.0, Some(1.0)), (1.0, Some(2.0)), (2.0, None), (3.0, Some(3.0)), (4.0, None)];
        let page = chart(&[line(points)]);
        assert!(page.contains("d=\"M0 1000L333.3 500M1000 0h0\""), "{page}");
        assert!(page.contains("data-values=\"0 1;1 2;3 3\""), "{page}");
        assert!(page.contains("class=\"line marked c1\""), "{page}");
    }

    #[test]
    fn names_are_escaped() {
        let page = chart(&[line(vec![(0.0, Some(1.0)), (1.0, Some(2.0))])]);
        assert!(page.contains("data-name=\"a &lt;b&gt; &amp; &quot;c&quot;\"") && !page.contains("<b>"), "{page}");
    }

    #[test]
    fn a_chart_of_nothing_says_so() {
        assert!(chart(&[]).contains("nothing yet"));
        assert!(chart(&[line(vec![(0.0, None)])]).contains("nothing yet"));
        assert!(stacked("time", "epoch", &[]).into_string().contains("nothing yet"));
    }

    #[test]
    fn a_long_run_is_a_short_drawing() {
        let points: Points = (0..100_000).map(|i| (f64::from(i), Some(f64::from(i % 977)))).collect();
        assert!(chart(&[line(points)]).len() < 20_000);
    }

    #[test]
    fn ticks_have_the_digits_that_tell_them_apart() {
        let labels = |values: [f64; 2]| {
            let scale = Scale::over(values, 4, true);
            scale.ticks.iter().map(|t| tick_label(*t, &scale)).collect::<Vec<_>>()
        };
        assert_eq!(labels([0.0, 1.0]), ["0", "0.2", "0.4", "0.6", "0.8", "1"]);
        assert_eq!(labels([1000.0, 1000.4]), ["1000", "1000.1", "1000.2", "1000.3", "1000.4"]);
        assert_eq!(labels([-2.0, 2.0]), ["\u{2212}2", "\u{2212}1", "0", "1", "2"]);
    }

    #[test]
    fn stacked_parts_lie_on_one_another() {
        let part = |name: &str, values: [f64; 2]| {
            (name.to_string(), values.iter().zip([1.0, 2.0]).map(|(v, x)| (x, Some(*v))).collect::<Points>())
        };
        let page = stacked("time", "epoch", &[part("rollout", [2.0, 1.0]), part("train", [2.0, 3.0])]).into_string();
        assert!(page.contains("d=\"M0 500L250 500L750 750L1000 750L1000 1000L750 1000L250 1000L0 1000Z\""), "{page}");
        assert!(page.contains("d=\"M0 0L250 0L750 0L1000 0L1000 750L750 750L250 500L0 500Z\""), "{page}");
    }
}
