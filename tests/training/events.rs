//! Reads event files as TensorBoard does: what is cut short ends a file, and a session that starts makes it forget what
//! earlier files say of its step and later ones (`event_accumulator.py`, `_CheckForRestartAndMaybePurge`).

use crate::protobuf;
use std::path::Path;

/// A value on the board.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    pub step: u64,
    pub tag: String,
    /// The bits of a scalar, or the fields of a picture.
    pub value: Vec<u8>,
}

/// What TensorBoard shows of the event files in `folder`, and whether the last file is cut short.
pub fn board(folder: &Path) -> (Vec<Event>, bool) {
    let mut files: Vec<_> = std::fs::read_dir(folder).into_iter().flatten().map(|e| e.unwrap().path()).collect();
    files.sort();
    let (mut events, mut is_cut) = (Vec::new(), false);
    for file in files {
        let bytes = std::fs::read(&file).unwrap();
        let mut rest = &bytes[..];
        while let Some((record, after)) = frame(rest) {
            read(record, &mut events);
            rest = after;
        }
        is_cut = !rest.is_empty();
    }
    (events, is_cut)
}

/// The first record of `bytes`, if it is whole, and what follows it. Its length and itself have a checksum of 4 bytes each.
fn frame(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = u64::from_le_bytes(*bytes.first_chunk()?) as usize;
    Some((bytes.get(12..12 + length)?, bytes.get(16 + length..)?))
}

/// Takes in one record.
fn read(record: &[u8], events: &mut Vec<Event>) {
    let fields = protobuf::fields(record);
    let step = fields.iter().find(|(number, _)| *number == 2).expect("every event has a step").1.clone();
    let step = u64::from_le_bytes(step.try_into().unwrap());
    for (number, content) in fields {
        match number {
            7 => events.retain(|e| e.step < step),
            5 => {
                let mut value = protobuf::fields(&protobuf::fields(&content)[0].1);
                let (tag, value) = (std::mem::take(&mut value[0].1), std::mem::take(&mut value[1].1));
                events.push(Event { step, tag: String::from_utf8(tag).unwrap(), value });
            }
            _ => {}
        }
    }
}
