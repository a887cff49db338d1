use engine::io::TensorFile;
use engine::models::t5::T5;

use super::{fixture, ids, relative_error};

#[test]
fn the_encoder_matches_transformers_and_a_row_alone_gives_the_same_bits() {
    let folder = fixture("t5/gated");
    let io = TensorFile::open(&folder.join("io.safetensors")).unwrap();
    let (t5, rows) = (T5::load(&folder).unwrap(), ids(&io, "input_ids"));
    let got = t5.forward(&rows);
    let error = relative_error(&got, &io.tensor("last_hidden").unwrap());
    println!("t5/gated: {error:.1e}");
    assert!(error <= 1e-5, "{error:e}");
    for i in 0..rows.len() {
        assert_eq!(t5.forward(&rows[i..=i]).data(), got.slice(i..i + 1).data());
    }
}

#[test]
fn the_ungated_t5_of_2019_is_refused_by_name() {
    let message = format!("{:#}", T5::load(&fixture("t5/relu")).err().unwrap());
    assert!(message.contains("relu/config.json: key 'feed_forward_proj' is \"relu\""), "{message}");
}
