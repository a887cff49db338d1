use std::io::Write;

use anyhow::{Context, Result};
use engine::config::published::Published;
use engine::config::{self, TrainConfig};
use engine::rewards;
use serde::Serialize;

use super::json::{self, JsonArg};

/// List the published configs, which are built into the program, or print one.
///
/// --config takes their names in any folder where no file has that name. To change one, print it to a file:
/// engine configs --print ram_pickscore > my.toml
#[derive(clap::Args)]
#[command(after_long_help = json::keys(KEYS))]
pub struct Args {
    /// Print this config, as it is.
    #[arg(long, value_name = "CONFIG", conflicts_with = "json")]
    print: Option<String>,
    #[command(flatten)]
    json: JsonArg,
}

const KEYS: &[(&str, &str)] = &[
    ("configs[].name", "what --config takes"),
    ("configs[].description", "what it is for"),
    ("configs[].algorithm", "training method"),
    ("configs[].model", "path of the model"),
    ("configs[].rewards[].name", "reward"),
    ("configs[].rewards[].model", "path of its model"),
    ("configs[].rewards[].available", "whether this version has it"),
];

#[derive(Serialize)]
struct List {
    configs: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    name: &'static str,
    description: String,
    algorithm: &'static str,
    model: String,
    rewards: Vec<Reward>,
}

#[derive(Serialize)]
struct Reward {
    name: String,
    model: Option<String>,
    available: bool,
}

pub fn run(args: Args) -> Result<()> {
    if let Some(name) = &args.print {
        let text = named(name)?.text;
        return std::io::stdout().write_all(text.as_bytes()).context("cannot write to standard output");
    }
    let configs = Published::all().map(|one| Ok(row(one, &config::parse(one.name, one.text)?)));
    let list = List { configs: configs.collect::<Result<_>>()? };
    args.json.answer(&list, || list.configs.iter().map(Row::text).collect())
}

/// The published config that `name` names.
fn named(name: &str) -> Result<Published> {
    Published::named(name).with_context(|| {
        let names: Vec<&str> = Published::all().map(|one| one.name).collect();
        let hint = Published::nearest(name).map(|n| format!("; did you mean '{n}'?")).unwrap_or_default();
        format!("no config '{name}' is built in, expected one of {}{hint}", names.join(", "))
    })
}

fn row(one: Published, raw: &TrainConfig) -> Row {
    let rewards = raw.rewards.iter().map(|(name, keys)| Reward {
        name: name.clone(),
        model: keys.options.text("model").map(str::to_string),
        available: rewards::names().contains(&name.as_str()),
    });
    Row {
        name: one.name,
        description: one.description(),
        algorithm: raw.algorithm.name(),
        model: raw.model.display().to_string(),
        rewards: rewards.collect(),
    }
}

impl Row {
    fn text(&self) -> String {
        let reward = |r: &Reward| format!("{}{}", r.name, if r.available { "" } else { " (not in this version)" });
        let rewards: Vec<String> = self.rewards.iter().map(reward).collect();
        format!(
            "{}\n    {}\n    {} on {}, reward {}\n",
            self.name,
            self.description,
            self.algorithm,
            self.model,
            rewards.join(" and ")
        )
    }
}
