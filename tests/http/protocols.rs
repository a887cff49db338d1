//! What servers are asked, and what is made of all that they can answer.

use std::time::{Duration, Instant};

use engine::data::{Color, Prompt, PromptSet};
use engine::device::Device;
use engine::io::image::RgbImage;
use engine::io::pickle::Pickle;
use engine::rewards::http::pickle::write::{Item, dumps};
use engine::rewards::http::vlm::{Asking, Vlm};
use engine::rewards::http::{Http, OnFailure, Protocol, Settings};
use engine::rewards::{Absent, Images, Reward, Score, Unavailable};
use serde_json::{Value, json};

use crate::parity::fixture;

use super::stub::{Reply, Request, Stub, nobody, ok, status};

fn settings(url: &str, on_failure: OnFailure) -> Settings {
    Settings { url: url.into(), timeout: 5.0, retries: 0, concurrency: 1, on_failure }
}

/// Pictures of one colour each, the number of the picture.
fn images(count: usize) -> Images {
    let picture = |i: usize| RgbImage { width: 8, height: 8, data: vec![i as u8; 8 * 8 * 3] };
    Images::from_pictures((0..count).map(picture).collect(), &Device::Cpu)
}

fn prompts(count: usize) -> Vec<Prompt> {
    let text: Vec<String> = (0..count).map(|i| format!("picture \"{i}\"")).collect();
    let prompt = |(i, text)| Prompt { text, tag: None, include: vec![], exclude: vec![], line: i + 1 };
    text.into_iter().enumerate().map(prompt).collect()
}

fn score(reward: &dyn Reward, count: usize) -> anyhow::Result<Vec<Score>> {
    let prompts = prompts(count);
    reward.score(&images(count), &prompts.iter().collect::<Vec<_>>())
}

fn values(scores: &[Score]) -> Vec<f64> {
    scores.iter().map(|s| s.value).collect()
}

/// The first pixel of a PNG file in base64.
fn shade(png: &str) -> f64 {
    use base64::Engine;
    let bytes = base64::engine::general_purpose::STANDARD.decode(png).unwrap();
    f64::from(image::load_from_memory(&bytes).unwrap().to_rgb8().get_pixel(0, 0).0[0])
}

/// Health, then `answer` to everything else.
fn server(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Stub {
    Stub::new(move |request| if request.method == "GET" { ok("{}") } else { answer(request) })
}

#[test]
fn the_json_format_asks_and_is_answered_as_it_is_documented() {
    let stub = server(|request| {
        let asked = request.json();
        let shades: Vec<f64> = asked["images"].as_array().unwrap().iter().map(|i| shade(i.as_str().unwrap())).collect();
        let half: Vec<Value> = shades.iter().map(|s| if *s == 1.0 { Value::Null } else { json!(s / 2.0) }).collect();
        ok(json!({ "scores": shades, "extra": { "half": half } }).to_string())
    });
    let file = tempfile::Builder::new().suffix(".jsonl").tempfile().unwrap();
    let line = r#"{"tag": "position", "include": [{"class": "cat", "count": 2, "color": "red"}, {"class": "dog", "count": 1, "position": ["left of", 0]}], "exclude": [{"class": "cat", "count": 3}], "prompt": "a dog"}"#;
    std::fs::write(file.path(), format!("{line}\n{{\"prompt\": \"b\"}}\n")).unwrap();
    let set = PromptSet::load(file.path()).unwrap();
    assert_eq!(set.prompts[0].include[0].color, Some(Color::Red));

    // Three requests at a time: the larger one first.
    let settings = Settings { concurrency: 3, ..settings(&stub.url, OnFailure::Abort) };
    let reward = Http::new(settings, Protocol::Json, Some("m".into()), &Device::Cpu).unwrap();
    let of: Vec<&Prompt> = (0..7).map(|i| &set.prompts[i % 2]).collect();
    let scores = reward.score(&images(7), &of).unwrap();
    assert_eq!(values(&scores), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    assert_eq!((scores[1].extra.get("half"), scores[3].extra["half"]), (None, 1.5));

    let mut asked: Vec<Value> = stub.asked("/score").iter().map(Request::json).collect();
    asked.sort_by_key(|body| std::cmp::Reverse(body["prompts"].as_array().unwrap().len()));
    let lengths: Vec<usize> = asked.iter().map(|body| body["images"].as_array().unwrap().len()).collect();
    assert_eq!(lengths, [3, 2, 2]);
    assert_eq!((&asked[0]["prompts"], &asked[0]["model"]), (&json!(["a dog", "b", "a dog"]), &json!("m")));
    assert_eq!(asked[0]["records"][0], serde_json::from_str::<Value>(line).unwrap());
    assert_eq!(asked[0]["records"][1], json!({ "prompt": "b" }));
    assert_eq!(stub.requests()[0].path, "/health");
}

#[test]
fn flow_factorys_format_is_spoken() {
    let stub = server(|request| {
        let asked = request.json();
        let of: Vec<f64> = asked["image"].as_array().unwrap().iter().map(|i| shade(i.as_str().unwrap())).collect();
        assert!(["video", "condition_images", "condition_videos", "kwargs"].iter().all(|key| asked[key].is_null()));
        ok(json!({ "rewards": of, "error": null }).to_string())
    });
    let reward = Http::new(settings(&stub.url, OnFailure::Abort), Protocol::FlowFactory, None, &Device::Cpu).unwrap();
    assert_eq!(values(&score(&reward, 3).unwrap()), [0.0, 1.0, 2.0]);
    assert_eq!(stub.asked("/compute")[0].json()["prompt"], json!(["picture \"0\"", "picture \"1\"", "picture \"2\""]));
    assert_eq!(stub.requests()[0].path, "/health");

    let stub = server(|_| ok(r#"{"rewards": null, "error": "no GPU left"}"#));
    let reward = Http::new(settings(&stub.url, OnFailure::Abort), Protocol::FlowFactory, None, &Device::Cpu).unwrap();
    let e = format!("{:#}", score(&reward, 1).unwrap_err());
    assert!(e.contains("/compute: answered with the error 'no GPU left'"), "{e}");
}

/// What Python's `Pickler` writes of the same, and what it pickled as answers: `tools/oracle/pickle_requests.py`.
#[test]
fn pickle_servers_are_asked_as_python_asks_them_and_their_answers_are_read() {
    let read = |name: &str| std::fs::read(fixture("http").join(name)).unwrap();
    let text = |t: &str| Item::Str(t.into());
    let dict = |items: &[(&str, Item)]| Item::Dict(items.iter().map(|(k, v)| (k.to_string(), v.clone())).collect());
    let ints = [0, 255, 256, 65535, 65536, -1, -256, i64::from(i32::MAX), i64::from(i32::MIN), 1 << 31, -(1 << 31) - 1];
    let more = [1 << 39, (1 << 39) - 1, -(1 << 39), -(1 << 39) - 1, i64::MAX, i64::MIN];
    let everything = dict(&[
        ("ints", Item::List(ints.into_iter().chain(more).map(Item::Int).collect())),
        ("floats", Item::List([0.0, -1.5, 1e300, f64::INFINITY].map(Item::Float).into())),
        ("texts", Item::List(vec![text(""), text("grüße 🎨"), text(&"x".repeat(300))])),
        ("bytes", Item::List(vec![Item::Bytes(vec![]), Item::Bytes((0..255).collect()), Item::Bytes(vec![7; 300])])),
        ("rest", Item::List(vec![Item::None, Item::Bool(true), Item::Bool(false), Item::List(vec![]), dict(&[])])),
        ("one", Item::List(vec![dict(&[("key", Item::Int(1))])])),
        ("many", Item::List((0..2001).map(|i| Item::Int(i % 7)).collect())),
    ]);
    assert!(dumps(&everything) == read("everything.pkl"));

    let answers = [read("geneval.pkl"), read("deqa.pkl")];
    let stub = Stub::new(move |request| match (request.method.as_str(), request.number) {
        ("GET", _) => status(500, "only POST"),
        (_, number) => ok(answers[number - 1].clone()),
    });
    let reward = Http::new(settings(&stub.url, OnFailure::Abort), Protocol::Pickle, None, &Device::Cpu).unwrap();
    let scores = score(&reward, 3).unwrap();
    assert_eq!(values(&scores), [0.0, 0.25, 0.5]);
    let extra = |name: &str| scores.iter().map(|s| s.extra[name]).collect::<Vec<_>>();
    assert_eq!((extra("accuracy"), extra("strict_accuracy")), (vec![1.0; 3], vec![0.0, 1.0, 0.0]));
    assert_eq!(values(&score(&reward, 2).unwrap()), [2.0, 3.5]);

    let asked = &stub.asked("/")[1].body;
    let (pickle, length) = Pickle::read(asked).unwrap();
    assert_eq!(length, asked.len());
    let root = pickle.root();
    assert_eq!(root.get("only_strict").unwrap().as_bool(), Some(false));
    let list = |name: &str| root.get(name).unwrap().items().unwrap().collect::<Vec<_>>();
    assert_eq!(
        list("prompts").iter().map(|p| p.as_str().unwrap()).collect::<Vec<_>>(),
        ["picture \"0\"", "picture \"1\"", "picture \"2\""]
    );
    assert_eq!(list("meta_datas")[2].get("prompt").unwrap().as_str(), Some("picture \"2\""));
    for image in list("images") {
        let image = image.as_bytes().unwrap();
        assert!(image.starts_with(b"\xff\xd8") && image.ends_with(b"\xff\xd9"), "a whole JPEG file");
    }
}

fn says(text: &str) -> String {
    json!({ "choices": [{ "message": { "role": "assistant", "content": text } }] }).to_string()
}

#[test]
fn models_that_look_at_pictures_are_asked_as_published_and_their_scores_are_found() {
    let stub = server(|request| {
        let asked = request.json();
        let content = &asked["messages"][0]["content"];
        let url = content[0]["image_url"]["url"].as_str().unwrap();
        let shade = shade(url.strip_prefix("data:image/png;base64,").unwrap());
        // The first are answered last.
        std::thread::sleep(Duration::from_millis(200 - 40 * shade as u64));
        ok(says(&format!("It is fine.\nFinal Score: {}.5, not 5", shade + 1.0)))
    });
    let settings = Settings { concurrency: 4, ..settings(&stub.url, OnFailure::Abort) };
    let vlm = Vlm::new("unifiedreward", settings.clone(), Asking::unified_reward(), &Device::Cpu).unwrap();
    let scores = score(&vlm, 4).unwrap();
    assert_eq!(values(&scores), [0.3, 0.5, 0.7, 0.9]);
    let asked = stub.asked("/chat/completions")[0].json();
    assert_eq!((&asked["model"], &asked["temperature"]), (&json!("UnifiedReward-7b-v1.5"), &json!(0.0)));
    assert_eq!((asked.get("max_tokens"), &asked["messages"][0]["role"]), (None, &json!("user")));
    let content = &asked["messages"][0]["content"];
    let text = content[1]["text"].as_str().unwrap();
    assert!(text.starts_with("<image>\nYou are given a text caption and a generated image based on that caption."));
    assert!(text.contains("\nText Caption: [picture \"") && text.ends_with("\"]"), "{text}");
    let png = content[0]["image_url"]["url"].as_str().unwrap().split(',').nth(1).unwrap();
    use base64::Engine;
    let png = image::load_from_memory(&base64::engine::general_purpose::STANDARD.decode(png).unwrap()).unwrap();
    assert_eq!((png.width(), png.height()), (512, 512));
    assert_eq!(stub.asked("/chat/completions")[0].header("authorization"), Some("Bearer flowgrpo"));
    assert_eq!(stub.requests()[0].path, "/models");

    let stub = server(|_| ok(says("<Thought>\nnice\n</Thought>\n<Score>4</Score>")));
    let settings = Settings { url: stub.url.clone(), ..settings };
    let qwen = Vlm::new("qwenvl", settings.clone(), Asking::qwen_vl(), &Device::Cpu).unwrap();
    assert_eq!(values(&score(&qwen, 1).unwrap()), [0.8]);
    let asked = stub.asked("/chat/completions")[0].json();
    assert_eq!((asked.get("temperature"), &asked["max_tokens"]), (None, &json!(2048)));
    let text = asked["messages"][0]["content"][1]["text"].as_str().unwrap();
    assert!(text.starts_with("\nYour role is to evaluate the aesthetic") && text.ends_with("<Score>X</Score>\n"));

    let own = Asking { pattern: "nice".into(), question: "{prompt}?".into(), ..Asking::qwen_vl() };
    let own = Vlm::new("vlm", settings.clone(), own, &Device::Cpu).unwrap();
    let e = format!("{:#}", score(&own, 1).unwrap_err());
    assert!(e.contains("answered with a text in which 'nice' finds 'nice', expected a number"), "{e}");
    assert_eq!(stub.requests().last().unwrap().json()["messages"][0]["content"][1]["text"], "picture \"0\"?");
    let bad = Asking { pattern: "(".into(), ..Asking::qwen_vl() };
    let e = format!("{:#}", Vlm::new("vlm", settings, bad, &Device::Cpu).err().unwrap());
    assert!(e.starts_with("rewards.vlm.pattern: '(' is no pattern: "), "{e}");
}

/// What a server can do wrong, and the words for it.
#[test]
fn whatever_a_server_does_wrong_is_said_with_its_address_and_no_score_is_made_up() {
    type Does = fn(&Request) -> Reply;
    let cases: [(Does, &str); 12] = [
        (
            |_| status(500, "Traceback (most recent call last):\n  File \"x\"\nOSError: gone"),
            "answered 500 Internal Server Error: 'OSError: gone'",
        ),
        (|_| status(503, ""), "answered 503 Service Unavailable"),
        (|_| status(404, r#"{"detail": "Not Found"}"#), "answered 404 Not Found: 'Not Found'"),
        (
            |_| ok("<html>hello</html>"),
            "answered what is not JSON (expected value at line 1 column 1): '<html>hello</html>'",
        ),
        (|_| ok(""), "answered what is not JSON (EOF while parsing a value at line 1 column 0)"),
        (
            |_| ok(r#"{"scores": [NaN, 1.0]}"#),
            "answered what is not JSON (expected value at line 1 column 13): '{\"scores\": [NaN, 1.0]}'",
        ),
        (|_| ok(r#"{"scores": [null, 1.0]}"#), "answered with scores[0] = null, expected a number"),
        (|_| ok(r#"{"scores": [1.0]}"#), "answered with 1 scores for 2 pictures"),
        (|_| ok(r#"{"scores": [1, 2], "extra": {"a": [1]}}"#), "answered with 1 of 'extra.a' for 2 pictures"),
        (|_| ok(r#"{"score": [1, 2]}"#), "answered without a list 'scores'"),
        (
            |_| Reply::Cut(200, Vec::new(), vec![b' '; 100], 10),
            "the connection was closed before the answer was complete",
        ),
        (|_| Reply::Raw(b"SSH-2.0-OpenSSH_9.2\r\n".to_vec()), "answered what is not HTTP"),
    ];
    for (does, want) in cases {
        let stub = server(does);
        let reward = Http::new(settings(&stub.url, OnFailure::Abort), Protocol::Json, None, &Device::Cpu).unwrap();
        let e = score(&reward, 2).unwrap_err();
        let e = e.downcast_ref::<Unavailable>().unwrap().to_string();
        assert!(e.starts_with(&format!("{}/score: {want}", stub.url)), "{e}");
        assert_eq!(stub.asked("/score").len(), 1);
    }
    // An infinite number is one that JSON can write.
    let stub = server(|_| ok(r#"{"scores": [1e999, 0]}"#));
    let reward = Http::new(settings(&stub.url, OnFailure::Abort), Protocol::Json, None, &Device::Cpu).unwrap();
    assert!(score(&reward, 2).is_err());

    let stub = server(|_| ok(b"\x80\x03}q\x00X\x07\x00\x00\x00outputs(G\x7f\xf8\x00\x00\x00\x00\x00\x00l.".to_vec()));
    let reward = Http::new(settings(&stub.url, OnFailure::Abort), Protocol::Pickle, None, &Device::Cpu).unwrap();
    assert!(format!("{:#}", score(&reward, 1).unwrap_err()).contains("answered"), "a pickle that is none");
    let nan = b"\x80\x03}X\x07\x00\x00\x00outputs](G\x7f\xf8\x00\x00\x00\x00\x00\x00es.".to_vec();
    let stub = server(move |_| ok(nan.clone()));
    let reward = Http::new(settings(&stub.url, OnFailure::Abort), Protocol::Pickle, None, &Device::Cpu).unwrap();
    let e = format!("{:#}", score(&reward, 1).unwrap_err());
    assert!(e.contains("answered with the score NaN for picture 0"), "{e}");
    let run = b"\x80\x03}X\x07\x00\x00\x00outputscos\nsystem\n(X\x02\x00\x00\x00lstRs.".to_vec();
    let stub = server(move |_| ok(run.clone()));
    let reward = Http::new(settings(&stub.url, OnFailure::Abort), Protocol::Pickle, None, &Device::Cpu).unwrap();
    let e = format!("{:#}", score(&reward, 1).unwrap_err());
    assert!(e.contains("answered with made by os.system as 'outputs', expected a list"), "{e}");
}

#[test]
fn a_server_that_is_not_there_is_named_before_anything_begins() {
    let started = |url: &str, protocol| {
        Http::new(settings(url, OnFailure::SkipGroup), protocol, None, &Device::Cpu).err().map(|e| {
            assert!(e.downcast_ref::<Unavailable>().is_some());
            e.to_string()
        })
    };
    let url = nobody();
    assert_eq!(started(&url, Protocol::Json), Some(format!("{url}/health: connection refused")));
    assert_eq!(started(&url, Protocol::Pickle), Some(format!("{url}/: connection refused")));
    let ill = Stub::new(|_| status(503, "loading"));
    let want = format!("{}/health: answered 503 Service Unavailable: 'loading'", ill.url);
    assert_eq!(started(&ill.url, Protocol::FlowFactory), Some(want));
    let silent = Stub::new(|_| Reply::Silence);
    let settings = Settings { timeout: 0.2, ..settings(&silent.url, OnFailure::Abort) };
    let e = Http::new(settings.clone(), Protocol::Json, None, &Device::Cpu).err().unwrap().to_string();
    assert_eq!(e, format!("{}/health: no answer in 0.2 s", silent.url));
    // A plan asks nobody, and an endpoint need not list its models but must take the key.
    let settings = Settings { url, ..settings };
    Http::new(settings.clone(), Protocol::Json, None, &Device::Plan(Default::default())).unwrap();
    let endpoint = |code| {
        let stub = Stub::new(move |_| status(code, ""));
        Vlm::new("vlm", Settings { url: stub.url.clone(), ..settings.clone() }, Asking::qwen_vl(), &Device::Cpu).is_ok()
    };
    assert!(endpoint(404) && endpoint(200) && !endpoint(401));
}

#[test]
fn what_fails_is_tried_again_and_what_cannot_change_is_not() {
    // Twice ill, then well.
    let stub = server(|r| if r.number < 3 { status(502, "") } else { ok(r#"{"scores": [7]}"#) });
    let patient = |stub: &Stub| Settings { retries: 2, ..settings(&stub.url, OnFailure::Abort) };
    let reward = Http::new(patient(&stub), Protocol::Json, None, &Device::Cpu).unwrap();
    let begun = Instant::now();
    assert_eq!(values(&score(&reward, 1).unwrap()), [7.0]);
    // Half a second and a whole one were waited for.
    assert!(begun.elapsed() >= Duration::from_millis(1500), "{:?}", begun.elapsed());
    assert_eq!(stub.asked("/score").len(), 3);

    let stub = server(|_| status(500, ""));
    let reward = Http::new(patient(&stub), Protocol::Json, None, &Device::Cpu).unwrap();
    let e = score(&reward, 1).unwrap_err().to_string();
    assert!(e.ends_with("/score: answered 500 Internal Server Error (3 tries)"), "{e}");
    // From now on once is enough, until it answers.
    assert!(score(&reward, 1).is_err());
    assert_eq!(stub.asked("/score").len(), 4);

    let stub = server(|_| status(400, "no"));
    let reward = Http::new(patient(&stub), Protocol::Json, None, &Device::Cpu).unwrap();
    assert!(score(&reward, 1).is_err());
    assert_eq!(stub.asked("/score").len(), 1);
}

#[test]
fn what_is_skipped_has_no_score_and_the_rest_keeps_its_place() {
    let stub = server(|request| {
        let asked = request.json();
        let text = asked["messages"][0]["content"][1]["text"].as_str().unwrap().to_string();
        match text.contains("picture \"2\"") || text.contains("picture \"5\"") {
            true => ok(says("I would rather not say.")),
            false => {
                ok(says(&format!("Final Score: {}", text.split('"').nth(1).unwrap().parse::<usize>().unwrap() % 5 + 1)))
            }
        }
    });
    let asking = Asking { question: "{prompt}".into(), ..Asking::unified_reward() };
    let settings = Settings { concurrency: 3, ..settings(&stub.url, OnFailure::SkipGroup) };
    let vlm = Vlm::new("vlm", settings.clone(), asking.clone(), &Device::Cpu).unwrap();
    let e = score(&vlm, 7).unwrap_err();
    let absent = e.downcast_ref::<Absent>().unwrap();
    let values: Vec<Option<f64>> = absent.scores.iter().map(|s| s.as_ref().map(|s| s.value)).collect();
    assert_eq!(values, [Some(0.2), Some(0.4), None, Some(0.8), Some(1.0), None, Some(0.4)]);
    assert!(absent.why.starts_with(&format!("{}/chat/completions: answered with a text in which", stub.url)));
    assert!(absent.why.contains("finds no score: '{\"choices\""), "{}", absent.why);
    let vlm = Vlm::new("vlm", Settings { on_failure: OnFailure::Abort, ..settings }, asking, &Device::Cpu).unwrap();
    assert!(score(&vlm, 7).unwrap_err().downcast_ref::<Unavailable>().is_some());
}

/// A batch that fails because of one picture is asked about picture by picture.
#[test]
fn one_picture_that_a_server_does_not_like_does_not_cost_the_others_their_scores() {
    let stub = server(|request| {
        let asked = request.json();
        let of: Vec<f64> = asked["images"].as_array().unwrap().iter().map(|i| shade(i.as_str().unwrap())).collect();
        if of.contains(&2.0) { status(500, "too dark") } else { ok(json!({ "scores": of }).to_string()) }
    });
    let settings = settings(&stub.url, OnFailure::SkipGroup);
    let reward = Http::new(settings.clone(), Protocol::Json, None, &Device::Cpu).unwrap();
    let e = score(&reward, 4).unwrap_err();
    let absent = e.downcast_ref::<Absent>().unwrap();
    let values: Vec<Option<f64>> = absent.scores.iter().map(|s| s.as_ref().map(|s| s.value)).collect();
    assert_eq!(values, [Some(0.0), Some(1.0), None, Some(3.0)]);
    assert!(absent.why.ends_with("/score: answered 500 Internal Server Error: 'too dark'"), "{}", absent.why);
    assert_eq!(stub.asked("/score").len(), 5);
    // Where the run stops anyway, nothing more is asked.
    let reward =
        Http::new(Settings { on_failure: OnFailure::Abort, ..settings }, Protocol::Json, None, &Device::Cpu).unwrap();
    assert!(score(&reward, 4).unwrap_err().downcast_ref::<Unavailable>().is_some());
    assert_eq!(stub.asked("/score").len(), 6);
}
