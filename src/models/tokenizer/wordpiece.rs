//! BERT's tokenizer (Devlin et al. 2019), uncased: words in lower case without accents, cut into the longest pieces there are.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::{Map, Value, json};
use tokenizers::AddedToken;

use crate::io::{read, read_json};

/// Tokens that stand for no text; in a text they stand for themselves.
const SPECIAL: [&str; 5] = ["[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]"];
/// Longest word that is cut into pieces, in characters.
const LONGEST_WORD: usize = 100;

/// A WordPiece vocabulary.
pub struct WordPiece {
    inner: tokenizers::Tokenizer,
    path: PathBuf,
    begin: u32,
    end: u32,
}

impl WordPiece {
    /// The vocabulary in `folder`, as `vocab.txt` or in `tokenizer.json`, and after it the special tokens `added`, with the ids
    /// that follow.
    ///
    /// # Errors
    /// Names the file that is missing, or that does not hold such a vocabulary.
    pub fn load(folder: &Path, added: &[&str]) -> Result<Self> {
        let (path, vocab) = vocabulary(folder)?;
        let mut inner: tokenizers::Tokenizer = serde_json::from_value(json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": [],
            "normalizer": {
                "type": "BertNormalizer",
                "clean_text": true,
                "handle_chinese_chars": true,
                "strip_accents": null,
                "lowercase": true,
            },
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "post_processor": null,
            "decoder": null,
            "model": {
                "type": "WordPiece",
                "unk_token": "[UNK]",
                "continuing_subword_prefix": "##",
                "max_input_chars_per_word": LONGEST_WORD,
                "vocab": vocab,
            },
        }))
        .with_context(|| format!("{}: not a vocabulary of BERT", path.display()))?;
        for token in SPECIAL {
            ensure!(
                inner.token_to_id(token).is_some(),
                "{}: no token {token}; not a vocabulary of BERT",
                path.display()
            );
        }
        let special: Vec<AddedToken> =
            SPECIAL.iter().chain(added).map(|token| AddedToken::from(token.to_string(), true)).collect();
        inner.add_special_tokens(&special);
        let id = |token: &str| inner.token_to_id(token).expect("checked above");
        Ok(Self { begin: id("[CLS]"), end: id("[SEP]"), path, inner })
    }

    /// How many tokens there are.
    pub fn len(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Whether there are none, which cannot be.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where the vocabulary is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The ids of `text` between `[CLS]` and `[SEP]`, at most `most` together, not padded.
    ///
    /// # Errors
    /// If `most` has no room for the two.
    pub fn encode(&self, text: &str, most: usize) -> Result<Vec<u32>> {
        let shown = self.path.display();
        ensure!(most >= 2, "{shown}: cannot cut a text to {most} tokens, 2 are special");
        let body = self.inner.encode_fast(text, false).map_err(|e| anyhow!("{shown}: {text:?}: {e}"))?;
        let body = body.get_ids();
        let body = body[..body.len().min(most - 2)].iter().copied();
        Ok(std::iter::once(self.begin).chain(body).chain([self.end]).collect())
    }
}

/// The file that has the vocabulary, and the id of each token.
fn vocabulary(folder: &Path) -> Result<(PathBuf, Map<String, Value>)> {
    let [text, whole] = ["vocab.txt", "tokenizer.json"].map(|name| folder.join(name));
    if text.exists() {
        let lines = read::text(&text)?;
        let tokens = lines.lines().zip(0..).map(|(token, id)| (token.to_string(), Value::from(id))).collect();
        return Ok((text, tokens));
    }
    if whole.exists() {
        let mut file: Value = read_json(&whole)?;
        return match file.pointer_mut("/model/vocab").map(Value::take) {
            Some(Value::Object(tokens)) => Ok((whole, tokens)),
            _ => bail!("{}: no model.vocab of tokens and ids", whole.display()),
        };
    }
    bail!("{}: no tokenizer of BERT: looked for vocab.txt and tokenizer.json", folder.display())
}
