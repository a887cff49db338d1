//! The driver of NVIDIA GPUs, through cudarc's raw calls: the seam is untyped, and its arguments, tensor maps and graphs have no
//! safe counterpart there.
//!
//! Memory comes from `cuMemAlloc` and not from a stream-ordered pool: the pool above asks the driver only until a run is in its
//! stride, addresses in recorded graphs must stay, and what is allocated so may be used on both streams.
//!
//! The primary context is never released. It goes with the process; a static that outlives it cannot fail then.

mod pinned;
pub mod probe;

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::{null, null_mut};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, anyhow, bail};
use cudarc::driver::sys;

use pinned::Ring;
pub use probe::Unusable;

use super::cublaslt::Library;
use super::driver::{
    Arg, DevicePtr, Driver, Facts, Function, FunctionInfo, Graph, Launch, Op, Swizzle, TensorMap, TensorMapDesc,
};
use crate::device::{DType, bytes};

/// Calls a function of the driver, which [`probe::SYMBOLS`] must list.
macro_rules! cu {
    ($name:ident($($arg:expr),* $(,)?)) => {
        // SAFETY: the probe has found the symbol. Handles come from the driver and live until the `Cuda` is dropped; pointers
        // are to live variables of the type in cuda.h, or to memory that the device or the pinned ring owns.
        $crate::device::gpu::cuda::check(stringify!($name), unsafe { cudarc::driver::sys::$name($($arg),*) })
    };
}
use cu;

/// `Ok`, or the driver's own words.
fn check(what: &str, code: sys::CUresult) -> Result<()> {
    if code == sys::CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let (mut name, mut text): (*const c_char, *const c_char) = (null(), null());
    // SAFETY: the probe has found both; they give a static string or leave null.
    let [name, text] = unsafe {
        let _ = (sys::cuGetErrorName(code, &mut name), sys::cuGetErrorString(code, &mut text));
        [name, text].map(|t| if t.is_null() { "unknown".into() } else { CStr::from_ptr(t).to_string_lossy() })
    };
    bail!("{what}: {name} ({text})")
}

/// Shared memory of a block that needs no asking for.
const UNASKED: u32 = 48 << 10;
/// What kernels, their local memory, graphs and tables take at most: less free memory than this runs nothing.
pub(super) const LEAST: u64 = 512 << 20;
/// Room for what the compiler of PTX has to say.
const LOG: usize = 8 << 10;

thread_local! {
    /// The device whose side stream this thread's work goes to, if it has forked.
    static ASIDE: Cell<*const Cuda> = const { Cell::new(null()) };
}

/// A GPU.
pub struct Cuda {
    facts: Facts,
    /// The most shared memory that a block may ask for.
    most_shared: u32,
    context: sys::CUcontext,
    main: Lane,
    side: Lane,
    /// Work is recorded here, one list at a time, and done elsewhere.
    recorder: Mutex<sys::CUstream>,
    /// A point of one stream that the other waits for.
    fence: sys::CUevent,
    state: Mutex<State>,
    /// What multiplies, once it is asked for.
    library: Mutex<Option<Library>>,
}

/// A stream, and the way into it and out of it.
struct Lane {
    stream: sys::CUstream,
    ring: Mutex<Ring>,
}

#[derive(Default)]
struct State {
    modules: Vec<(&'static str, sys::CUmodule)>,
    functions: Vec<Loaded>,
    known: HashMap<(&'static str, String), Function>,
    graphs: Vec<sys::CUgraphExec>,
    marks: Vec<sys::CUevent>,
    memory: HashSet<DevicePtr>,
}

#[derive(Clone)]
struct Loaded {
    function: sys::CUfunction,
    entry: String,
    /// The dynamic shared memory that has been asked for.
    shared: u32,
}

// SAFETY: the driver's handles may be used from any thread in which the context is current, which every call sees to.
unsafe impl Send for Cuda {}
// SAFETY: as above, and the driver itself is thread-safe; what is ours is behind locks.
unsafe impl Sync for Cuda {}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Cuda {
    /// The device of this number.
    ///
    /// # Errors
    /// Says in one line what was found and what is needed.
    pub fn open(ordinal: u32) -> Result<Self, Unusable> {
        let facts = probe::driver()?.device(ordinal)?.clone();
        let name = facts.name.clone();
        guarded(|| Self::create(ordinal, facts)).map_err(|e| Unusable::new(format!("device {ordinal} ({name}): {e:#}")))
    }

    fn create(ordinal: u32, facts: Facts) -> Result<Self> {
        let (mut device, mut context, mut most_shared) = (0, null_mut(), 0);
        cu!(cuInit(0))?;
        cu!(cuDeviceGet(&mut device, ordinal as c_int))?;
        let optin = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
        cu!(cuDeviceGetAttribute(&mut most_shared, optin, device))?;
        cu!(cuDevicePrimaryCtxRetain(&mut context, device)).context(
            "no context can be made; expected a device that is free (not in exclusive use) and has memory left",
        )?;
        cu!(cuCtxSetCurrent(context))?;
        let stream = || {
            let mut stream = null_mut();
            // Not the legacy stream, and not held up by it.
            cu!(cuStreamCreate(&mut stream, sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32))?;
            Ok::<_, anyhow::Error>(stream)
        };
        let lane = || Ok::<_, anyhow::Error>(Lane { stream: stream()?, ring: Mutex::default() });
        let cuda = Self {
            facts,
            most_shared: most_shared as u32,
            context,
            main: lane()?,
            side: lane()?,
            recorder: Mutex::new(stream()?),
            fence: event(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)?,
            state: Mutex::default(),
            library: Mutex::default(),
        };
        let free = cuda.free_memory()?;
        if free < LEAST {
            let [free, all, least] = [free, cuda.facts.memory, LEAST].map(bytes);
            bail!("{free} of {all} are free, at least {least} are needed; nvidia-smi says what takes the rest");
        }
        Ok(cuda)
    }

    /// Makes the context this thread's.
    fn bind(&self) -> Result<()> {
        cu!(cuCtxSetCurrent(self.context))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Where this thread's work goes.
    fn lane(&self) -> &Lane {
        if std::ptr::eq(ASIDE.get(), self) { &self.side } else { &self.main }
    }

    fn submit_to(&self, stream: sys::CUstream, op: &Op) -> Result<()> {
        match op {
            Op::Launch(launch) => self.launch(stream, launch),
            Op::Product(product) => {
                let library = &mut *lock(&self.library);
                let side = usize::from(std::ptr::eq(self.lane(), &self.side));
                library.as_mut().context("no library has been prepared")?.run(product, side, stream.cast())
            }
            Op::Copy { to, from, bytes } => cu!(cuMemcpyDtoDAsync_v2(*to, *from, *bytes, stream)),
            Op::Forget { .. } => Ok(()),
            Op::Fill { to, bytes, byte } => cu!(cuMemsetD8Async(*to, *byte, *bytes, stream)),
        }
    }

    fn launch(&self, stream: sys::CUstream, launch: &Launch) -> Result<()> {
        let Launch { function, grid: [x, y, z], block: [bx, by, bz], shared, args } = launch;
        let handle = self.loaded(*function)?.function;
        let mut args: Vec<*mut c_void> = args.iter().map(address).collect();
        // The driver copies the arguments before it returns, and writes to none.
        cu!(cuLaunchKernel(handle, *x, *y, *z, *bx, *by, *bz, *shared, stream, args.as_mut_ptr(), null_mut()))
            .with_context(|| {
                let entry = self.loaded(*function).map(|f| f.entry).unwrap_or_default();
                format!("{entry} on {x}x{y}x{z} blocks of {bx}x{by}x{bz} threads with {shared} bytes of shared memory")
            })
    }

    fn loaded(&self, function: Function) -> Result<Loaded> {
        self.state().functions.get(function.0 as usize).cloned().context("a kernel that was not loaded here")
    }
}

/// Where the driver finds the value of an argument.
fn address(arg: &Arg) -> *mut c_void {
    match arg {
        Arg::Ptr(v) | Arg::U64(v) => std::ptr::from_ref(v).cast_mut().cast(),
        Arg::U32(v) => std::ptr::from_ref(v).cast_mut().cast(),
        Arg::I32(v) => std::ptr::from_ref(v).cast_mut().cast(),
        Arg::F32(v) => std::ptr::from_ref(v).cast_mut().cast(),
        Arg::Map(map) => std::ptr::from_ref(map).cast_mut().cast(),
        Arg::Bytes(bytes) => bytes.as_ptr().cast_mut().cast(),
    }
}

/// An event that only orders, or one that also knows when it came by.
fn event(flags: sys::CUevent_flags) -> Result<sys::CUevent> {
    let mut event = null_mut();
    cu!(cuEventCreate(&mut event, flags as u32))?;
    Ok(event)
}

/// `f`, whose panic is an error: cudarc has nothing else for what is missing. The probe should have seen it before.
fn guarded<T>(f: impl FnOnce() -> Result<T>) -> Result<T> {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let done = catch_unwind(AssertUnwindSafe(f));
    std::panic::set_hook(hook);
    done.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        Err(anyhow!("the driver could not be used: {}", text.unwrap_or("for no reason that was given")))
    })
}

/// Compiles PTX for the device that is current.
fn compile(file: &str, ptx: &str) -> Result<sys::CUmodule> {
    use sys::CUjit_option::{CU_JIT_ERROR_LOG_BUFFER, CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES, CU_JIT_GENERATE_LINE_INFO};
    let text = CString::new(ptx).with_context(|| format!("{file}: PTX with a zero in it"))?;
    let (mut log, mut module) = (vec![0u8; LOG], null_mut());
    // Profilers show lines of the source where the PTX has them.
    let lines = usize::from(ptx.contains("\t.loc\t"));
    let mut options = [CU_JIT_ERROR_LOG_BUFFER, CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES, CU_JIT_GENERATE_LINE_INFO];
    // A number is passed where other options have a pointer.
    let mut values = [log.as_mut_ptr().cast::<c_void>(), LOG as *mut c_void, lines as *mut c_void];
    let count = options.len() as u32;
    let (options, values) = (options.as_mut_ptr(), values.as_mut_ptr());
    cu!(cuModuleLoadDataEx(&mut module, text.as_ptr().cast(), count, options, values)).map_err(|e| {
        let log = CStr::from_bytes_until_nul(&log).unwrap_or_default().to_string_lossy();
        anyhow!("{file}: {e:#}: {}", log.split_whitespace().collect::<Vec<_>>().join(" "))
    })?;
    Ok(module)
}

impl Driver for Cuda {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn free_memory(&self) -> Result<u64> {
        let (mut free, mut total) = (0, 0);
        self.bind()?;
        cu!(cuMemGetInfo_v2(&mut free, &mut total))?;
        Ok(free as u64)
    }

    fn overhead(&self) -> u64 {
        LEAST
    }

    fn alloc(&self, size: usize) -> Result<DevicePtr> {
        let mut ptr = 0;
        self.bind()?;
        cu!(cuMemAlloc_v2(&mut ptr, size)).map_err(|e| {
            let free = self.free_memory().unwrap_or(0);
            let [size, free, all] = [size as u64, free, self.facts.memory].map(bytes);
            anyhow!("{size} were asked for, {free} of {all} are free: {e:#}")
        })?;
        self.state().memory.insert(ptr);
        Ok(ptr)
    }

    fn free(&self, ptr: DevicePtr) {
        if self.state().memory.remove(&ptr) {
            // A device that has failed says so elsewhere.
            let _ = self.bind().and_then(|()| cu!(cuMemFree_v2(ptr)));
        }
    }

    fn write(&self, to: DevicePtr, data: &[u8]) -> Result<()> {
        self.bind()?;
        let lane = self.lane();
        lock(&lane.ring).write(lane.stream, to, data)
    }

    fn read(&self, from: DevicePtr, out: &mut [u8]) -> Result<()> {
        self.bind()?;
        let lane = self.lane();
        lock(&lane.ring).read(lane.stream, from, out)
    }

    fn synchronize(&self) -> Result<()> {
        self.bind()?;
        [&self.main, &self.side].into_iter().try_for_each(|lane| cu!(cuStreamSynchronize(lane.stream)))
    }

    fn function(&self, file: &'static str, ptx: &'static str, entry: &str, shared: u32) -> Result<Function> {
        use sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        self.bind()?;
        let state = &mut *self.state();
        let key = (file, entry.to_string());
        let known = match state.known.get(&key) {
            Some(known) => *known,
            None => {
                let module = match state.modules.iter().find(|(name, _)| *name == file) {
                    Some((_, module)) => *module,
                    None => {
                        let module = compile(file, ptx)?;
                        state.modules.push((file, module));
                        module
                    }
                };
                let (mut function, name) = (null_mut(), CString::new(entry)?);
                cu!(cuModuleGetFunction(&mut function, module, name.as_ptr()))
                    .with_context(|| format!("{file} has no entry {entry}"))?;
                // Not at the first launch, which may be one that is being recorded.
                cu!(cuFuncLoad(function)).with_context(|| entry.to_string())?;
                state.functions.push(Loaded { function, entry: key.1.clone(), shared: 0 });
                let known = Function(state.functions.len() as u32 - 1);
                state.known.insert(key, known);
                known
            }
        };
        let loaded = &mut state.functions[known.0 as usize];
        if shared > loaded.shared {
            if shared > UNASKED {
                let most = self.most_shared;
                cu!(cuFuncSetAttribute(
                    loaded.function,
                    CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                    shared as c_int
                ))
                .with_context(|| format!("{entry} needs {shared} bytes of shared memory, the device has {most}"))?;
            }
            loaded.shared = shared;
        }
        Ok(known)
    }

    fn prepare_products(&self) -> Result<()> {
        let library = &mut *lock(&self.library);
        if library.is_none() {
            self.bind()?;
            *library = Some(Library::open(|bytes| self.alloc(bytes))?);
        }
        Ok(())
    }

    fn tensor_map(&self, desc: &TensorMapDesc) -> Result<TensorMap> {
        use sys::{CUtensorMapDataType as Type, CUtensorMapSwizzle as Pattern};
        let dtype = match desc.dtype {
            DType::F32 => Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
            DType::F16 => Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
            DType::Bf16 => Type::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            DType::U8 => Type::CU_TENSOR_MAP_DATA_TYPE_UINT8,
            DType::Blocks(_) => bail!("tensor map: blocks are not elements"),
        };
        let swizzle = match desc.swizzle {
            Swizzle::None => Pattern::CU_TENSOR_MAP_SWIZZLE_NONE,
            Swizzle::B32 => Pattern::CU_TENSOR_MAP_SWIZZLE_32B,
            Swizzle::B64 => Pattern::CU_TENSOR_MAP_SWIZZLE_64B,
            Swizzle::B128 => Pattern::CU_TENSOR_MAP_SWIZZLE_128B,
        };
        self.bind()?;
        let mut map = sys::CUtensorMap { opaque: [0; 16] };
        cu!(cuTensorMapEncodeTiled(
            &mut map,
            dtype,
            desc.dims.len() as u32,
            desc.base as *mut c_void,
            desc.dims.as_ptr(),
            desc.strides.as_ptr(),
            desc.tile.as_ptr(),
            desc.steps.as_ptr(),
            sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            swizzle,
            sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            // What lies outside reads as zero.
            sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        ))
        .with_context(|| format!("{desc:?}"))?;
        Ok(TensorMap(map.opaque))
    }

    fn submit(&self, op: &Op) -> Result<()> {
        self.bind()?;
        self.submit_to(self.lane().stream, op)
    }

    fn capture(&self, ops: &[Op]) -> Result<Graph> {
        // Other threads may meanwhile do what a recording stream may not.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.bind()?;
        let (mut graph, mut runnable) = (null_mut(), null_mut());
        let recorder = lock(&self.recorder);
        cu!(cuStreamBeginCapture_v2(*recorder, mode))?;
        let recorded = ops.iter().try_for_each(|op| self.submit_to(*recorder, op));
        // Also after a failure: the stream is of no use before.
        let ended = cu!(cuStreamEndCapture(*recorder, &mut graph));
        drop(recorder);
        let made = recorded.and(ended).and_then(|()| cu!(cuGraphInstantiateWithFlags(&mut runnable, graph, 0)));
        if !graph.is_null() {
            let destroyed = cu!(cuGraphDestroy(graph));
            made.and(destroyed)?;
        } else {
            made?;
        }
        let state = &mut *self.state();
        state.graphs.push(runnable);
        Ok(Graph(state.graphs.len() as u32 - 1))
    }

    fn replay(&self, graph: Graph) -> Result<()> {
        let known = self.state().graphs.get(graph.0 as usize).copied();
        let graph = known.filter(|g| !g.is_null()).context("a graph that was not captured here")?;
        self.bind()?;
        cu!(cuGraphLaunch(graph, self.lane().stream))
    }

    fn discard(&self, graph: Graph) {
        let known = self.state().graphs.get_mut(graph.0 as usize).map(|graph| std::mem::replace(graph, null_mut()));
        if let Some(graph) = known.filter(|graph| !graph.is_null()) {
            // One that runs goes when it is done. A device that has failed says so elsewhere.
            let _ = self.bind().and_then(|()| cu!(cuGraphExecDestroy(graph)));
        }
    }

    fn fork(&self) -> Result<()> {
        self.bind()?;
        self.follow(&self.side, &self.main)?;
        ASIDE.set(self);
        Ok(())
    }

    fn join(&self) -> Result<()> {
        ASIDE.set(null());
        self.bind()?;
        self.follow(&self.main, &self.side)
    }

    fn mark(&self, mark: usize) -> Result<()> {
        self.bind()?;
        let state = &mut *self.state();
        while state.marks.len() <= mark {
            state.marks.push(event(sys::CUevent_flags::CU_EVENT_DEFAULT)?);
        }
        cu!(cuEventRecord(state.marks[mark], self.lane().stream))
    }

    fn between(&self, from: usize, to: usize) -> Result<f64> {
        self.bind()?;
        let (marks, mut milliseconds) = (self.state().marks.clone(), 0f32);
        let at = |mark: usize| marks.get(mark).copied().with_context(|| format!("no mark {mark}"));
        let (from, to) = (at(from)?, at(to)?);
        cu!(cuEventSynchronize(to))?;
        cu!(cuEventElapsedTime(&mut milliseconds, from, to))?;
        Ok(f64::from(milliseconds) / 1e3)
    }

    fn info(&self, function: Function) -> Result<Option<FunctionInfo>> {
        use sys::CUfunction_attribute as Attribute;
        self.bind()?;
        let handle = self.loaded(function)?.function;
        let get = |which| {
            let mut value = 0;
            cu!(cuFuncGetAttribute(&mut value, which, handle))?;
            Ok::<_, anyhow::Error>(value as u32)
        };
        Ok(Some(FunctionInfo {
            registers: get(Attribute::CU_FUNC_ATTRIBUTE_NUM_REGS)?,
            local: get(Attribute::CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES)?,
            shared: get(Attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?,
            threads: get(Attribute::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?,
        }))
    }

    fn stream(&self) -> Option<usize> {
        // A library that is given it expects its context to be current.
        self.bind().ok()?;
        Some(self.lane().stream as usize)
    }
}

impl Cuda {
    /// `later` waits for all that `earlier` has been asked for so far.
    fn follow(&self, later: &Lane, earlier: &Lane) -> Result<()> {
        // One pair at a time: the event is the same.
        let _one = self.state();
        cu!(cuEventRecord(self.fence, earlier.stream))?;
        cu!(cuStreamWaitEvent(later.stream, self.fence, 0))
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        // At the end of the process the driver may be gone already; then all of this fails, and need not be done.
        let library = self.library.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if self.synchronize().is_err() {
            std::mem::forget(library);
            return;
        }
        drop(library);
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        state.graphs.drain(..).filter(|g| !g.is_null()).for_each(|g| drop(cu!(cuGraphExecDestroy(g))));
        state.marks.drain(..).for_each(|e| drop(cu!(cuEventDestroy_v2(e))));
        state.memory.drain().for_each(|ptr| drop(cu!(cuMemFree_v2(ptr))));
        state.modules.drain(..).for_each(|(_, module)| drop(cu!(cuModuleUnload(module))));
        for lane in [&mut self.main, &mut self.side] {
            lane.ring.get_mut().unwrap_or_else(PoisonError::into_inner).release();
            drop(cu!(cuStreamDestroy_v2(lane.stream)));
        }
        drop(cu!(cuStreamDestroy_v2(*lock(&self.recorder))));
        drop(cu!(cuEventDestroy_v2(self.fence)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The names of the driver's functions that a source calls.
    fn calls(source: &str) -> impl Iterator<Item = &str> {
        let after = source.split("cu!(").chain(source.split("sys::")).map(str::trim_start);
        let name = after.filter_map(|text| text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next());
        name.filter(|w| w.starts_with("cu") && w[2..].starts_with(|c: char| c.is_ascii_uppercase()))
    }

    #[test]
    fn every_function_that_is_called_is_looked_for_first() {
        let sources = [include_str!("cuda.rs"), include_str!("cuda/pinned.rs")];
        let called: Vec<&str> = sources.into_iter().flat_map(calls).collect();
        assert!(called.iter().all(|name| probe::SYMBOLS.contains(name)), "{called:?}");
        let by_the_probe = ["cuDeviceGetCount", "cuDeviceGetName", "cuDeviceTotalMem_v2", "cuDriverGetVersion"];
        for name in probe::SYMBOLS {
            assert!(called.contains(&name) || by_the_probe.contains(&name), "nothing calls {name}");
        }
        assert!(probe::SYMBOLS.is_sorted());
    }

    #[test]
    fn a_panic_of_the_binding_is_an_error() {
        let error = guarded(|| -> Result<()> { panic!("Missing symbol cuNothing") }).unwrap_err();
        assert!(error.to_string().contains("cuNothing"), "{error}");
        assert_eq!(guarded(|| Ok(3)).unwrap(), 3);
    }
}
