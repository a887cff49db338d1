use super::detect::{boxes, sorted, tidy};
use super::recognise::crop;
use super::*;
use crate::io::TensorFile;
use crate::ops::testing::fixture;
use crate::rewards::opencv::bilinear;

fn numbers(file: &TensorFile, name: &str) -> Vec<f32> {
    file.entry(name).unwrap().to_f32().unwrap()
}

fn picture(file: &TensorFile, name: &str) -> RgbImage {
    let entry = file.entry(name).unwrap();
    RgbImage { width: entry.shape()[1], height: entry.shape()[0], data: entry.raw().to_vec() }
}

#[test]
fn t21_rewards_are_those_of_flow_grpo_without_a_network() {
    // What is shown, the prompt, the reward.
    let cases = [
        ("HELLO W0RLD", r#"a sign "hello world""#, 0.9),
        ("", r#"a sign "hello world""#, 0.0),
        ("xxhelloworldyy", r#"a sign "hello world""#, 1.0),
        ("Hello   World", r#"a sign "hello world""#, 1.0),
        ("worldhello", r#"a sign "hello world""#, 0.2),
        ("a long text of something else", r#"says "no""#, 0.0),
        ("ÄRGER", r#"says "ärger" and "more""#, 1.0),
        ("open", r#"an unclosed "OPEN"#, 1.0),
        ("helo", r#"says "hello""#, 0.8),
    ];
    for (shown, prompt, want) in cases {
        let got = likeness(shown, &target(prompt).unwrap());
        assert!((got - want).abs() < 1e-12, "'{shown}' for '{prompt}': {got}");
    }
}

#[test]
fn prompts_that_quote_nothing_are_refused_by_file_and_line() {
    for (prompt, words) in
        [("a sign", "has none"), (r#"a "" sign"#, "nothing between"), (r#"a "  " b"#, "nothing between")]
    {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p.txt");
        std::fs::write(&path, format!("says \"yes\"\n{prompt}\n")).unwrap();
        let e = PromptSet::load(&path).unwrap().check(|p| target(&p.text).map(|_| ())).unwrap_err().to_string();
        assert!(e.contains("p.txt:2: ocr needs") && e.contains(words), "{e}");
    }
}

#[test]
fn boxes_are_those_of_paddleocr_with_opencv_and_clipper() {
    let file = TensorFile::open(&fixture("ocr/opencv.safetensors")).unwrap();
    let mut seen = 0;
    for i in 0..14 {
        let map = file.entry(&format!("map.{i}")).unwrap();
        let probabilities: Vec<f32> = map.raw().iter().map(|v| f32::from(*v) / 255.0).collect();
        let size = numbers(&file, &format!("size.{i}"));
        let (height, width) = (size[0] as usize, size[1] as usize);
        let found = boxes(&probabilities, map.shape()[1], [width, height]);
        let quads = sorted(found.into_iter().filter_map(|quad| tidy(quad, width, height)).collect());
        let quads: Vec<f32> = quads.iter().flatten().flatten().copied().collect();
        assert_eq!(quads, numbers(&file, &format!("quads.{i}")), "map {i}");
        seen += quads.len() / 8;
    }
    assert!(seen > 12, "{seen} boxes");
}

#[test]
fn pictures_are_resized_and_straightened_as_opencv_does_to_the_byte() {
    let file = TensorFile::open(&fixture("ocr/opencv.safetensors")).unwrap();
    let whole = picture(&file, "picture");
    for i in 0..7 {
        let want = picture(&file, &format!("resized.{i}"));
        assert!(bilinear(&whole, want.width, want.height) == want, "to {}x{}", want.width, want.height);
    }
    let rows = whole.data.chunks_exact(3 * whole.width).take(60).flat_map(|row| &row[..3 * 82]);
    let even = RgbImage { width: 82, height: 60, data: rows.copied().collect() };
    assert!(bilinear(&even, 41, 30) == picture(&file, "halved"));
    for (i, quad) in numbers(&file, "crops.quads").chunks_exact(8).enumerate() {
        let quad: [[f32; 2]; 4] = std::array::from_fn(|k| [quad[2 * k], quad[2 * k + 1]]);
        assert!(crop(&whole, &quad) == picture(&file, &format!("crop.{i}")), "crop {i}");
    }
}

#[test]
fn a_folder_that_lacks_something_is_refused_by_name() {
    let error = |folder: &Path| format!("{:#}", Ocr::load(folder, Channels::Rgb, &Device::Cpu).err().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let e = error(folder.path());
    assert!(e.contains("det.safetensors: missing") && e.contains("tools/fetch_ppocr.sh"), "{e}");
    let tiny = fixture("ocr/tiny");
    for name in ["det.safetensors", "rec.safetensors"] {
        std::fs::copy(tiny.join(name), folder.path().join(name)).unwrap();
    }
    assert!(error(folder.path()).contains("dict.txt: missing"));
    for (dict, words) in [("a\nbc\n", "dict.txt:2: found 'bc'"), ("a\nb\n", "2 characters, expected 38")] {
        std::fs::write(folder.path().join("dict.txt"), dict).unwrap();
        let e = error(folder.path());
        assert!(e.contains(words), "{e}");
    }
    // One network in the other's place.
    std::fs::copy(tiny.join("det.safetensors"), folder.path().join("rec.safetensors")).unwrap();
    let e = error(folder.path());
    assert!(e.contains("rec.safetensors: ") && e.contains("tensor '"), "{e}");
    assert!(
        Ocr::load(&tiny.join("rec.safetensors"), Channels::Bgr, &Device::Cpu).is_ok(),
        "a file stands for its folder"
    );
}

#[test]
fn a_picture_alone_and_in_a_batch_gives_the_same_score_and_any_size_is_read() {
    let reward = Ocr::load(&fixture("ocr/tiny"), Channels::Rgb, &Device::Cpu).unwrap();
    let prompt = Prompt { text: r#"says "0a1b""#.into(), tag: None, include: vec![], exclude: vec![], line: 1 };
    for (width, height) in [(1, 1), (3, 70), (64, 64), (130, 33)] {
        let of = |seed: usize| RgbImage {
            width,
            height,
            data: (0..width * height * 3).map(|i| (i * (7 + 13 * seed) / 5 % 256) as u8).collect(),
        };
        let pictures: Vec<RgbImage> = (0..3).map(of).collect();
        let score = |pictures: &[RgbImage]| {
            let images = Images::from_pictures(pictures.to_vec(), &Device::Cpu);
            reward.score(&images, &vec![&prompt; pictures.len()]).unwrap()
        };
        let together = score(&pictures);
        for (picture, score_of_it) in pictures.iter().zip(&together) {
            assert_eq!(score(std::slice::from_ref(picture))[0], *score_of_it);
            assert!((0.0..=1.0).contains(&score_of_it.value));
        }
    }
}

#[test]
fn a_gpu_reads_pictures_as_the_cpu_does_and_a_plan_reads_without_seeing_any() {
    let of = |seed: usize| RgbImage {
        width: 70,
        height: 40,
        data: (0..70 * 40 * 3).map(|i| (i * (7 + 13 * seed) / 5 % 256) as u8).collect(),
    };
    let pictures: Vec<RgbImage> = (0..2).map(of).collect();
    let prompt = Prompt { text: r#"says "0a1b""#.into(), tag: None, include: vec![], exclude: vec![], line: 1 };
    let vm = Device::vm(ptxvm::Options::default()).unwrap();
    let plans = [Device::plan().0, vm.rehearsal().unwrap().0];
    let judge = |device: &Device| {
        let reward = Ocr::load(&fixture("ocr/tiny"), Channels::Rgb, device).unwrap();
        let images = Images::from_pictures(pictures.clone(), device);
        let scores = reward.score(&images, &[&prompt; 2]).unwrap();
        let maps = reward.networks.as_ref().map(|networks| networks.map(&pictures[0]).to_host()).unwrap();
        let shown = if device.is_plan() { None } else { reward.explain(&images, &[&prompt; 2]).unwrap() };
        (scores, shown, maps)
    };
    let ((scores, shown, map), (on_gpu, shown_on_gpu, map_on_gpu)) = (judge(&Device::Cpu), judge(&vm));
    vm.check().unwrap();
    // Probabilities; the means of channels are summed in another order.
    assert!(map.iter().zip(&map_on_gpu).all(|(a, b)| (a - b).abs() < 1e-5));
    assert_eq!(scores, on_gpu);
    assert!(shown.iter().flatten().map(|(score, _)| score).eq(&scores));
    let texts = |shown: Option<Vec<(Score, Value)>>| {
        let of = |(_, lines): &(Score, Value)| {
            lines.as_array().unwrap().iter().map(|l| l["text"].clone()).collect::<Vec<_>>()
        };
        shown.unwrap().iter().map(of).collect::<Vec<_>>()
    };
    assert_eq!(texts(shown), texts(shown_on_gpu));
    for plan in plans {
        plan.phase("rewards");
        assert_eq!(judge(&plan).0, vec![Score::default(); 2]);
        assert!(plan.peak() > 0);
    }
}
