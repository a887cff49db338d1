//! What there is of CUDA, as `doctor` says it.

use engine::device::bytes;
use engine::device::gpu::Facts;
use engine::device::gpu::cuda::probe;
use serde::Serialize;

/// The libraries beside the driver: what cudarc calls them, and what they are for here.
const LIBRARIES: [(&str, &str); 6] = [
    ("cublasLt", "multiplies where ENGINE_PRODUCTS=cublaslt, and in benchmarks"),
    ("cudnn", "for attention to be compared with, which this version does not do"),
    ("nvToolsExt", "names phases and blocks in Nsight Systems"),
    ("nccl", "for several GPUs, which this version does not use"),
    ("nvrtc", "compiles kernels/; not needed to run"),
    ("cudart", "not needed"),
];

/// The driver, what it sees, and the libraries beside it.
#[derive(Serialize)]
pub struct Cuda {
    driver: Library,
    /// The version of CUDA that the driver supports.
    version: Option<String>,
    devices: Vec<Seen>,
    libraries: Vec<Library>,
}

/// A library.
#[derive(Serialize)]
struct Library {
    name: String,
    path: Option<String>,
    /// Why it is not usable, if it is not.
    unusable: Option<String>,
    #[serde(skip)]
    what_for: &'static str,
}

/// A device that the driver sees.
#[derive(Serialize)]
struct Seen {
    #[serde(flatten)]
    facts: Facts,
    /// Why it is not usable, if it is not.
    unusable: Option<String>,
}

impl Seen {
    fn text(&self) -> String {
        let verdict = self.unusable.as_ref().map_or_else(|| "usable".into(), |why| format!("not usable: {why}"));
        format!("{}; {verdict}", describe(&self.facts))
    }
}

impl Library {
    fn new(file: String, what_for: &'static str, unusable: Option<String>) -> Self {
        let path = unusable.is_none().then(|| place(&file));
        Self { name: file, path, unusable, what_for }
    }

    fn text(&self, more: &str) -> String {
        let found = match (&self.path, &self.unusable) {
            (Some(path), _) if more.is_empty() => format!("usable, {path}"),
            (Some(path), _) => format!("{path}{more}"),
            (None, why) => format!("not usable: {}", why.as_deref().unwrap_or_default()),
        };
        if self.what_for.is_empty() { found } else { format!("{found} ({})", self.what_for) }
    }
}

impl Cuda {
    /// Asks the driver and the dynamic linker.
    pub fn probe() -> Self {
        let found = probe::driver();
        let devices = found.iter().flat_map(|found| {
            (0..).zip(&found.devices).map(|(i, facts)| Seen {
                facts: facts.clone(),
                unusable: found.device(i).err().map(|why| why.to_string()),
            })
        });
        let library = |(name, what_for): (&str, &'static str)| {
            let unusable = probe::has(name, &[]).err().map(|why| why.to_string());
            Library::new(format!("lib{name}"), what_for, unusable)
        };
        Self {
            devices: devices.collect(),
            version: found.as_ref().ok().map(|found| probe::shown(found.version)),
            driver: Library::new("libcuda".into(), "", found.as_ref().err().map(|why| why.to_string())),
            libraries: LIBRARIES.into_iter().map(library).collect(),
        }
    }

    /// A label and a line of text for the driver, each device and each library.
    pub fn lines(&self) -> Vec<(String, String)> {
        let version = self.version.as_ref().map(|v| format!(", supports CUDA {v}")).unwrap_or_default();
        let mut lines = vec![(self.driver.name.clone(), self.driver.text(&version))];
        lines.extend(self.devices.iter().enumerate().map(|(i, seen)| (format!("cuda:{i}"), seen.text())));
        lines.extend(self.libraries.iter().map(|library| (library.name.clone(), library.text(""))));
        lines
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
