//! The best evaluation of a run: whether the held-out reward still rises, has turned, or has not risen for too long, and the
//! LoRA it was highest with, in `best/` of the run's folder.
//!
//! Every evaluation samples the same prompts from the same noise, so two are compared prompt by prompt. What is remembered is
//! in `metrics.jsonl`, from where a resumed run takes it.

use std::path::Path;

use anyhow::Result;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::run::save_lora;
use super::setup::Setup;
use crate::config::optimizer::{LrSchedule, Optimizer};
use crate::config::raw::Stop;
use crate::io::write::write_atomic;
use crate::io::{folder, read_json};
use crate::models::lora::{AdapterBank, Slot};
use crate::rewards::Scores;

/// The folder in a run's, and what is in it beside the LoRA.
const FOLDER: &str = "best";
const ABOUT: &str = "best.json";
/// By how many standard errors of the difference a reward must be below the best to have turned. The best of some evaluations
/// is lucky by one or two: at 2, every tenth evaluation of a run that stands still would be said to have fallen.
const STANDARD_ERRORS: f64 = 3.0;
/// The share of prompts that an evaluation can be without: the others would be those of another set.
const MOST_MISSING: f64 = 0.1;
/// A standard error of fewer prompts says too little.
const FEWEST_PROMPTS: usize = 10;

/// What an evaluation found.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// Epochs done.
    epoch: u32,
    /// Mean reward of all images.
    reward: f64,
    /// Mean reward of each prompt's images; nothing where one of them was not judged.
    prompts: Vec<Option<f64>>,
}

impl Evaluation {
    /// Of the policy after `epoch` epochs, whose images' `scores` come prompt by prompt, `each` a prompt. Nothing if too few
    /// prompts were judged to compare it with others.
    pub fn new(epoch: u32, scores: &Scores, each: usize) -> Option<Self> {
        let of_prompt = |rewards: &[f64]| Some(mean(rewards)).filter(|mean| mean.is_finite());
        let prompts: Vec<Option<f64>> = scores.weighted.chunks(each).map(of_prompt).collect();
        let judged: Vec<f64> = scores.weighted.iter().copied().filter(|reward| reward.is_finite()).collect();
        let missing = prompts.iter().filter(|reward| reward.is_none()).count();
        (missing as f64 <= MOST_MISSING * prompts.len() as f64).then(|| Self { epoch, reward: mean(&judged), prompts })
    }

    /// The one that a line of the log tells of, if it does and it was made as `settings` say.
    fn logged(line: &Value, settings: &Value) -> Option<Self> {
        let prompts = line["prompt_rewards"].as_array().filter(|_| line["eval_settings"] == *settings)?;
        Some(Self {
            epoch: line["epoch"].as_u64()? as u32,
            reward: line["eval"]["reward"].as_f64()?,
            prompts: prompts.iter().map(Value::as_f64).collect(),
        })
    }
}

fn mean(x: &[f64]) -> f64 {
    x.iter().sum::<f64>() / x.len().max(1) as f64
}

/// The mean of `x` and its standard error; none of fewer than two.
fn with_error(x: &[f64]) -> Option<(f64, f64)> {
    let (n, mean) = (x.len() as f64, mean(x));
    let variance = x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0);
    (n >= 2.0).then(|| (mean, (variance / n).sqrt()))
}

/// A fall below the best evaluation that is more than noise.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Turn {
    /// The epoch of the best evaluation.
    from_epoch: u32,
    /// Its reward.
    from_reward: f64,
    /// By how much the reward is lower, prompt by prompt in the mean: negative.
    difference: f64,
    /// The standard error of that over prompts.
    standard_error: f64,
}

impl Turn {
    /// How `now` is below `best`, if it is.
    fn between(best: &Evaluation, now: &Evaluation) -> Option<Self> {
        let pairs = now.prompts.iter().zip(&best.prompts);
        let pairs: Vec<f64> = pairs.filter_map(|(now, then)| Some((*now)? - (*then)?)).collect();
        let (difference, standard_error) = with_error(&pairs).filter(|_| pairs.len() >= FEWEST_PROMPTS)?;
        (difference < 0.0 && -difference >= STANDARD_ERRORS * standard_error).then_some(Self {
            from_epoch: best.epoch,
            from_reward: best.reward,
            difference,
            standard_error,
        })
    }
}

/// How an evaluation stands among those before it.
#[derive(Clone, Debug)]
pub struct Standing {
    /// Whether none was better.
    pub is_best: bool,
    /// The epoch of the best one, this included.
    pub best_epoch: u32,
    /// Its reward.
    pub best_reward: f64,
    /// Whether the reward has turned since.
    pub turned: Option<Turn>,
    /// Whether it had not at the evaluation before.
    is_new: bool,
    this: Evaluation,
    settings: Value,
}

impl Standing {
    /// What the log holds of it.
    pub fn to_json(&self) -> Map<String, Value> {
        let fields = [
            ("best", json!({ "epoch": self.best_epoch, "reward": self.best_reward })),
            ("turned", json!(self.turned)),
            ("prompt_rewards", json!(self.this.prompts)),
            ("eval_settings", self.settings.clone()),
        ];
        fields.map(|(key, value)| (key.to_string(), value)).into_iter().collect()
    }

    /// What there is to say of it: once for every turn.
    pub fn news(&self, optimizer: &Optimizer, output: &Path) -> Option<String> {
        let Turn { from_epoch, from_reward, difference, standard_error } =
            self.turned.as_ref().filter(|_| self.is_new)?;
        let falls = if optimizer.schedule == LrSchedule::Constant { " or optimizer.schedule = \"linear\"" } else { "" };
        // As many digits as two of the error have.
        let digits = (1.0 - standard_error.log10().floor()).clamp(4.0, 9.0) as usize;
        Some(format!(
            "held-out reward fell from {from_reward:.digits$} (epoch {from_epoch}) to {:.digits$} (epoch {}), {:.1} standard errors over {} \
             prompts; the LoRA of epoch {from_epoch} is in {}; try a lower optimizer.lr{falls}",
            self.this.reward,
            self.this.epoch,
            -difference / standard_error,
            self.this.prompts.len(),
            output.join(FOLDER).display(),
        ))
    }
}

/// The best evaluation so far and what came after it.
pub struct Best {
    best: Option<Evaluation>,
    /// Evaluations after it.
    since: u32,
    /// Whether the last one was more than noise below it.
    is_turned: bool,
    /// What evaluations must have in common to be compared.
    settings: Value,
}

impl Best {
    /// After the evaluations in the lines of a log that were made as those of `setup` are.
    pub fn of(log: &[Value], setup: &Setup) -> Self {
        let (eval, images) = (&setup.config.raw.eval, setup.config.eval_images);
        Self::after(
            log,
            json!({
                "num_prompts": images / eval.num_images_per_prompt,
                "num_images_per_prompt": eval.num_images_per_prompt,
                "num_inference_steps": eval.num_inference_steps,
                "guidance_scale": f64::from(eval.guidance_scale),
            }),
        )
    }

    fn after(log: &[Value], settings: Value) -> Self {
        let evaluations: Vec<_> = log.iter().filter_map(|line| Evaluation::logged(line, &settings)).collect();
        let mut best = Self { best: None, since: 0, is_turned: false, settings };
        evaluations.into_iter().for_each(|evaluation| _ = best.take(evaluation));
        best
    }

    /// Takes in an evaluation.
    pub fn take(&mut self, this: Evaluation) -> Standing {
        let is_best = self.best.as_ref().is_none_or(|best| this.reward > best.reward);
        let turned = self.best.as_ref().filter(|_| !is_best).and_then(|best| Turn::between(best, &this));
        let is_new = turned.is_some() && !self.is_turned;
        self.is_turned = turned.is_some() || self.is_turned && !is_best;
        self.since = if is_best { 0 } else { self.since + 1 };
        if is_best {
            self.best = Some(this.clone());
        }
        let best = self.best.as_ref().expect("the first is the best");
        let (best_epoch, best_reward) = (best.epoch, best.reward);
        Standing { is_best, best_epoch, best_reward, turned, is_new, this, settings: self.settings.clone() }
    }

    /// Why the run ends, if it has been evaluated often enough without a new best.
    pub fn out_of_patience(&self, rules: &Stop) -> Option<String> {
        let best = self.best.as_ref().filter(|_| rules.patience > 0 && self.since >= rules.patience)?;
        Some(format!(
            "held-out reward has not risen above {:.4} (epoch {}) in {} evaluations; to go on, --set stop.patience=0",
            best.reward, best.epoch, self.since
        ))
    }

    /// The lines at the end of a run.
    pub fn results(&self) -> Vec<String> {
        let lines = |best: &Evaluation| {
            vec![format!("RESULT held_out_reward_best={:.4}", best.reward), format!("RESULT best_epoch={}", best.epoch)]
        };
        self.best.as_ref().map(lines).unwrap_or_default()
    }
}

/// Why the run ends, if it has taken as many seconds as it may.
pub fn time_is_up(rules: &Stop, elapsed: f64) -> Option<String> {
    let most = rules.max_seconds;
    (most > 0 && elapsed >= f64::from(most))
        .then(|| format!("it has taken {elapsed:.0} of {most} seconds; to go on, --set stop.max_seconds=0"))
}

/// Puts the average of `bank`, which the evaluation was made with, into `best/` of `output`, with its reward beside it.
///
/// # Errors
/// Names what cannot be written; what was in `best/` is still there then.
pub fn write(output: &Path, setup: &Setup, bank: &AdapterBank, standing: &Standing) -> Result<()> {
    setup.device.check()?;
    let this = &standing.this;
    let about = json!({
        "epoch": this.epoch,
        "reward": this.reward,
        "standard_error": with_error(&this.prompts.iter().copied().flatten().collect::<Vec<_>>()).map(|(_, error)| error),
        "eval_settings": standing.settings,
    });
    settle(output)?;
    folder::replace(output, FOLDER, |path| {
        let modules = setup.pipeline.network.modules();
        save_lora(modules, bank, Slot::Average, &setup.config.raw.lora, path)?;
        write_atomic(&path.join(ABOUT), format!("{about:#}\n").as_bytes())
    })?;
    Ok(())
}

/// Makes good what a process that was killed left of [`write()`].
///
/// # Errors
/// If the folder cannot be put back.
pub fn settle(output: &Path) -> Result<()> {
    folder::settle(output, FOLDER)
}

/// What to say if `best/` of `output` is of an epoch that comes after `epoch`, where the run goes on.
pub fn stays(output: &Path, epoch: u32) -> Option<String> {
    let path = output.join(FOLDER);
    let about: Value = read_json(&path.join(ABOUT)).ok()?;
    let later = about["epoch"].as_u64().filter(|e| epoch > 0 && *e > u64::from(epoch))?;
    Some(format!("{} is of epoch {later}, from before the run went back; it stays until a new best", path.display()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const PROMPTS: usize = 12;

    /// Rewards of prompts around `reward`, in the same pattern every time but for `noise`, whose mean is 0.
    fn evaluation(epoch: u32, reward: f64, noise: f64) -> Evaluation {
        let prompts: Vec<f64> =
            (0..PROMPTS).map(|i| reward + i as f64 + if i % 2 == 0 { noise } else { -noise }).collect();
        Evaluation { epoch, reward: mean(&prompts), prompts: prompts.into_iter().map(Some).collect() }
    }

    fn fresh() -> Best {
        Best::after(&[], json!({ "guidance_scale": 1.0 }))
    }

    fn line(standing: &Standing) -> Value {
        let mut line = standing.to_json();
        line.insert("epoch".into(), json!(standing.this.epoch));
        line.insert("eval".into(), json!({ "reward": standing.this.reward }));
        Value::Object(line)
    }

    #[test]
    fn the_standard_error_is_that_of_the_textbook() {
        let (mean, error) = with_error(&[1.0, 2.0, 3.0, 6.0]).unwrap();
        // Variance 14/3 with n − 1.
        assert!((mean - 3.0).abs() < 1e-15 && (error - (14.0f64 / 3.0 / 4.0).sqrt()).abs() < 1e-15);
        assert_eq!(with_error(&[1.0]), None);
    }

    #[test]
    fn rewards_are_averaged_prompt_by_prompt() {
        let scores = |weighted| Scores { weighted, rewards: Vec::new(), missing: BTreeMap::new() };
        let want = Evaluation { epoch: 7, reward: 3.75, prompts: vec![Some(1.5), Some(6.0)] };
        assert_eq!(Evaluation::new(7, &scores(vec![1.0, 2.0, 4.0, 8.0]), 2), Some(want));
    }

    #[test]
    fn an_evaluation_does_without_a_tenth_of_its_prompts_and_not_without_more() {
        let scores = |missing: &[usize]| {
            let reward = |i| if missing.contains(&i) { f64::NAN } else { i as f64 };
            Scores { weighted: (0..20).map(reward).collect(), rewards: Vec::new(), missing: BTreeMap::new() }
        };
        let whole = Evaluation::new(0, &scores(&[]), 2).unwrap();
        let one = Evaluation::new(1, &scores(&[7]), 2).unwrap();
        assert_eq!((one.prompts[3], one.prompts[4]), (None, Some(8.5)));
        assert!((one.reward - 183.0 / 19.0).abs() < 1e-12);
        assert_eq!(Evaluation::new(0, &scores(&[7, 8]), 2), None);
        // What both have is compared; here it is equal.
        assert_eq!(Turn::between(&whole, &one), None);
        let mut best = fresh();
        best.take(one.clone());
        let line = line(&best.take(one.clone()));
        assert_eq!(line["prompt_rewards"][3], Value::Null);
        assert_eq!(Evaluation::logged(&line, &line["eval_settings"]), Some(one));
    }

    #[test]
    fn a_fall_is_said_once_until_there_is_a_new_best_and_noise_never() {
        let mut best = fresh();
        // Differences to the best of ±0.1: a standard error of 0.1/√11 = 0.0302.
        let cases = [
            (evaluation(0, 0.5, 0.0), true, false, false),
            (evaluation(10, 0.6, 0.0), true, false, false),
            (evaluation(20, 0.6 - 0.001, 0.1), false, false, false),
            (evaluation(30, 0.6 - 0.08, 0.1), false, false, false),
            (evaluation(40, 0.6 - 0.1, 0.1), false, true, true),
            (evaluation(50, 0.6 - 0.2, 0.1), false, true, false),
            (evaluation(60, 0.6 - 0.01, 0.1), false, false, false),
            (evaluation(70, 0.6 - 0.2, 0.1), false, true, false),
            (evaluation(80, 0.7, 0.0), true, false, false),
            (evaluation(90, 0.6, 0.1), false, true, true),
        ];
        for (evaluation, is_best, has_turned, is_news) in cases {
            let standing = best.take(evaluation);
            let news = standing.news(&Optimizer::default(), Path::new("out"));
            let found = (standing.is_best, standing.turned.is_some(), news.is_some());
            assert_eq!(found, (is_best, has_turned, is_news), "{standing:?}");
        }
    }

    #[test]
    fn the_news_are_numbers_and_what_helps() {
        let mut best = fresh();
        best.take(evaluation(128, 0.55 - 5.5, 0.0));
        let standing = best.take(evaluation(192, 0.491 - 5.5, 0.06));
        let want = "held-out reward fell from 0.5500 (epoch 128) to 0.4910 (epoch 192), 3.3 standard errors over 12 prompts; \
                    the LoRA of epoch 128 is in out/best; try a lower optimizer.lr";
        let keys = |schedule| Optimizer { schedule, ..Optimizer::default() };
        let news = |schedule| standing.news(&keys(schedule), Path::new("out")).unwrap();
        assert_eq!(news(LrSchedule::Cosine), want);
        assert_eq!(news(LrSchedule::Constant), format!("{want} or optimizer.schedule = \"linear\""));
    }

    #[test]
    fn a_few_prompts_say_nothing() {
        let few = |epoch, reward| Evaluation { epoch, reward, prompts: vec![Some(reward); FEWEST_PROMPTS - 1] };
        let mut best = fresh();
        best.take(few(0, 1.0));
        assert_eq!(best.take(few(1, 0.0)).turned, None);
    }

    #[test]
    fn patience_ends_after_so_many_evaluations_without_a_new_best() {
        let rules = Stop { patience: 2, ..Stop::default() };
        let mut best = fresh();
        let rewards = [0.5, 0.4, 0.6, 0.6, 0.5];
        let ends = rewards.iter().enumerate().map(|(i, reward)| {
            best.take(evaluation(i as u32, *reward, 0.0));
            best.out_of_patience(&rules).is_some()
        });
        assert_eq!(ends.collect::<Vec<_>>(), [false, false, false, false, true]);
        let reason = best.out_of_patience(&rules).unwrap();
        assert!(
            reason.starts_with("held-out reward has not risen above 6.1000 (epoch 2) in 2 evaluations"),
            "{reason}"
        );
        assert_eq!(best.out_of_patience(&Stop::default()), None);
    }

    #[test]
    fn time_has_a_limit_if_one_is_given() {
        let rules = Stop { max_seconds: 60, ..Stop::default() };
        assert_eq!([time_is_up(&rules, 59.9), time_is_up(&Stop::default(), 1e9)], [None, None]);
        assert!(time_is_up(&rules, 60.0).unwrap().starts_with("it has taken 60 of 60 seconds"));
    }

    #[test]
    fn a_log_that_is_read_again_leaves_the_same_standing_to_the_bit() {
        let rewards = [0.5, 0.7, 0.1 + 0.2, 0.6, 0.65, 0.9];
        let all = |n: u32| evaluation(n, rewards[n as usize], 0.03 * f64::from(n));
        let mut whole = fresh();
        let mut text = Vec::new();
        for n in 0..rewards.len() as u32 {
            let lines: Vec<Value> = text.iter().map(|l: &String| serde_json::from_str(l).unwrap()).collect();
            let mut again = Best::after(&lines, whole.settings.clone());
            let (one, two) = (whole.take(all(n)), again.take(all(n)));
            assert_eq!(format!("{one:?}"), format!("{two:?}"));
            assert_eq!((whole.since, whole.is_turned), (again.since, again.is_turned));
            text.push(line(&one).to_string());
        }
        // Evaluations that were made otherwise are not compared with.
        let lines: Vec<Value> = text.iter().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!(Best::after(&lines, json!({ "guidance_scale": 2.0 })).best, None);
    }
}
