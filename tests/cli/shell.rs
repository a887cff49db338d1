//! What shells and `man` are told.

use std::process::Command;

use super::{refuses, says, subcommands};

/// What bash offers after `line`, with the script of `engine completions bash` loaded, in a folder with `a.toml` and `b.png`.
fn offered(line: &str) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a.toml"), "").unwrap();
    std::fs::write(folder.path().join("b.png"), "").unwrap();
    std::fs::create_dir(folder.path().join("sub")).unwrap();
    // As readline does it, which splits words at : and = too.
    let script = r#"
        source <("$ENGINE" completions bash) || exit 1
        complete -p engine | grep -q -- '-F _engine_whole_words engine' || exit 2
        IFS= read -r line
        split=${line//:/ : }
        read -r -a COMP_WORDS <<< "${split//=/ = }"
        [[ "$line" == *' ' ]] && COMP_WORDS+=("")
        COMP_CWORD=$(( ${#COMP_WORDS[@]} - 1 )) COMP_LINE="$line" COMP_POINT=${#line} COMP_TYPE=9
        _engine_whole_words engine "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
        printf '%s\n' "${COMPREPLY[@]}""#;
    let mut bash = Command::new("bash");
    bash.args(["--norc", "-c", &format!("{script}\n")]).env("ENGINE", env!("CARGO_BIN_EXE_engine"));
    bash.current_dir(folder.path()).stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let mut child = bash.spawn().unwrap();
    std::io::Write::write_all(child.stdin.as_mut().unwrap(), format!("{line}\n").as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_string).collect()
}

#[test]
fn bash_completes_every_subcommand() {
    let found = offered("engine ");
    for name in subcommands() {
        assert!(found.contains(&name), "{name} is not in {found:?}");
    }
    assert_eq!(offered("engine ins"), ["inspect"]);
}

#[test]
fn bash_completes_flags_files_configs_devices_and_rewards() {
    let has = |line: &str, wanted: &[&str], unwanted: &[&str]| {
        let found = offered(line);
        let is_there = |name: &&&str| found.iter().any(|f| f == **name);
        assert!(wanted.iter().all(|name| is_there(&name)), "{line}: {found:?}");
        assert!(!unwanted.iter().any(|name| is_there(&name)), "{line}: {found:?}");
    };
    has("engine train --", &["--config", "--dry-run", "--json", "--device"], &["--prompt"]);
    has("engine train --config ", &["a.toml", "sub/", "ram_pickscore", "tiny/ram_geneval"], &["b.png"]);
    has("engine train --config tiny/", &["tiny/ram_jpeg"], &["ram_pickscore"]);
    has("engine train --device ", &["auto", "cpu", "cuda", "plan:h100"], &["a.toml"]);
    has("engine train --device plan:a100", &["a100", "a100-40gb"], &["h100", "plan:a100"]);
    has("engine train --device plan:", &["h100", "h200"], &["cpu", "--config"]);
    has("engine train --device=c", &["cpu", "cuda"], &["auto", "--device=cpu"]);
    has("engine eval --rewards ", &["geneval", "pickscore"], &["a.toml"]);
    has("engine train --output-dir ", &["sub/"], &["a.toml"]);
    has("engine score --images ", &["a.toml", "b.png", "sub/"], &[]);
    has("engine configs --print ", &["ram_ocr"], &["a.toml"]);
    has("engine completions ", &["bash", "zsh", "fish"], &["a.toml"]);
}

#[test]
fn every_shell_there_is_gets_a_script_and_another_is_refused() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = says(&["completions", shell]);
        assert!(script.contains("ENGINE_COMPLETE") && script.contains(env!("CARGO_BIN_EXE_engine")), "{script}");
        assert!(says(&["completions", "--help"]).contains(&format!("engine completions {shell}")));
    }
    refuses(&["completions", "bsh"], &["bsh", "bash"]);
}

#[test]
fn every_subcommand_has_a_page_that_names_its_flags() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("man1");
    says(&["man", "--dir", dir.to_str().unwrap()]);
    let page = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap();
    let top = page("engine.1");
    for name in subcommands() {
        let text = page(&format!("engine-{name}.1"));
        assert!(top.contains(&format!("engine\\-{name}(1)")), "{name} is not in: {top}");
        let help = says(&[name.as_str(), "--help"]);
        for flag in
            help.split_whitespace().filter(|w| w.starts_with("--") && w[2..].chars().all(|c| c.is_ascii_lowercase()))
        {
            assert!(text.contains(&flag.replace('-', "\\-")), "{flag} is not in engine-{name}.1");
        }
        assert_eq!(says(&["man", &name]), text);
    }
    assert_eq!(says(&["man"]), top);
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), subcommands().len() + 1);
    refuses(&["man", "trian"], &["no subcommand 'trian'", "did you mean 'train'?"]);
}

/// groff finds nothing to complain about, and keeps the list of keys a list.
#[test]
fn pages_are_good_troff() {
    let folder = tempfile::tempdir().unwrap();
    says(&["man", "--dir", folder.path().to_str().unwrap()]);
    for entry in std::fs::read_dir(folder.path()).unwrap() {
        let path = entry.unwrap().path();
        let Ok(output) = Command::new("groff").args(["-man", "-Tutf8", "-ww", "-P-cbou"]).arg(&path).output() else {
            return;
        };
        let [out, err] = [output.stdout, output.stderr].map(|t| String::from_utf8(t).unwrap());
        assert!(output.status.success() && err.is_empty(), "{}: {err}", path.display());
        assert!(out.contains("SYNOPSIS") && out.contains("engine"), "{out}");
        if path.ends_with("engine-doctor.1") {
            assert!(out.lines().any(|l| l.trim_start().starts_with("gflops.bf16 ")), "{out}");
        }
    }
}
