//! Where time went and how much memory was taken.

use std::collections::BTreeMap;

use maud::{Markup, html};

use super::chart::{COLOURS, Line, Look, stacked};
use super::rewards::panel;
use super::run::{Axis, Run, number};
use super::series::{Points, duration, thinned, written};

/// Steps of the drawing of time over epochs.
const MOST_STEPS: usize = 240;

/// Numbers of a whole run.
pub struct Totals {
    /// Epochs that are done.
    pub epochs: u64,
    /// Images that were trained on.
    pub images: Option<f64>,
    /// Seconds of training.
    pub seconds: Option<f64>,
    /// The most bytes that the process took on its device, or its tensors if the log says no more.
    pub memory: Option<u64>,
}

impl Totals {
    /// Those of `run`.
    pub fn of(run: &Run) -> Self {
        let last = |axis| run.places(axis).into_values().next_back().filter(|at: &f64| *at > 0.0);
        let bytes = |line: &serde_json::Value| line["peak_memory_bytes"].as_u64().or(line["arena_peak_bytes"].as_u64());
        let memory = run.epochs.values().filter_map(bytes).max();
        Self {
            epochs: run.epochs.keys().next_back().copied().unwrap_or(0),
            images: last(Axis::Images),
            seconds: last(Axis::Seconds),
            memory,
        }
    }

    /// Images in a second.
    pub fn speed(&self) -> Option<f64> {
        Some(self.images? / self.seconds?)
    }
}

/// The phases of all runs, those that took most first.
fn phases(runs: &[Run]) -> Vec<String> {
    let mut sums: BTreeMap<String, f64> = BTreeMap::new();
    for (phase, value) in
        runs.iter().flat_map(|run| run.epochs.values()).filter_map(|l| l["seconds"].as_object()).flatten()
    {
        *sums.entry(phase.clone()).or_default() += value.as_f64().unwrap_or(0.0);
    }
    let mut phases: Vec<(String, f64)> = sums.into_iter().collect();
    phases.sort_by(|a, b| b.1.total_cmp(&a.1));
    phases.into_iter().map(|(phase, _)| phase).collect()
}

/// Mean seconds of each of `phases` in an epoch.
fn means(run: &Run, phases: &[String]) -> Vec<f64> {
    let of = |phase: &String| {
        let sum: f64 = run.epochs.values().filter_map(|line| number(line, &["seconds", phase])).sum();
        sum / run.epochs.len().max(1) as f64
    };
    phases.iter().map(of).collect()
}

/// Seconds of an epoch by phase, a bar for each run.
fn bars(runs: &[Run], phases: &[String]) -> Markup {
    let all: Vec<Vec<f64>> = runs.iter().map(|run| means(run, phases)).collect();
    let longest = all.iter().map(|means| means.iter().sum::<f64>()).fold(0.0, f64::max);
    html! {
        p.legend {
            @for (i, phase) in phases.iter().enumerate() { span { i class={ "chip p" (i % COLOURS) } {} (phase) } }
        }
        div.bars {
            @for (run, means) in runs.iter().zip(&all) {
                @let sum = means.iter().sum::<f64>();
                div.bar {
                    span.name { (run.name) " \u{b7} " (duration(sum)) " an epoch" }
                    div.track {
                        @for (i, (phase, mean)) in phases.iter().zip(means).enumerate() {
                            @let share = if longest > 0.0 { mean / longest * 100.0 } else { 0.0 };
                            div class={ "part p" (i % COLOURS) } style={ "width:" (format!("{share:.2}")) "%" }
                                title={ (phase) " " (duration(*mean)) } {}
                        }
                    }
                }
            }
        }
        div.scroll { table.numbers {
            thead { tr { th { "seconds an epoch" } @for phase in phases { th { (phase) } } th { "sum" } } }
            tbody {
                @for (run, means) in runs.iter().zip(&all) {
                    tr {
                        td { (run.name) }
                        @for mean in means { td { (written(*mean)) } }
                        td { (written(means.iter().sum())) }
                    }
                }
            }
        } }
    }
}

/// Seconds by phase over the epochs of a run.
fn over_epochs(run: &Run, phases: &[String]) -> Markup {
    let points = |phase: &String| -> Points {
        let all = run.training(&["seconds", phase]).into_iter().map(|(epoch, v)| (epoch as f64, v));
        thinned(&all.collect(), MOST_STEPS).points
    };
    let parts: Vec<(String, Points)> = phases.iter().map(|phase| (phase.clone(), points(phase))).collect();
    html! {
        figure {
            figcaption { b { "Seconds of each epoch" } }
            (stacked("Seconds of each epoch by phase", "epoch", &parts))
        }
    }
}

/// Small charts of speed and memory.
fn panels(runs: &[Run]) -> Markup {
    let lines = |key: &str, unit: f64| -> Vec<Line> {
        let line = |(i, run): (usize, &Run)| Line {
            name: run.name.clone(),
            colour: i,
            look: Look::Plain,
            points: run.training(&[key]).into_iter().map(|(e, v)| (e as f64, v.map(|v| v / unit))).collect(),
        };
        runs.iter().enumerate().map(line).collect()
    };
    let gib = (1u64 << 30) as f64;
    let all = [
        ("Images per second", lines("images_per_second", 1.0)),
        ("Share of the machine's speed (MFU)", lines("mfu", 1.0)),
        ("Peak memory, GiB", lines("peak_memory_bytes", gib)),
        ("Peak memory of tensors, GiB", lines("arena_peak_bytes", gib)),
    ];
    let is_known = |lines: &[Line]| lines.iter().flat_map(|l| &l.points).any(|(_, v)| v.is_some());
    html! {
        div.panels {
            @for (title, lines) in all.iter().filter(|(_, lines)| is_known(lines)) {
                (panel(title, None, "epoch", lines, &[0.0]))
            }
        }
    }
}

/// The section about time and memory.
pub fn section(runs: &[Run]) -> Markup {
    let phases = phases(runs);
    let has_epochs = runs.iter().any(|run| !run.epochs.is_empty());
    html! {
        section #work {
            h2 { "Time and memory" }
            @if has_epochs {
                @if !phases.is_empty() {
                    (bars(runs, &phases))
                    p.muted { "Phases that went on beside one another have each their own time." }
                }
                @if let [run] = runs { (over_epochs(run, &phases)) }
                (panels(runs))
            } @else {
                p.none { "no epoch is done yet" }
            }
        }
    }
}

/// The command, the version and the machine of every run that says so.
pub fn origins(runs: &[Run]) -> Markup {
    let known: Vec<(&Run, &super::About)> = runs.iter().filter_map(|run| Some((run, run.about.as_ref()?))).collect();
    html! {
        @if !known.is_empty() {
            div.scroll { table {
                thead { tr { th { "run" } th { "command" } th { "engine" } th { "computed on" } } }
                tbody {
                    @for (run, about) in &known {
                        tr {
                            td { (run.name) }
                            td { code { (about.command.join(" ")) } }
                            td { (about.engine) }
                            td { (about.device) ", " (about.threads) " threads" }
                        }
                    }
                }
            } }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::run::tests::folder;
    use super::*;

    #[test]
    fn totals_and_phases_are_sums_over_epochs() {
        let log = "{\"epoch\":1,\"images_per_second\":4,\"arena_peak_bytes\":7,\"seconds\":{\"a\":1,\"b\":2}}\n\
                   {\"epoch\":2,\"images_per_second\":2,\"arena_peak_bytes\":5,\"seconds\":{\"a\":2,\"c\":null}}\n";
        let run = Run::read(folder(log).path()).unwrap();
        let totals = Totals::of(&run);
        assert_eq!((totals.epochs, totals.images, totals.seconds), (2, Some(16.0), Some(6.0)));
        assert_eq!((totals.memory, totals.speed()), (Some(7), Some(16.0 / 6.0)));
        let phases = phases(std::slice::from_ref(&run));
        assert_eq!(phases, ["a", "b", "c"]);
        assert_eq!(means(&run, &phases), [1.5, 1.0, 0.0]);
    }

    #[test]
    fn a_run_without_epochs_has_no_totals() {
        let totals = Totals::of(&Run::read(folder("").path()).unwrap());
        assert_eq!((totals.epochs, totals.images, totals.seconds, totals.memory), (0, None, None, None));
    }
}
