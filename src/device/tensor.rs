use std::sync::Arc;

use super::pool::Buffer;

/// A contiguous row-major `f32` tensor. Cloning shares the buffer; writing to a shared one copies it first.
#[derive(Clone)]
pub struct Tensor {
    buffer: Arc<Buffer>,
    shape: Vec<usize>,
}

impl Tensor {
    /// A tensor whose content is arbitrary: for outputs that are overwritten whole.
    pub fn scratch(shape: &[usize]) -> Self {
        Self { buffer: Arc::new(Buffer::take(shape.iter().product())), shape: shape.to_vec() }
    }

    /// A tensor of zeros.
    pub fn zeros(shape: &[usize]) -> Self {
        let mut t = Self::scratch(shape);
        t.data_mut().fill(0.0);
        t
    }

    /// A tensor holding a copy of `data`, which must have exactly as many elements as `shape`.
    pub fn from_slice(data: &[f32], shape: &[usize]) -> Self {
        let mut t = Self::scratch(shape);
        t.data_mut().copy_from_slice(data);
        t
    }

    /// The sizes of the axes, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Size of axis `axis`.
    pub fn dim(&self, axis: usize) -> usize {
        self.shape[axis]
    }

    /// Size of the last axis.
    pub fn width(&self) -> usize {
        *self.shape.last().expect("a tensor has at least one axis")
    }

    /// Number of rows when all axes but the last are folded into one.
    pub fn rows(&self) -> usize {
        self.len() / self.width().max(1)
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements, row-major.
    pub fn data(&self) -> &[f32] {
        self.buffer.as_slice()
    }

    /// The elements for writing; copies them first if another tensor shares the buffer.
    pub fn data_mut(&mut self) -> &mut [f32] {
        if Arc::get_mut(&mut self.buffer).is_none() {
            let mut own = Buffer::take(self.len());
            own.as_mut_slice().copy_from_slice(self.buffer.as_slice());
            self.buffer = Arc::new(own);
        }
        Arc::get_mut(&mut self.buffer).expect("unique by now").as_mut_slice()
    }

    /// The same elements under another shape with the same number of them.
    pub fn reshape(mut self, shape: &[usize]) -> Self {
        assert_eq!(shape.iter().product::<usize>(), self.len(), "reshape {:?} to {shape:?}", self.shape);
        self.shape = shape.to_vec();
        self
    }

    /// A copy of the outermost entries `range`.
    pub fn slice(&self, range: std::ops::Range<usize>) -> Self {
        let inner: usize = self.shape[1..].iter().product();
        let mut shape = self.shape.clone();
        shape[0] = range.len();
        Self::from_slice(&self.data()[range.start * inner..range.end * inner], &shape)
    }

    /// The outermost entries `rows`, in that order.
    pub fn gather(&self, rows: &[usize]) -> Self {
        let inner: usize = self.shape[1..].iter().product();
        let mut shape = self.shape.clone();
        shape[0] = rows.len();
        let mut out = Self::scratch(&shape);
        for (out, row) in out.data_mut().chunks_exact_mut(inner.max(1)).zip(rows) {
            out.copy_from_slice(&self.data()[row * inner..(row + 1) * inner]);
        }
        out
    }

    /// The tensors one after another along the outermost axis; all other axes must agree.
    pub fn concat(parts: &[&Tensor]) -> Self {
        let mut shape = parts[0].shape.clone();
        shape[0] = parts.iter().map(|p| p.shape[0]).sum();
        let mut out = Self::scratch(&shape);
        let mut rest = out.data_mut();
        for p in parts {
            assert_eq!(p.shape[1..], parts[0].shape[1..], "concat of unlike shapes");
            let (head, tail) = rest.split_at_mut(p.len());
            head.copy_from_slice(p.data());
            rest = tail;
        }
        out
    }
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tensor{:?}", self.shape)
    }
}
