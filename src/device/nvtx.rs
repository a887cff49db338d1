//! Ranges that Nsight Systems shows above what the GPU did meanwhile.

use std::ffi::CString;
use std::marker::PhantomData;
use std::sync::OnceLock;

use cudarc::nvtx::sys;

use super::gpu::cuda::probe;

/// A range that ends when this is dropped, on the thread that began it.
pub struct Range {
    is_open: bool,
    /// Ranges nest per thread: one that began here does not end elsewhere.
    _here: PhantomData<*const ()>,
}

/// Begins a range. Nothing where there is no NVTX library, whose calls cost next to nothing unless a profiler listens.
pub fn range(name: impl std::fmt::Display) -> Range {
    let is_open = is_usable() && {
        let name = CString::new(name.to_string()).unwrap_or_default();
        // SAFETY: the library has the symbol, as was asked before; it copies the name.
        unsafe { sys::nvtxRangePushA(name.as_ptr()) };
        true
    };
    Range { is_open, _here: PhantomData }
}

impl Drop for Range {
    fn drop(&mut self) {
        if self.is_open {
            // SAFETY: as above; this thread has pushed what is popped.
            unsafe { sys::nvtxRangePop() };
        }
    }
}

/// Whether the library that cudarc would load is there and has what is called: cudarc panics if not.
fn is_usable() -> bool {
    static USABLE: OnceLock<bool> = OnceLock::new();
    *USABLE.get_or_init(|| probe::has("nvToolsExt", &["nvtxRangePushA", "nvtxRangePop"]).is_ok())
}

#[cfg(test)]
mod tests {
    use super::range;

    #[test]
    fn ranges_nest_whether_there_is_a_library_or_not() {
        let _epoch = range("epoch");
        for i in 0..3 {
            let _block = range(format_args!("block {i}\0"));
        }
    }
}
