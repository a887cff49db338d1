//! The files of a tokenizer: one that is accepted gives every text exactly as many ids as were asked for, or refuses it.
#![no_main]

use engine::models::tokenizer::Tokenizer;
use engine_fuzz::{check, choice, folder, write_files};
use libfuzzer_sys::fuzz_target;

/// The two ways to store one.
const WHOLE: [&str; 3] = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"];
const PARTS: [&str; 4] = ["vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"];

const TEXTS: [&str; 5] =
    ["", "two blue squares", " A  red\tcircle's, 12 <|endoftext|></s> ", "e\u{301}ß▁\u{1F1E9}\u{1F1EA}", "\0\u{feff}"];

fuzz_target!(|data: &[u8]| {
    let Some((which, data)) = choice(data, 2) else { return };
    let folder = folder().join(which.to_string());
    std::fs::create_dir_all(&folder).unwrap();
    write_files(&folder, if which == 0 { &WHOLE } else { &PARTS }, data);
    let Some(tokenizer) = check(Tokenizer::load(&folder)) else { return };
    for text in TEXTS {
        for length in [0, 2, 7] {
            if let Some(encoded) = check(tokenizer.encode(text, length)) {
                assert_eq!(encoded.ids.len(), length);
            }
        }
    }
});
