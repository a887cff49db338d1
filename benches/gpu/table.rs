//! The results of a visit to a GPU, engine and baselines side by side.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};

/// Who else is timed, in the order of the columns: the product alone by cuBLASLt's preferred kernel, and the op with
/// `ENGINE_PRODUCTS=cublaslt`.
const OTHERS: [&str; 4] = ["cublaslt", "op by cublaslt", "torch eager", "torch compiled"];

/// Reads every `*.jsonl` of a folder, writes them to one `gpu_check.json`, and prints the tables.
pub fn print(folder: &Path) -> Result<()> {
    let files = std::fs::read_dir(folder)?.map(|e| Ok(e?.path())).collect::<Result<Vec<_>>>()?;
    let mut files: Vec<_> = files.into_iter().filter(|p| p.extension().is_some_and(|e| e == "jsonl")).collect();
    files.sort();
    let mut lines: Vec<Value> = Vec::new();
    for path in files {
        // The last line of a program that was stopped may be half of one.
        lines.extend(std::fs::read_to_string(path)?.lines().filter_map(|l| serde_json::from_str(l).ok()));
    }
    std::fs::write(folder.join("gpu_check.json"), serde_json::to_string_pretty(&json!(lines))?)?;
    benches(&lines);
    variants(&lines);
    checks(&lines);
    Ok(())
}

fn text<'a>(line: &'a Value, key: &str) -> &'a str {
    line[key].as_str().unwrap_or("")
}

/// A duration in three figures.
fn shown(seconds: f64) -> String {
    if seconds < 1e-3 { format!("{:.1} us", seconds * 1e6) } else { format!("{:.2} ms", seconds * 1e3) }
}

fn benches(lines: &[Value]) {
    // In the order of the first of each: engine.jsonl comes before what it is compared with.
    let mut order: Vec<(&str, &str)> = Vec::new();
    let mut found: BTreeMap<(&str, &str, &str), &Value> = BTreeMap::new();
    for line in lines.iter().filter(|l| text(l, "kind") == "bench") {
        let key = (text(line, "op"), text(line, "case"));
        if !order.contains(&key) {
            order.push(key);
        }
        found.insert((key.0, key.1, text(line, "who")), line);
    }
    if order.is_empty() {
        return;
    }
    println!(
        "\n| op | case | engine | least | rate | of peak | {} |",
        OTHERS.map(|o| format!("{o} / engine")).join(" | ")
    );
    println!("|---|---|--:|--:|--:|--:|{}", "--:|".repeat(OTHERS.len()));
    for (op, case) in order {
        let of = |who: &str| found.get(&(op, case, who)).copied().unwrap_or(&Value::Null);
        let line = of("engine");
        let Some(ours) = line["seconds"].as_f64() else {
            let why = if line["skipped"].is_string() { text(line, "skipped") } else { "ran; not timed" };
            println!("| {op} | {case} | {why} | | | |{}", " |".repeat(OTHERS.len()));
            continue;
        };
        let number = |key: &str| line[key].as_f64().unwrap_or(0.0);
        let rate = if number("flop") > 0.0 {
            format!("{:.1} TFLOP/s", number("flop") / ours / 1e12)
        } else {
            format!("{:.0} GB/s", number("bytes") / ours / 1e9)
        };
        let share = line["floor"].as_f64().map_or(String::new(), |floor| format!("{:.0} %", 100.0 * floor / ours));
        let ratios =
            OTHERS.map(|who| of(who)["seconds"].as_f64().map_or(String::new(), |s| format!("{:.2}x", s / ours)));
        let least = shown(number("least"));
        println!("| {op} | {case} | {} | {least} | {rate} | {share} | {} |", shown(ours), ratios.join(" | "));
    }
    println!("\nMedians. Of peak: the maker's peak of products or memory, whichever takes longer, over the time.");
}

/// Ways to do the same, the fastest first.
fn variants(lines: &[Value]) {
    let lines: Vec<&Value> = lines.iter().filter(|l| text(l, "kind") == "variant").collect();
    let mut order: Vec<(&str, &str)> = Vec::new();
    for line in &lines {
        let key = (text(line, "op"), text(line, "case"));
        if !order.contains(&key) {
            order.push(key);
        }
    }
    if order.is_empty() {
        return;
    }
    println!("\n| op | case | variant | median | least | TFLOP/s | behind |\n|---|---|---|--:|--:|--:|--:|");
    for (op, case) in order {
        let ways = lines.iter().filter(|l| (text(l, "op"), text(l, "case")) == (op, case));
        let mut ways: Vec<&Value> = ways.copied().collect();
        let seconds = |line: &Value| line["seconds"].as_f64().unwrap_or(f64::INFINITY);
        // What was not timed stays in its order, at the end.
        ways.sort_by(|a, b| seconds(a).total_cmp(&seconds(b)));
        let best = seconds(ways[0]);
        for line in ways {
            let name = text(line, "who");
            let Some(median) = line["seconds"].as_f64() else {
                let why = if line["skipped"].is_string() { text(line, "skipped") } else { "ran; not timed" };
                println!("| {op} | {case} | {name} | {why} | | | |");
                continue;
            };
            let rate = line["flop"].as_f64().unwrap_or(0.0) / median / 1e12;
            let (least, behind) = (line["least"].as_f64().unwrap_or(0.0), 100.0 * (median / best - 1.0));
            println!("| {op} | {case} | {name} | {} | {} | {rate:.1} | {behind:.1} % |", shown(median), shown(least));
        }
    }
}

fn checks(lines: &[Value]) {
    let checks: Vec<&Value> = lines.iter().filter(|l| text(l, "kind") == "check").collect();
    println!("\n| check | result | seconds | |\n|---|---|--:|---|");
    for line in &checks {
        let (name, status, detail) = (text(line, "name"), text(line, "status"), text(line, "detail"));
        println!("| {name} | {status} | {:.1} | {detail} |", line["seconds"].as_f64().unwrap_or(0.0));
    }
    let failed = checks.iter().filter(|l| text(l, "status") == "FAILED").count();
    println!("\n{} checks, {failed} failed", checks.len());
}
