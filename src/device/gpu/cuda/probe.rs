//! What there is of CUDA on this machine. cudarc panics where a library or a symbol is missing, so this is asked first, of the
//! very files that cudarc would load.

use std::ffi::{CStr, c_char, c_int, c_uint};

use libloading::Library;

use crate::device::gpu::driver::Facts;

/// The oldest driver, by the CUDA version it supports: PTX 8.4 needs it.
pub const OLDEST: i32 = 12_040;
/// The oldest compute capability: `mma.sync` on bf16 and `cp.async` need it.
pub const CAPABILITY: (u32, u32) = (8, 0);

/// What a user can install who has no usable driver.
const NEEDED: &str = "a driver of the 550 series or later (CUDA 12.4) is needed";

/// Everything that the driver is asked for by [`Cuda`](super::Cuda) and by cudarc on its behalf.
pub const SYMBOLS: [&str; 43] = [
    "cuCtxSetCurrent",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDevicePrimaryCtxRetain",
    "cuDeviceTotalMem_v2",
    "cuDriverGetVersion",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventElapsedTime",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuFuncGetAttribute",
    "cuFuncLoad",
    "cuFuncSetAttribute",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuInit",
    "cuLaunchKernel",
    "cuMemAlloc_v2",
    "cuMemFreeHost",
    "cuMemFree_v2",
    "cuMemGetInfo_v2",
    "cuMemHostAlloc",
    "cuMemcpyDtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemsetD8Async",
    "cuModuleGetFunction",
    "cuModuleLoadDataEx",
    "cuModuleUnload",
    "cuStreamBeginCapture_v2",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamEndCapture",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
    "cuTensorMapEncodeTiled",
];

/// Why there is no GPU to compute on: one line that says what was found and what is needed.
#[derive(Debug, thiserror::Error)]
#[error("{why}")]
pub struct Unusable {
    why: String,
    /// Whether this machine is simply one without a GPU.
    pub is_absent: bool,
}

impl Unusable {
    pub(crate) fn new(why: String) -> Self {
        Self { why, is_absent: false }
    }

    fn absent(why: String) -> Self {
        Self { why, is_absent: true }
    }
}

/// A driver that this program can use.
#[derive(Clone, Debug)]
pub struct Found {
    /// The CUDA version it supports, such as 12040.
    pub version: i32,
    /// Its devices, usable or not.
    pub devices: Vec<Facts>,
}

/// The version as people write it.
pub fn shown(version: i32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

impl Found {
    /// The device of this number, if it runs the kernels.
    ///
    /// # Errors
    /// If there is none, or it is too old.
    pub fn device(&self, ordinal: u32) -> Result<&Facts, Unusable> {
        let count = self.devices.len();
        let facts = self.devices.get(ordinal as usize).ok_or_else(|| {
            let all = if count == 1 { "cuda:0".to_string() } else { format!("cuda:0 to cuda:{}", count - 1) };
            Unusable::new(format!("there is no device {ordinal}; the driver sees {count}, expected {all}"))
        })?;
        let ((major, minor), (least, _)) = (facts.capability, CAPABILITY);
        if facts.capability < CAPABILITY {
            return Err(Unusable::new(format!(
                "device {ordinal} is a {} of compute capability {major}.{minor}; the kernels need {least}.0 or later (A100, RTX 30, or newer)",
                facts.name
            )));
        }
        Ok(facts)
    }
}

/// Opens the file that cudarc would, of those by which the library `name` may go; gives its name too.
///
/// # Errors
/// What the dynamic linker said of the file that is there, or of the last name.
pub fn open(name: &str) -> Result<(Library, String), String> {
    let mut why = String::new();
    for file in cudarc::get_lib_name_candidates(name) {
        // SAFETY: NVIDIA's libraries run nothing on load but their own set-up; any program using CUDA loads them.
        match unsafe { Library::new(&file) } {
            Ok(library) => return Ok((library, file)),
            Err(e) => {
                let said = std::error::Error::source(&e).map_or_else(|| e.to_string(), ToString::to_string);
                // A file that is there and broken says more than the many that are not there.
                if why.is_empty() || !said.contains("No such file") {
                    why = said;
                }
            }
        }
    }
    Err(why)
}

/// Calls `name(args…)` of the driver, or says why not.
macro_rules! call {
    ($library:expr, $name:literal, ($($type:ty),*), $($arg:expr),*) => {{
        // SAFETY: the signature is that of cuda.h, the pointers are to live variables of the right type and size.
        unsafe {
            match $library.get::<unsafe extern "C" fn($($type),*) -> c_int>(concat!($name, "\0").as_bytes()) {
                Ok(f) => match f($($arg),*) {
                    0 => Ok(()),
                    code => Err(Failed { what: $name, code }),
                },
                Err(_) => Err(Failed { what: $name, code: -1 }),
            }
        }
    }};
}

/// A call that did not give 0.
struct Failed {
    what: &'static str,
    code: c_int,
}

impl Failed {
    fn explained(&self, library: &Library, file: &str) -> Unusable {
        let Self { what, code } = *self;
        let name = error_name(library, code);
        match code {
            100 => Unusable::absent(format!(
                "the driver sees no GPU ({name}{})",
                std::env::var("CUDA_VISIBLE_DEVICES").map_or(String::new(), |v| format!(", CUDA_VISIBLE_DEVICES={v}"))
            )),
            34 => Unusable::new(format!(
                "{file} is the toolkit's stub, not a driver ({name}); take its folder out of LD_LIBRARY_PATH"
            )),
            803 | 804 => Unusable::new(format!(
                "{file}: {what} failed: {name}; the library and the kernel's module are of different drivers, expected the same version (after an update: reboot)"
            )),
            _ => Unusable::new(format!("{file}: {what} failed: {name}; {NEEDED}, and access to /dev/nvidia*")),
        }
    }
}

fn error_name(library: &Library, code: c_int) -> String {
    let mut name: *const c_char = std::ptr::null();
    // SAFETY: the signature is that of cuda.h; the driver gives back a static string or leaves null.
    unsafe {
        if let Ok(f) =
            library.get::<unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int>(b"cuGetErrorName\0".as_slice())
        {
            f(code, &mut name);
        }
        if name.is_null() { format!("error {code}") } else { CStr::from_ptr(name).to_string_lossy().into_owned() }
    }
}

/// The driver and its devices. Makes no context.
///
/// # Errors
/// If there is no driver that this program can use, or no device.
pub fn driver() -> Result<Found, Unusable> {
    let (library, file) = open("cuda").map_err(|why| Unusable::absent(format!("no NVIDIA driver: {why}; {NEEDED}")))?;
    let found = ask(&library, &file);
    // Unloading a driver that has started threads is asking for trouble.
    std::mem::forget(library);
    found
}

fn ask(library: &Library, file: &str) -> Result<Found, Unusable> {
    // SAFETY: nothing is called; the pointers are only compared with null.
    let has = |name: &str| unsafe { library.get::<*const ()>(name.as_bytes()).is_ok() };
    for name in ["cuDriverGetVersion", "cuInit"] {
        if !has(name) {
            return Err(Unusable::new(format!("{file} is no NVIDIA driver: it has no {name}; {NEEDED}")));
        }
    }
    let failed = |f: Failed| f.explained(library, file);
    let (mut version, mut count) = (0, 0);
    call!(library, "cuDriverGetVersion", (*mut c_int), &mut version).map_err(failed)?;
    if version < OLDEST {
        return Err(Unusable::new(format!(
            "{file} supports CUDA {}; {} or later is needed, which is a driver of the 550 series or later",
            shown(version),
            shown(OLDEST)
        )));
    }
    if let Some(missing) = SYMBOLS.iter().find(|name| !has(name)) {
        return Err(Unusable::new(format!(
            "{file} says it supports CUDA {} but has no {missing}; {NEEDED}",
            shown(version)
        )));
    }
    call!(library, "cuInit", (c_uint), 0).map_err(failed)?;
    call!(library, "cuDeviceGetCount", (*mut c_int), &mut count).map_err(failed)?;
    if count <= 0 {
        return Err(Failed { what: "cuDeviceGetCount", code: 100 }.explained(library, file));
    }
    let devices = (0..count).map(|i| device(library, i).map_err(failed)).collect::<Result<_, _>>()?;
    Ok(Found { version, devices })
}

fn device(library: &Library, ordinal: c_int) -> Result<Facts, Failed> {
    let (mut device, mut memory, mut name) = (0, 0usize, [0 as c_char; 256]);
    call!(library, "cuDeviceGet", (*mut c_int, c_int), &mut device, ordinal)?;
    call!(library, "cuDeviceGetName", (*mut c_char, c_int, c_int), name.as_mut_ptr(), 255, device)?;
    call!(library, "cuDeviceTotalMem_v2", (*mut usize, c_int), &mut memory, device)?;
    let attribute = |which: c_int| {
        let mut value = 0;
        call!(library, "cuDeviceGetAttribute", (*mut c_int, c_int, c_int), &mut value, which, device)?;
        Ok(value as u32)
    };
    // SAFETY: the buffer is longer than what the driver was told, and was zero: the name ends inside.
    let name = unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned();
    // Compute capability, major and minor; multiprocessors.
    let (capability, processors) = ((attribute(75)?, attribute(76)?), attribute(16)?);
    Ok(Facts { name, capability, processors, memory: memory as u64 })
}

/// Whether the library `name` is there and has all of `symbols`; gives the name of its file.
///
/// # Errors
/// What is missing.
pub fn has(name: &str, symbols: &[&str]) -> Result<String, String> {
    let (library, file) = open(name)?;
    // SAFETY: nothing is called; the pointers are only compared with null.
    let is_missing = |symbol: &&&str| unsafe { library.get::<*const ()>(symbol.as_bytes()).is_err() };
    let missing = symbols.iter().find(is_missing);
    let answer = missing.map_or(Ok(file.clone()), |symbol| Err(format!("{file} has no {symbol}")));
    // It is about to be used, and what has started threads is not unloaded.
    std::mem::forget(library);
    answer
}
