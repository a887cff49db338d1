//! Python's pickles, protocols 0 to 5, read as plain values: no code is run and no object is built. What a pickle would make by
//! calling something stays a placeholder that knows the name of what it would call, so that who wants a value in its place can
//! say so, and nobody else is troubled.
//!
//! The format is described in `Lib/pickletools.py` of CPython. Values lie in one list and refer to one another by their places in
//! it: lists that hold themselves, deep nesting and what a pickle repeats by reference cost nothing more. Memory is at most a small
//! multiple of the bytes that are read.

mod literal;
mod machine;
#[cfg(test)]
mod tests;

use std::borrow::Cow;

use anyhow::Result;

use crate::io::short;

/// The place of a value in [`Pickle::nodes`].
type Id = u32;

/// What one value is.
enum Node<'a> {
    None,
    Bool(bool),
    Int(i128),
    /// An integer of more than 128 bits.
    Large,
    Float(f64),
    Text(Cow<'a, str>),
    Bytes(Cow<'a, [u8]>),
    List(Vec<Id>),
    Tuple(Vec<Id>),
    Set(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// Something of a module: the texts of both names.
    Global(Id, Id),
    /// What calling something would give.
    Object(Box<Object>),
    /// What only who wrote the pickle can look up.
    Persistent(Id),
}

/// What calling `callable` with the tuple `args` would give, after which `items` are put into it. Its other state is dropped.
struct Object {
    callable: Id,
    args: Id,
    items: Vec<(Id, Id)>,
}

/// The values of one pickle.
pub struct Pickle<'a> {
    nodes: Vec<Node<'a>>,
    root: Id,
}

impl<'a> Pickle<'a> {
    /// Reads the pickle that `bytes` begin with, and says how many bytes it takes.
    ///
    /// # Errors
    /// Says at which byte the pickle ends too early, contradicts itself, or has an opcode that Python does not know.
    pub fn read(bytes: &'a [u8]) -> Result<(Self, usize)> {
        machine::read(bytes)
    }

    /// Everything that only who wrote the pickle can look up, in the order it is mentioned.
    pub fn persistent(&self) -> impl Iterator<Item = Value<'_>> {
        let all = self.nodes.iter().enumerate().filter(|(_, node)| matches!(node, Node::Persistent(_)));
        all.map(|(id, _)| Value { pickle: self, id: id as Id })
    }

    /// The value that was pickled.
    pub fn root(&self) -> Value<'_> {
        Value { pickle: self, id: self.root }
    }
}

/// A value inside a pickle.
#[derive(Clone, Copy)]
pub struct Value<'p> {
    pickle: &'p Pickle<'p>,
    id: Id,
}

impl<'p> Value<'p> {
    fn node(self) -> &'p Node<'p> {
        &self.pickle.nodes[self.id as usize]
    }

    fn at(self, id: Id) -> Self {
        Self { id, ..self }
    }

    /// Whether it is `None`.
    pub fn is_none(self) -> bool {
        matches!(self.node(), Node::None)
    }

    /// A truth.
    pub fn as_bool(self) -> Option<bool> {
        if let Node::Bool(value) = self.node() { Some(*value) } else { None }
    }

    /// A whole number.
    pub fn as_int(self) -> Option<i128> {
        if let Node::Int(value) = self.node() { Some(*value) } else { None }
    }

    /// A whole number that can be a size, an offset or a count.
    pub fn as_usize(self) -> Option<usize> {
        self.as_int().and_then(|n| usize::try_from(n).ok())
    }

    /// A number, whole or not.
    pub fn as_f64(self) -> Option<f64> {
        match self.node() {
            Node::Int(value) => Some(*value as f64),
            Node::Float(value) => Some(*value),
            _ => None,
        }
    }

    /// A text.
    pub fn as_str(self) -> Option<&'p str> {
        if let Node::Text(text) = self.node() { Some(text) } else { None }
    }

    /// Bytes; also as Python 3 writes them for Python 2, as a text to be encoded.
    pub fn as_bytes(self) -> Option<Cow<'p, [u8]>> {
        match self.node() {
            Node::Bytes(bytes) => Some(Cow::Borrowed(bytes)),
            Node::Object(_) => {
                let (callable, mut args) = self.call()?;
                let (text, encoding) = (args.next()?.as_str()?, args.next()?.as_str()?);
                if !callable.is_global("_codecs", "encode") || encoding != "latin1" {
                    return None;
                }
                text.chars().map(|c| u8::try_from(c).ok()).collect::<Option<Vec<u8>>>().map(Cow::Owned)
            }
            _ => None,
        }
    }

    /// The elements of a list, tuple or set.
    pub fn items(self) -> Option<impl ExactSizeIterator<Item = Self>> {
        match self.node() {
            Node::List(ids) | Node::Tuple(ids) | Node::Set(ids) => Some(ids.iter().map(move |id| self.at(*id))),
            _ => None,
        }
    }

    /// Keys and values of a dict, ordered or not, in the order they were put in; a key that is there twice counts the last time.
    pub fn entries(self) -> Option<impl Iterator<Item = (Self, Self)>> {
        // Python 2 hands an ordered dict its entries as one list of lists of two.
        let (first, entries) = match self.node() {
            Node::Dict(entries) => (None, entries),
            Node::Object(object) if self.at(object.callable).is_global("collections", "OrderedDict") => {
                (self.at(object.args).items().and_then(|mut args| args.next()), &object.items)
            }
            _ => return None,
        };
        let pairs = first.and_then(Self::items).into_iter().flatten().filter_map(|pair| {
            let mut both = pair.items()?;
            Some((both.next()?, both.next()?))
        });
        Some(pairs.chain(entries.iter().map(move |(key, value)| (self.at(*key), self.at(*value)))))
    }

    /// What a dict has at the text `key`.
    pub fn get(self, key: &str) -> Option<Self> {
        self.entries()?.filter(|(k, _)| k.as_str() == Some(key)).last().map(|(_, value)| value)
    }

    /// Module and name, if it is something of a module.
    pub fn as_global(self) -> Option<(&'p str, &'p str)> {
        let Node::Global(module, name) = self.node() else { return None };
        Some((self.at(*module).as_str()?, self.at(*name).as_str()?))
    }

    /// Whether it is `module.name`.
    pub fn is_global(self, module: &str, name: &str) -> bool {
        self.as_global() == Some((module, name))
    }

    /// What would be called to make it, and with what.
    pub fn call(self) -> Option<(Self, impl ExactSizeIterator<Item = Self>)> {
        let Node::Object(object) = self.node() else { return None };
        Some((self.at(object.callable), self.at(object.args).items()?))
    }

    /// What only who wrote the pickle can look up.
    pub fn as_persistent(self) -> Option<Self> {
        if let Node::Persistent(id) = self.node() { Some(self.at(*id)) } else { None }
    }

    /// What it is, for messages: `a list`, or `made by os.system`.
    pub fn describe(self) -> String {
        let plain = match self.node() {
            Node::None => "None",
            Node::Bool(_) => "a truth",
            Node::Int(_) | Node::Large => "a whole number",
            Node::Float(_) => "a number",
            Node::Text(_) => "a text",
            Node::Bytes(_) => "bytes",
            Node::List(_) => "a list",
            Node::Tuple(_) => "a tuple",
            Node::Set(_) => "a set",
            Node::Dict(_) => "a dict",
            Node::Persistent(_) => "a reference to something outside of the pickle",
            Node::Global(..) => return self.global_name(),
            Node::Object(object) => return format!("made by {}", self.at(object.callable).global_name()),
        };
        plain.to_string()
    }

    /// The dotted name of something of a module, or of the first such thing in a chain of calls.
    fn global_name(self) -> String {
        // A chain may be as long as the pickle, or a ring.
        let mut value = self;
        for _ in 0..16 {
            if let Some((module, name)) = value.as_global() {
                return format!("{}.{}", short(module), short(name));
            }
            // Old torch files refer to classes as to storages: a kind, the class, and more.
            let referred = value.as_persistent().and_then(Self::items).and_then(|mut parts| parts.nth(1));
            match (value.node(), referred) {
                (Node::Object(object), _) => value = self.at(object.callable),
                (_, Some(class)) => value = class,
                _ => return value.describe_plain(),
            }
        }
        "a chain of calls".to_string()
    }

    fn describe_plain(self) -> String {
        match self.node() {
            Node::Global(..) => "a global whose names are no texts".to_string(),
            _ => self.describe(),
        }
    }
}
