//! The page that a run writes about itself, and the one that compares runs.

use std::path::Path;

use super::{assert_success, engine, train, write_config};

/// Elements that have no end.
const VOID: [&str; 5] = ["meta", "link", "img", "input", "br"];

/// The names and attributes of all elements of `page`, after a check that each ends where it should.
fn elements(page: &str) -> Vec<(String, String)> {
    let (mut open, mut found, mut rest): (Vec<String>, Vec<(String, String)>, &str) = (Vec::new(), Vec::new(), page);
    while let Some(at) = rest.find('<') {
        let (tag, after) = rest[at + 1..].split_once('>').expect("a tag ends");
        rest = after;
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop().as_deref(), Some(name), "{tag} ends something else");
            continue;
        }
        let (name, attributes) = tag.split_once(' ').unwrap_or((tag, ""));
        assert_eq!(attributes.matches('"').count() % 2, 0, "{tag}");
        found.push((name.to_string(), attributes.to_string()));
        match name {
            "!DOCTYPE" => {}
            "style" | "script" => rest = rest.split_once(&format!("</{name}>")).expect("it ends").1,
            name if VOID.contains(&name) => {}
            name => open.push(name.to_string()),
        }
    }
    assert!(open.is_empty(), "{open:?} never end");
    found
}

/// Demands that nothing of `page` is anywhere else, and gives its text.
fn self_contained(page: &Path) -> String {
    let text = std::fs::read_to_string(page).unwrap();
    for (name, attributes) in elements(&text) {
        for loads in ["src=\"", "href=\"", "srcset=\"", "action=\"", "poster=\""] {
            for (at, _) in attributes.match_indices(loads) {
                let value = &attributes[at + loads.len()..];
                assert!(value.starts_with("data:") || value.starts_with('#'), "{name} {:.80}", attributes);
            }
        }
        assert!(!["iframe", "object", "embed", "base"].contains(&name.as_str()), "{name}");
    }
    assert!(!text.contains("http:") && !text.contains("https:") && !text.contains("@import"));
    text
}

#[test]
fn a_run_writes_a_page_about_itself_and_runs_are_compared() {
    let folder = tempfile::tempdir().unwrap();
    let config = write_config(folder.path(), "");
    let runs = ["first", "second"].map(|name| folder.path().join(name));
    for (run, scale) in runs.iter().zip(["2.0", "7.0"]) {
        let output = train(&config, run, &["--set", &format!("ram.reward_multiplier={scale}")]);
        assert_success(&output);
        let page = run.join("report.html");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(said.trim_end().ends_with(&format!("report: {}", page.display())), "{said}");
        let text = self_contained(&page);
        for prompt in ["a red circle", "two blue squares", "a green field", "the sun"] {
            assert!(text.contains(prompt), "{prompt}");
        }
        // Before and after, four prompts each.
        assert_eq!(text.matches("src=\"data:image/png;base64,").count(), 2 * 4);
        assert!(text.contains("3 of 3") && text.contains("engine train") || text.contains(" train --config"));
    }
    let [first, second] = runs.each_ref().map(|run| run.to_str().unwrap());
    let page = folder.path().join("new/both.html");
    let output = engine(&["report", first, second, "--output", page.to_str().unwrap()]);
    assert_success(&output);
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("wrote {}\n", page.display()));
    let text = self_contained(&page);
    assert!(text.contains("2 runs compared") && text.contains("<code>ram.reward_multiplier</code>"));
    // What both drew before training is the same and is shown once.
    assert_eq!(text.matches("src=\"data:image/png;base64,").count(), 3 * 4);

    // Made again from the folder alone, it is the same page.
    let written = std::fs::read(runs[0].join("report.html")).unwrap();
    std::fs::remove_file(runs[0].join("report.html")).unwrap();
    assert_success(&engine(&["report", first]));
    assert_eq!(std::fs::read(runs[0].join("report.html")).unwrap(), written);
}

#[test]
fn a_page_that_cannot_be_written_ends_no_run() {
    let folder = tempfile::tempdir().unwrap();
    let config = write_config(folder.path(), "");
    let run = folder.path().join("run");
    std::fs::create_dir_all(run.join("report.html")).unwrap();
    let output = train(&config, &run, &[]);
    assert_success(&output);
    let warned = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(warned.contains("warning: the report could not be written: "), "{warned}");
    assert!(warned.lines().all(|line| line.starts_with("warning: ")), "{warned}");
    assert!(!String::from_utf8_lossy(&output.stdout).contains("report: "));
}
