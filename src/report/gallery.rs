//! Held-out pictures before and after, prompt by prompt.

use maud::{Markup, html};

use super::chart::COLOURS;
use super::pictures::{LOSSLESS_SIDE, Sheet, Shown, Shows, sheets, shows};
use super::run::Run;
use super::series::significant;

/// The pictures of a run.
struct Gallery {
    shows: Option<Shows>,
    sheets: Vec<Sheet>,
}

/// What one evaluation of a run drew for one prompt.
struct Block<'a> {
    run: usize,
    sheet: &'a Sheet,
    pictures: Vec<&'a str>,
    /// The pictures' rewards, as far as the log has them.
    rewards: Vec<f64>,
}

impl Gallery {
    fn of(run: &Run) -> anyhow::Result<Self> {
        let shows = shows(run)?;
        let sheets = sheets(run, shows.as_ref())?;
        Ok(Self { shows, sheets })
    }

    /// What the pictures were made for; nothing if the run does not say.
    fn shown(&self) -> &[Shown] {
        self.shows.as_ref().map_or(&[], |shows| &shows.pictures)
    }
}

/// The prompts of all runs, each once, in their order.
fn prompts(galleries: &[Gallery]) -> Vec<&Shown> {
    let mut out: Vec<&Shown> = Vec::new();
    for shown in galleries
        .iter()
        .flat_map(|g| g.shown().iter().take(g.sheets.iter().map(|s| s.pictures.len()).max().unwrap_or(0)))
    {
        if !out.iter().any(|known| known.prompt == shown.prompt) {
            out.push(shown);
        }
    }
    out
}

/// What the runs drew for `prompt`: before and after, and for a single run its best too. Pictures that another run had
/// before training are not shown again.
fn blocks<'a>(galleries: &'a [Gallery], prompt: &str) -> Vec<Block<'a>> {
    let mut out: Vec<Block> = Vec::new();
    for (run, gallery) in galleries.iter().enumerate() {
        for sheet in gallery.sheets.iter().filter(|sheet| galleries.len() == 1 || sheet.label != "best") {
            let is_of = |i: &usize| gallery.shown()[*i].prompt == prompt;
            let spots: Vec<usize> = (0..gallery.shown().len().min(sheet.pictures.len())).filter(is_of).collect();
            let pictures: Vec<&str> = spots.iter().map(|i| sheet.pictures[*i].as_str()).collect();
            let rewards = spots.iter().filter_map(|i| *sheet.rewards.get(*i)?).collect();
            let is_known = sheet.label == "before" && out.iter().any(|b| b.pictures == pictures);
            if !pictures.is_empty() && !is_known {
                out.push(Block { run, sheet, pictures, rewards });
            }
        }
    }
    // What the runs began with comes first.
    out.sort_by_key(|block| block.sheet.label != "before");
    out
}

/// Whose pictures, after how many epochs, and their mean reward.
fn label(runs: &[Run], block: &Block) -> Markup {
    let (sheet, run) = (block.sheet, &runs[block.run]);
    let is_best = sheet.label == "after" && run.best().is_some_and(|(epoch, _)| epoch == sheet.epoch);
    let mean = block.rewards.iter().sum::<f64>() / block.rewards.len() as f64;
    html! {
        b {
            @if runs.len() > 1 && sheet.label != "before" {
                i class={ "chip c" (block.run % COLOURS) } {} (run.name)
            } @else {
                (sheet.label) @if is_best && runs.len() == 1 { " (best)" }
            }
        }
        span.of {
            span { "epoch " (sheet.epoch) }
            @if mean.is_finite() { span title="mean reward of these pictures" { (significant(mean, 2)) } }
        }
    }
}

fn card(runs: &[Run], galleries: &[Gallery], shown: &Shown) -> Markup {
    let columns = |pictures: usize| (pictures as f64).sqrt().ceil() as usize;
    let is_small = galleries.iter().filter_map(|g| g.shows.as_ref()).all(|s| s.size[0].max(s.size[1]) <= LOSSLESS_SIDE);
    html! {
        figure.card {
            figcaption { span.prompt { (shown.prompt) } @if let Some(tag) = &shown.tag { span.tag { (tag.replace('_', " ")) } } }
            div.blocks {
                @for block in blocks(galleries, &shown.prompt) {
                    div.block {
                        p { (label(runs, &block)) }
                        div.tiles.small[is_small] style={ "grid-template-columns:repeat(" (columns(block.pictures.len())) ",1fr)" } {
                            @for (i, uri) in block.pictures.iter().enumerate() {
                                @let reward = block.rewards.get(i).map(|r| format!("reward {}", significant(*r, 3)));
                                img src=(uri) loading="lazy" alt={ (shown.prompt) ", " (block.sheet.label) } title=[reward];
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Whole grids, where a run does not say what is in them.
fn whole(run: &Run, gallery: &Gallery) -> Markup {
    html! {
        div.grids {
            @for sheet in &gallery.sheets {
                @for uri in &sheet.pictures {
                    figure.card {
                        figcaption { b { (sheet.label) } " epoch " (sheet.epoch) " \u{b7} " (run.name) }
                        img src=(uri) alt={ "Sample grid of " (run.name) " after epoch " (sheet.epoch) };
                    }
                }
            }
        }
    }
}

/// The section about pictures; nothing if no run has any.
pub fn section(runs: &[Run]) -> Markup {
    let (mut galleries, mut failed) = (Vec::new(), Vec::new());
    for run in runs {
        let gallery = Gallery::of(run).unwrap_or_else(|e| {
            failed.push(format!("{}: pictures cannot be shown: {e:#}", run.name));
            Gallery { shows: None, sheets: Vec::new() }
        });
        galleries.push(gallery);
    }
    let prompts = prompts(&galleries);
    if failed.is_empty() && galleries.iter().all(|g| g.sheets.is_empty()) {
        return html! {};
    }
    html! {
        section #pictures {
            h2 { "Pictures" }
            p.muted { "Held-out prompts, drawn from the same noise each time: pictures differ by what was learnt alone. The number is their mean reward." }
            @for line in &failed { p.none { (line) } }
            div.cards { @for shown in prompts { (card(runs, &galleries, shown)) } }
            @for (run, gallery) in runs.iter().zip(&galleries).filter(|(_, g)| g.shows.is_none()) { (whole(run, gallery)) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gallery(prompts: &[&str], sheets: &[(&'static str, u64, &[&str])]) -> Gallery {
        let shown = |p: &&str| Shown { prompt: p.to_string(), tag: None };
        let pictures = prompts.iter().map(shown).collect();
        let sheet = |(label, epoch, uris): &(&'static str, u64, &[&str])| Sheet {
            epoch: *epoch,
            label,
            rewards: vec![Some(0.5); uris.len()],
            pictures: uris.iter().map(|u| u.to_string()).collect(),
        };
        Gallery { shows: Some(Shows { size: [8, 8], gap: 2, pictures }), sheets: sheets.iter().map(sheet).collect() }
    }

    #[test]
    fn pictures_stand_beside_one_another_by_prompt() {
        let a = gallery(&["x", "x", "y"], &[("before", 0, &["1", "2", "3"]), ("after", 4, &["4", "5", "6"])]);
        let b =
            gallery(&["y", "x"], &[("before", 0, &["3", "0"]), ("best", 2, &["7", "8"]), ("after", 4, &["9", "10"])]);
        let galleries = [a, b];
        assert_eq!(prompts(&galleries).iter().map(|s| s.prompt.as_str()).collect::<Vec<_>>(), ["x", "y"]);
        let seen = |prompt| {
            let blocks = blocks(&galleries, prompt);
            blocks.into_iter().map(|b| (b.run, b.sheet.label, b.pictures.concat())).collect::<Vec<_>>()
        };
        let text = |s: &str| s.to_string();
        let x =
            [(0, "before", text("12")), (1, "before", text("0")), (0, "after", text("45")), (1, "after", text("10"))];
        assert_eq!(seen("x"), x);
        // Both began with the same picture.
        assert_eq!(seen("y"), [(0, "before", text("3")), (0, "after", text("6")), (1, "after", text("9"))]);
    }
}
