//! TensorBoard event files: records framed as TFRecord, each an `Event` of `tensorboard/compat/proto/event.proto`
//! encoded by hand (the four message types that scalars and images need).

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};

use crate::io::image::RgbImage;

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::image::png;

    /// CRC-32C by long division of polynomials, most significant bit first: shares nothing with the code above.
    fn divided(data: &[u8]) -> u32 {
        let bits = data.iter().flat_map(|b| (0..8).map(move |i| b >> i & 1 == 1));
        let division = |crc: u32, bit: bool| {
            let shifted = crc << 1;
            if (crc >> 31 == 1) != bit { shifted ^ 0x1edc_6f41 } else { shifted }
        };
        !bits.fold(!0, division).reverse_bits()
    }

    #[test]
    fn checksums_are_those_of_rfc_3720() {
        let ascending: Vec<u8> = (0..32).collect();
        let descending: Vec<u8> = (0..32).rev().collect();
        let cases: [(&[u8], u32); 5] = [
            (&[0; 32], 0x8a91_36aa),
            (&[0xff; 32], 0x62a8_ab43),
            (&ascending, 0x46dd_794e),
            (&descending, 0x113f_db5c),
            (b"123456789", 0xe306_9283),
        ];
        for (data, want) in cases {
            assert_eq!(crc32c(data), want);
            assert_eq!(divided(data), want);
        }
    }

    /// The records of an event file, their checksums checked.
    fn records(mut bytes: &[u8]) -> Vec<Vec<u8>> {
        let unmask = |b: &[u8]| u32::from_le_bytes(b.try_into().unwrap()).wrapping_sub(0xa282_ead8).rotate_left(15);
        let mut out = Vec::new();
        while !bytes.is_empty() {
            let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            assert_eq!(unmask(&bytes[8..12]), divided(&bytes[..8]));
            let data = &bytes[12..12 + length];
            assert_eq!(unmask(&bytes[12 + length..16 + length]), divided(data));
            out.push(data.to_vec());
            bytes = &bytes[16 + length..];
        }
        out
    }

    /// The fields of a message: number, and the value as bytes (numbers as 8 little-endian bytes).
    fn fields(mut bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
        fn varint(bytes: &mut &[u8]) -> u64 {
            let (mut value, mut shift) = (0, 0);
            loop {
                let byte = bytes[0];
                *bytes = &bytes[1..];
                value |= u64::from(byte & 0x7f) << shift;
                shift += 7;
                if byte < 0x80 {
                    return value;
                }
            }
        }
        let mut out = Vec::new();
        while !bytes.is_empty() {
            let key = varint(&mut bytes);
            let length = match key & 7 {
                0 => {
                    out.push((key >> 3, varint(&mut bytes).to_le_bytes().to_vec()));
                    continue;
                }
                1 => 8,
                2 => varint(&mut bytes) as usize,
                5 => 4,
                other => panic!("wire type {other}"),
            };
            out.push((key >> 3, bytes[..length].to_vec()));
            bytes = &bytes[length..];
        }
        out
    }

    /// Step and content of an event.
    fn event(record: &[u8]) -> (u64, Vec<(u64, Vec<u8>)>) {
        let fields = fields(record);
        assert_eq!((fields[0].0, fields[1].0), (1, 2));
        assert!(f64::from_le_bytes(fields[0].1.clone().try_into().unwrap()) > 1.7e9, "seconds since 1970");
        (u64::from_le_bytes(fields[1].1.clone().try_into().unwrap()), fields[2..].to_vec())
    }

    #[test]
    fn an_event_file_decodes_to_what_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let mut board = TensorBoard::open(&dir.path().join("tensorboard"), 3).unwrap();
        let picture = RgbImage { width: 3, height: 200, data: vec![7; 1800] };
        let encoded = png(&picture).unwrap();
        board.scalar(300, "train/loss", 0.1).unwrap();
        board.image(5, "eval/samples", &picture, &encoded).unwrap();
        board.flush().unwrap();

        let records = records(&std::fs::read(&board.path).unwrap());
        let bytes = |text: &str| text.as_bytes().to_vec();
        let number = |n: u64| n.to_le_bytes().to_vec();
        assert_eq!(event(&records[0]), (0, vec![(3, bytes("brain.Event:2"))]));
        let (step, start) = event(&records[1]);
        assert_eq!((step, start[0].0, fields(&start[0].1)), (3, 7, vec![(1, number(1))]));

        let value_of = |record: &[u8]| {
            let (step, content) = event(record);
            let summary = fields(&content[0].1);
            assert_eq!((content.len(), content[0].0, summary.len(), summary[0].0), (1, 5, 1, 1));
            (step, fields(&summary[0].1))
        };
        let (step, value) = value_of(&records[2]);
        assert_eq!((step, value), (300, vec![(1, bytes("train/loss")), (2, 0.1f32.to_le_bytes().to_vec())]));
        let (step, value) = value_of(&records[3]);
        assert_eq!((step, &value[0], value[1].0), (5, &(1, bytes("eval/samples")), 4));
        let image = vec![(1, number(200)), (2, number(3)), (3, number(3)), (4, encoded)];
        assert_eq!(fields(&value[1].1), image);
        assert_eq!(records.len(), 4);
    }

    #[test]
    fn each_process_writes_its_own_file_and_later_ones_sort_later() {
        let dir = tempfile::tempdir().unwrap();
        let paths: Vec<PathBuf> = (0..3).map(|_| TensorBoard::open(dir.path(), 0).unwrap().path).collect();
        assert!(paths.is_sorted() && paths[0] != paths[1] && paths[1] != paths[2]);
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(TensorBoard::open(&file, 0).err().unwrap().to_string().starts_with("cannot create "));
    }
}
