//! Mistakes made on purpose: a PTX text with one barrier, arrival, fence, commit or wait less. A test that runs a kernel
//! and cannot tell such a text from the right one does not test what that line is for, or the line is for nothing.

/// A text that lacks one line of synchronisation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mutant {
    /// The line that was changed, from 1.
    pub line: usize,
    /// The kernel or function it is in.
    pub kernel: String,
    /// The instruction that is gone, as written.
    pub what: String,
    /// The whole text without it. Lines keep their numbers.
    pub text: String,
}

/// Instructions that order something.
const WORDS: [&str; 19] = [
    "bar.sync",
    "bar.arrive",
    "bar.warp.sync",
    "barrier.sync",
    "barrier.arrive",
    "barrier.cluster",
    "mbarrier.arrive",
    "mbarrier.expect_tx",
    "mbarrier.try_wait",
    "mbarrier.test_wait",
    "fence.",
    "membar.",
    "wgmma.fence",
    "wgmma.commit",
    "wgmma.wait",
    "cp.async.commit_group",
    "cp.async.wait_",
    "cp.async.bulk.commit_group",
    "cp.async.bulk.wait_group",
];

/// Every mutant of a text, in order. A wait that is tried again until it succeeds is made to succeed at once; anything else
/// is deleted.
///
/// ```
/// let text = ".entry k() {\n bar.sync 0;\n ret; }";
/// let all = ptxvm::mutants(text);
/// assert_eq!((all[0].line, all[0].what.as_str(), all[0].kernel.as_str()), (2, "bar.sync 0;", "k"));
/// assert_eq!(all[0].text, ".entry k() {\n\n ret; }");
/// ```
pub fn mutants(text: &str) -> Vec<Mutant> {
    let lines: Vec<&str> = text.lines().collect();
    let (mut all, mut kernel) = (Vec::new(), String::new());
    for (at, line) in lines.iter().enumerate() {
        if let Some(name) = named(line) {
            kernel = name;
        }
        let code = line.split("//").next().unwrap_or_default();
        if !WORDS.iter().any(|w| code.contains(w)) {
            continue;
        }
        let changed = without(code);
        let mut new = lines.clone();
        new[at] = &changed;
        let what = code.trim().to_string();
        all.push(Mutant { line: at + 1, kernel: kernel.clone(), what, text: new.join("\n") });
    }
    all
}

/// The kernel or function that a line begins.
fn named(line: &str) -> Option<String> {
    let (_, rest) = line.split_once(".entry ").or_else(|| line.split_once(".func "))?;
    // what a function returns comes before its name
    let rest = rest.trim_start();
    let rest = if rest.starts_with('(') { rest.split_once(')')?.1 } else { rest };
    let name = rest.trim_start().split(|c: char| !(c.is_alphanumeric() || matches!(c, '_' | '$'))).next()?;
    (!name.is_empty()).then(|| name.to_string())
}

fn without(line: &str) -> String {
    let wait = line.split_once("mbarrier.try_wait").or_else(|| line.split_once("mbarrier.test_wait"));
    let Some((head, rest)) = wait else { return String::new() };
    let predicate = rest.split_whitespace().nth(1).unwrap_or_default().trim_end_matches(',');
    let end = if line.trim_end().ends_with('}') { "}" } else { "" };
    format!("{head}setp.eq.s32 {predicate}, 0, 0;{end}")
}
