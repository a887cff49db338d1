//! A writer of pickles of plain data, in protocol 3: the oldest that has bytes, which every Python since 3.0 reads
//! (`Lib/pickletools.py` describes the opcodes).

/// Plain data of Python.
#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    /// `None`.
    None,
    /// `True` or `False`.
    Bool(bool),
    /// An int.
    Int(i64),
    /// A float.
    Float(f64),
    /// A str.
    Str(String),
    /// A bytes.
    Bytes(Vec<u8>),
    /// A list.
    List(Vec<Item>),
    /// A dict.
    Dict(Vec<(String, Item)>),
}

impl From<&serde_json::Value> for Item {
    fn from(value: &serde_json::Value) -> Self {
        use serde_json::Value;
        match value {
            Value::Null => Self::None,
            Value::Bool(b) => Self::Bool(*b),
            Value::Number(n) => match n.as_i64() {
                Some(n) => Self::Int(n),
                None => Self::Float(n.as_f64().unwrap_or(f64::NAN)),
            },
            Value::String(s) => Self::Str(s.clone()),
            Value::Array(items) => Self::List(items.iter().map(Self::from).collect()),
            Value::Object(items) => Self::Dict(items.iter().map(|(k, v)| (k.clone(), Self::from(v))).collect()),
        }
    }
}

const PROTO: &[u8] = b"\x80\x03";
const STOP: u8 = b'.';
const MARK: u8 = b'(';
const NONE: u8 = b'N';
const NEWTRUE: u8 = 0x88;
const NEWFALSE: u8 = 0x89;
const BININT: u8 = b'J';
const LONG1: u8 = 0x8a;
const BINFLOAT: u8 = b'G';
const BINUNICODE: u8 = b'X';
const BINBYTES: u8 = b'B';
const EMPTY_LIST: u8 = b']';
const APPENDS: u8 = b'e';
const EMPTY_DICT: u8 = b'}';
const SETITEMS: u8 = b'u';

/// `item` as `pickle.loads` reads it. A str or bytes has less than 4 GiB.
pub fn dumps(item: &Item) -> Vec<u8> {
    let mut out = PROTO.to_vec();
    put(&mut out, item);
    out.push(STOP);
    out
}

fn put(out: &mut Vec<u8>, item: &Item) {
    match item {
        Item::None => out.push(NONE),
        Item::Bool(value) => out.push(if *value { NEWTRUE } else { NEWFALSE }),
        Item::Int(value) => match i32::try_from(*value) {
            Ok(value) => {
                out.push(BININT);
                out.extend(value.to_le_bytes());
            }
            Err(_) => {
                out.extend([LONG1, 8]);
                out.extend(value.to_le_bytes());
            }
        },
        Item::Float(value) => {
            out.push(BINFLOAT);
            out.extend(value.to_be_bytes());
        }
        Item::Str(text) => put_bytes(out, BINUNICODE, text.as_bytes()),
        Item::Bytes(bytes) => put_bytes(out, BINBYTES, bytes),
        Item::List(items) => {
            out.extend([EMPTY_LIST, MARK]);
            items.iter().for_each(|item| put(out, item));
            out.push(APPENDS);
        }
        Item::Dict(items) => {
            out.extend([EMPTY_DICT, MARK]);
            for (key, value) in items {
                put_bytes(out, BINUNICODE, key.as_bytes());
                put(out, value);
            }
            out.push(SETITEMS);
        }
    }
}

fn put_bytes(out: &mut Vec<u8>, opcode: u8, bytes: &[u8]) {
    out.push(opcode);
    out.extend(u32::try_from(bytes.len()).expect("pictures and prompts are shorter than 4 GiB").to_le_bytes());
    out.extend(bytes);
}
