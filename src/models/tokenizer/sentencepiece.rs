//! LLaMA's tokenizer: byte pair encoding of sentencepiece (Kudo and Richardson 2018), read from its `tokenizer.model`, a message of
//! protocol buffers (`sentencepiece_model.proto`). For texts as short as prompts.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::io::read;

/// Stands for a space.
const SPACE: char = '\u{2581}';
/// The numbers of the fields that are read: the pieces of the model; text, score and kind of a piece; the model's kind, inside of
/// what it was trained by.
const PIECES: u64 = 1;
const TEXT: u64 = 1;
const SCORE: u64 = 2;
const KIND: u64 = 3;
const TRAINER: u64 = 2;
const MODEL_KIND: u64 = 3;
/// The kind of model that merges pairs.
const BPE: u64 = 2;
/// Kinds of pieces.
const NORMAL: u64 = 1;
const CONTROL: u64 = 3;
const USER_DEFINED: u64 = 4;
const BYTE: u64 = 6;

/// A vocabulary of pieces with scores.
pub struct SentencePiece {
    path: PathBuf,
    /// Number and score of each piece that text can be made of.
    pieces: HashMap<String, (u32, f32)>,
    /// The pieces that stand for bytes.
    bytes: Vec<u32>,
    begin: u32,
    count: usize,
}

impl SentencePiece {
    /// The model at `path`.
    ///
    /// # Errors
    /// Names the file if it is missing, damaged, or of another kind.
    pub fn load(path: &Path) -> Result<Self> {
        let file = read::bytes(path)?;
        Self::parse(&file, path).with_context(|| path.display().to_string())
    }

    fn parse(file: &[u8], path: &Path) -> Result<Self> {
        let (mut pieces, mut bytes, mut begin, mut count, mut kind) = (HashMap::new(), HashMap::new(), None, 0u32, 1);
        for field in Fields(file) {
            match field? {
                (PIECES, Value::Bytes(piece)) => {
                    let piece = Piece::parse(piece)?;
                    match piece.kind {
                        NORMAL | USER_DEFINED => drop(pieces.insert(piece.text.to_string(), (count, piece.score))),
                        BYTE => drop(bytes.insert(piece.text.to_string(), count)),
                        CONTROL if piece.text == "<s>" => begin = Some(count),
                        _ => {}
                    }
                    count += 1;
                }
                (TRAINER, Value::Bytes(trainer)) => {
                    for field in Fields(trainer) {
                        if let (MODEL_KIND, Value::Number(n)) = field? {
                            kind = n;
                        }
                    }
                }
                _ => {}
            }
        }
        ensure!(kind == BPE, "a sentencepiece model of kind {kind}, expected {BPE} (BPE), as LLaMA's is");
        let bytes = (0..=255).map(|b| bytes.get(&format!("<0x{b:02X}>")).copied()).collect::<Option<Vec<u32>>>();
        Ok(Self {
            bytes: bytes.context("no pieces for all bytes, as LLaMA's has")?,
            begin: begin.context("no piece <s>")?,
            count: count as usize,
            path: path.to_path_buf(),
            pieces,
        })
    }

    /// How many tokens there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Where it was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The token that begins every text.
    pub fn begin(&self) -> u32 {
        self.begin
    }

    /// The tokens of `text` with a space before it, without [`SentencePiece::begin`]: of all neighbours the pair is joined that
    /// gives the piece with the greatest score, the first of several, until there is none; what is no piece is bytes.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        if text.is_empty() {
            return Vec::new();
        }
        let spaced = format!(" {text}").replace(' ', &SPACE.to_string());
        // Where each piece begins, and the end.
        let mut cuts: Vec<usize> = spaced.char_indices().map(|(at, _)| at).chain([spaced.len()]).collect();
        loop {
            let score = |i: usize| self.pieces.get(&spaced[cuts[i - 1]..cuts[i + 1]]).map(|(_, score)| *score);
            let joins = (1..cuts.len() - 1).filter_map(|i| Some((i, score(i)?)));
            let best = joins.reduce(|best, next| if next.1 > best.1 { next } else { best });
            let Some((i, _)) = best else { break };
            cuts.remove(i);
        }
        let pieces = cuts.windows(2).map(|cut| &spaced[cut[0]..cut[1]]);
        let ids = |piece: &str| match self.pieces.get(piece) {
            Some((id, _)) => vec![*id],
            None => piece.bytes().map(|b| self.bytes[usize::from(b)]).collect(),
        };
        pieces.flat_map(ids).collect()
    }
}

struct Piece<'a> {
    text: &'a str,
    score: f32,
    kind: u64,
}

impl<'a> Piece<'a> {
    fn parse(message: &'a [u8]) -> Result<Self> {
        let mut piece = Self { text: "", score: 0.0, kind: NORMAL };
        for field in Fields(message) {
            match field? {
                (TEXT, Value::Bytes(text)) => piece.text = std::str::from_utf8(text).context("a piece is no text")?,
                (SCORE, Value::Four(bytes)) => piece.score = f32::from_le_bytes(bytes),
                (KIND, Value::Number(kind)) => piece.kind = kind,
                _ => {}
            }
        }
        Ok(piece)
    }
}

enum Value<'a> {
    Number(u64),
    Four([u8; 4]),
    Bytes(&'a [u8]),
    Eight,
}

/// The fields of a message, by number.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn number(&mut self) -> Result<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = *self.take(1)?.first().expect("one was taken");
            number |= u64::from(byte & 0x7F) << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        bail!("a number of more than 64 bits; no sentencepiece model")
    }

    fn take(&mut self, count: u64) -> Result<&'a [u8]> {
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let (taken, rest) =
            self.0.split_at_checked(count).context("ends too early; damaged, or no sentencepiece model")?;
        self.0 = rest;
        Ok(taken)
    }

    fn field(&mut self) -> Result<(u64, Value<'a>)> {
        let key = self.number()?;
        let value = match key & 7 {
            0 => Value::Number(self.number()?),
            1 => self.take(8).map(|_| Value::Eight)?,
            2 => {
                let length = self.number()?;
                Value::Bytes(self.take(length)?)
            }
            5 => Value::Four(self.take(4)?.try_into()?),
            kind => bail!("a field of kind {kind}; no sentencepiece model"),
        };
        Ok((key >> 3, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Value<'a>)>;

    fn next(&mut self) -> Option<Self::Item> {
        (!self.0.is_empty()).then(|| self.field())
    }
}
