//! Rewards that a model which looks at pictures and writes text gives, behind an endpoint like OpenAI's (`chat/completions`): a
//! question about each picture, and a number found in the answer by a pattern.

use anyhow::{Context, Result, anyhow, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use regex::bytes::{Regex, RegexBuilder};
use serde_json::{Value, json};

use super::{ABORT, RETRIES, SKIP_GROUP, Server, Settings, TIMEOUT, concurrency, parse, text};
use crate::data::Prompt;
use crate::device::Device;
use crate::io::image::{RgbImage, png};
use crate::ops::resize;
use crate::rewards::images::pictures_of;
use crate::rewards::{Images, Key, Kind, Options, Reward, Score};
use crate::telemetry::warn;

/// What stands in a question for the prompt.
pub const PROMPT: &str = "{prompt}";
/// The variable with the key that endpoints want.
const API_KEY: &str = "OPENAI_API_KEY";
/// The key that flow_grpo's set-up starts its server with: what is sent where there is no other.
const PUBLISHED_KEY: &str = "flowgrpo";

/// What is asked and how it is understood.
#[derive(Clone, Debug, PartialEq)]
pub struct Asking {
    /// The model, as the server calls it.
    pub model: String,
    /// What is asked, [`PROMPT`] in the place of the prompt.
    pub question: String,
    /// Finds the number in the answer: its first group, or all it matches.
    pub pattern: String,
    /// What the number is divided by.
    pub divisor: f64,
    /// Pixels a side that pictures are resized to, as Pillow does; 0 leaves them as they are.
    pub size: usize,
    /// Of the choice of words; the server's own default where there is none.
    pub temperature: Option<f64>,
    /// Words at most; the server's own default where there is none.
    pub max_tokens: Option<u32>,
}

/// What `[rewards.unifiedreward]` and `[rewards.qwenvl]` can say; what is asked and how it is understood has their own defaults.
pub const KEYS: &[Key] = &[
    text("url", URL, true),
    text("model", MODEL, true),
    text("prompt", QUESTION, true),
    text("pattern", PATTERN, true),
    Key { name: "divisor", kind: Kind::Number { default: 5.0, least: 1e-6, most: 1e6 } },
    TIMEOUT,
    RETRIES,
    concurrency(16),
    // A picture that such a model has no score for gets none however often it is asked: a run that stops would stop there again.
    Key::choice("on_failure", &[SKIP_GROUP, ABORT]),
];

/// What `[rewards.vlm]` can say, which has no defaults for what is asked and how it is understood.
pub const KEYS_OF_ANY: &[Key] = &[
    text("url", URL, false),
    text("model", MODEL, false),
    text("prompt", QUESTION, false),
    text("pattern", PATTERN, false),
    Key { name: "divisor", kind: Kind::Number { default: 1.0, least: 1e-6, most: 1e6 } },
    // Height and width that pictures are resized to; 0 leaves them as they are.
    Key { name: "size", kind: Kind::Whole { default: 0, least: 0, most: 4096 } },
    // -1 and 0 leave these to the server.
    Key { name: "temperature", kind: Kind::Number { default: 0.0, least: -1.0, most: 2.0 } },
    Key { name: "max_tokens", kind: Kind::Whole { default: 0, least: 0, most: 1 << 20 } },
    TIMEOUT,
    RETRIES,
    concurrency(16),
    Key::choice("on_failure", &[SKIP_GROUP, ABORT]),
];

const URL: &str = "where an endpoint like OpenAI's begins, such as http://127.0.0.1:8000/v1";
const MODEL: &str = "the model's name at the server";
const QUESTION: &str = "what is asked about a picture, with {prompt} where the prompt belongs";
const PATTERN: &str = "a regular expression whose first group is the score";

/// Where flow_grpo has UnifiedReward.
const UNIFIED_REWARD_URL: &str = "http://127.0.0.1:17140/v1";
/// Where vLLM listens if it is not told otherwise.
const VLLM_URL: &str = "http://127.0.0.1:8000/v1";

impl Asking {
    /// As resolved options of `[rewards.vlm]` say.
    fn of_any(options: &Options) -> Self {
        let text = |name| options.text(name).expect("resolved: it must be said").to_string();
        Self {
            model: text("model"),
            question: text("prompt"),
            pattern: text("pattern"),
            divisor: options.number("divisor"),
            size: options.whole("size"),
            temperature: Some(options.number("temperature")).filter(|t| *t >= 0.0),
            max_tokens: Some(options.whole("max_tokens") as u32).filter(|most| *most > 0),
        }
    }

    /// This with what resolved options say otherwise.
    fn but(self, options: &Options) -> Self {
        let text = |name, default| options.text(name).map_or(default, str::to_string);
        Self {
            model: text("model", self.model),
            question: text("prompt", self.question),
            pattern: text("pattern", self.pattern),
            divisor: options.number("divisor"),
            ..self
        }
    }

    /// UnifiedReward as flow_grpo asks it (`rewards.py`, `unifiedreward_score_sglang`): 1 to 5, over 5.
    pub fn unified_reward() -> Self {
        Self {
            model: "UnifiedReward-7b-v1.5".into(),
            question: UNIFIED_REWARD.into(),
            pattern: r"Final Score:\s*([1-5](?:\.\d+)?)".into(),
            divisor: 5.0,
            size: 512,
            temperature: Some(0.0),
            max_tokens: None,
        }
    }

    /// Qwen2.5-VL as flow_grpo asks it for the beauty of a picture (`qwenvl.py`), of whatever prompt: 1 to 5, over 5.
    pub fn qwen_vl() -> Self {
        Self {
            model: "Qwen/Qwen2.5-VL-7B-Instruct".into(),
            question: QWEN_VL.into(),
            pattern: r"<Score>(\d+)</Score>".into(),
            divisor: 5.0,
            size: 0,
            temperature: None,
            max_tokens: Some(2048),
        }
    }

    /// The pattern, ready to search.
    ///
    /// # Errors
    /// If it is none.
    pub fn regex(&self) -> Result<Regex> {
        let regex = RegexBuilder::new(&self.pattern).unicode(false).build();
        regex.map_err(|e| anyhow!("'{}' is no pattern: {}", self.pattern, e.to_string().lines().last().unwrap_or("")))
    }
}

const UNIFIED_REWARD: &str = "<image>\nYou are given a text caption and a generated image based on that caption. Your task is to \
evaluate this image based on two key criteria:\n1. Alignment with the Caption: Assess how well this image aligns with the provided \
caption. Consider the accuracy of depicted objects, their relationships, and attributes as described in the caption.\n2. Overall Image \
Quality: Examine the visual quality of this image, including clarity, detail preservation, color accuracy, and overall aesthetic \
appeal.\nBased on the above criteria, assign a score from 1 to 5 after 'Final Score:'.\nYour task is provided as follows:\nText \
Caption: [{prompt}]";

const QWEN_VL: &str = "
Your role is to evaluate the aesthetic quality score of given images.
1. Bad: Extremely blurry, underexposed with significant noise, indiscernible
subjects, and chaotic composition.
2. Poor: Noticeable blur, poor lighting, washed-out colors, and awkward
composition with cut-off subjects.
3. Fair: In focus with adequate lighting, dull colors, decent composition but
lacks creativity.
4. Good: Sharp, good exposure, vibrant colors, thoughtful composition with
a clear focal point.
5. Excellent: Exceptional clarity, perfect exposure, rich colors, masterful
composition with emotional impact.

Please first provide a detailed analysis of the evaluation process, including the criteria for judging aesthetic quality, within the \
<Thought> tag. Then, give a final score from 1 to 5 within the <Score> tag.
<Thought>
[Analyze the evaluation process in detail here]
</Thought>
<Score>X</Score>
";

/// A reward by a model that looks at pictures.
pub struct Vlm {
    name: &'static str,
    server: Server,
    asking: Asking,
    regex: Regex,
    is_plan: bool,
}

impl Vlm {
    /// The reward `name` that resolved options describe.
    ///
    /// # Errors
    /// As [`Vlm::new`]; also if address or pattern are none.
    pub(in crate::rewards) fn build(name: &'static str, options: &Options, device: &Device) -> Result<Self> {
        let (asking, url) = match name {
            "unifiedreward" => (Asking::unified_reward().but(options), UNIFIED_REWARD_URL),
            "qwenvl" => (Asking::qwen_vl().but(options), VLLM_URL),
            _ => (Asking::of_any(options), ""),
        };
        Self::new(name, Settings::of(options, name, url)?, asking, device).with_context(|| format!("reward {name}"))
    }

    /// The reward `name` of the model that `asking` names at the server that `settings` name, which must be there unless `device`
    /// is only planned for.
    ///
    /// # Errors
    /// [`Unavailable`](crate::rewards::Unavailable) if it is not there, or wants another key than it gets; or if the pattern is
    /// none.
    pub fn new(name: &'static str, settings: Settings, asking: Asking, device: &Device) -> Result<Self> {
        let key = std::env::var(API_KEY).ok().filter(|key| !key.is_empty()).unwrap_or_else(|| PUBLISHED_KEY.into());
        let regex = asking.regex().with_context(|| format!("rewards.{name}.pattern"))?;
        let url = settings.url.clone();
        let this = Self { name, server: Server::new(settings, Some(key)), asking, regex, is_plan: device.is_plan() };
        if !this.is_plan {
            // Some servers do not list their models.
            let models = this.server.check("/models", |status| status == 404 || status == 405)?;
            let served = models.map(|models| served(&models)).unwrap_or_default();
            if !served.is_empty() && !served.contains(&this.asking.model) {
                // Some take any name.
                let (model, served) = (&this.asking.model, served.join(", "));
                warn(&format!("rewards.{name}.model is '{model}', but {url} lists {served}"));
            }
        }
        Ok(this)
    }
}

/// The models in the answer of an endpoint that lists them.
fn served(answer: &[u8]) -> Vec<String> {
    let answer: Value = serde_json::from_slice(answer).unwrap_or_default();
    let models = answer["data"].as_array().into_iter().flatten();
    models.filter_map(|model| model["id"].as_str().map(str::to_string)).collect()
}

impl Reward for Vlm {
    fn name(&self) -> &'static str {
        self.name
    }

    fn score(&self, images: &Images, prompts: &[&Prompt]) -> Result<Vec<Score>> {
        if self.is_plan {
            return Ok(vec![Score::default(); images.len()]);
        }
        let resized;
        let pictures = match self.asking.size {
            0 => images.pictures(),
            size => {
                resized = pictures_of(&resize::bicubic(images.bytes(), size, size));
                &resized
            }
        };
        let question = Question { asking: &self.asking, regex: &self.regex, pictures, prompts };
        self.server.score("/chat/completions", images.len(), 1, &question)
    }
}

/// A question about each of several pictures.
struct Question<'a> {
    asking: &'a Asking,
    regex: &'a Regex,
    pictures: &'a [RgbImage],
    prompts: &'a [&'a Prompt],
}

impl super::server::Question for Question<'_> {
    const CONTENT_TYPE: &'static str = "application/json";

    fn body(&self, first: usize, _: usize) -> Result<Vec<u8>> {
        let Asking { model, question, temperature, max_tokens, .. } = self.asking;
        let picture = format!("data:image/png;base64,{}", STANDARD.encode(png(&self.pictures[first])?));
        let text = question.replace(PROMPT, &self.prompts[first].text);
        let mut body = json!({
            "model": model,
            "messages": [{
                "role": "user",
                "content": [
                    { "type": "image_url", "image_url": { "url": picture } },
                    { "type": "text", "text": text },
                ],
            }],
        });
        if let Some(temperature) = temperature {
            body["temperature"] = json!(temperature);
        }
        if let Some(most) = max_tokens {
            body["max_tokens"] = json!(most);
        }
        Ok(body.to_string().into_bytes())
    }

    fn read(&self, answer: &[u8], _: usize) -> Result<Vec<Score>> {
        Ok(vec![Score::of(read(answer, self.regex)? / self.asking.divisor)])
    }
}

/// The number that `pattern` finds in what the model in `answer` says.
///
/// # Errors
/// Says what is missing.
pub fn read(answer: &[u8], pattern: &Regex) -> Result<f64> {
    let answer = parse(answer)?;
    let text =
        answer["choices"][0]["message"]["content"].as_str().context("answered without choices[0].message.content")?;
    let Some(found) = pattern.captures(text.as_bytes()) else {
        bail!("answered with a text in which '{pattern}' finds no score");
    };
    let number = found.get(1).or(found.get(0)).expect("a match").as_bytes();
    let number = str::from_utf8(number).unwrap_or_default().trim();
    number.parse().map_err(|_| anyhow!("answered with a text in which '{pattern}' finds '{number}', expected a number"))
}
