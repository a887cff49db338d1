//! What a plan of a GPU notes beside memory: the work of every op, from which a time can be predicted.

use std::collections::{BTreeMap, HashSet};

use super::DType;

/// What computes, as far as it decides how fast that is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Elements that come, are changed and go.
    #[default]
    Stream,
    /// `[m, n, k]`: `m·n` sums of `k` products.
    Product,
    /// `[rows, n, k]`: `n·k` sums over the rows, in parts.
    RowSum,
    /// `[sequences, tokens, width]`, a sequence being one head of one sample.
    Attention,
    /// The gradient of [`Kind::Attention`].
    AttentionGrad,
    /// `[pixels, out, window·in]`.
    Convolution,
}

/// The work of a pass over some operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Work {
    /// What computes.
    pub kind: Kind,
    /// The type of the numbers that are multiplied.
    pub dtype: DType,
    /// Multiplications and additions of the formula, where they are those of matrix products.
    pub flops: u64,
    /// Exponentials, where they matter: one per score of attention.
    pub exps: u64,
    /// Bytes of operands: each is read once as long as caches hold what comes again.
    pub read: u64,
    /// Bytes of results.
    pub written: u64,
    /// As [`Kind`] says.
    pub shape: [usize; 3],
}

impl Work {
    /// Of bytes alone.
    pub fn stream(read: usize, written: usize) -> Self {
        let (read, written) = (read as u64, written as u64);
        Self { kind: Kind::Stream, dtype: DType::F32, flops: 0, exps: 0, read, written, shape: [0; 3] }
    }

    /// Of products of operands of `dtype`.
    pub fn of(kind: Kind, dtype: DType, shape: [usize; 3]) -> Self {
        let [a, b, c] = shape.map(|s| s as u64);
        let (flops, exps) = match kind {
            Kind::Stream => (0, 0),
            Kind::Product | Kind::RowSum | Kind::Convolution => (2 * a * b * c, 0),
            // Scores and results are one product each; their gradients are five with the scores again.
            Kind::Attention => (4 * a * b * b * c, a * b * b),
            Kind::AttentionGrad => (10 * a * b * b * c, a * b * b),
        };
        Self { kind, dtype, flops, exps, shape, ..Self::stream(0, 0) }
    }

    /// The same with bytes.
    pub fn moving(self, read: usize, written: usize) -> Self {
        Self { read: read as u64, written: written as u64, ..self }
    }
}

/// Something that was done, in equal form perhaps often.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Done {
    /// The part of the run.
    pub phase: &'static str,
    /// The op and its direction, such as `linear::forward`.
    pub op: &'static str,
    /// The entry that was launched, the last if there were several.
    pub kernel: String,
    /// What it was.
    pub work: Work,
    /// Launches one by one, and times that the host waited.
    pub direct: u64,
    /// Launches in regions, which are replayed as graphs.
    pub replayed: u64,
    /// How often the host waited for a result.
    pub waits: u64,
}

/// All that was done, with how often.
pub type Works = BTreeMap<Done, u64>;

/// An op that is being done.
struct Doing {
    op: &'static str,
    /// As its contract says; empty if it leaves that to the tensors that its launches get.
    works: Vec<Work>,
    kernel: String,
    direct: u64,
    replayed: u64,
}

/// The books of work.
#[derive(Default)]
pub(super) struct Log {
    done: Works,
    doing: Vec<Doing>,
    /// Bytes of tensors that were passed since the last launch: read and written.
    passed: [u64; 2],
    seen: HashSet<(u64, usize, bool)>,
    /// What stands for how many times itself, less one.
    more: u64,
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} kinds of work", self.done.len())
    }
}

impl Log {
    /// From now on what is done counts `times`; gives what held before.
    pub fn count(&mut self, times: u64) -> u64 {
        std::mem::replace(&mut self.more, times - 1) + 1
    }

    /// How often what is done counts.
    pub fn times(&self) -> u64 {
        self.more + 1
    }

    pub fn begin(&mut self, op: &'static str, works: Vec<Work>) {
        self.doing.push(Doing { op, works, kernel: String::new(), direct: 0, replayed: 0 });
    }

    pub fn end(&mut self, phase: &'static str) {
        let Some(Doing { op, works, kernel, direct, replayed }) = self.doing.pop() else { return };
        // The launches are those of the whole op: counted with its first part.
        let mut launches = (direct, replayed);
        for work in works {
            let (direct, replayed) = std::mem::take(&mut launches);
            self.note(Done { phase, op, kernel: kernel.clone(), work, direct, replayed, waits: 0 });
        }
    }

    /// A tensor goes to a kernel that is about to be launched.
    pub fn pass(&mut self, at: u64, bytes: usize, is_written: bool) {
        if self.seen.insert((at, bytes, is_written)) {
            self.passed[usize::from(is_written)] += bytes as u64;
        }
    }

    /// A launch, in a region or out of one, that moves `bytes` if it is not a kernel.
    pub fn launch(
        &mut self,
        phase: &'static str,
        op: &'static str,
        kernel: &str,
        in_region: bool,
        bytes: Option<usize>,
    ) {
        let [read, written] = std::mem::take(&mut self.passed);
        self.seen.clear();
        let (direct, replayed) = if in_region { (0, 1) } else { (1, 0) };
        let op = match self.doing.last_mut() {
            Some(doing) if !doing.works.is_empty() => {
                doing.kernel = kernel.to_string();
                doing.direct += direct;
                doing.replayed += replayed;
                return;
            }
            Some(doing) => doing.op,
            None => op,
        };
        let work = match bytes {
            Some(bytes) => Work::stream(bytes, bytes),
            None => Work { read, written, ..Work::stream(0, 0) },
        };
        self.note(Done { phase, op, kernel: kernel.to_string(), work, direct, replayed, waits: 0 });
    }

    /// The host waits for bytes.
    pub fn wait(&mut self, phase: &'static str) {
        let work = Work::stream(0, 0);
        self.note(Done { phase, op: "read", kernel: String::new(), work, direct: 0, replayed: 0, waits: 1 });
    }

    /// What was done since this was last called.
    pub fn take(&mut self) -> Works {
        std::mem::take(&mut self.done)
    }

    fn note(&mut self, done: Done) {
        *self.done.entry(done).or_default() += self.more + 1;
    }
}
