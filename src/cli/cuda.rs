//! What there is of CUDA, as `doctor` says it.

use engine::device::bytes;
use engine::device::gpu::Facts;
use engine::device::gpu::cuda::probe;

/// The libraries beside the driver: what cudarc calls them, and what they are for here.
const LIBRARIES: [(&str, &str); 6] = [
    ("cublasLt", "multiplies where ENGINE_PRODUCTS=cublaslt, and in benchmarks"),
    ("cudnn", "for attention to be compared with, which this version does not do"),
    ("nvToolsExt", "names phases and blocks in Nsight Systems"),
    ("nccl", "for several GPUs, which this version does not use"),
    ("nvrtc", "compiles kernels/; not needed to run"),
    ("cudart", "not needed"),
];

/// Gives a label and a line of text for the driver, each device and each library.
pub fn report(mut line: impl FnMut(&str, String)) {
    match probe::driver() {
        Ok(found) => {
            line("libcuda", format!("{}, supports CUDA {}", place("libcuda"), probe::shown(found.version)));
            for (i, facts) in (0..).zip(&found.devices) {
                let verdict = found.device(i).map_or_else(|why| format!("not usable: {why}"), |_| "usable".into());
                line(&format!("cuda:{i}"), format!("{}; {verdict}", describe(facts)));
            }
        }
        Err(why) => line("libcuda", format!("not usable: {why}")),
    }
    for (name, what) in LIBRARIES {
        let name_of_file = format!("lib{name}");
        let found = match probe::has(name, &[]) {
            Ok(_) => format!("usable, {}", place(&name_of_file)),
            Err(why) => format!("not usable: {why}"),
        };
        line(&name_of_file, format!("{found} ({what})"));
    }
}

/// What a device is, in a line.
pub fn describe(facts: &Facts) -> String {
    let Facts { name, capability: (major, minor), processors, memory } = facts;
    format!("{name}, {}, compute capability {major}.{minor}, {processors} multiprocessors", bytes(*memory))
}

/// Where the dynamic linker found a library, from the process's own memory map.
fn place(stem: &str) -> String {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let mut paths = maps.lines().filter_map(|l| Some(&l[l.find('/')?..]));
    let is_it = |p: &&str| p.rsplit('/').next().is_some_and(|n| n.starts_with(&format!("{stem}.so")));
    paths.find(is_it).unwrap_or(stem).to_string()
}
