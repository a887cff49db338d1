//! How much memory this process may use.

use std::path::Path;

/// What the system says of memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct MachineMemory {
    /// What the machine has.
    pub total: u64,
    /// What can still be used: the machine's, or what the limits of this process and its control groups leave.
    pub available: u64,
    /// The lowest limit on this process, if one is below what the machine has.
    pub limit: Option<u64>,
}

/// The memory of this machine, if the system says.
pub fn machine_memory() -> Option<MachineMemory> {
    read(Path::new("/proc"), Path::new("/sys/fs/cgroup"))
}

/// The most bytes of memory that this process had at once, files that were mapped included, if the system says: its peak
/// resident set.
pub fn process_peak() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// As [`machine_memory`], with the folders where these file systems are mounted.
fn read(proc: &Path, cgroup: &Path) -> Option<MachineMemory> {
    let text = std::fs::read_to_string(proc.join("meminfo")).ok()?;
    let kib = |key: &str| {
        let line = text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    };
    let (total, mut available) = (kib("MemTotal")? * 1024, kib("MemAvailable")? * 1024);
    let mut limit = None;
    let groups = std::fs::read_to_string(proc.join("self/cgroup")).unwrap_or_default();
    for group in limits(&groups, cgroup) {
        if group.limit < total {
            limit = Some(limit.map_or(group.limit, |l: u64| l.min(group.limit)));
            available = available.min(group.limit.saturating_sub(group.used));
        }
    }
    if let Some((limited, used)) = address_space(proc)
        && limited < total
    {
        limit = Some(limit.map_or(limited, |l| l.min(limited)));
        available = available.min(limited.saturating_sub(used));
    }
    Some(MachineMemory { total, available, limit })
}

/// A control group with a limit.
struct Group {
    limit: u64,
    /// Without the page cache, which gives way.
    used: u64,
}

/// The limits of the control groups in `/proc/self/cgroup` and of all groups above them, for both versions of the
/// interface. A container sees its own group as the root.
fn limits(groups: &str, root: &Path) -> Vec<Group> {
    let mut found = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else { continue };
        let (folder, limit, used, cache) = match controllers {
            "" => (root.to_path_buf(), "memory.max", "memory.current", "inactive_file"),
            c if c.split(',').any(|c| c == "memory") => {
                (root.join("memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            }
            _ => continue,
        };
        let inside = folder.join(path.trim_start_matches('/'));
        for group in inside.ancestors().take_while(|g| g.starts_with(&folder)) {
            let number = |file: &str| std::fs::read_to_string(group.join(file)).ok()?.trim().parse::<u64>().ok();
            let Some(limit) = number(limit) else { continue };
            let stat = std::fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
            let cached = stat.lines().find_map(|l| l.strip_prefix(cache)?.trim().parse::<u64>().ok()).unwrap_or(0);
            found.push(Group { limit, used: number(used).unwrap_or(0).saturating_sub(cached) });
        }
    }
    found
}

/// The limit on this process's address space (`ulimit -v`) and how much of it is taken.
fn address_space(proc: &Path) -> Option<(u64, u64)> {
    let limits = std::fs::read_to_string(proc.join("self/limits")).ok()?;
    let line = limits.lines().find_map(|l| l.strip_prefix("Max address space"))?;
    let limit = line.split_whitespace().next()?.parse().ok()?;
    let pages = std::fs::read_to_string(proc.join("self/statm")).ok()?;
    Some((limit, pages.split_whitespace().next()?.parse::<u64>().ok()? * 4096))
}

/// A number of bytes as a person reads it.
pub fn bytes(n: u64) -> String {
    let mut value = n as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" { format!("{n} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    /// A machine of 16 GiB with 12 available.
    fn machine(groups: &str, files: &[(&str, String)]) -> MachineMemory {
        let dir = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("proc/meminfo", "MemTotal:       16777216 kB\nMemFree: 5 kB\nMemAvailable:   12582912 kB\n");
        write("proc/self/cgroup", groups);
        for (path, text) in files {
            write(path, text);
        }
        read(&dir.path().join("proc"), &dir.path().join("cgroup")).unwrap()
    }

    #[test]
    fn without_limits_it_is_what_the_machine_has() {
        let memory = machine("0::/\n", &[("cgroup/memory.max", "max\n".into())]);
        assert_eq!(memory, MachineMemory { total: 16 * GIB, available: 12 * GIB, limit: None });
    }

    #[test]
    fn the_tightest_group_above_the_process_counts_without_its_page_cache() {
        let memory = machine(
            "0::/pod/job\n",
            &[
                ("cgroup/pod/memory.max", (4 * GIB).to_string()),
                ("cgroup/pod/memory.current", (3 * GIB).to_string()),
                ("cgroup/pod/memory.stat", format!("anon 1\ninactive_file {}\n", 2 * GIB)),
                ("cgroup/pod/job/memory.max", (8 * GIB).to_string()),
            ],
        );
        assert_eq!(memory, MachineMemory { total: 16 * GIB, available: 3 * GIB, limit: Some(4 * GIB) });
    }

    #[test]
    fn the_old_interface_and_the_address_space_count_too() {
        let old = [("cgroup/memory/a/memory.limit_in_bytes", (2 * GIB).to_string())];
        assert_eq!(machine("5:cpu,memory:/a\n", &old).available, 2 * GIB);
        let limits = format!("Limit  Soft Limit  Hard Limit  Units\nMax address space         {GIB}   {GIB}   bytes\n");
        let space = [("proc/self/limits", limits), ("proc/self/statm", "1024 1 1 1 0 1 0\n".into())];
        let memory = machine("", &space);
        assert_eq!((memory.available, memory.limit), (GIB - (1 << 22), Some(GIB)));
    }
}
