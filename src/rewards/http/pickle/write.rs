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
const BININT1: u8 = b'K';
const BININT2: u8 = b'M';
const BININT: u8 = b'J';
const LONG1: u8 = 0x8a;
const BINFLOAT: u8 = b'G';
const BINUNICODE: u8 = b'X';
const SHORT_BINBYTES: u8 = b'C';
const BINBYTES: u8 = b'B';
const EMPTY_LIST: u8 = b']';
const APPEND: u8 = b'a';
const APPENDS: u8 = b'e';
const EMPTY_DICT: u8 = b'}';
const SETITEM: u8 = b's';
const SETITEMS: u8 = b'u';
/// Most elements that are put into a list or dict at a time.
const BATCH: usize = 1000;

/// `item` as `pickle.loads` reads it; to the byte what Python's own `Pickler` writes with `fast`. A str or bytes has less than
/// 4 GiB.
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
        Item::Int(value) => put_int(out, *value),
        Item::Float(value) => {
            out.push(BINFLOAT);
            out.extend(value.to_be_bytes());
        }
        Item::Str(text) => put_str(out, text),
        Item::Bytes(bytes) => {
            match u8::try_from(bytes.len()) {
                Ok(length) => out.extend([SHORT_BINBYTES, length]),
                Err(_) => put_length(out, BINBYTES, bytes.len()),
            }
            out.extend(bytes);
        }
        Item::List(items) => {
            out.push(EMPTY_LIST);
            put_batches(out, items, [APPEND, APPENDS], put);
        }
        Item::Dict(items) => {
            out.push(EMPTY_DICT);
            put_batches(out, items, [SETITEM, SETITEMS], |out, (key, value)| {
                put_str(out, key);
                put(out, value);
            });
        }
    }
}

/// `items`, and the opcode that puts one or several of them where they belong.
fn put_batches<T>(out: &mut Vec<u8>, items: &[T], [one, several]: [u8; 2], put: impl Fn(&mut Vec<u8>, &T)) {
    if let [item] = items {
        put(out, item);
        return out.push(one);
    }
    for batch in items.chunks(BATCH) {
        out.push(MARK);
        batch.iter().for_each(|item| put(out, item));
        out.push(several);
    }
}

fn put_int(out: &mut Vec<u8>, value: i64) {
    if let Ok(value) = u8::try_from(value) {
        out.extend([BININT1, value]);
    } else if let Ok(value) = u16::try_from(value) {
        out.push(BININT2);
        out.extend(value.to_le_bytes());
    } else if let Ok(value) = i32::try_from(value) {
        out.push(BININT);
        out.extend(value.to_le_bytes());
    } else {
        // The fewest bytes that keep the sign.
        let bits = 65 - if value < 0 { value.leading_ones() } else { value.leading_zeros() };
        let length = bits.div_ceil(8) as usize;
        out.extend([LONG1, length as u8]);
        out.extend(&value.to_le_bytes()[..length]);
    }
}

fn put_str(out: &mut Vec<u8>, text: &str) {
    put_length(out, BINUNICODE, text.len());
    out.extend(text.as_bytes());
}

fn put_length(out: &mut Vec<u8>, opcode: u8, length: usize) {
    out.push(opcode);
    out.extend(u32::try_from(length).expect("pictures and prompts are shorter than 4 GiB").to_le_bytes());
}
