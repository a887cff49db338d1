use std::cell::Cell;

use rayon::prelude::*;

thread_local! {
    /// Threads that the piece of work at hand may use; 0 for all.
    static SHARE: Cell<usize> = const { Cell::new(0) };
}

/// Threads among which the calling one may divide its work: all, or the share of the
/// [piece](super::Device::side_by_side) it is at.
pub fn workers() -> usize {
    match SHARE.get() {
        0 => rayon::current_num_threads(),
        share => share,
    }
}

/// Runs `f` on `threads` worker threads (0 = one per core); more than help are not started. Results never depend on the
/// number.
///
/// # Errors
/// If the threads cannot be started.
pub fn with_threads<T: Send>(threads: usize, f: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
    /// However few cores there are, so many are started when they are asked for.
    const ALWAYS: usize = 8;
    let most = std::thread::available_parallelism().map_or(ALWAYS, |n| n.get().max(ALWAYS));
    Ok(rayon::ThreadPoolBuilder::new().num_threads(threads.min(most)).build()?.install(f))
}

/// `f` of every item, each on its share of the threads.
pub(super) fn share<I: Send, T: Send>(items: Vec<I>, f: impl Fn(I) -> T + Sync + Send) -> Vec<T> {
    let (all, pieces) = (workers(), items.len());
    if all == 1 || pieces <= 1 {
        return items.into_iter().map(f).collect();
    }
    let piece = |item| {
        let _share = Share::take((all / pieces).max(1));
        f(item)
    };
    items.into_par_iter().with_max_len(1).map(piece).collect()
}

/// Sets this thread's share while it lives.
struct Share(usize);

impl Share {
    fn take(threads: usize) -> Self {
        Self(SHARE.replace(threads))
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        SHARE.set(self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_come_back_in_order_and_each_has_its_share() {
        let run = |threads: usize, pieces: usize| {
            let seen = with_threads(threads, || share((0..pieces).collect(), |i: usize| (i, workers()))).unwrap();
            assert!(seen.iter().enumerate().all(|(at, (i, _))| at == *i));
            seen.into_iter().map(|(_, share)| share).collect::<Vec<_>>()
        };
        assert_eq!(run(1, 3), [1; 3]);
        assert_eq!(run(4, 1), [4]);
        assert_eq!(run(4, 2), [2; 2]);
        assert_eq!(run(2, 5), [1; 5]);
        assert_eq!(with_threads(3, workers).unwrap(), 3);
    }
}
