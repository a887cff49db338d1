//! What guards a run: whether it learnt soundly, said in words, and the numbers behind it.

use std::collections::BTreeSet;

use maud::{Markup, html};
use serde_json::Value;

use super::chart::{Line, Look};
use super::rewards::{legend, panel};
use super::run::{Run, Values, number};
use super::series::written;

/// How much something matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// As it should be.
    Good,
    /// Good to know.
    Note,
    /// To be looked at.
    Warning,
}

/// A run whose log does not say whether it has turned has done so when it has lost this share of what it had gained.
const LOST: f64 = 1.0 / 3.0;
/// Above this share of groups without a difference in reward, much of the rollout teaches nothing.
const MANY_FLAT: f64 = 0.5;
/// Growth of the gradient norm, from the first tenth of a run to the last, that is worth a word.
const GROWN: f64 = 4.0;

/// What is to be said of a run.
pub fn checks(run: &Run) -> Vec<(Level, String)> {
    let of_log = [learnt(run), skipped(run), overflows(run), flat(run), deviation(run), gradient(run)];
    let mut out: Vec<(Level, String)> = of_log.into_iter().flatten().collect();
    if let Some(planned) = run.count("num_epochs") {
        let done = run.epochs.keys().next_back().copied().unwrap_or(0);
        if done < planned {
            out.push((Level::Note, format!("{done} of {planned} epochs are done")));
        }
    }
    match run.unreadable {
        0 => {}
        n => out.push((Level::Warning, format!("{n} line(s) of metrics.jsonl could not be read and are left out"))),
    }
    out
}

fn learnt(run: &Run) -> Option<(Level, String)> {
    let rewards: Vec<(u64, f64)> =
        run.held_out(&["eval", "reward"]).into_iter().filter_map(|(e, r)| Some((e, r?))).collect();
    let ((_, first), (epoch, last), (best_epoch, best)) = (*rewards.first()?, *rewards.last()?, run.best()?);
    let [first_text, last_text, best_text] = [first, last, best].map(written);
    let turned = run.evals[&epoch].get("turned");
    // What the run itself says of its noise counts; where it says nothing, a share of what it had gained.
    let has_turned = match turned {
        Some(turned) => turned.is_object(),
        None => best > first && best - last > LOST * (best - first),
    };
    let error = turned.and_then(|turned| number(turned, &["standard_error"]));
    let noise = error.map(|e| format!(" (standard error of the difference {})", written(e))).unwrap_or_default();
    Some(if has_turned {
        let text = format!(
            "held-out reward rose from {first_text} to {best_text} after epoch {best_epoch} and has fallen to {last_text}{noise}: the best is not the last"
        );
        (Level::Warning, text)
    } else if rewards.len() == 1 {
        (Level::Note, format!("one evaluation so far: held-out reward {first_text}"))
    } else if last > first {
        let most = if best > last { format!(", at most {best_text}") } else { String::new() };
        (Level::Good, format!("held-out reward rose from {first_text} to {last_text}{most}"))
    } else {
        (Level::Warning, format!("held-out reward did not rise: {first_text} at first, {last_text} now"))
    })
}

fn skipped(run: &Run) -> Option<(Level, String)> {
    let skipped: Vec<String> = run
        .epochs
        .iter()
        .filter_map(|(epoch, line)| Some(format!("epoch {epoch}: {}", line["skipped"].as_str()?)))
        .collect();
    Some(match skipped.len() {
        0 if run.epochs.is_empty() => return None,
        0 => (Level::Good, "no optimiser step was skipped".into()),
        n => {
            let more = if n > 3 { format!("; and {} more", n - 3) } else { String::new() };
            (
                Level::Warning,
                format!("optimiser steps were skipped in {n} epoch(s): {}{more}", skipped[..n.min(3)].join("; ")),
            )
        }
    })
}

fn overflows(run: &Run) -> Option<(Level, String)> {
    let sum: f64 = run.epochs.values().filter_map(|line| number(line, &["overflows"])).sum();
    (sum > 0.0)
        .then(|| (Level::Note, format!("{} step(s) overflowed under the loss scale and were skipped", written(sum))))
}

/// The share of groups whose images all had the same reward.
fn flat_share(line: &Value) -> Option<f64> {
    Some(number(line, &["zero_variance_groups"])? / number(line, &["groups"]).filter(|n| *n > 0.0)?)
}

fn flat(run: &Run) -> Option<(Level, String)> {
    let shares: Vec<f64> = run.epochs.values().filter_map(flat_share).collect();
    let mean = shares.iter().sum::<f64>() / shares.len() as f64;
    let text = match mean {
        0.0 => "every group of images had differences in reward to learn from".into(),
        _ => format!("{} of the groups had no difference in reward and taught nothing", percent(mean)),
    };
    (!shares.is_empty()).then_some((if mean > MANY_FLAT { Level::Warning } else { Level::Good }, text))
}

/// A share as a person says it.
fn percent(share: f64) -> String {
    if share < 0.01 { "less than 1%".into() } else { format!("{:.0}%", share * 100.0) }
}

fn deviation(run: &Run) -> Option<(Level, String)> {
    let known = run.epochs.values().filter_map(|line| number(line, &["rollout_train_deviation"]));
    let most = known.fold(None, |most: Option<f64>, v| Some(most.map_or(v, |m| m.max(v))))?;
    Some(match most {
        0.0 => (Level::Good, "rollout and training computed the same velocities to the bit".into()),
        _ => (Level::Note, format!("velocities of rollout and training differed by at most {}", written(most))),
    })
}

fn gradient(run: &Run) -> Option<(Level, String)> {
    let norms: Vec<f64> = run.training(&["grad_norm"]).into_iter().filter_map(|(_, v)| v).collect();
    let tenth = norms.len() / 10;
    let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
    let (first, last) = (mean(norms.get(..tenth.max(1))?), mean(&norms[norms.len() - tenth.max(1)..]));
    (tenth > 0 && last > GROWN * first)
        .then(|| (Level::Note, format!("the gradient norm grew from {} to {}", written(first), written(last))))
}

/// What has a place elsewhere on the page.
const ELSEWHERE: [&str; 16] = [
    "epoch",
    "updates",
    "images",
    "reward_mean",
    "groups",
    "zero_variance_groups",
    "overflows",
    "arena_peak_bytes",
    "peak_memory_bytes",
    "images_per_second",
    "total_seconds",
    "elapsed_seconds",
    "mfu",
    "model_flops",
    "model_flops_per_second",
    "peak_flops_per_second",
];

/// Titles of what is known; whatever else a log has is shown by its own name.
const TITLES: [(&str, &str); 6] = [
    ("loss", "Loss"),
    ("grad_norm", "Gradient norm"),
    ("lr", "Learning rate"),
    ("reward_std", "Spread of rewards"),
    ("rollout_train_deviation", "Rollout against training"),
    ("loss_scale", "Loss scale"),
];

/// The numbers of epochs that are drawn: key and title.
fn drawn(runs: &[Run]) -> Vec<(String, String)> {
    let lines = || runs.iter().flat_map(|run| run.epochs.values()).filter_map(Value::as_object);
    let keys: BTreeSet<&String> = lines().flatten().filter(|(_, v)| v.is_number()).map(|(key, _)| key).collect();
    let known = TITLES.iter().filter(|(key, _)| keys.iter().any(|k| k == key));
    let rest =
        keys.iter().filter(|key| !ELSEWHERE.contains(&key.as_str()) && !TITLES.iter().any(|(known, _)| known == *key));
    let known = known.map(|(key, title)| (key.to_string(), title.to_string()));
    known.chain(rest.map(|key| (key.to_string(), key.replace('_', " ")))).collect()
}

/// The section about guards.
pub fn section(runs: &[Run]) -> Markup {
    let lines = |values: &dyn Fn(&Run) -> Values, what: &str| -> Vec<Line> {
        let line = |(i, run): (usize, &Run)| Line {
            name: if runs.len() == 1 { what.to_string() } else { run.name.clone() },
            colour: i,
            look: Look::Plain,
            points: values(run).into_iter().map(|(epoch, v)| (epoch as f64, v)).collect(),
        };
        runs.iter().enumerate().map(line).collect()
    };
    let flat = lines(&|run| run.epochs.iter().map(|(e, line)| (*e, flat_share(line))).collect(), "share");
    // What is 0 throughout has been said in words.
    let is_not_zero = |line: &Line| line.points.iter().any(|(_, v)| v.is_some_and(|v| v != 0.0));
    let note = |key: &str| match runs {
        [run] => run.training(&[key]).into_iter().filter_map(|(_, v)| v).next_back().map(written),
        _ => None,
    };
    html! {
        section #guards {
            h2 { "Guards" }
            div.runs { @for run in runs { div {
                @if runs.len() > 1 { h3 { (run.name) } }
                ul.checks {
                    @for (level, text) in checks(run) {
                        @let (class, mark, word) = match level {
                            Level::Good => ("good", "\u{2713}", "good"),
                            Level::Note => ("note", "i", "note"),
                            Level::Warning => ("warning", "!", "warning"),
                        };
                        li class=(class) { span.mark title=(word) { (mark) } span { (text) } }
                    }
                }
            } } }
            (legend(runs))
            div.panels {
                @for (key, title) in drawn(runs) {
                    @let lines = lines(&|run| run.training(&[&key]), &title);
                    @if lines.iter().any(is_not_zero) { (panel(&title, note(&key), "epoch", &lines, &[])) }
                }
                @if flat.iter().any(is_not_zero) {
                    (panel("Groups without a difference", None, "epoch", &flat, &[0.0, 1.0]))
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::run::tests::folder;
    use super::*;

    fn said(lines: &[Value]) -> Vec<(Level, String)> {
        let log: String = lines.iter().map(|line| format!("{line}\n")).collect();
        checks(&Run::read(folder(&log).path()).unwrap())
    }

    #[test]
    fn a_run_that_loses_what_it_had_gained_has_turned() {
        let run = |rewards: &[f64]| {
            let evals: Vec<Value> =
                rewards.iter().enumerate().map(|(e, r)| json!({"epoch": e, "eval": {"reward": r}})).collect();
            said(&evals)[0].clone()
        };
        assert_eq!(run(&[0.4, 0.5]), (Level::Good, "held-out reward rose from 0.4 to 0.5".into()));
        assert_eq!(run(&[0.4, 0.5, 0.48]), (Level::Good, "held-out reward rose from 0.4 to 0.48, at most 0.5".into()));
        let (level, text) = run(&[0.4, 0.5, 0.45]);
        assert!(level == Level::Warning && text.contains("0.5 after epoch 1 and has fallen to 0.45"), "{text}");
        // What the run says of its own noise counts.
        let says = |turned: Value| {
            let line = |epoch: u64, reward: f64, turned: &Value| json!({"epoch": epoch, "eval": {"reward": reward}, "turned": turned});
            said(&[line(0, 0.4, &Value::Null), line(1, 0.5, &Value::Null), line(2, 0.45, &turned)])[0].clone()
        };
        assert_eq!(says(Value::Null).0, Level::Good);
        let (level, text) = says(json!({"from_epoch": 1, "standard_error": 0.0125}));
        assert!(level == Level::Warning && text.contains("0.45 (standard error of the difference 0.0125)"), "{text}");
        assert_eq!(run(&[0.4, 0.3]).0, Level::Warning);
        assert_eq!(run(&[0.4]).0, Level::Note);
    }

    #[test]
    fn what_went_wrong_in_an_epoch_is_said_with_its_epoch() {
        let epoch = |epoch: u64, skipped: Option<&str>, flat: u64, norm: f64| {
            json!({"epoch": epoch, "skipped": skipped, "zero_variance_groups": flat, "groups": 4, "grad_norm": norm,
                   "overflows": 2, "rollout_train_deviation": 0.0})
        };
        let mut lines: Vec<Value> = (1..20).map(|e| epoch(e, None, 3, e as f64)).collect();
        lines.push(epoch(20, Some("the loss is not finite"), 3, 20.0));
        let said = said(&lines);
        let find = |word: &str| said.iter().find(|(_, text)| text.contains(word)).unwrap_or_else(|| panic!("{said:?}"));
        assert_eq!(find("epoch 20: the loss is not finite").0, Level::Warning);
        assert_eq!(find("75% of the groups").0, Level::Warning);
        assert_eq!(find("40 step(s) overflowed").0, Level::Note);
        assert_eq!(find("to the bit").0, Level::Good);
        assert_eq!(find("grew from 1.5 to 19.5").0, Level::Note);
    }

    #[test]
    fn numbers_that_are_not_known_yet_are_drawn_too() {
        let log = "{\"epoch\":1,\"loss\":1.0,\"kl\":0.5,\"mfu\":3,\"word\":\"x\"}\n";
        let run = Run::read(folder(log).path()).unwrap();
        let drawn: Vec<String> = drawn(&[run]).into_iter().map(|(key, _)| key).collect();
        assert_eq!(drawn, ["loss", "kl"]);
    }
}
