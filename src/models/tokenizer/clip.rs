//! The one vocabulary of all CLIPs (Radford et al. 2021): part of the program, as weights in the layout of open_clip come
//! without it.

use serde_json::{Map, Value, json};

/// The merges, packed by `tools/clip_bpe.py`: two ids each.
const MERGES: &[u8] = include_bytes!("clip_bpe.bin");

/// The symbols that stand for the bytes, in the order of their ids: those that print first, as themselves.
fn symbols() -> Vec<char> {
    let printed = (b'!'..=b'~').chain(0xA1..=0xAC).chain(0xAE..=0xFF);
    let others = (0..256u32 - printed.clone().count() as u32).filter_map(|i| char::from_u32(256 + i));
    printed.clone().map(char::from).chain(others).collect()
}

/// What a `tokenizer.json` would have under `model`; `begin` and `end` are the two special tokens.
pub(super) fn model(begin: &str, end: &str) -> Value {
    let alone = symbols().into_iter().map(String::from);
    let mut words: Vec<String> = alone.clone().chain(alone.map(|s| s + "</w>")).collect();
    let mut merges = Vec::with_capacity(MERGES.len() / 4);
    for pair in MERGES.as_chunks::<4>().0 {
        let [left, right] =
            [[pair[0], pair[1]], [pair[2], pair[3]]].map(|id| &words[usize::from(u16::from_le_bytes(id))]);
        merges.push(json!([left, right]));
        words.push(format!("{left}{right}"));
    }
    words.extend([begin, end].map(String::from));
    let vocab: Map<String, Value> = words.into_iter().zip(0..).map(|(word, id)| (word, Value::from(id))).collect();
    json!({"type": "BPE", "vocab": vocab, "merges": merges})
}
