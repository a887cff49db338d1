use engine::device::Device;
use engine::io::{TensorFile, safetensors};
use engine::models::t5::T5;

use super::{bits, fixture, ids, read, relative_error};

#[test]
fn the_encoder_matches_transformers_and_a_row_alone_gives_the_same_bits() {
    let folder = fixture("t5/gated");
    let io = TensorFile::open(&folder.join("io.safetensors")).unwrap();
    let (t5, rows) = (T5::load(&folder, &Device::Cpu).unwrap(), ids(&io, "input_ids"));
    let got = t5.forward(&rows);
    let error = relative_error(&got, &read(&io, "last_hidden"));
    println!("t5/gated: {error:.1e}");
    assert!(error <= 1e-5, "{error:e}");
    for i in 0..rows.len() {
        assert!(bits(&t5.forward(&rows[i..=i])) == bits(&got.slice(i..i + 1)));
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
