//! Instructions that kernels take, as the interpreter has counted them.

use std::collections::HashMap;
use std::sync::LazyLock;

/// By entry, at the shapes of the exercises.
static PER_BYTE: LazyLock<HashMap<&str, f64>> = LazyLock::new(|| {
    let line = |line: &'static str| {
        let (entry, counts) = line.split_once(": ")?;
        let of = |name: &str| {
            let count = counts.split(", ").find_map(|c| c.strip_prefix(name)?.trim().parse::<f64>().ok());
            count.unwrap_or(0.0)
        };
        let bytes = of("global_read ") + of("global_written ");
        (bytes > 0.0).then(|| (entry, of("instructions ") / bytes))
    };
    include_str!("../exercises/counts.txt").lines().filter_map(line).collect()
});

/// Instructions of warps per byte of global memory.
pub fn per_byte(entry: &str) -> Option<f64> {
    PER_BYTE.get(entry).copied()
}
