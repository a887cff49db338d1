//! What a run says of itself: lines on the terminal, `metrics.jsonl`, TensorBoard, sample grids.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use super::best::Standing;
use super::drift::{Drift, ratio_deviation};
use super::line::{Line, columns, short};
use super::scaler::LossScale;
use super::setup::Setup;
use super::speed::{Speed, peak_memory};
use super::state::State;
use super::update::UpdateReport;
use crate::algorithms::Pairs;
use crate::algorithms::advantage::Advantages;
use crate::data::Prompt;
use crate::device::Device;
use crate::io::image::{self, RgbImage};
use crate::report::{self, Shown, Shows};
use crate::rewards::Scores;
use crate::telemetry::{Metrics, TensorBoard, bytes, clock, say, si, warn};

/// Images in a row of a sample grid.
const GRID_COLUMNS: usize = 8;

/// What happened in an epoch.
pub struct EpochReport {
    /// Rewards of all images.
    pub scores: Scores,
    /// Their advantages.
    pub advantages: Advantages,
    /// The training loss of the last optimiser step.
    pub loss: f64,
    /// Its learning rate.
    pub lr: f64,
    /// Norm of its gradient before clipping.
    pub grad_norm: f64,
    /// How many groups were left out because a reward did not judge them as a whole, and why the first was not.
    pub skipped_groups: Option<(usize, String)>,
    /// What was not finite, if a step was skipped for it.
    pub skipped: Option<String>,
    /// Steps that were skipped because the loss had been scaled too much.
    pub overflows: u32,
    /// The largest difference between a velocity of the rollout and the same in training: 0, because a row's result does
    /// not depend on its batch; but for a rollout in fp8, where it is what that costs. Known from the first optimiser step on.
    pub deviation: Option<f32>,
    /// The mean over prompts of the standard deviation of their images' rewards.
    pub group_spread: f64,
    /// How far from the base the policy was at its beginning.
    pub drift: Option<Drift>,
    /// The ratios of the first optimiser step and of all of them, of methods that compare.
    pub ratios: Option<Ratios>,
    /// What the policy made of the pairs of all optimiser steps.
    pub pairs: Pairs,
    /// Milliseconds an image that each reward took.
    pub reward_ms: BTreeMap<&'static str, f64>,
    /// Seconds per phase; phases that went on at the same time have each their own.
    pub seconds: BTreeMap<&'static str, f64>,
    /// Seconds of all.
    pub total: f64,
}

/// How much likelier an epoch's points were made by its updates than they were to the policy that sampled.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Ratios {
    /// The largest `|ρ − 1|` in the first optimiser step, before anything has changed: 0 if rollout and training agree. None
    /// where ratios are to another policy than the one that sampled.
    pub on_policy_deviation: Option<f64>,
    /// The same in all steps.
    pub deviation: f64,
    /// Points that were clipped.
    pub clipped: usize,
    /// Points.
    pub points: usize,
}

impl Ratios {
    /// With those of one more step; `of_rollout` says whether they are to the policy that sampled.
    fn with(before: Option<Self>, update: &UpdateReport, of_rollout: bool) -> Option<Self> {
        let Some(deviation) = ratio_deviation(update) else { return before };
        let first = Self { on_policy_deviation: of_rollout.then_some(deviation), ..Self::default() };
        let so_far = before.unwrap_or(first);
        Some(Self {
            deviation: so_far.deviation.max(deviation),
            clipped: so_far.clipped + update.clipped,
            points: so_far.points + update.ratios.len(),
            ..so_far
        })
    }

    /// The part of the points that were clipped.
    pub fn clip_fraction(&self) -> f64 {
        self.clipped as f64 / self.points as f64
    }
}

impl EpochReport {
    /// Before the first optimiser step.
    pub fn new(scores: Scores, advantages: Advantages) -> Self {
        Self {
            scores,
            advantages,
            loss: 0.0,
            lr: 0.0,
            grad_norm: 0.0,
            skipped_groups: None,
            skipped: None,
            overflows: 0,
            deviation: None,
            group_spread: 0.0,
            drift: None,
            ratios: None,
            pairs: Pairs::default(),
            reward_ms: BTreeMap::new(),
            seconds: BTreeMap::new(),
            total: 0.0,
        }
    }

    /// Takes in an optimiser step; `of_rollout` says whether its ratios are to the policy that sampled.
    pub fn add(&mut self, update: &UpdateReport, of_rollout: bool) {
        (self.loss, self.lr, self.grad_norm) = (update.loss, update.lr, update.grad_norm);
        self.skipped = self.skipped.take().or_else(|| update.skipped.clone());
        self.overflows += u32::from(update.overflowed);
        // Later steps of an epoch train what has moved since.
        self.deviation = self.deviation.or(update.deviation);
        self.drift = self.drift.or(update.drift);
        self.ratios = Ratios::with(self.ratios, update, of_rollout);
        self.pairs += update.pairs;
    }
}

/// Rewards on held-out prompts, and their images.
pub struct EvalReport {
    /// Rewards of all images.
    pub scores: Scores,
    /// The images, prompt by prompt.
    pub images: Vec<RgbImage>,
    /// Each image's prompt.
    pub prompts: Vec<Prompt>,
}

impl EvalReport {
    /// How many images have no score, if any, and why the first has none.
    pub fn missing(&self) -> Option<(usize, &str)> {
        Some((self.scores.missing.len(), self.scores.missing.values().next()?))
    }
}

/// Writes a run's reports.
pub struct Reporter {
    samples: PathBuf,
    metrics: Metrics,
    board: TensorBoard,
    /// Whether an epoch's line has all that is known, however long it gets.
    verbose: bool,
    started: Instant,
    /// Seconds that earlier processes took for what is in the log.
    before: f64,
    /// Epochs done by this process.
    done: u32,
    /// Mean held-out reward of the first and the last evaluation this process or an earlier one made.
    first_eval: Option<f64>,
    last_eval: Option<f64>,
    last_eval_epoch: Option<u64>,
    /// The log's line about the last epoch.
    last_epoch: Option<Value>,
}

/// Means of everything in `scores`, by name, over the images that were judged; NaN if none was.
pub fn means(scores: &Scores) -> BTreeMap<String, f64> {
    let mean = |x: &[f64]| {
        let judged = || x.iter().filter(|v| v.is_finite());
        judged().sum::<f64>() / judged().count() as f64
    };
    let mut out = BTreeMap::from([("reward".to_string(), mean(&scores.weighted))]);
    for (name, scores) in &scores.rewards {
        out.insert(name.clone(), mean(&scores.iter().map(|s| s.value).collect::<Vec<_>>()));
        let mut extra: BTreeMap<&String, Vec<f64>> = BTreeMap::new();
        for (key, value) in scores.iter().flat_map(|s| &s.extra) {
            extra.entry(key).or_default().push(*value);
        }
        out.extend(extra.into_iter().map(|(key, values)| (format!("{name}.{key}"), mean(&values))));
    }
    out
}

/// As [`means`], over the images of each kind of prompt. What a reward reports of one kind alone is not repeated there.
pub fn means_by_tag(scores: &Scores, prompts: &[Prompt]) -> BTreeMap<String, BTreeMap<String, f64>> {
    let tags: BTreeSet<&String> = prompts.iter().filter_map(|p| p.tag.as_ref()).collect();
    let of_tag = |tag: &String| {
        let is_of = |i: &usize| prompts[*i].tag.as_ref() == Some(tag);
        let images: Vec<usize> = (0..prompts.len()).filter(is_of).collect();
        let mut mean = means(&scores.of(&images));
        mean.retain(|key, _| !key.contains(&format!(".{tag}_")));
        mean
    };
    tags.into_iter().map(|tag| (tag.clone(), of_tag(tag))).collect()
}

/// Writes the page about the run in `output` as far as it has come; gives its path. A run does not end because that fails.
pub fn page(output: &Path) -> Option<PathBuf> {
    let written = report::update(output);
    written.inspect_err(|e| warn(&format!("the report could not be written: {e:#}"))).ok()
}

fn standard_deviation(x: &[f64]) -> f64 {
    let mean = x.iter().sum::<f64>() / x.len() as f64;
    (x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / x.len() as f64).sqrt()
}

/// Puts what a line of the log says of an epoch on the board.
fn draw_epoch(board: &mut TensorBoard, line: &Value) -> Result<()> {
    let step = line["epoch"].as_u64().unwrap_or_default();
    let keys = ["reward_std", "group_spread", "zero_variance_groups", "loss", "lr", "grad_norm"];
    let of_some_methods = [
        "velocity_growth",
        "velocity_distance",
        "clip_fraction",
        "ratio_deviation", //
        "pair_accuracy",
        "winner_error_growth",
        "loser_error_growth",
    ];
    let of_some_methods = of_some_methods.into_iter().filter(|key| line[key].is_number());
    let scaled = ["loss_scale", "overflows"].into_iter().filter(|_| line["loss_scale"].is_number());
    let plain = keys.into_iter().chain(scaled).chain(of_some_methods).map(|key| (format!("train/{key}"), &line[key]));
    let speeds = ["images_per_second", "model_flops_per_second", "mfu"].map(|key| (format!("time/{key}"), &line[key]));
    let speeds = speeds.into_iter().filter(|(_, value)| value.is_number());
    let memory = [("memory/peak_bytes".to_string(), &line["peak_memory_bytes"])];
    let table = |under: &'static str, key: &str| {
        line[key].as_object().into_iter().flatten().map(move |(k, v)| (format!("{under}/{k}"), v))
    };
    for (tag, value) in plain
        .chain(speeds)
        .chain(memory)
        .chain(table("train", "rewards"))
        .chain(table("time", "seconds"))
        .chain(table("time/reward_ms_per_image", "reward_ms_per_image"))
    {
        // A number that is not finite is null in the log.
        board.scalar(step, &tag, value.as_f64().unwrap_or(f64::NAN) as f32)?;
    }
    board.flush()
}

impl Reporter {
    /// Opens the reports of the run in `output`, which continues after `epoch`; `unwritten` are lines that its log lacks.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn open(output: &Path, epoch: u32, unwritten: &str) -> Result<Self> {
        let metrics = Metrics::open(output, u64::from(epoch), unwritten)?;
        let eval = |line: &Value| Some((line["epoch"].as_u64()?, line["eval"]["reward"].as_f64()?));
        let evals: Vec<(u64, f64)> = metrics.earlier().iter().filter_map(eval).collect();
        let before = metrics.earlier().iter().filter_map(|line| line["elapsed_seconds"].as_f64()).fold(0.0, f64::max);
        let samples = output.join("samples");
        std::fs::create_dir_all(&samples).with_context(|| format!("cannot create {}", samples.display()))?;
        let epoch = u64::from(epoch);
        let last = |e: &&Value| e["epoch"] == epoch;
        let last_epoch = metrics.earlier().iter().filter(last).find(|line| line.get("loss").is_some()).cloned();
        let is_evaluated = evals.last().is_some_and(|(e, _)| *e == epoch);
        // An evaluation that is on the board but not in the log is made again: then the board forgets its epoch too.
        let forget = if is_evaluated { epoch + 1 } else { epoch };
        let mut board = TensorBoard::open(&output.join("tensorboard"), forget)?;
        if !is_evaluated && let Some(line) = &last_epoch {
            draw_epoch(&mut board, line)?;
        }
        Ok(Self {
            samples,
            board,
            metrics,
            verbose: false,
            started: Instant::now(),
            before,
            done: 0,
            first_eval: evals.first().map(|(_, reward)| *reward),
            last_eval: evals.last().map(|(_, reward)| *reward),
            last_eval_epoch: evals.last().map(|(epoch, _)| *epoch),
            last_epoch,
        })
    }

    /// From now on an epoch's line has all that is known, however long it gets.
    pub fn verbose(mut self, verbose: bool) -> Self {
        self.verbose = verbose;
        self
    }

    /// The lines of the log from before this process.
    pub fn earlier(&self) -> &[Value] {
        self.metrics.earlier()
    }

    /// Seconds that the run has taken, those of earlier processes included.
    pub fn elapsed(&self) -> f64 {
        self.before + self.started.elapsed().as_secs_f64()
    }

    /// Lines that the log lacks because they could not be written.
    pub fn unwritten(&self) -> &str {
        self.metrics.unwritten()
    }

    /// Whether the state after `epoch` epochs has been evaluated, by this process or an earlier one.
    pub fn has_eval(&self, epoch: u32) -> bool {
        self.last_eval_epoch == Some(u64::from(epoch))
    }

    /// The log's line about the last epoch, by this process or an earlier one.
    pub fn last_epoch(&self) -> Option<&Value> {
        self.last_epoch.as_ref()
    }

    /// Reports an epoch of training.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn epoch(&mut self, setup: &Setup, speed: &Speed, state: &State, e: &EpochReport) -> Result<()> {
        self.done += 1;
        let (images, total) = (setup.config.images, e.total);
        let (mean, std) = (means(&e.scores), standard_deviation(&e.scores.weighted));
        let left = setup.config.raw.num_epochs - state.epoch;
        let per_epoch = self.started.elapsed().as_secs_f64() / f64::from(self.done);
        let scale = state.loss_scale.as_ref().map(LossScale::scale);
        let memory = peak_memory(&setup.device);
        let mfu = speed.utilisation(total);

        let (all, flat) = (setup.config.raw.num_epochs.to_string(), e.advantages.zero_variance_groups);
        let mut shown = Line::default();
        shown.field(0, format!("epoch {:>w$}/{all}", state.epoch, w = all.len()));
        shown.field(0, format!("reward {:.4}", mean["reward"]));
        shown.field(6, format!("± {std:.3}"));
        shown.field(1, format!("ETA {:>6}", clock(per_epoch * f64::from(left))));
        shown.field(2, format!("{:>4} img/s", short(images as f64 / total, 3)));
        shown.field(3, format!("loss {:>6}", short(e.loss, 4)));
        shown.field(4, format!("|grad| {:.3}", e.grad_norm));
        mfu.into_iter().for_each(|mfu| shown.field(5, format!("MFU {:>2.0} %", 100.0 * mfu)));
        shown.field(7, format!("mem {:>9}", bytes(memory)));
        shown.field(8, format!("flat {flat:>w$}/{groups}", groups = e.advantages.groups, w = 2));
        scale.into_iter().for_each(|s| shown.field(9, format!("loss x {s}")));
        if let Some(drift) = &e.drift {
            shown.field(9, format!("|v| x {:.3}", drift.growth));
        }
        shown.field(10, format!("{}FLOP/s", si(speed.rate(total))));
        for (phase, seconds) in &e.seconds {
            shown.field(11, format!("{phase} {seconds:.1}s"));
        }
        for (name, ms) in &e.reward_ms {
            shown.field(12, format!("{name} {}ms/img", short(*ms, 2)));
        }
        if let Some(deviation) = e.deviation.filter(|d| *d != 0.0) {
            // It is 0 unless the rollout is in fp8.
            let fp8 = if setup.sampling.is_some() { " (fp8)" } else { "" };
            shown.alert(format!("Δv {deviation}{fp8}"));
        }
        if e.pairs.count > 0 {
            shown.field(4, format!("pairs {:>3.0} %", 100.0 * e.pairs.told_apart as f64 / e.pairs.count as f64));
        }
        if let Some(ratios) = &e.ratios {
            shown.field(4, format!("clip {:>3.0} %", 100.0 * ratios.clip_fraction()));
            if let Some(deviation) = ratios.on_policy_deviation.filter(|d| *d != 0.0) {
                shown.alert(format!("|ρ − 1| {deviation:.1e} on policy"));
            }
        }
        if e.overflows > 0 {
            shown.alert(format!("{} steps overflowed and were skipped", e.overflows));
        }
        let skipped_groups = e.skipped_groups.as_ref().map_or(0, |(groups, _)| *groups);
        if let Some((_, why)) = &e.skipped_groups {
            shown.alert(format!("{skipped_groups} of {} groups skipped: {why}", skipped_groups + e.advantages.groups));
        }
        e.skipped.iter().for_each(|what| shown.alert(format!("STEP SKIPPED: {what}")));
        say(&shown.fit(if self.verbose { usize::MAX } else { columns() }));

        let seconds: Map<String, Value> = e.seconds.iter().map(|(k, v)| (k.to_string(), json!(v))).collect();
        let rewards: Map<String, Value> = mean.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
        let of_pairs = |sum: f64| (e.pairs.count > 0).then(|| sum / e.pairs.count as f64);
        let line = json!({
            "epoch": state.epoch,
            "updates": state.moments.steps,
            "images": images,
            "reward_mean": mean["reward"],
            "reward_std": std,
            "rewards": rewards,
            "zero_variance_groups": e.advantages.zero_variance_groups,
            "groups": e.advantages.groups,
            "group_spread": e.group_spread,
            "velocity_growth": e.drift.map(|d| d.growth),
            "velocity_distance": e.drift.map(|d| d.distance),
            "skipped_groups": skipped_groups,
            "loss": e.loss,
            "lr": e.lr,
            "grad_norm": e.grad_norm,
            "skipped": e.skipped,
            "loss_scale": scale,
            "overflows": e.overflows,
            "rollout_train_deviation": e.deviation,
            "on_policy_ratio_deviation": e.ratios.and_then(|r| r.on_policy_deviation),
            "ratio_deviation": e.ratios.map(|r| r.deviation),
            "clip_fraction": e.ratios.map(|r| r.clip_fraction()),
            "pair_accuracy": of_pairs(e.pairs.told_apart as f64),
            "winner_error_growth": of_pairs(e.pairs.winners),
            "loser_error_growth": of_pairs(e.pairs.losers),
            "rollout_weights": setup.config.raw.rollout.weights,
            "arena_peak_bytes": setup.device.peak(),
            "peak_memory_bytes": memory,
            "images_per_second": images as f64 / total,
            "model_flops": speed.flops,
            "model_flops_per_second": speed.rate(total),
            "peak_flops_per_second": speed.peak.map(|peak| peak.rate),
            "mfu": mfu,
            "total_seconds": total,
            "seconds": seconds,
            "reward_ms_per_image": e.reward_ms,
            "elapsed_seconds": self.elapsed(),
        });
        draw_epoch(&mut self.board, &line)?;
        // The line in the log is what says that all of it happened: it comes last.
        self.metrics.write(&line)?;
        self.last_epoch = Some(line);
        Ok(())
    }

    /// Reports an evaluation after `epoch` epochs, which stands so among those before it, and writes its sample grid.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn eval(&mut self, setup: &Setup, epoch: u32, eval: &EvalReport, standing: &Standing) -> Result<()> {
        let mean = means(&eval.scores);
        let reward = mean["reward"];
        let start = *self.first_eval.get_or_insert(reward);
        self.last_eval = Some(reward);
        self.last_eval_epoch = Some(u64::from(epoch));
        let shown = eval.images.len().min(setup.config.raw.eval.grid);
        let mut picture = String::new();
        if shown > 0 {
            let path = self.samples.join(format!("epoch-{epoch:06}.png"));
            let grid = image::grid(&eval.images[..shown], GRID_COLUMNS.min(shown));
            let png = image::png(&grid)?;
            crate::io::write_atomic(&path, &png)?;
            self.board.image(u64::from(epoch), "eval/samples", &grid, &png)?;
            self.say_what_is_shown(eval, shown)?;
            picture = format!("  {}", path.display());
        }
        let rest: Vec<String> =
            mean.iter().filter(|(k, _)| *k != "reward").map(|(k, v)| format!("{k} {v:.4}")).collect();
        let missing = eval.missing().map(|(n, why)| format!("  {n} pictures have no score: {why}")).unwrap_or_default();
        say(&format!(
            "eval after epoch {epoch}: held-out reward {reward:.4} (at the start {start:.4})  {}{picture}{missing}",
            rest.join("  ")
        ));
        for (key, value) in mean.iter().chain([(&"best".to_string(), &standing.best_reward)]) {
            self.board.scalar(u64::from(epoch), &format!("eval/{key}"), *value as f32)?;
        }
        let by_tag = means_by_tag(&eval.scores, &eval.prompts);
        for (tag, mean) in &by_tag {
            for (key, value) in mean {
                self.board.scalar(u64::from(epoch), &format!("eval_by_tag/{tag}/{key}"), *value as f32)?;
            }
        }
        // The line in the log is what says that all of it happened: it comes last.
        self.board.flush()?;
        let values: Map<String, Value> = mean.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
        let mut line = standing.to_json();
        line.extend([
            ("epoch".to_string(), json!(epoch)),
            ("eval".to_string(), Value::Object(values)),
            ("shown".to_string(), json!(eval.scores.weighted[..shown])),
            ("elapsed_seconds".to_string(), json!(self.elapsed())),
        ]);
        line.extend(eval.missing().map(|(n, _)| ("missing".to_string(), json!(n))));
        line.extend((!by_tag.is_empty()).then(|| ("tags".to_string(), json!(by_tag))));
        self.metrics.write(&Value::Object(line))
    }

    /// Writes what the first `shown` images of `eval` were made for beside the grids, unless it is there.
    fn say_what_is_shown(&self, eval: &EvalReport, shown: usize) -> Result<()> {
        let of = |p: &Prompt| Shown { prompt: p.text.clone(), tag: p.tag.clone() };
        let shows = Shows {
            size: [eval.images[0].width, eval.images[0].height],
            gap: image::GAP,
            pictures: eval.prompts[..shown].iter().map(of).collect(),
        };
        let (path, text) = (self.samples.join(report::PROMPTS), serde_json::to_string_pretty(&shows)?);
        if std::fs::read_to_string(&path).is_ok_and(|old| old == text) {
            return Ok(());
        }
        crate::io::write_atomic(&path, text.as_bytes())
    }

    /// Says where everything is.
    pub fn finish(&self, output: &Path, device: &Device) {
        if let (Some(first), Some(last)) = (self.first_eval, self.last_eval) {
            say(&format!("RESULT held_out_reward_before={first:.4}"));
            say(&format!("RESULT held_out_reward_after={last:.4}"));
        }
        say(&format!("tensors took at most {}", bytes(device.peak())));
        say(&format!(
            "done in {}; samples, metrics, checkpoints and the LoRA are in {}",
            clock(self.started.elapsed().as_secs_f64()),
            output.display()
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rewards::Score;

    #[test]
    fn means_of_a_kind_of_prompt_are_over_its_images_alone() {
        let prompt = |tag: Option<&str>| Prompt {
            text: "a".into(),
            tag: tag.map(String::from),
            include: Vec::new(),
            exclude: Vec::new(),
            line: 1,
        };
        let score = |value: f64, extra: &[(&str, f64)]| Score {
            value,
            extra: extra.iter().map(|(key, v)| (key.to_string(), *v)).collect(),
        };
        let scores = Scores {
            weighted: vec![1.0, 2.0, 4.0, 8.0],
            rewards: vec![(
                "geneval".to_string(),
                vec![
                    score(0.5, &[("accuracy", 1.0), ("colors_accuracy", 1.0)]),
                    score(0.25, &[("accuracy", 0.0), ("counting_accuracy", 0.0)]),
                    score(1.0, &[("accuracy", 0.0), ("colors_accuracy", 0.0)]),
                    score(0.0, &[]),
                ],
            )],
            missing: BTreeMap::new(),
        };
        let prompts = [prompt(Some("colors")), prompt(Some("counting")), prompt(Some("colors")), prompt(None)];
        let by_tag = means_by_tag(&scores, &prompts);
        let of = |values: &[(&str, f64)]| -> BTreeMap<String, f64> {
            values.iter().map(|(key, v)| (key.to_string(), *v)).collect()
        };
        let want = [
            ("colors".to_string(), of(&[("reward", 2.5), ("geneval", 0.75), ("geneval.accuracy", 0.5)])),
            ("counting".to_string(), of(&[("reward", 2.0), ("geneval", 0.25), ("geneval.accuracy", 0.0)])),
        ];
        assert_eq!(by_tag, BTreeMap::from(want));
        assert!(means_by_tag(&scores, &prompts.each_ref().map(|p| Prompt { tag: None, ..p.clone() })).is_empty());
    }
}
