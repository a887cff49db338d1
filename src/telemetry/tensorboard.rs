//! TensorBoard event files: records framed as TFRecord, each an `Event` of `tensorboard/compat/proto/event.proto`
//! encoded by hand (the four message types that scalars and images need).

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};

use crate::io::image::RgbImage;

#[cfg(test)]
mod tests;

/// The event file of this process.
pub struct TensorBoard {
    path: PathBuf,
    file: BufWriter<File>,
}

impl TensorBoard {
    /// Creates a new event file in `folder`. TensorBoard is told to forget what earlier files in the folder say of step
    /// `forget` and later ones.
    ///
    /// # Errors
    /// Names the file or folder if it cannot be written.
    pub fn open(folder: &Path, forget: u64) -> Result<Self> {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let (path, file) = create(folder)?;
        let mut board = Self { path, file: BufWriter::new(file) };
        board.event(0, &Message::default().bytes(event::FILE_VERSION, b"brain.Event:2"))?;
        let start = Message::default().number(session_log::STATUS, session_log::START);
        board.event(forget, &Message::default().bytes(event::SESSION_LOG, &start.0))?;
        board.flush()?;
        Ok(board)
    }

    /// The value of `tag` after `step` epochs.
    ///
    /// # Errors
    /// Names the file if it cannot be written.
    pub fn scalar(&mut self, step: u64, tag: &str, value: f32) -> Result<()> {
        let value = Message::default().bytes(value::TAG, tag.as_bytes()).float(value::SIMPLE_VALUE, value);
        self.summary(step, &value)
    }

    /// The picture `tag` after `step` epochs: `png` is `image` as a PNG file.
    ///
    /// # Errors
    /// Names the file if it cannot be written.
    pub fn image(&mut self, step: u64, tag: &str, image: &RgbImage, png: &[u8]) -> Result<()> {
        let image = Message::default()
            .number(picture::HEIGHT, image.height as u64)
            .number(picture::WIDTH, image.width as u64)
            .number(picture::COLORSPACE, picture::RGB)
            .bytes(picture::ENCODED, png);
        let value = Message::default().bytes(value::TAG, tag.as_bytes()).bytes(value::IMAGE, &image.0);
        self.summary(step, &value)
    }

    /// Hands everything to the system, where TensorBoard sees it.
    ///
    /// # Errors
    /// Names the file if it cannot be written.
    pub fn flush(&mut self) -> Result<()> {
        self.file.flush().with_context(|| format!("cannot write {}", self.path.display()))
    }

    fn summary(&mut self, step: u64, value: &Message) -> Result<()> {
        let summary = Message::default().bytes(summary::VALUE, &value.0);
        self.event(step, &Message::default().bytes(event::SUMMARY, &summary.0))
    }

    fn event(&mut self, step: u64, what: &Message) -> Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let mut event = Message::default().double(event::WALL_TIME, now).number(event::STEP, step);
        event.0.extend(&what.0);
        self.file.write_all(&frame(&event.0)).with_context(|| format!("cannot write {}", self.path.display()))
    }
}

/// A new file whose name sorts after those of earlier processes: TensorBoard reads them in that order.
fn create(folder: &Path) -> Result<(PathBuf, File)> {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    for number in 0..10_000 {
        let path = folder.join(format!("events.out.tfevents.{seconds:010}.engine.{number:04}"));
        match OpenOptions::new().write(true).create_new(true).open(&path) {
            Ok(file) => return Ok((path, file)),
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e).with_context(|| format!("cannot write {}", path.display())),
        }
    }
    bail!("{}: 10000 event files of one second", folder.display())
}

/// Field numbers of `Event`.
mod event {
    pub const WALL_TIME: u64 = 1;
    pub const STEP: u64 = 2;
    pub const FILE_VERSION: u64 = 3;
    pub const SUMMARY: u64 = 5;
    pub const SESSION_LOG: u64 = 7;
}

/// `SessionLog`.
mod session_log {
    pub const STATUS: u64 = 1;
    pub const START: u64 = 1;
}

/// `Summary`.
mod summary {
    pub const VALUE: u64 = 1;
}

/// `Summary.Value`.
mod value {
    pub const TAG: u64 = 1;
    pub const SIMPLE_VALUE: u64 = 2;
    pub const IMAGE: u64 = 4;
}

/// `Summary.Image`.
mod picture {
    pub const HEIGHT: u64 = 1;
    pub const WIDTH: u64 = 2;
    pub const COLORSPACE: u64 = 3;
    pub const ENCODED: u64 = 4;
    pub const RGB: u64 = 3;
}

/// A protocol buffer message under construction.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn key(&mut self, field: u64, wire_type: u64) {
        self.varint(field << 3 | wire_type);
    }

    fn number(mut self, field: u64, value: u64) -> Self {
        self.key(field, 0);
        self.varint(value);
        self
    }

    fn double(mut self, field: u64, value: f64) -> Self {
        self.key(field, 1);
        self.0.extend(value.to_le_bytes());
        self
    }

    fn bytes(mut self, field: u64, value: &[u8]) -> Self {
        self.key(field, 2);
        self.varint(value.len() as u64);
        self.0.extend(value);
        self
    }

    fn float(mut self, field: u64, value: f32) -> Self {
        self.key(field, 5);
        self.0.extend(value.to_le_bytes());
        self
    }
}

/// A TFRecord: length, its masked checksum, data, its masked checksum.
fn frame(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    [&length[..], &masked(&length).to_le_bytes(), data, &masked(data).to_le_bytes()].concat()
}

/// A checksum, changed so that a checksum of data that holds checksums is no weaker.
fn masked(data: &[u8]) -> u32 {
    crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli), a byte at a time by table.
fn crc32c(data: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut i = 0;
        while i < 256 {
            let (mut crc, mut bit) = (i as u32, 0);
            while bit < 8 {
                crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
                bit += 1;
            }
            table[i] = crc;
            i += 1;
        }
        table
    };
    !data.iter().fold(!0, |crc, byte| TABLE[((crc ^ u32::from(*byte)) & 0xff) as usize] ^ crc >> 8)
}
