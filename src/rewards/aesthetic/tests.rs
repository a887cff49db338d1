use super::*;
use crate::io::TensorFile;
use crate::rewards::head::LAYERS;
use crate::rewards::similarity::dot;
use crate::rewards::similarity::tests::{fixture, folder};

/// The head as it is published (improved-aesthetic-predictor, Apache-2.0), which is too large for the repository.
const PUBLISHED: [&str; 2] =
    ["models/sac+logos+ava1-l14-linearMSE.pth", "../shared/data/weights/sac+logos+ava1-l14-linearMSE.pth"];

#[test]
fn five_layers_are_one() {
    let file = TensorFile::open(&fixture("clip_rewards/head.safetensors")).unwrap();
    let head = Head::load(&fixture("clip_rewards/head.safetensors")).unwrap();
    let embedding: Vec<f64> = (0..20).map(|i| f64::from(i * 7 % 5) - 1.5).collect();
    let through = LAYERS.iter().fold(embedding.clone(), |x, layer| {
        let [weight, bias] =
            ["weight", "bias"].map(|part| file.tensor(&format!("{layer}.{part}"), &Device::Cpu).unwrap());
        let rows = weight.to_host();
        let of =
            |(row, b): (&[f32], f32)| row.iter().zip(&x).map(|(w, x)| f64::from(*w) * x).sum::<f64>() + f64::from(b);
        rows.chunks(x.len()).zip(bias.to_host()).map(of).collect()
    });
    assert!((head.score(&embedding) - through[0]).abs() < 1e-12, "{} {}", head.score(&embedding), through[0]);
}

#[test]
fn the_published_head_gives_the_published_numbers() {
    let Some(path) = PUBLISHED.iter().map(Path::new).find(|path| path.exists()) else {
        println!("skipped: there is no {}", PUBLISHED.join(", no "));
        return;
    };
    let head = Head::load(path).unwrap();
    let length = dot(&head.weight, &head.weight).sqrt();
    assert!((head.bias - 5.236_645_84).abs() < 1e-7 && (length - 17.995_625).abs() < 1e-5, "{} {length}", head.bias);
    let score = |value: fn(usize) -> f64| {
        let values: Vec<f64> = (0..768).map(value).collect();
        let length = dot(&values, &values).sqrt();
        head.score(&values.iter().map(|v| v / length).collect::<Vec<_>>())
    };
    let found = [score(|_| 1.0), score(|i| i as f64 - 383.5)];
    for (found, want) in found.into_iter().zip([4.883_285, 4.215_948]) {
        assert!((found - want).abs() < 1e-6, "{found}, expected {want}");
    }
}

#[test]
fn a_head_of_another_shape_or_width_is_refused_by_file_and_tensor() {
    let folder = folder("quick");
    let load = |head: &Path| Aesthetic::load(folder.path(), head, Resize::Pil, Dtype::F32, &Device::Cpu).err().unwrap();
    let error = load(Path::new("nowhere.pth")).to_string();
    assert_eq!(error, "nowhere.pth: no such file");
    let error = load(&folder.path().join("model.safetensors")).to_string();
    assert!(error.contains("model.safetensors: unexpected tensor 'logit_scale', the head has layers.0"), "{error}");

    let path = folder.path().join("head.safetensors");
    let written = |change: &dyn Fn(&str, Tensor) -> Option<Tensor>| {
        let file = TensorFile::open(&fixture("clip_rewards/head.safetensors")).unwrap();
        let read = |name: &str| file.tensor(name, &Device::Cpu).unwrap();
        let tensors = file.names().filter_map(|name| Some((name.to_string(), change(name, read(name))?)));
        crate::io::safetensors::save(&path, tensors, &Default::default()).unwrap();
        load(&path).to_string()
    };
    let error = written(&|name, t| (name != "layers.4.weight").then_some(t));
    assert!(error.contains("no tensor 'layers.4.weight'"), "{error}");
    let error = written(&|name, t| Some(if name == "layers.4.weight" { t.reshape(&[8, 6]) } else { t }));
    assert!(error.contains("tensor 'layers.4.weight' has shape [8, 6], expected [6, ..]"), "{error}");
    let error =
        written(&|name, t| Some(if name == "layers.0.weight" { Tensor::zeros(&Device::Cpu, &[12, 24]) } else { t }));
    assert!(error.contains("for embeddings of width 24") && error.contains("have 20"), "{error}");
    let error = written(&|name, t| {
        Some(if name == "layers.7.bias" { Tensor::from_slice(&Device::Cpu, &[f32::NAN], &[1]) } else { t })
    });
    assert!(error.contains("head.safetensors: holds numbers that are not finite"), "{error}");
}
