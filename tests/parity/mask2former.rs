use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use engine::device::{Device, Precision, Tensor};
use engine::io::{TensorFile, read_json, safetensors};
use engine::models::mask2former::{Layout, Mask2Former};

use super::{bits, devices, fixture, hashed, read, relative_error};

/// f32 against f32: rounding of a few layers in another order.
const BOUND: f64 = 1e-5;

/// A tensor whose numbers follow from its name (`tools/oracle/mask2former.py`).
#[derive(serde::Deserialize)]
struct Listed {
    name: String,
    shape: Vec<usize>,
    mean: f32,
    gain: f32,
}

/// A tensor of mmdetection, and what it is made of: tensors of transformers one below the other, with the last axis in another
/// order.
#[derive(serde::Deserialize)]
struct Made {
    name: String,
    from: Vec<String>,
    columns: Option<Vec<usize>>,
}

#[derive(serde::Deserialize)]
struct Listing {
    tensors: Vec<Listed>,
    mmdet2: Vec<Made>,
    mmdet3: Vec<Made>,
}

type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

impl Listing {
    fn read() -> Self {
        read_json(&fixture("mask2former/listing.json")).unwrap()
    }

    fn transformers(&self) -> Tensors {
        let value = |t: &Listed, i: usize| t.mean + t.gain * ((hashed(&t.name, i) >> 8) as f32 * 2f32.powi(-23) - 1.0);
        let numbers = |t: &Listed| (0..t.shape.iter().product()).map(|i| value(t, i)).collect();
        self.tensors.iter().map(|t| (t.name.clone(), (t.shape.clone(), numbers(t)))).collect()
    }

    fn mmdet(&self, made: &[Made]) -> Tensors {
        let all = self.transformers();
        let one = |made: &Made| {
            let parts: Vec<_> = made.from.iter().map(|name| &all[name]).collect();
            let mut shape = parts[0].0.clone();
            shape[0] *= parts.len();
            let mut numbers: Vec<f32> = parts.iter().flat_map(|(_, numbers)| numbers).copied().collect();
            if let Some(columns) = &made.columns {
                let rows = numbers.chunks_exact(columns.len());
                numbers = rows.flat_map(|row| columns.iter().map(|c| row[*c])).collect();
            }
            (made.name.clone(), (shape, numbers))
        };
        made.iter().map(one).collect()
    }
}

/// Writes the network in the layout of mmdetection 3.x, with so many classes of which it is rather sure, to `path`.
pub fn write_with_classes(path: &Path, classes: usize) {
    let mut listing = Listing::read();
    for t in listing.tensors.iter_mut().filter(|t| t.name.starts_with("class_predictor.")) {
        t.shape[0] = classes + 1;
        t.gain = 3.0;
    }
    write(path, &listing.mmdet(&listing.mmdet3));
}

fn written(tensors: &Tensors) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights.safetensors");
    write(&path, tensors);
    (folder, path)
}

fn write(path: &Path, tensors: &Tensors) {
    let named =
        tensors.iter().map(|(name, (shape, numbers))| (name.clone(), Tensor::from_slice(&Device::Cpu, numbers, shape)));
    safetensors::save(path, named, &Default::default()).unwrap();
}

fn open(path: &Path) -> anyhow::Result<Mask2Former> {
    open_on(path, &Device::Cpu)
}

fn open_on(path: &Path, device: &Device) -> anyhow::Result<Mask2Former> {
    Mask2Former::load(&TensorFile::open(path)?, device, Precision::Stored)
}

fn io() -> TensorFile {
    TensorFile::open(&fixture("mask2former/io.safetensors")).unwrap()
}

/// `[b, c, h, w]` as `[b, h, w, c]`.
fn channels_last(t: &Tensor) -> Tensor {
    let &[b, c, h, w] = t.shape() else { panic!("{t:?}") };
    let x = t.to_host();
    let at = |i: usize| {
        let (b, y, column, channel) = (i / c / w / h, i / c / w % h, i / c % w, i % c);
        x[((b * c + channel) * h + y) * w + column]
    };
    Tensor::from_slice(&Device::Cpu, &(0..x.len()).map(at).collect::<Vec<_>>(), &[b, h, w, c])
}

fn check(what: &str, got: &Tensor, want: &Tensor) {
    let error = relative_error(got, want);
    println!("{what}: {error:.1e}");
    assert!(error <= BOUND, "{what}: {error:e}");
}

#[test]
fn it_finds_what_transformers_finds_in_every_layout_and_at_sizes_that_need_padding() {
    let (listing, io) = (Listing::read(), io());
    let layouts = [
        (Layout::HuggingFace, listing.transformers()),
        (Layout::Mmdet2, listing.mmdet(&listing.mmdet2)),
        (Layout::Mmdet3, listing.mmdet(&listing.mmdet3)),
    ];
    for (layout, tensors) in layouts {
        let (_folder, path) = written(&tensors);
        let model = open(&path).unwrap();
        assert_eq!(model.layout(), layout);
        for size in ["even", "odd"] {
            let pixels = read(&io, &format!("{size}.pixels"));
            if size == "odd" {
                for (s, feature) in model.features(&pixels).iter().enumerate() {
                    let want = channels_last(&read(&io, &format!("odd.feature{s}")));
                    check(&format!("{layout:?} {size} feature {s}"), feature, &want);
                }
            }
            let found = model.forward(&pixels);
            check(&format!("{layout:?} {size} classes"), &found.classes, &read(&io, &format!("{size}.classes")));
            let masks = channels_last(&read(&io, &format!("{size}.masks")));
            check(&format!("{layout:?} {size} masks"), &found.masks, &masks);
        }
    }
}

#[test]
fn kernels_find_what_transformers_finds_and_a_plan_takes_memory() {
    let (_folder, path) = written(&Listing::read().transformers());
    let io = io();
    let pixels = read(&io, "odd.pixels");
    for device in devices().into_iter().filter(|device| !matches!(device, Device::Cpu)) {
        let found = open_on(&path, &device).unwrap().forward(&pixels.to(&device));
        device.check().unwrap();
        check(&format!("classes on {device:?}"), &found.classes, &read(&io, "odd.classes"));
        check(&format!("masks on {device:?}"), &found.masks, &channels_last(&read(&io, "odd.masks")));
        let (plan, _) = device.rehearsal().unwrap();
        plan.phase("network");
        let planned = open_on(&path, &plan).unwrap().forward(&pixels.to(&plan));
        assert_eq!(planned.masks.shape(), found.masks.shape());
        assert!(plan.peak() > path.metadata().unwrap().len() / 2, "{} bytes", plan.peak());
    }
}

#[test]
fn an_image_alone_and_in_a_batch_gives_the_same_bits() {
    let (_folder, path) = written(&Listing::read().transformers());
    let model = open(&path).unwrap();
    let pixels = read(&io(), "odd.pixels");
    let both = model.forward(&pixels);
    for i in 0..2 {
        let one = model.forward(&pixels.slice(i..i + 1));
        assert!(bits(&one.classes) == bits(&both.classes.slice(i..i + 1)));
        assert!(bits(&one.masks) == bits(&both.masks.slice(i..i + 1)));
    }
}

#[test]
fn names_may_begin_with_module_and_buffers_of_real_files_are_ignored() {
    let listing = Listing::read();
    let mut tensors: Tensors =
        listing.mmdet(&listing.mmdet2).into_iter().map(|(name, t)| (format!("module.{name}"), t)).collect();
    let buffer = "module.backbone.stages.0.blocks.0.attn.w_msa.relative_position_index";
    tensors.insert(buffer.into(), (vec![2], vec![0.0; 2]));
    let (_folder, path) = written(&tensors);
    assert_eq!(open(&path).unwrap().layout(), Layout::Mmdet2);
}

#[test]
fn a_file_that_is_not_whole_or_another_network_is_refused_by_name() {
    let listing = Listing::read();
    let refused = |change: &dyn Fn(&mut Tensors)| {
        let mut tensors = listing.mmdet(&listing.mmdet3);
        change(&mut tensors);
        let (_folder, path) = written(&tensors);
        format!("{:#}", open(&path).err().unwrap())
    };
    let without = |name: &'static str| refused(&|t| assert!(t.remove(name).is_some()));
    let message = without("panoptic_head.mask_embed.4.bias");
    assert!(
        message.contains("missing tensor 'model.transformer_module.decoder.mask_predictor.mask_embedder.2.0.bias'"),
        "{message}"
    );
    let message = without("panoptic_head.cls_embed.weight");
    assert!(message.contains("weights.safetensors: missing tensor 'class_predictor.weight'"), "{message}");
    let message = refused(&|t| {
        t.insert("panoptic_head.more.weight".into(), (vec![1], vec![0.0]));
    });
    assert!(message.contains("unexpected tensor"), "{message}");
    let message = refused(&|t| {
        let table = "backbone.stages.1.blocks.0.attn.w_msa.relative_position_bias_table";
        t.insert(table.into(), (vec![80, 2], vec![0.0; 160]));
    });
    assert!(message.contains("relative_position_bias_table' has shape [80, 2], expected the square"), "{message}");
    let message = refused(&Tensors::clear);
    assert!(message.contains("not a Mask2Former with a Swin backbone"), "{message}");
}
