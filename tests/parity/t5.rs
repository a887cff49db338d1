use engine::device::{DType, Device};
use engine::io::{TensorFile, safetensors};
use engine::models::t5::T5;
use engine::ops::affine::{self, Affine};
use engine::ops::linear;

use super::{bits, devices, fixture, ids, read, relative_error};

/// What makes activations of about 1 too large for f16.
const LARGE: f32 = 32_768.0;

#[test]
fn the_encoder_matches_transformers_and_a_row_alone_gives_the_same_bits() {
    let folder = fixture("t5/gated");
    let io = TensorFile::open(&folder.join("io.safetensors")).unwrap();
    for device in devices() {
        let (t5, rows) = (T5::load(&folder, &device).unwrap(), ids(&io, "input_ids"));
        let got = t5.forward(&rows);
        let error = relative_error(&got, &read(&io, "last_hidden"));
        println!("t5/gated on {device:?}: {error:.1e}");
        assert!(error <= 1e-5, "{device:?}: {error:e}");
        for i in 0..rows.len() {
            assert!(bits(&t5.forward(&rows[i..=i])) == bits(&got.slice(i..i + 1)), "{device:?}");
        }
    }
}

/// As in the real one: the inputs of `wo` are beyond the range of f16. Weights times powers of two do not change the errors.
#[test]
fn in_half_precision_large_activations_err_no_more_than_twice_as_much_as_small_ones_in_pytorch() {
    let folder = fixture("t5/gated");
    let [file, io] = ["model", "io"].map(|n| TensorFile::open(&folder.join(format!("{n}.safetensors"))).unwrap());
    let [stored, widened] = [DType::F16, DType::F32].map(|dtype| {
        let dir = tempfile::tempdir().unwrap();
        std::fs::copy(folder.join("config.json"), dir.path().join("config.json")).unwrap();
        let tensors = file.names().map(|name| {
            let scale = match name {
                _ if name.contains("wi_1") => LARGE,
                _ if name.contains(".wo.") => 1.0 / LARGE,
                _ => 1.0,
            };
            let weight = affine::forward(&read(&file, name), Affine { scale, ..Affine::default() });
            (name.to_string(), linear::rounded(&linear::rounded(&weight, DType::F16), dtype))
        });
        safetensors::save(&dir.path().join("model.safetensors"), tensors, &Default::default()).unwrap();
        dir
    });
    let rows = ids(&io, "input_ids");
    let want = T5::load(widened.path(), &Device::Cpu).unwrap().forward(&rows);
    let theirs = super::bf16::errors()["t5/gated f16"].as_f64().unwrap();
    for device in devices() {
        let ours = relative_error(&T5::load(stored.path(), &device).unwrap().forward(&rows), &want);
        println!("t5/gated large in f16 on {device:?}: ours {ours:.1e}, PyTorch {theirs:.1e}");
        assert!(ours <= 2.0 * theirs, "{device:?}: {ours:e}, PyTorch {theirs:e}");
    }
}

#[test]
fn the_ungated_t5_of_2019_is_refused_by_name() {
    let message = format!("{:#}", T5::load(&fixture("t5/relu"), &Device::Cpu).err().unwrap());
    assert!(message.contains("relu/config.json: key 'feed_forward_proj' is \"relu\""), "{message}");
}

#[test]
fn the_table_of_tokens_may_have_either_of_its_names() {
    let (folder, dir) = (fixture("t5/gated"), tempfile::tempdir().unwrap());
    std::fs::copy(folder.join("config.json"), dir.path().join("config.json")).unwrap();
    let file = TensorFile::open(&folder.join("model.safetensors")).unwrap();
    let renamed = file.names().filter(|n| !n.contains("embed_tokens")).map(|name| {
        let to = if name == "shared.weight" { "encoder.embed_tokens.weight" } else { name };
        (to.to_string(), read(&file, name))
    });
    safetensors::save(&dir.path().join("model.safetensors"), renamed, &Default::default()).unwrap();
    let [a, b] = [folder.as_path(), dir.path()].map(|f| T5::load(f, &Device::Cpu).unwrap().forward(&[vec![3, 1, 4]]));
    assert!(bits(&a) == bits(&b));
}
