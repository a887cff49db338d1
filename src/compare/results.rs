//! What the runs of a comparison have come to: curves over updates and seconds, and a table.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::Serialize;

use crate::io::write::{output_folder, write_atomic};
use crate::report::plot::{self, Curve, Panel, Spread};
use crate::report::{Axis, Run, written};

/// The share of the way from the first reward to the best method's last that is to be reached if nothing else is asked for.
const SHARE: f64 = 0.8;

/// One evaluation of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Evaluation {
    epoch: u64,
    updates: f64,
    images: f64,
    /// Of training; evaluations are left out.
    seconds: f64,
    reward: f64,
}

/// The evaluations of `run` in their order.
fn evaluations(run: &Run) -> Vec<Evaluation> {
    let [updates, images, seconds] = [Axis::Updates, Axis::Images, Axis::Seconds].map(|axis| run.places(axis));
    let of = |(epoch, reward): (u64, Option<f64>)| {
        let [updates, images, seconds] = [*updates.get(&epoch)?, *images.get(&epoch)?, *seconds.get(&epoch)?];
        Some(Evaluation { epoch, updates, images, seconds, reward: reward? })
    };
    run.held_out(&["eval", "reward"]).into_iter().filter_map(of).collect()
}

/// A config with its runs.
struct Method {
    name: String,
    /// Each run's seed and evaluations.
    runs: Vec<(u64, Vec<Evaluation>)>,
}

/// A line of the table.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// The config's name.
    pub name: String,
    /// Runs.
    pub seeds: usize,
    /// Mean held-out reward before training.
    pub first: f64,
    /// The same at the end.
    pub last: f64,
    /// Its standard deviation over seeds, of two or more.
    pub deviation: Option<f64>,
    /// The highest mean over seeds of any evaluation.
    pub best: f64,
    /// Runs that have reached the reward.
    pub reached: usize,
    /// Optimiser steps until then, the median of those runs.
    pub updates: Option<f64>,
    /// Images until then.
    pub images: Option<f64>,
    /// Seconds of training until then.
    pub seconds: Option<f64>,
}

/// What a comparison has found.
#[derive(Serialize)]
pub struct Results {
    /// The reward that is to be reached.
    pub reach: f64,
    /// A line for each method.
    pub rows: Vec<Row>,
    #[serde(skip)]
    methods: Vec<Method>,
}

fn mean(x: impl IntoIterator<Item = f64>) -> f64 {
    let (sum, count) = x.into_iter().fold((0.0, 0.0), |(sum, n), v| (sum + v, n + 1.0));
    sum / count
}

fn median(mut x: Vec<f64>) -> Option<f64> {
    x.sort_by(f64::total_cmp);
    let half = x.len() / 2;
    match x.len() {
        0 => None,
        n if n % 2 == 1 => Some(x[half]),
        _ => Some((x[half - 1] + x[half]) / 2.0),
    }
}

impl Method {
    /// The mean, lowest and highest of all runs at every evaluation that all have made.
    fn curve(&self, axis: impl Fn(&Evaluation) -> f64) -> Vec<Spread> {
        let epochs = self.runs.iter().map(|(_, e)| e.iter().map(|e| e.epoch).collect::<BTreeSet<_>>());
        let common = epochs.reduce(|a, b| &a & &b).unwrap_or_default();
        let at = |epoch: u64| {
            let of: Vec<&Evaluation> =
                self.runs.iter().filter_map(|(_, e)| e.iter().find(|e| e.epoch == epoch)).collect();
            let rewards = || of.iter().map(|e| e.reward);
            Spread {
                x: mean(of.iter().map(|e| axis(e))),
                mean: mean(rewards()),
                low: rewards().fold(f64::INFINITY, f64::min),
                high: rewards().fold(f64::NEG_INFINITY, f64::max),
            }
        };
        common.into_iter().map(at).collect()
    }

    fn firsts(&self) -> impl Iterator<Item = f64> {
        self.runs.iter().filter_map(|(_, e)| e.first()).map(|e| e.reward)
    }

    fn lasts(&self) -> impl Iterator<Item = f64> {
        self.runs.iter().filter_map(|(_, e)| e.last()).map(|e| e.reward)
    }

    fn row(&self, reach: f64) -> Row {
        let reached: Vec<&Evaluation> =
            self.runs.iter().filter_map(|(_, e)| e.iter().find(|e| e.reward >= reach)).collect();
        let until = |of: fn(&Evaluation) -> f64| median(reached.iter().map(|e| of(e)).collect());
        let (last, count) = (mean(self.lasts()), self.runs.len());
        let variance = self.lasts().map(|v| (v - last).powi(2)).sum::<f64>() / (count as f64 - 1.0);
        Row {
            name: self.name.clone(),
            seeds: count,
            first: mean(self.firsts()),
            last,
            deviation: (count > 1).then(|| variance.sqrt()),
            best: self.curve(|e| e.updates).iter().map(|p| p.mean).fold(f64::NEG_INFINITY, f64::max),
            reached: reached.len(),
            updates: until(|e| e.updates),
            images: until(|e| e.images),
            seconds: until(|e| e.seconds),
        }
    }
}

impl Results {
    /// Reads the logs of `runs`, which are names of methods and folders; `reach` is the reward whose time is taken.
    ///
    /// # Errors
    /// As [`Run::read`].
    pub fn read(runs: &[(String, PathBuf)], reach: Option<f64>) -> Result<Self> {
        let mut methods: Vec<Method> = Vec::new();
        for (name, folder) in runs {
            let run = Run::read(folder)?;
            let one = (run.count("seed").unwrap_or(0), evaluations(&run));
            match methods.iter_mut().find(|method| method.name == *name) {
                Some(method) => method.runs.push(one),
                None => methods.push(Method { name: name.clone(), runs: vec![one] }),
            }
        }
        Ok(Self::of(methods, reach))
    }

    fn of(methods: Vec<Method>, reach: Option<f64>) -> Self {
        let reach = reach.unwrap_or_else(|| {
            let first = mean(methods.iter().flat_map(Method::firsts));
            let last = methods.iter().map(|method| mean(method.lasts())).fold(f64::NEG_INFINITY, f64::max);
            first + SHARE * (last - first)
        });
        Self { reach, rows: methods.iter().map(|method| method.row(reach)).collect(), methods }
    }

    /// The table for people.
    pub fn table(&self) -> String {
        let reach = written(self.reach);
        let head = ["", "before", "after", "best", &format!("updates to {reach}"), "images", "seconds", "runs"];
        let until = |value: Option<f64>| value.map_or("-".to_string(), |v| format!("{v:.0}"));
        let lines = self.rows.iter().map(|row| {
            let deviation = row.deviation.map(|d| format!(" ± {d:.3}")).unwrap_or_default();
            [
                row.name.clone(),
                format!("{:.3}", row.first),
                format!("{:.3}{deviation}", row.last),
                format!("{:.3}", row.best),
                until(row.updates),
                until(row.images),
                until(row.seconds),
                format!("{} of {}", row.reached, row.seeds),
            ]
        });
        let lines: Vec<[String; 8]> = std::iter::once(head.map(String::from)).chain(lines).collect();
        let widths: Vec<usize> =
            (0..head.len()).map(|i| lines.iter().map(|line| line[i].chars().count()).max().unwrap_or(0)).collect();
        let written = |line: &[String; 8]| {
            let first = format!("{:<1$}", line[0], widths[0]);
            let rest = line.iter().zip(&widths).skip(1).map(|(cell, width)| format!("{cell:>width$}"));
            std::iter::once(first).chain(rest).collect::<Vec<_>>().join("  ") + "\n"
        };
        lines.iter().map(written).collect()
    }

    /// The table as CSV.
    fn table_csv(&self) -> String {
        let number = |value: Option<f64>| value.map(|v| v.to_string()).unwrap_or_default();
        let line = |row: &Row| {
            format!(
                "{},{},{},{},{},{},{},{},{},{},{}\n",
                quoted(&row.name),
                row.seeds,
                row.first,
                row.last,
                number(row.deviation),
                row.best,
                self.reach,
                row.reached,
                number(row.updates),
                number(row.images),
                number(row.seconds)
            )
        };
        let head = "config,seeds,first,last,deviation,best,reach,reached,updates,images,seconds\n";
        head.to_string() + &self.rows.iter().map(line).collect::<String>()
    }

    /// Every evaluation as CSV.
    fn evaluations_csv(&self) -> String {
        let mut out = String::from("config,seed,epoch,updates,images,seconds,reward\n");
        for method in &self.methods {
            for (seed, evaluations) in &method.runs {
                for Evaluation { epoch, updates, images, seconds, reward } in evaluations {
                    out += &format!("{},{seed},{epoch},{updates},{images},{seconds},{reward}\n", quoted(&method.name));
                }
            }
        }
        out
    }

    /// The held-out reward against updates and against seconds.
    fn figure(&self) -> String {
        type OfEvaluation = fn(&Evaluation) -> f64;
        let axes: [(&str, OfEvaluation); 2] =
            [("updates", |e| e.updates), ("seconds of training, evaluations left out", |e| e.seconds)];
        let curve = |method: &Method, axis| Curve { name: method.name.clone(), points: method.curve(axis) };
        let panels = axes.map(|(x, axis)| Panel {
            x: x.into(),
            curves: self.methods.iter().map(|method| curve(method, axis)).collect(),
        });
        let spread = match self.methods.iter().map(|method| method.runs.len()).max() {
            Some(n) if n > 1 => format!("held-out reward: mean and range of {n} seeds"),
            _ => "held-out reward".into(),
        };
        plot::svg(&spread, &panels)
    }

    /// Writes `table.csv`, `evaluations.csv`, `rewards.svg` and `rewards.png` into `folder`.
    ///
    /// # Errors
    /// Names the file that cannot be written.
    pub fn write(&self, folder: &Path) -> Result<()> {
        output_folder(folder)?;
        let figure = self.figure();
        write_atomic(&folder.join("table.csv"), self.table_csv().as_bytes())?;
        write_atomic(&folder.join("evaluations.csv"), self.evaluations_csv().as_bytes())?;
        write_atomic(&folder.join("rewards.svg"), figure.as_bytes())?;
        write_atomic(&folder.join("rewards.png"), &plot::png(&figure)?)
    }
}

/// A field of CSV (RFC 4180).
fn quoted(text: &str) -> String {
    match text.contains([',', '"', '\n']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn method(name: &str, runs: &[&[(u64, f64)]]) -> Method {
        let evaluation = |seed: usize, (epoch, reward): (u64, f64)| Evaluation {
            epoch,
            updates: 2.0 * epoch as f64,
            images: 100.0 * epoch as f64,
            seconds: (seed + 1) as f64 * epoch as f64,
            reward,
        };
        let runs = runs.iter().enumerate();
        let runs = runs.map(|(seed, of)| (seed as u64, of.iter().map(|e| evaluation(seed, *e)).collect())).collect();
        Method { name: name.into(), runs }
    }

    #[test]
    fn a_row_counts_the_runs_that_reach_the_reward_and_what_they_took() {
        let fast = method("fast", &[&[(0, 0.2), (5, 0.9), (10, 0.8)], &[(0, 0.2), (5, 0.4), (10, 1.0)]]);
        let slow = method("slow", &[&[(0, 0.2), (10, 0.5)], &[(0, 0.2), (8, 0.3)]]);
        let found = Results::of(vec![fast, slow], None);
        assert!((found.reach - (0.2 + 0.8 * 0.7)).abs() < 1e-12, "{}", found.reach);
        let [fast, slow] = &found.rows[..] else { panic!() };
        assert_eq!((fast.reached, fast.updates, fast.images, fast.seconds), (2, Some(15.0), Some(750.0), Some(12.5)));
        assert_eq!((fast.first, fast.last, fast.best), (0.2, 0.9, 0.9));
        assert!((fast.deviation.unwrap() - 0.02f64.sqrt()).abs() < 1e-12);
        assert_eq!((slow.reached, slow.updates, slow.last), (0, None, 0.4));
        // Of runs of different length, what both have seen is drawn.
        assert_eq!(found.methods[1].curve(|e| e.updates).len(), 1);
        assert_eq!(Results::of(vec![method("one", &[&[(0, 0.1), (4, 0.3)]])], Some(0.3)).rows[0].updates, Some(8.0));
    }

    #[test]
    fn the_files_hold_every_number() {
        let found = Results::of(vec![method("a,b", &[&[(0, 0.25), (5, 0.5)], &[(0, 0.25), (5, 0.75)]])], Some(0.5));
        let folder = tempfile::tempdir().unwrap();
        found.write(folder.path()).unwrap();
        let text = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
        assert_eq!(
            text("evaluations.csv"),
            "config,seed,epoch,updates,images,seconds,reward\n\"a,b\",0,0,0,0,0,0.25\n\"a,b\",0,5,10,500,5,0.5\n\
             \"a,b\",1,0,0,0,0,0.25\n\"a,b\",1,5,10,500,10,0.75\n"
        );
        assert!(text("table.csv").ends_with("\"a,b\",2,0.25,0.625,0.1767766952966369,0.625,0.5,2,10,500,7.5\n"));
        assert!(text("rewards.svg").contains("mean and range of 2 seeds"));
        assert!(std::fs::read(folder.path().join("rewards.png")).unwrap().starts_with(b"\x89PNG"));
        let table = found.table();
        let widths: BTreeSet<usize> = table.lines().map(|line| line.chars().count()).collect();
        assert_eq!(widths.len(), 1, "{table}");
    }
}
