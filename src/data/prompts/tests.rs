use super::*;

fn load(name: &str, text: &str) -> Result<PromptSet> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, text).unwrap();
    PromptSet::load(&path)
}

fn error(name: &str, text: &str) -> String {
    load(name, text).unwrap_err().to_string()
}

/// Lines of the public test set, one of each kind.
const GENEVAL: &str = r#"{"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"}
{"tag": "two_object", "include": [{"class": "wine glass", "count": 1}, {"class": "bear", "count": 1}], "prompt": "a photo of a wine glass and a bear"}
{"tag": "counting", "include": [{"class": "wine glass", "count": 2}], "exclude": [{"class": "wine glass", "count": 3}], "prompt": "a photo of two wine glasses"}

{"tag": "colors", "include": [{"class": "kite", "count": 1, "color": "brown"}], "prompt": "a photo of a brown kite"}
{"tag": "position", "include": [{"class": "dog", "count": 1}, {"class": "teddy bear", "count": 1, "position": ["left of", 0]}], "prompt": "a photo of a teddy bear left of a dog"}
{"tag": "color_attr", "include": [{"class": "handbag", "count": 1, "color": "pink"}, {"class": "scissors", "count": 1, "color": "black"}], "prompt": "a photo of a pink handbag and a black scissors"}
"#;

#[test]
fn every_kind_of_geneval_record_is_read() {
    let set = load("geneval.jsonl", GENEVAL).unwrap().prompts;
    let tags: Vec<_> = set.iter().map(|p| p.tag.as_deref().unwrap()).collect();
    assert_eq!(tags, ["single_object", "two_object", "counting", "colors", "position", "color_attr"]);
    assert_eq!(set[2].exclude, [Exclusion { class: "wine glass".into(), count: 3 }]);
    assert_eq!(set[3].include[0].color, Some(Color::Brown));
    assert_eq!(set[4].include[1].position, Some((Relation::LeftOf, 0)));
    assert_eq!((set[5].text.as_str(), set[5].line), ("a photo of a pink handbag and a black scissors", 7));
}

#[test]
fn text_is_stripped_and_blank_lines_are_skipped() {
    let set = load("p.txt", "\u{feff}  a cat \r\n\r\n\t\na \"dog\"\n").unwrap().prompts;
    assert_eq!(set.iter().map(|p| (p.text.as_str(), p.line)).collect::<Vec<_>>(), [("a cat", 1), ("a \"dog\"", 4)]);
    assert_eq!(set[0].include, []);
}

#[test]
fn a_record_may_be_a_prompt_alone_or_carry_foreign_keys() {
    let set = load("p.jsonl", "{\"prompt\": \"a cat\"}\n{\"prompt\": \"a dog\", \"source_id\": 7}").unwrap().prompts;
    assert_eq!(set[1].text, "a dog");
}

#[test]
fn errors_name_file_line_and_what_was_expected() {
    let missing = PromptSet::load(Path::new("/nowhere/p.txt")).unwrap_err();
    assert!(format!("{missing:#}").contains("/nowhere/p.txt"));
    assert!(error("p.csv", "a").contains("expected a .txt or .jsonl"));
    assert!(error("p.txt", "\n \n").contains("no prompt in it"));
    let good = "{\"prompt\": \"a\"}\n";
    let clause =
        |c: &str| format!("{good}{{\"prompt\": \"b\", \"include\": [{{\"class\": \"x\", \"count\": 1}}, {c}]}}");
    for (text, expected) in [
        (format!("{good}{{\"prompt\": "), "p.jsonl:2: EOF while parsing a value (column"),
        (format!("{good}[]"), "p.jsonl:2: invalid"),
        (format!("{good}{{\"text\": \"a\"}}"), "p.jsonl:2: missing field `prompt`"),
        (format!("{good}{{\"prompt\": \" \"}}"), "p.jsonl:2: key 'prompt' is empty"),
        (format!("{good}{{\"prompt\": \"a\", \"inclued\": []}}"), "unknown key 'inclued'; did you mean 'include'?"),
        (clause(r#"{"class": "y", "count": 0}"#), "p.jsonl:2: include[1].count is 0, expected at least 1"),
        (clause(r#"{"class": "y", "count": 1, "colour": "red"}"#), "unknown field `colour`"),
        (clause(r#"{"class": "y", "count": 1, "color": "read"}"#), "include[1].color is 'read', expected one of red,"),
        (clause(r#"{"class": "y", "count": 1, "color": "yelow"}"#), "did you mean 'yellow'?"),
        (clause(r#"{"class": "y", "count": 1, "position": ["left off", 0]}"#), "did you mean 'left of'?"),
        (clause(r#"{"class": "y", "count": 1, "position": ["above", 1]}"#), "include[1].position refers to clause 1"),
        (clause(r#"{"class": "y", "count": 1, "position": ["above"]}"#), "p.jsonl:2: invalid length 1"),
    ] {
        let found = error("p.jsonl", &text);
        assert!(found.contains(expected), "{text}\ngave  {found}\nnot   {expected}");
    }
}

#[test]
fn keys_of_other_tools_are_no_mistake_beside_ours() {
    let line = r#"{"prompt": "a cat", "include": [], "exclude": [], "prompt_id": 3, "prompt_en": "x", "prompts": [], "includes": 1, "tags": ["a"]}"#;
    let file = tempfile::NamedTempFile::with_suffix(".jsonl").unwrap();
    std::fs::write(file.path(), line).unwrap();
    assert_eq!(PromptSet::load(file.path()).unwrap().prompts[0].text, "a cat");
}
