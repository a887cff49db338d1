//! What was learnt: rewards on training and held-out prompts, for each reward and kind of prompt.

use maud::{Markup, html};

use super::chart::{COLOURS, Chart, Line, Look};
use super::run::{Axis, Run, Values, number};
use super::series::{Points, written};

/// Rows of the table of evaluations.
const MOST_ROWS: usize = 200;

/// The points of `values` on `axis`, in `unit`s of it.
fn placed(run: &Run, values: Values, axis: Axis, unit: f64) -> Points {
    let places = run.places(axis);
    // An evaluation is where the last epoch before it ended.
    let place = |epoch: u64| places.range(..=epoch).next_back().map(|(_, at)| at / unit);
    values.into_iter().filter_map(|(epoch, v)| Some((place(epoch)?, v))).collect()
}

/// How the line of run `i` of `runs` is called in a chart of `what`.
fn name(runs: &[Run], i: usize, what: &str) -> String {
    if runs.len() == 1 { what.into() } else { format!("{} \u{b7} {what}", runs[i].name) }
}

/// Held-out values at `held_out` and training values at `training`, a pair of lines for each run.
fn pairs(runs: &[Run], held_out: &[&str], training: &[&str], axis: Axis, unit: f64) -> Vec<Line> {
    let lines = runs.iter().enumerate().flat_map(|(i, run)| {
        let line = |what, look, values| Line {
            name: name(runs, i, what),
            colour: i,
            look,
            points: placed(run, values, axis, unit),
        };
        [line("training", Look::Faint, run.training(training)), line("held-out", Look::Marked, run.held_out(held_out))]
    });
    let mut lines: Vec<Line> = lines.filter(|line| line.points.iter().any(|(_, v)| v.is_some())).collect();
    // What matters is drawn last, over the rest.
    lines.sort_by_key(|line| line.look != Look::Faint);
    lines
}

/// A small chart with its title and what became of its value.
pub fn panel(title: &str, note: Option<String>, x: &str, lines: &[Line], shown: &[f64]) -> Markup {
    html! {
        figure.panel {
            figcaption { b { (title) } @if let Some(note) = note { span { (note) } } }
            (Chart { title, x, lines, shown, is_wide: false }.draw())
        }
    }
}

/// `0.25 → 0.75` where there is one run.
fn change(runs: &[Run], path: &[&str]) -> Option<String> {
    let [run] = runs else { return None };
    let values: Vec<f64> = run.held_out(path).into_iter().filter_map(|(_, v)| v).collect();
    let (first, last) = (values.first()?, values.last()?);
    Some(format!("{} \u{2192} {}", written(*first), written(*last)))
}

/// The names of runs with their colours, where there are several.
pub fn legend(runs: &[Run]) -> Markup {
    html! {
        @if runs.len() > 1 {
            p.legend {
                @for (i, run) in runs.iter().enumerate() {
                    span { i class={ "chip c" (i % COLOURS) } {} (run.name) }
                }
            }
        }
    }
}

/// The unit that suits the longest run: its name and its seconds.
fn unit(runs: &[Run]) -> (&'static str, f64) {
    let longest = runs.iter().filter_map(|run| run.places(Axis::Seconds).into_values().last()).fold(0.0, f64::max);
    match longest {
        s if s > 7200.0 => ("hours of training", 3600.0),
        s if s > 120.0 => ("minutes of training", 60.0),
        _ => ("seconds of training", 1.0),
    }
}

/// The large chart, over epochs, images or time: a choice that needs no script.
fn main_chart(runs: &[Run]) -> Markup {
    let (time, seconds) = unit(runs);
    let axes = [
        ("epochs", "epoch", Axis::Epochs, 1.0),
        ("images", "images", Axis::Images, 1.0),
        ("time", time, Axis::Seconds, seconds),
    ];
    let charts: Vec<(&str, &str, Vec<Line>)> = axes
        .into_iter()
        .map(|(label, x, axis, unit)| (label, x, pairs(runs, &["eval", "reward"], &["reward_mean"], axis, unit)))
        .collect();
    html! {
        div.switched {
            @for (i, (label, ..)) in charts.iter().enumerate() {
                input type="radio" name="axis" id={ "axis-" (label) } checked[i == 0];
            }
            div.switch {
                span { "over" }
                @for (label, ..) in &charts { label for={ "axis-" (label) } { (label) } }
            }
            @for (label, x, lines) in &charts {
                div class={ "choice of-" (label) } {
                    (Chart { title: "Reward", x, lines, shown: &[], is_wide: true }.draw())
                }
            }
            p.legend {
                @if runs.len() == 1 {
                    span { i class="key marked c0" {} "held-out prompts" }
                    span { i class="key faint c0" {} "training prompts" }
                } @else {
                    span.muted { "strong: held-out prompts; thin: training prompts" }
                }
            }
        }
    }
}

/// The kinds of prompts that any run tells apart.
fn tags(runs: &[Run]) -> Vec<String> {
    let all: std::collections::BTreeSet<String> = runs.iter().flat_map(|run| run.names(&["tags"])).collect();
    all.into_iter().collect()
}

/// One chart for each kind of prompt, all of the same scale.
fn by_tag(runs: &[Run], tags: &[String]) -> Markup {
    let strict = |run: &Run, tag: &str| run.names(&["tags", tag]).into_iter().find(|n| n.ends_with("strict_accuracy"));
    let lines = |tag: &str| -> Vec<Line> {
        let line = |i: usize, what: &str, colour, look, key: &str| {
            let points = placed(&runs[i], runs[i].held_out(&["tags", tag, key]), Axis::Epochs, 1.0);
            Line { name: name(runs, i, what), colour, look, points }
        };
        let mut lines: Vec<Line> = (0..runs.len()).map(|i| line(i, "reward", i, Look::Marked, "reward")).collect();
        // With several runs, one line each is enough to look at.
        if let [run] = runs
            && let Some(key) = strict(run, tag)
        {
            lines.push(line(0, "all correct", 1, Look::Dashed, &key));
        }
        lines
    };
    let all: Vec<(&String, Vec<Line>)> = tags.iter().map(|tag| (tag, lines(tag))).collect();
    let values: Vec<f64> =
        all.iter().flat_map(|(_, lines)| lines).flat_map(|l| &l.points).filter_map(|(_, v)| *v).collect();
    let ends = [values.iter().copied().fold(f64::INFINITY, f64::min), values.iter().copied().fold(f64::MIN, f64::max)];
    let ends = if values.is_empty() { vec![] } else { ends.to_vec() };
    let has_strict = all.iter().any(|(_, lines)| lines.iter().any(|l| l.look == Look::Dashed));
    html! {
        h3 { "By kind of prompt" }
        @if has_strict {
            p.legend {
                span { i class="key marked c0" {} "reward" }
                span { i class="key dashed c1" {} "share of images with everything right" }
            }
        }
        div.panels {
            @for (tag, lines) in &all {
                (panel(&tag.replace('_', " "), change(runs, &["tags", tag, "reward"]), "epoch", lines, &ends))
            }
        }
    }
}

/// Whether a value says what the chart of the reward, or that of a kind of prompt, says already.
fn is_told(runs: &[Run], tags: &[String], key: &str) -> bool {
    let is_of_tag = tags.iter().any(|tag| key.contains(&format!(".{tag}_")));
    let is_reward = || {
        runs.iter()
            .flat_map(|run| run.evals.values())
            .all(|line| number(line, &["eval", key]).is_none_or(|v| Some(v) == number(line, &["eval", "reward"])))
    };
    key == "reward" || is_of_tag || is_reward()
}

/// One chart for each thing that rewards report.
fn by_reward(runs: &[Run], tags: &[String]) -> Markup {
    let all: std::collections::BTreeSet<String> = runs.iter().flat_map(|run| run.names(&["eval"])).collect();
    let is_number = |key: &String| {
        runs.iter().flat_map(|run| run.evals.values()).any(|line| number(line, &["eval", key]).is_some())
    };
    let keys: Vec<String> = all.into_iter().filter(is_number).filter(|key| !is_told(runs, tags, key)).collect();
    html! {
        @if !keys.is_empty() {
            h3 { "By reward" }
            div.panels {
                @for key in &keys {
                    @let lines = pairs(runs, &["eval", key], &["rewards", key], Axis::Epochs, 1.0);
                    (panel(&key.replace('_', " "), change(runs, &["eval", key]), "epoch", &lines, &[]))
                }
            }
        }
    }
}

/// Every evaluation in numbers.
fn table(run: &Run) -> Markup {
    let keys: Vec<String> = run.names(&["eval"]);
    let tags = run.names(&["tags"]);
    let keys: Vec<&String> =
        keys.iter().filter(|key| !tags.iter().any(|tag| key.contains(&format!(".{tag}_")))).collect();
    let step = run.evals.len().div_ceil(MOST_ROWS).max(1);
    let best = run.best().map(|(epoch, _)| epoch);
    let last = run.evals.keys().next_back().copied();
    let is_kept = |i: usize, epoch: u64| i.is_multiple_of(step) || Some(epoch) == best || Some(epoch) == last;
    let kept = run.evals.iter().enumerate().filter(|(i, (epoch, _))| is_kept(*i, **epoch));
    let cell = |value: Option<f64>| value.map_or("\u{2013}".into(), written);
    html! {
        details {
            summary { "All evaluations of " (run.name) " in numbers" }
            div.scroll { table.numbers {
                thead { tr {
                    th { "epoch" }
                    @for key in &keys { th { (key) } }
                    @for tag in &tags { th { (tag) } }
                } }
                tbody {
                    @for (_, (epoch, line)) in kept {
                        tr.best[Some(*epoch) == best] {
                            td { (epoch) }
                            @for key in &keys { td { (cell(number(line, &["eval", key]))) } }
                            @for tag in &tags { td { (cell(number(line, &["tags", tag, "reward"]))) } }
                        }
                    }
                }
            } }
        }
    }
}

/// The section with the reward of all runs.
pub fn section(runs: &[Run]) -> Markup {
    html! {
        section #rewards {
            h2 { "Rewards" }
            (legend(runs))
            (main_chart(runs))
        }
    }
}

/// The section with what makes up the reward.
pub fn details(runs: &[Run]) -> Markup {
    let tags = tags(runs);
    html! {
        section #details {
            h2 { "Rewards in detail" }
            (legend(runs))
            @if !tags.is_empty() { (by_tag(runs, &tags)) }
            (by_reward(runs, &tags))
            @for run in runs.iter().filter(|run| !run.evals.is_empty()) { (table(run)) }
        }
    }
}
