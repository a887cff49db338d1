//! The page: what is in it and in which order.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::chart::COLOURS;
use super::keys::{differences, flat};
use super::run::Run;
use super::series::{duration, significant, written};
use super::work::Totals;
use super::{checks, gallery, rewards, work};
use crate::telemetry::bytes;

/// Colours and sizes.
pub const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("script.js");
/// SHA-256 of the script in base64: no other one runs in the page.
const SCRIPT_HASH: &str = "gejLXRG4gHvJ6SH2CxaD9jQjWZfpV4x2akWcN9sXaeM=";

/// The page about `runs`.
pub fn page(runs: &[Run]) -> String {
    let title = match runs {
        [run] => run.name.clone(),
        _ => format!("{} runs compared", runs.len()),
    };
    let policy = format!(
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{SCRIPT_HASH}'; base-uri 'none'; form-action 'none'"
    );
    let has_begun = runs.iter().any(|run| !run.evals.is_empty() || !run.epochs.is_empty());
    let gallery = gallery::section(runs).into_string();
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(policy);
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) " \u{b7} engine report" }
                link rel="icon" href="data:,";
                style { (PreEscaped(STYLE)) }
            }
            body {
                header {
                    h1 { (title) }
                    p.muted { (described(runs)) }
                    @if has_begun {
                        nav {
                            a href="#rewards" { "Rewards" }
                            @if !gallery.is_empty() { a href="#pictures" { "Pictures" } }
                            a href="#details" { "Details" }
                            a href="#guards" { "Guards" }
                            a href="#work" { "Time and memory" }
                            a href="#configuration" { "Configuration" }
                        }
                    }
                }
                main {
                    @if has_begun {
                        @match runs { [run] => { (tiles(run)) } _ => { (summary(runs)) } }
                        (rewards::section(runs))
                        (PreEscaped(gallery))
                        (rewards::details(runs))
                        (checks::section(runs))
                        (work::section(runs))
                    } @else {
                        p { "Nothing has been evaluated and no epoch is done yet." }
                    }
                    (configuration(runs))
                }
                footer { "Written by engine " (env!("CARGO_PKG_VERSION")) }
                script { (PreEscaped(SCRIPT)) }
            }
        }
    };
    page.into_string()
}

/// Something that a run may say of itself.
type Part<'a> = &'a dyn Fn(&Run) -> Option<String>;

/// What the runs are of, as far as all say the same.
fn described(runs: &[Run]) -> String {
    let text = |run: &Run, key: &str| Some(run.key(key)?.as_str()?.to_string());
    let names = |run: &Run| {
        let names: Vec<String> = run.key("rewards")?.as_table()?.keys().cloned().collect();
        Some(names.join(" + "))
    };
    let rank = |run: &Run| run.count("lora.rank").map(|rank| format!("LoRA of rank {rank}"));
    let parts: [Part; 4] =
        [&|run| text(run, "algorithm").map(|a| a.to_uppercase()), &|run| text(run, "model"), &names, &rank];
    let shared = |part: &Part| {
        let first = part(runs.first()?)?;
        runs.iter().all(|run| part(run).as_ref() == Some(&first)).then_some(first)
    };
    parts.iter().filter_map(shared).collect::<Vec<_>>().join(" \u{b7} ")
}

/// First and last held-out value of `key`.
fn ends(run: &Run, key: &str) -> Option<(f64, f64)> {
    let values: Vec<f64> = run.held_out(&["eval", key]).into_iter().filter_map(|(_, v)| v).collect();
    Some((*values.first()?, *values.last()?))
}

/// `value` with three digits.
fn short(value: f64) -> String {
    significant(value, 3)
}

/// A difference with its sign.
fn signed(difference: f64) -> String {
    match difference {
        0.0 => "no change".into(),
        d if d > 0.0 => format!("+{}", short(d)),
        d => short(d),
    }
}

/// `3 of 8`, or `3` where the plan is unknown.
fn progress(run: &Run, totals: &Totals) -> String {
    let planned = run.count("num_epochs").map(|n| format!(" of {n}")).unwrap_or_default();
    format!("{}{planned}", totals.epochs)
}

fn tile(title: &str, value: &str, note: &str) -> Markup {
    html! { div.tile { h3 { (title) } p.value { (value) } @if !note.is_empty() { p.muted { (note) } } } }
}

/// A run at a glance.
fn tiles(run: &Run) -> Markup {
    let totals = Totals::of(run);
    let best = run.best().map(|(epoch, best)| format!(", best {} after epoch {epoch}", short(best)));
    let strict = run.names(&["eval"]).into_iter().find(|key| key.ends_with(".strict_accuracy"));
    let share = |v: f64| format!("{:.0}%", v * 100.0);
    html! {
        div.tiles-row {
            @if let Some((first, last)) = ends(run, "reward") {
                @let note = format!("{}{}", signed(last - first), best.unwrap_or_default());
                (tile("Held-out reward", &format!("{} \u{2192} {}", short(first), short(last)), &note))
            }
            @if let Some((first, last)) = strict.and_then(|key| ends(run, &key)) {
                (tile("Everything right", &format!("{} \u{2192} {}", share(first), share(last)), "of held-out pictures"))
            }
            @let images = totals.images.map(|n| format!("{} images", written(n))).unwrap_or_default();
            (tile("Epochs", &progress(run, &totals), &images))
            @if let Some(seconds) = totals.seconds {
                @let note = totals.speed().map(|s| format!("{} images a second", short(s))).unwrap_or_default();
                (tile("Training time", &duration(seconds), &note))
            }
            @if let Some(memory) = totals.memory { (tile("Peak memory", &bytes(memory), "")) }
        }
    }
}

/// Several runs at a glance.
fn summary(runs: &[Run]) -> Markup {
    let cell = |text: Option<String>| text.unwrap_or("\u{2013}".into());
    let highest = runs.iter().filter_map(|run| run.best()).map(|(_, r)| r).fold(f64::MIN, f64::max);
    html! {
        div.scroll { table.numbers {
            thead { tr {
                th { "run" } th { "before" } th { "best" } th { "after epoch" } th { "last" } th { "change" } th { "epochs" }
                th { "images" } th { "time" } th { "images/s" } th { "memory" }
            } }
            tbody {
                @for (i, run) in runs.iter().enumerate() {
                    @let (totals, ends, best) = (Totals::of(run), ends(run, "reward"), run.best());
                    tr.best[best.is_some_and(|(_, r)| r == highest)] {
                        td { i class={ "chip c" (i % COLOURS) } {} (run.name) }
                        td { (cell(ends.map(|(first, _)| written(first)))) }
                        td { (cell(best.map(|(_, r)| written(r)))) }
                        td { (cell(best.map(|(epoch, _)| epoch.to_string()))) }
                        td { (cell(ends.map(|(_, last)| written(last)))) }
                        td { (cell(ends.map(|(first, last)| signed(last - first)))) }
                        td { (progress(run, &totals)) }
                        td { (cell(totals.images.map(written))) }
                        td { (cell(totals.seconds.map(duration))) }
                        td { (cell(totals.speed().map(written))) }
                        td { (cell(totals.memory.map(bytes))) }
                    }
                }
            }
        } }
    }
}

/// The keys in which runs differ.
fn differing(runs: &[Run]) -> Markup {
    let tables: Vec<&toml::Table> = runs.iter().map(|run| &run.config).collect();
    let differences = differences(&tables);
    html! {
        h3 { "Where the runs differ" }
        @if differences.is_empty() {
            p.none { "in no key" }
        } @else {
            div.scroll { table {
                thead { tr { th { "key" } @for (i, run) in runs.iter().enumerate() { th { i class={ "chip c" (i % COLOURS) } {} (run.name) } } } }
                tbody {
                    @for (key, values) in &differences {
                        tr {
                            td { code { (key) } }
                            @for value in values {
                                td { @match value { Some(value) => { code { (value) } } None => { span.muted { "not set" } } } }
                            }
                        }
                    }
                }
            } }
        }
    }
}

/// The section about configuration and where runs come from.
fn configuration(runs: &[Run]) -> Markup {
    html! {
        section #configuration {
            h2 { "Configuration" }
            @if runs.len() > 1 { (differing(runs)) }
            (work::origins(runs))
            @for run in runs {
                details open[runs.len() == 1] {
                    summary { "All keys of " (run.name) " " span.muted { (run.folder.display()) } }
                    @let keys = flat(&run.config);
                    @if keys.is_empty() { p.none { "no config.toml in the folder" } }
                    dl.keys {
                        @for (key, value) in keys { div { dt { (key) } dd { (value) } } }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use sha2::{Digest, Sha256};

    use super::super::run::tests::folder;
    use super::*;

    #[test]
    fn the_page_lets_its_own_script_run() {
        let hash = base64::engine::general_purpose::STANDARD.encode(Sha256::digest(SCRIPT));
        assert_eq!(SCRIPT_HASH, hash);
    }

    #[test]
    fn style_and_script_load_nothing_and_end_where_they_should() {
        for text in [STYLE, SCRIPT] {
            assert!(!["url(", "@import", "://", "</"].iter().any(|word| text.contains(word)));
        }
        for i in 0..COLOURS {
            assert!([format!(".c{i} {{"), format!(".p{i} {{")].iter().all(|class| STYLE.contains(class)));
        }
    }

    #[test]
    fn what_files_say_is_text() {
        let evil = "<script>alert(1)</script>\"'&";
        let log = serde_json::json!({"epoch": 1, "skipped": evil, evil: 1.0, "seconds": {evil: 2.0}});
        let eval = serde_json::json!({"epoch": 1, "eval": {"reward": 1.0, evil: 2.0}, "tags": {evil: {"reward": 1.0}}});
        let dir = folder(&format!("{log}\n{eval}\n"));
        let config = toml::Table::from_iter([("model".to_string(), evil.into()), (evil.to_string(), 1.into())]);
        std::fs::write(dir.path().join("config.toml"), config.to_string()).unwrap();
        let about = serde_json::json!({"engine": evil, "command": [evil], "device": evil});
        std::fs::write(dir.path().join(super::super::ABOUT), about.to_string()).unwrap();
        let run = Run::read(dir.path()).unwrap();
        let [a, b] = [run.name.clone(), evil.to_string()].map(|name| Run { name, ..Run::read(dir.path()).unwrap() });
        for page in [page(&[run]), page(&[a, b])] {
            assert!(page.matches("&lt;script&gt;alert(1)&lt;/script&gt;").count() >= 8);
            assert_eq!((page.matches("<script").count(), page.matches("alert(1)</").count()), (1, 0));
        }
    }

    #[test]
    fn pictures_that_cannot_be_read_leave_the_rest_of_the_page() {
        let dir = folder("{\"epoch\":0,\"eval\":{\"reward\":0.25}}\n");
        std::fs::create_dir(dir.path().join("samples")).unwrap();
        std::fs::write(dir.path().join("samples/epoch-000000.png"), "no picture").unwrap();
        let page = page(&[Run::read(dir.path()).unwrap()]);
        assert!(page.contains("pictures cannot be shown: ") && page.contains("one evaluation so far"));
    }

    #[test]
    fn an_empty_run_has_a_page() {
        let page = page(&[Run::read(folder("").path()).unwrap()]);
        assert!(page.contains("no epoch is done yet.") && page.contains("rollout.num_prompts_per_epoch"));
    }
}
