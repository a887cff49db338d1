use std::sync::{Arc, Mutex};

use super::work::{Log, Work, Works};
use super::{arena, workers};

/// The most memory that was reserved at once during one part of some work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Phase {
    /// What the work was.
    pub name: &'static str,
    /// Bytes of tensors at the highest moment, with those that were there before.
    pub tensors: u64,
    /// Bytes of tensors and host copies together at the highest moment.
    pub total: u64,
    /// Bytes of tensors at its end, as far as another has begun.
    pub left: u64,
    /// Bytes of files that were mapped.
    pub mapped: u64,
}

/// The books of a device that only counts: bytes reserved now, and the high-water mark of every phase.
#[derive(Debug, Default)]
pub struct Ledger {
    books: Mutex<Books>,
}

#[derive(Debug, Default)]
struct Books {
    live: u64,
    /// The most that was live since the innermost [`Ledger::beside`] began.
    mark: u64,
    phases: Vec<Phase>,
    log: Log,
}

impl Ledger {
    /// Begins phase `name`; one of that name that came before goes on.
    pub fn begin(&self, name: &'static str) {
        let books = &mut *self.books();
        let live = books.live;
        if let Some(phase) = books.phases.last_mut() {
            phase.left = live;
        }
        let phase = match books.phases.iter().position(|p| p.name == name) {
            Some(at) => books.phases.remove(at),
            None => Phase { name, tensors: 0, total: 0, left: 0, mapped: 0 },
        };
        books.phases.push(phase);
        books.note(0);
    }

    /// Bytes of tensors reserved now.
    pub fn live(&self) -> u64 {
        self.books().live
    }

    /// All phases, the latest last.
    pub fn phases(&self) -> Vec<Phase> {
        self.books().phases.clone()
    }

    /// Counts host memory of `bytes` that is needed for a moment beside what is reserved.
    pub fn touch(&self, bytes: u64) {
        self.books().note(bytes);
    }

    /// `f` of every item, one after another, counted as if workers had as many at hand as there are.
    pub(super) fn side_by_side<I, T>(self: &Arc<Self>, items: Vec<I>, f: impl Fn(I) -> T) -> Vec<T> {
        let others = workers().min(items.len()).saturating_sub(1) as u64;
        let mut most = 0;
        let mut held = None;
        let piece = |item| {
            let (value, beside) = self.beside(|| f(item));
            // Not the first one's: pieces that keep little may have more at hand than those that come before them.
            if beside > most {
                most = beside;
                held = None;
                held.get_or_insert_with(|| Reserved::exactly(self, others * most));
            }
            value
        };
        items.into_iter().map(piece).collect()
    }

    /// What `f` gives, and how many bytes it had at its highest moment beside what is left.
    pub(super) fn beside<T>(&self, f: impl FnOnce() -> T) -> (T, u64) {
        let outer = {
            let books = &mut *self.books();
            std::mem::replace(&mut books.mark, books.live)
        };
        let value = f();
        let books = &mut *self.books();
        let beside = books.mark - books.live;
        books.mark = books.mark.max(outer);
        (value, beside)
    }

    /// What was done since this was last called.
    pub fn take_work(&self) -> Works {
        self.books().log.take()
    }

    /// From now on what is done counts `times` as often as before; gives how often it did.
    pub(super) fn count(&self, times: u64) -> u64 {
        let log = &mut self.books().log;
        log.count(log.times() * times)
    }

    /// From now on what is done counts `times`; gives how often it did.
    pub(super) fn count_as(&self, times: u64) -> u64 {
        self.books().log.count(times)
    }

    pub(super) fn begin_op(&self, op: &'static str, works: Vec<Work>) {
        self.books().log.begin(op, works);
    }

    /// An op that launches nothing has done `works`.
    pub(crate) fn did(&self, op: &'static str, works: Vec<Work>) {
        self.begin_op(op, works);
        self.end_op();
    }

    pub(super) fn end_op(&self) {
        let books = &mut *self.books();
        books.log.end(books.phase());
    }

    /// A tensor goes to a kernel that is about to be launched.
    pub(super) fn pass(&self, at: u64, bytes: usize, is_written: bool) {
        self.books().log.pass(at, bytes, is_written);
    }

    /// A kernel is launched, or `bytes` are copied or set.
    pub(super) fn launch(&self, op: &'static str, kernel: &str, in_region: bool, bytes: Option<usize>) {
        let books = &mut *self.books();
        books.log.launch(books.phase(), op, kernel, in_region, bytes);
    }

    /// The host waits for the device.
    pub(super) fn wait(&self) {
        let books = &mut *self.books();
        books.log.wait(books.phase());
    }

    pub(super) fn map(&self, bytes: u64) {
        if let Some(phase) = self.books().phases.last_mut() {
            phase.mapped += bytes;
        }
    }

    fn books(&self) -> std::sync::MutexGuard<'_, Books> {
        self.books.lock().expect("nothing panics while holding it")
    }
}

impl Books {
    /// The phase at hand.
    fn phase(&self) -> &'static str {
        self.phases.last().map_or("", |p| p.name)
    }

    fn note(&mut self, beside: u64) {
        self.mark = self.mark.max(self.live);
        if let Some(phase) = self.phases.last_mut() {
            phase.tensors = phase.tensors.max(self.live);
            phase.total = phase.total.max(self.live + beside);
        }
    }
}

/// Memory that a planned tensor would take.
pub(super) struct Reserved {
    ledger: Arc<Ledger>,
    bytes: u64,
}

impl Reserved {
    pub(super) fn new(ledger: &Arc<Ledger>, bytes: usize) -> Self {
        Self::exactly(ledger, arena::taken(bytes) as u64)
    }

    pub(super) fn exactly(ledger: &Arc<Ledger>, bytes: u64) -> Self {
        let books = &mut *ledger.books();
        books.live += bytes;
        books.note(0);
        Self { ledger: ledger.clone(), bytes }
    }

    pub(super) fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.ledger.books().live -= self.bytes;
    }
}

#[cfg(test)]
mod tests {
    use crate::device::{Device, Tensor, with_threads};

    #[test]
    fn a_phase_counts_what_was_there_before_and_its_own_highest_moment() {
        let (device, ledger) = Device::plan();
        ledger.begin("first");
        let kept = Tensor::scratch(&device, &[1 << 16]);
        drop(Tensor::scratch(&device, &[1 << 18]));
        ledger.begin("second");
        drop(Tensor::scratch(&device, &[1 << 17]));
        ledger.touch(1 << 21);
        let mib = |n: u64| n << 18;
        let want = [("first", mib(5), mib(5)), ("second", mib(3), mib(9))];
        let got: Vec<_> = ledger.phases().iter().map(|p| (p.name, p.tensors, p.total)).collect();
        assert_eq!(got, want);
        assert_eq!(ledger.live(), mib(1));
        drop(kept);
        assert_eq!(ledger.live(), 0);
    }

    #[test]
    fn pieces_side_by_side_are_counted_at_once() {
        let (device, ledger) = Device::plan();
        ledger.begin("pieces");
        let piece = |kept: usize| {
            drop(Tensor::scratch(&device, &[1 << 18]));
            Tensor::scratch(&device, &[kept])
        };
        let kept = with_threads(3, || device.side_by_side(vec![1 << 16; 4], piece)).unwrap();
        let quarters = |n: u64| n << 18;
        assert_eq!(ledger.live(), quarters(4));
        // Beside the quarter of a MiB that it keeps, each of three pieces has three more for a moment; the last begins when
        // three have been kept.
        assert_eq!(ledger.phases()[0].tensors, quarters(3) + 2 * quarters(3) + quarters(4));
        drop(kept);
        assert_eq!(ledger.live(), 0);
    }

    #[test]
    fn the_largest_piece_is_what_others_may_have_at_hand_too() {
        let (device, ledger) = Device::plan();
        ledger.begin("pieces");
        let piece = |scratch: usize| drop(Tensor::scratch(&device, &[scratch]));
        with_threads(2, || device.side_by_side(vec![1 << 16, 1 << 18, 1 << 18], piece)).unwrap();
        assert_eq!(ledger.phases()[0].tensors, 2 << 20);
    }

    #[test]
    fn views_reserve_nothing_and_keep_what_they_are_views_of() {
        let (device, ledger) = Device::plan();
        let view = Tensor::scratch(&device, &[4, 1 << 16]).slice(1..2);
        assert_eq!((view.shape(), ledger.live()), (&[1, 1 << 16][..], 1 << 20));
        drop(view);
        assert_eq!(ledger.live(), 0);
    }
}
