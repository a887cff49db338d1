use engine::device::Device;
use engine::io::TensorFile;
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
