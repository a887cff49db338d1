//! The vocabularies of reward models: LLaMA's `tokenizer.model`, BERT's `vocab.txt` and `tokenizer.json`. With what is accepted, texts
//! can be encoded, in tokens that it has.
#![no_main]

use engine::models::tokenizer::{SentencePiece, WordPiece};
use engine_fuzz::{check, choice, folder};
use libfuzzer_sys::fuzz_target;

const TEXTS: [&str; 4] = ["", "a red circle", "The quality of the image is\n", "Émile [DEC] 中 \u{1f600} ab"];

fuzz_target!(|data: &[u8]| {
    let Some((which, data)) = choice(data, 3) else { return };
    let names = ["tokenizer.model", "vocab.txt", "tokenizer.json"];
    names.iter().for_each(|name| drop(std::fs::remove_file(folder().join(name))));
    std::fs::write(folder().join(names[which]), data).unwrap();
    if which == 0 {
        let Some(pieces) = check(SentencePiece::load(&folder().join(names[0]))) else { return };
        for text in TEXTS {
            assert!(pieces.encode(text).iter().all(|id| (*id as usize) < pieces.count()));
        }
        return;
    }
    let Some(pieces) = check(WordPiece::load(folder(), &["[DEC]", "[ENC]"])) else { return };
    for text in TEXTS {
        let ids = check(pieces.encode(text, 8)).expect("8 tokens have room for the two");
        assert!((2..=8).contains(&ids.len()));
    }
});
