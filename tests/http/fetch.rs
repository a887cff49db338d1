//! `engine fetch` against a hub on this machine.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};
use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::stub::{Reply, Request, Stub, nobody, ok};

/// The content of the repository's files.
fn files() -> BTreeMap<&'static str, Vec<u8>> {
    let weights: Vec<u8> = (0..300_000u32).map(|i| (i * i % 251) as u8).collect();
    BTreeMap::from([
        ("config.json", b"{\"a\": 1}\n".to_vec()),
        ("folder/empty.txt", Vec::new()),
        ("model.safetensors", weights),
        ("pytorch_model.bin", b"code".to_vec()),
    ])
}

fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The hub's listing of them, as it is with `blobs=true`.
fn listing() -> Value {
    let sibling = |(name, content): (&&str, &Vec<u8>)| {
        let git = hex(&Sha1::digest([format!("blob {}\0", content.len()).as_bytes(), content].concat()));
        let mut sibling = json!({ "rfilename": name, "size": content.len(), "blobId": git });
        if name.ends_with("safetensors") {
            let pointer = "1".repeat(40);
            sibling["blobId"] = json!(pointer);
            sibling["lfs"] =
                json!({ "sha256": hex(&Sha256::digest(content)), "size": content.len(), "pointerSize": 134 });
        }
        sibling
    };
    json!({ "sha": "c0ffee", "siblings": files().iter().map(sibling).collect::<Vec<_>>() })
}

/// What a hub answers that is well.
fn answer(request: &Request) -> Reply {
    if request.path.starts_with("/api/") {
        assert_eq!(request.path, "/api/models/owner/name/revision/main?blobs=true");
        return ok(listing().to_string());
    }
    let name = request.path.strip_prefix("/owner/name/resolve/c0ffee/").unwrap();
    let content = &files()[name];
    match request.header("range").map(|range| range["bytes=".len()..].trim_end_matches('-').parse::<usize>().unwrap()) {
        Some(start) => {
            let range = format!("bytes {start}-{}/{}", content.len() - 1, content.len());
            Reply::Whole(206, vec![("Content-Range", range)], content[start..].to_vec())
        }
        None => ok(content.clone()),
    }
}

fn fetch(endpoint: &str, out: &Path, args: &[&str], token: Option<&str>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_engine"));
    command
        .args(["fetch", "owner/name", "--out"])
        .arg(out)
        .args(args)
        .env("HF_ENDPOINT", endpoint)
        .env_remove("HF_TOKEN");
    token.iter().for_each(|token| _ = command.env("HF_TOKEN", token));
    command.output().unwrap()
}

/// The one line that a failed fetch prints.
fn refused(output: &Output) -> String {
    let stderr = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    let errors: Vec<&str> = stderr.lines().filter_map(|line| line.strip_prefix("error: ")).collect();
    assert_eq!(errors.len(), 1, "{stderr}");
    errors[0].to_string()
}

fn fetched(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Everything in `folder`, by its path there.
fn there(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let name = entry.file_name().into_string().unwrap();
        match entry.path().is_dir() {
            true => found.extend(there(&entry.path()).into_iter().map(|(path, c)| (format!("{name}/{path}"), c))),
            false => _ = found.insert(name, std::fs::read(entry.path()).unwrap()),
        }
    }
    found
}

fn wanted(names: &[&str]) -> BTreeMap<String, Vec<u8>> {
    files().into_iter().filter(|(name, _)| names.contains(name)).map(|(name, c)| (name.to_string(), c)).collect()
}

const NEEDED: [&str; 3] = ["config.json", "folder/empty.txt", "model.safetensors"];

#[test]
fn what_the_engine_reads_comes_checked_and_only_once() {
    let dir = tempfile::tempdir().unwrap();
    let (stub, out) = (Stub::new(answer), dir.path().join("models/x"));
    let said = fetched(&fetch(&stub.url, &out, &[], Some("hf_secret")));
    assert!(said.ends_with("3 files, 0 of them were there; every checksum is the hub's\n"), "{said}");
    assert!(there(&out) == wanted(&NEEDED));
    assert!(stub.requests().iter().all(|r| r.header("authorization") == Some("Bearer hf_secret")));
    // All but the list and what is empty, which no bytes have to come for.
    assert_eq!(stub.requests().len(), 3);
    // What is there is not asked for; what is damaged is.
    std::fs::write(out.join("config.json"), "{\"a\": 2}\n").unwrap();
    let said = fetched(&fetch(&stub.url, &out, &["--json"], None));
    let said: Value = serde_json::from_str(&said).unwrap();
    let was_there: Vec<bool> = said["files"].as_array().unwrap().iter().map(|f| f["was_there"] == true).collect();
    assert_eq!((was_there, &said["commit"]), (vec![false, true, true], &json!("c0ffee")));
    assert!(there(&out) == wanted(&NEEDED));
    fetched(&fetch(&stub.url, &out, &["--include", "*.bin", "conf*"], None));
    assert_eq!(there(&out)["pytorch_model.bin"], b"code");
    let error = refused(&fetch(&stub.url, &out, &["--include", "*.pt"], None));
    assert!(error.starts_with("--include '*.pt': no file of owner/name is called so; it has config.json,"), "{error}");
    let all = dir.path().join("all");
    fetched(&fetch(&stub.url, &all, &["--all"], None));
    assert_eq!(there(&all).len(), 4);
}

/// A hub that closes the connection after a while: the first run is cut five times without a byte of progress and gives up, the
/// second goes on from what is there.
#[test]
fn what_was_interrupted_goes_on_where_it_ended() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("x");
    let weights = files()["model.safetensors"].clone();
    let cuts = Arc::new(AtomicUsize::new(0));
    let counted = cuts.clone();
    let content = weights.clone();
    let ill = Stub::new(move |request| match (request.path.ends_with("model.safetensors"), request.header("range")) {
        (false, _) => answer(request),
        (true, None) => Reply::Cut(200, Vec::new(), content.clone(), 100_000),
        (true, Some(_)) => {
            counted.fetch_add(1, Ordering::Relaxed);
            Reply::Raw(Vec::new())
        }
    });
    let error = refused(&fetch(&ill.url, &out, &[], None));
    assert!(error.starts_with("model.safetensors: http://") && error.contains("the connection was closed"), "{error}");
    assert!(error.ends_with("100000 of 300000 bytes are here, the same command goes on from there"), "{error}");
    assert_eq!(cuts.load(Ordering::Relaxed), 4);
    assert!(!out.join("model.safetensors").exists());

    // Well but for one more cut on the way.
    let cuts = AtomicUsize::new(0);
    let well = Stub::new(move |request| match answer(request) {
        Reply::Whole(206, headers, body) if cuts.fetch_add(1, Ordering::Relaxed) == 0 => {
            Reply::Cut(206, headers, body, 50_000)
        }
        reply => reply,
    });
    let said: Value = serde_json::from_str(&fetched(&fetch(&well.url, &out, &["--json"], None))).unwrap();
    assert_eq!(said["files"][2]["resumed_at"], 100_000);
    assert!(there(&out) == wanted(&NEEDED));
    let ranges: Vec<Option<String>> = well
        .asked("/owner/name/resolve/c0ffee/model.safetensors")
        .iter()
        .map(|r| r.header("range").map(String::from))
        .collect();
    assert_eq!(ranges, [Some("bytes=100000-".into()), Some("bytes=150000-".into())]);
}

#[test]
fn a_hub_without_ranges_and_what_an_earlier_try_damaged_begin_anew() {
    let dir = tempfile::tempdir().unwrap();
    let weights = files()["model.safetensors"].clone();
    let sum = hex(&Sha256::digest(&weights));
    let part = format!(".model.safetensors.{}.part", &sum[..16]);
    let damaged = |out: &Path, bytes: &[u8]| {
        std::fs::create_dir_all(out).unwrap();
        std::fs::write(out.join(&part), bytes).unwrap();
    };
    let plain = |request: &Request| {
        let mut request = request.clone();
        request.headers.retain(|(name, _)| name != "range");
        answer(&request)
    };
    let (a, b, c) = (dir.path().join("a"), dir.path().join("b"), dir.path().join("c"));
    damaged(&a, &weights[..1000]);
    fetched(&fetch(&Stub::new(plain).url, &a, &[], None));
    assert!(there(&a) == wanted(&NEEDED));
    // Bytes that are not the file's, and more than it has.
    let stub = Stub::new(answer);
    damaged(&b, &[1; 1000]);
    damaged(&c, &vec![1; 400_000]);
    for out in [b, c] {
        fetched(&fetch(&stub.url, &out, &[], None));
        assert!(there(&out) == wanted(&NEEDED));
    }
}

#[test]
fn what_has_another_checksum_is_not_kept() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("x");
    let stub = Stub::new(|request| match request.path.ends_with("model.safetensors") {
        true => ok(vec![9; 300_000]),
        false => answer(request),
    });
    let error = refused(&fetch(&stub.url, &out, &[], None));
    let sum = hex(&Sha256::digest(&files()["model.safetensors"]));
    assert!(error.starts_with("model.safetensors: what came has the checksum "), "{error}");
    assert!(error.ends_with(&format!("the hub says {sum}; it was removed")), "{error}");
    assert!(there(&out) == wanted(&NEEDED[..2]));
}

/// Files of weights lie elsewhere, where the token must not go.
#[test]
fn a_redirect_is_followed_without_the_token() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("x");
    let store = Stub::new(|request| {
        let mut request = request.clone();
        request.path = "/owner/name/resolve/c0ffee/model.safetensors".into();
        answer(&request)
    });
    let elsewhere = store.url.replace("127.0.0.1", "localhost");
    let hub = Stub::new(move |request| match request.path.ends_with("model.safetensors") {
        true => Reply::Whole(302, vec![("Location", format!("{elsewhere}/blob?signed"))], Vec::new()),
        false => answer(request),
    });
    let sum = hex(&Sha256::digest(&files()["model.safetensors"]));
    std::fs::create_dir_all(&out).unwrap();
    std::fs::write(out.join(format!(".model.safetensors.{}.part", &sum[..16])), &files()["model.safetensors"][..7])
        .unwrap();
    fetched(&fetch(&hub.url, &out, &[], Some("hf_secret")));
    assert!(there(&out) == wanted(&NEEDED));
    let asked = store.requests();
    assert_eq!(
        asked.iter().map(|r| (r.path.as_str(), r.header("range"))).collect::<Vec<_>>(),
        [("/blob?signed", Some("bytes=7-"))]
    );
    assert_eq!(asked[0].header("authorization"), None);
}

#[test]
fn refusals_say_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let cases: [(u16, &str, Option<&str>, &str); 7] = [
        (401, "", None, "owner/name: answered 401: no such repository, or one that wants a token in HF_TOKEN"),
        (
            401,
            "",
            Some("t"),
            "owner/name: answered 401: no such repository, or the token in HF_TOKEN is not valid for it",
        ),
        (403, "GatedRepo", Some("t"), "/owner/name with the account of the token in HF_TOKEN"),
        (401, "GatedRepo", None, "/owner/name with an account, and its token set as HF_TOKEN"),
        (404, "RevisionNotFound", None, "owner/name: there is no revision 'main'"),
        (404, "", None, "owner/name: answered 404: no such repository or file at http://127.0.0.1:"),
        (418, "", None, "answered 418 I'm a teapot: 'short and stout'"),
    ];
    for (code, error, token, want) in cases {
        // Once for the list, once for a file of it.
        for of_file in [false, true] {
            let stub = Stub::new(move |request| match of_file && request.path.starts_with("/api/") {
                true => answer(request),
                false => Reply::Whole(code, vec![("X-Error-Code", error.into())], b"short and stout".into()),
            });
            let line = refused(&fetch(&stub.url, &dir.path().join("x"), &[], token));
            assert!(line.contains(&want.replace("'main'", if of_file { "'c0ffee'" } else { "'main'" })), "{line}");
        }
    }
    let line = refused(&fetch(&nobody(), &dir.path().join("x"), &[], None));
    assert!(line.ends_with("/api/models/owner/name/revision/main?blobs=true: connection refused"), "{line}");
    let line = refused(&fetch("huggingface.co", &dir.path().join("x"), &[], None));
    assert!(line.starts_with("HF_ENDPOINT: 'huggingface.co' is no address"), "{line}");
    let leading_out = Stub::new(|_| {
        ok(json!({ "sha": "c", "siblings": [{ "rfilename": "../../x.json", "size": 1, "blobId": "0".repeat(40) }] })
            .to_string())
    });
    let line = refused(&fetch(&leading_out.url, &dir.path().join("x"), &[], None));
    assert!(line.ends_with("answered with a file that is not as it should be"), "{line}");
}
