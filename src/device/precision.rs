use super::DType;

/// What a network's matrices are multiplied in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// The type they are stored in.
    #[default]
    Stored,
    /// This half precision, to which those of other types are rounded when they are loaded.
    Half(DType),
    /// Single precision: halves and blocks are widened where they are used.
    Wide(Wide),
}

/// How numbers in single precision are multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wide {
    /// As they are.
    F32,
    /// Rounded to 10 bits of mantissa by the tensor cores of a GPU, and summed in f32. Other devices multiply them as they
    /// are.
    Tf32,
}

impl From<Option<DType>> for Precision {
    fn from(half: Option<DType>) -> Self {
        half.map_or(Self::Stored, Self::Half)
    }
}
