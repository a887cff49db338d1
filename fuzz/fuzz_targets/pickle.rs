//! A pickle, as a reward server or a torch file sends it: what is accepted can be looked at everywhere, in time and memory that its
//! length allows.
#![no_main]

use engine::io::pickle::{Pickle, Value};
use engine_fuzz::check;
use libfuzzer_sys::fuzz_target;

/// Values that are looked at: by reference there may be more than can be counted.
const MOST: usize = 1 << 12;

fn look(value: Value) -> Vec<Value> {
    let numbers = (value.as_bool(), value.as_int(), value.as_usize(), value.as_f64(), value.is_none());
    assert!(numbers.1.is_none() || numbers.3.is_some(), "a whole number is a number");
    assert!(!value.describe().is_empty());
    value.as_bytes();
    value.as_global();
    value.get("scores");
    let mut inner: Vec<Value> = value.items().into_iter().flatten().collect();
    inner.extend(value.entries().into_iter().flatten().flat_map(|(k, v)| [k, v]));
    inner.extend(value.call().into_iter().flat_map(|(callable, args)| std::iter::once(callable).chain(args)));
    inner.extend(value.as_persistent());
    inner
}

fuzz_target!(|data: &[u8]| {
    let Some((pickle, length)) = check(Pickle::read(data)) else { return };
    assert!((1..=data.len()).contains(&length));
    let (mut seen, mut next) = (0, vec![pickle.root()]);
    next.extend(pickle.persistent().take(MOST));
    while let Some(value) = next.pop().filter(|_| seen < MOST) {
        seen += 1;
        next.extend(look(value));
    }
});
