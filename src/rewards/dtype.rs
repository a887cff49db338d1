use super::{Key, Options};
use crate::device::{DType, Precision, Wide};

/// What the matrices of a reward's network are multiplied in; everything else is in f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dtype {
    /// f32, whatever they are stored in.
    #[default]
    F32,
    /// bf16, to which those of other types are rounded.
    Bf16,
}

impl Dtype {
    /// The key that says it.
    pub const KEY: Key = Key::choice("dtype", &["f32", "bf16"]);

    /// What [`Dtype::KEY`] says.
    pub fn of(options: &Options) -> Self {
        if options.choice(Self::KEY.name) == "bf16" { Self::Bf16 } else { Self::F32 }
    }

    /// The same for whoever loads a network.
    pub fn precision(self) -> Precision {
        match self {
            Self::F32 => Precision::Wide(Wide::F32),
            Self::Bf16 => Precision::Half(DType::Bf16),
        }
    }
}
