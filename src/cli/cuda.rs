//! Which CUDA libraries the dynamic linker finds, and which devices the driver sees.

use std::ffi::{CStr, c_char, c_int, c_uint};

use engine::telemetry::bytes;
use libloading::Library;

/// The libraries a GPU version would load, newest name first.
const LIBRARIES: [(&str, &[&str]); 4] = [
    ("libcuda", &["libcuda.so.1", "libcuda.so"]),
    ("libcudart", &["libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0", "libcudart.so"]),
    ("libnvrtc", &["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so.11.2", "libnvrtc.so"]),
    ("libcublasLt", &["libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so.11", "libcublasLt.so"]),
];

/// Gives a label and a line of text for each library and device.
pub fn report(mut line: impl FnMut(&str, String)) {
    for (name, candidates) in LIBRARIES {
        let mut why = String::new();
        let found = candidates.iter().find_map(|file| {
            // SAFETY: NVIDIA's libraries run nothing on load but their own set-up; any program using CUDA loads them.
            match unsafe { Library::new(*file) } {
                Ok(library) => Some((file, library)),
                Err(e) => {
                    // The first name is the one looked for; the others fail the same way or are stubs.
                    if why.is_empty() {
                        why = cause(&e);
                    }
                    None
                }
            }
        });
        let Some((file, library)) = found else {
            line(name, format!("not found: {why}"));
            continue;
        };
        line(name, mapped_path(file).unwrap_or_else(|| file.to_string()));
        if name == "libcuda" {
            match driver(&library) {
                Ok(lines) => lines.into_iter().for_each(|l| line("driver", l)),
                Err(why) => line("driver", why),
            }
        }
        // Unloading a driver that has started threads is asking for trouble.
        std::mem::forget(library);
    }
}

/// What the dynamic linker said.
fn cause(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

/// Where the dynamic linker found a library, from the process's own memory map.
fn mapped_path(file: &str) -> Option<String> {
    let stem = file.split(".so").next()?;
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let paths = maps.lines().filter_map(|l| Some(&l[l.find('/')?..]));
    paths
        .filter(|p| p.rsplit('/').next().is_some_and(|n| n.starts_with(&format!("{stem}.so"))))
        .map(str::to_string)
        .next()
}

/// Calls `name(args…)` of the driver, or says why not.
macro_rules! call {
    ($library:expr, $name:literal, ($($type:ty),*), $($arg:expr),*) => {{
        // SAFETY: the signature is that of cuda.h, the pointers are to live variables of the right type and size.
        unsafe {
            match $library.get::<unsafe extern "C" fn($($type),*) -> c_int>(concat!($name, "\0").as_bytes()) {
                Ok(f) => match f($($arg),*) {
                    0 => Ok(()),
                    code => Err(format!("{} failed: {}", $name, error_name($library, code))),
                },
                Err(e) => Err(format!("{} is not in the driver: {}", $name, cause(&e))),
            }
        }
    }};
}

fn error_name(library: &Library, code: c_int) -> String {
    let mut name: *const c_char = std::ptr::null();
    // SAFETY: as in `call!`; the driver gives back a static string or leaves null.
    unsafe {
        if let Ok(f) = library.get::<unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int>(b"cuGetErrorName\0") {
            f(code, &mut name);
        }
        if name.is_null() { format!("error {code}") } else { CStr::from_ptr(name).to_string_lossy().into_owned() }
    }
}

/// The driver's version and one line per device.
fn driver(library: &Library) -> Result<Vec<String>, String> {
    let (mut version, mut count) = (0, 0);
    call!(library, "cuDriverGetVersion", (*mut c_int), &mut version)?;
    let mut lines = vec![format!("supports CUDA {}.{}", version / 1000, version % 1000 / 10)];
    call!(library, "cuInit", (c_uint), 0)?;
    call!(library, "cuDeviceGetCount", (*mut c_int), &mut count)?;
    for ordinal in 0..count {
        let (mut device, mut memory, mut name) = (0, 0usize, [0 as c_char; 256]);
        call!(library, "cuDeviceGet", (*mut c_int, c_int), &mut device, ordinal)?;
        call!(library, "cuDeviceGetName", (*mut c_char, c_int, c_int), name.as_mut_ptr(), 256, device)?;
        call!(library, "cuDeviceTotalMem_v2", (*mut usize, c_int), &mut memory, device)?;
        let capability = [75, 76].map(|attribute| {
            let mut value = 0;
            let got = call!(library, "cuDeviceGetAttribute", (*mut c_int, c_int, c_int), &mut value, attribute, device);
            got.map_or("?".into(), |()| value.to_string())
        });
        // SAFETY: the driver ends the name with a zero inside the buffer.
        let name = unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy();
        lines.push(format!("device {ordinal}: {name}, {}, sm_{}", bytes(memory as u64), capability.concat()));
    }
    Ok(lines)
}
