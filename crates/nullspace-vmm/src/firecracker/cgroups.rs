//! A control group per machine: what a VMM may take from the host, whatever its guest makes of it.
//!
//! ```text
//!   <hierarchy>/nullspace-<pid of the service>/<machine>      made by the jailer, removed here
//! ```
//!
//! Both versions: the unified hierarchy when the controllers are in it, else those of version 1 that are mounted. The
//! service's pid is in the name so that leftovers of a killed service are known as such.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

const PREFIX: &str = "nullspace-";
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];
/// Threads of a VMM besides its vCPUs are three; the rest is room.
const EXTRA_THREADS: u32 = 32;
/// Period of the CPU quota, µs.
const PERIOD: u64 = 100_000;

/// The service's part of the host's control groups. Dropping it removes that part.
#[derive(Debug)]
pub(super) struct Cgroups {
    version: u8,
    /// Folder of this service in each hierarchy that is used, with the controllers that are in it.
    parents: Vec<(PathBuf, Vec<&'static str>)>,
    name: String,
}

impl Cgroups {
    /// Looks what the host has, sweeps leftovers, makes the service's folders. `None`, with a warning in the log, when
    /// no limit can be set here.
    pub(super) fn set_up() -> Option<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let name = format!("{PREFIX}{}", std::process::id());
        for (version, hierarchies) in [(2, unified(&mounts)), (1, version_1(&mounts))] {
            let mut parents = Vec::new();
            for (root, controllers) in hierarchies {
                sweep(&root);
                match prepare(&root, &name, version, &controllers) {
                    Ok(parent) => parents.push((parent, controllers)),
                    Err(error) => {
                        tracing::warn!(%error, hierarchy = %root.display(), "control groups cannot be made here");
                    }
                }
            }
            if !parents.is_empty() {
                return Some(Self { version, parents, name });
            }
        }
        tracing::warn!("no control groups: virtual machines run without limits on CPU, memory and threads");
        None
    }

    /// Arguments for the jailer.
    pub(super) fn jailer_args(&self, vcpus: u32, memory_mib: u32) -> Vec<String> {
        let mut args =
            vec!["--cgroup-version".into(), self.version.to_string(), "--parent-cgroup".into(), self.name.clone()];
        // A full core for each vCPU and half of one for device emulation.
        let quota = PERIOD * u64::from(vcpus) + PERIOD / 2;
        // The guest's memory once as memory and once as page cache of the snapshot that is being written of it, and
        // the VMM itself.
        let memory = (u64::from(memory_mib) * 2 + 256) << 20;
        let threads = vcpus.saturating_add(EXTRA_THREADS);
        for controller in self.parents.iter().flat_map(|(_, controllers)| controllers) {
            let limit = match (*controller, self.version) {
                ("cpu", 2) => format!("cpu.max={quota} {PERIOD}"),
                ("cpu", _) => format!("cpu.cfs_quota_us={quota}"),
                ("memory", 2) => format!("memory.max={memory}"),
                ("memory", _) => format!("memory.limit_in_bytes={memory}"),
                _ => format!("pids.max={threads}"),
            };
            args.extend(["--cgroup".into(), limit]);
        }
        args
    }

    /// Removes a machine's groups; its processes are gone.
    pub(super) fn remove(&self, machine: &str) {
        for (parent, _) in &self.parents {
            remove_dir(&parent.join(machine));
        }
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        for (parent, _) in &self.parents {
            remove_tree(parent);
        }
    }
}

/// The unified hierarchy with those of our controllers that it has.
fn unified(mounts: &str) -> Vec<(PathBuf, Vec<&'static str>)> {
    let Some(root) = mount_points(mounts, "cgroup2").map(|(path, _)| path).next() else { return Vec::new() };
    let available = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
    let ours: Vec<_> =
        CONTROLLERS.into_iter().filter(|name| available.split_whitespace().any(|a| a == *name)).collect();
    if ours.is_empty() { Vec::new() } else { vec![(root, ours)] }
}

fn version_1(mounts: &str) -> Vec<(PathBuf, Vec<&'static str>)> {
    let mut found: Vec<(PathBuf, Vec<&'static str>)> = Vec::new();
    for (path, options) in mount_points(mounts, "cgroup") {
        let ours: Vec<_> = CONTROLLERS.into_iter().filter(|name| options.split(',').any(|o| o == *name)).collect();
        let known = found.iter().flat_map(|(_, controllers)| controllers).any(|known| ours.contains(known));
        if !ours.is_empty() && !known {
            found.push((path, ours));
        }
    }
    found
}

/// Mount points of a filesystem type, with their options.
fn mount_points<'a>(mounts: &'a str, kind: &'a str) -> impl Iterator<Item = (PathBuf, &'a str)> {
    mounts.lines().filter_map(move |line| {
        let mut fields = line.split(' ').skip(1);
        let (path, found, options) = (fields.next()?, fields.next()?, fields.next()?);
        (found == kind).then(|| (PathBuf::from(path), options))
    })
}

/// Makes the service's folder and, in version 2, hands the controllers down to it.
fn prepare(root: &Path, name: &str, version: u8, controllers: &[&str]) -> io::Result<PathBuf> {
    let parent = root.join(name);
    match fs::create_dir(&parent) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    if version == 2 {
        let wanted: String = controllers.iter().map(|name| format!("+{name} ")).collect();
        for folder in [root, &parent] {
            if let Err(error) = fs::write(folder.join("cgroup.subtree_control"), wanted.trim_end()) {
                remove_dir(&parent);
                return Err(error);
            }
        }
    }
    Ok(parent)
}

/// Removes groups of services that are gone. Their machines went with them.
fn sweep(root: &Path) {
    let Ok(entries) = fs::read_dir(root) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(PREFIX)).and_then(|pid| pid.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            remove_tree(&entry.path());
        }
    }
}

/// A group and those right below it. Files in them are the kernel's and go by themselves.
fn remove_tree(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_dir(&entry.path());
        }
    }
    remove_dir(group);
}

/// The kernel may count a process as inside for a moment after it was reaped.
fn remove_dir(group: &Path) {
    for _ in 0..50 {
        match fs::remove_dir(group) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, group = %group.display(), "a control group is left");
                return;
            }
            _ => return,
        }
    }
    tracing::warn!(group = %group.display(), "a control group stays busy and is left");
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
tmpfs /sys/fs/cgroup tmpfs rw 0 0
cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,relatime,cpu,cpuacct 0 0
cgroup /sys/fs/cgroup/cpuset cgroup rw,relatime,cpuset 0 0
cgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0
cgroup2 /nowhere/unified cgroup2 rw,relatime 0 0
";

    #[test]
    fn controllers_are_found_where_they_are_mounted() {
        let found = version_1(HYBRID);
        assert_eq!(
            found,
            vec![
                (PathBuf::from("/sys/fs/cgroup/cpu,cpuacct"), vec!["cpu"]),
                (PathBuf::from("/sys/fs/cgroup/memory"), vec!["memory"]),
            ]
        );
        // A unified hierarchy without our controllers is of no use.
        assert!(unified(HYBRID).is_empty());
    }

    #[test]
    fn limits_are_spelled_for_each_version() {
        let one = Cgroups { version: 1, parents: vec![], name: "nullspace-7".into() };
        assert_eq!(one.jailer_args(1, 512), ["--cgroup-version", "1", "--parent-cgroup", "nullspace-7"]);
        let parents = vec![(PathBuf::from("/nowhere"), CONTROLLERS.to_vec())];
        let two = Cgroups { version: 2, parents, name: "nullspace-7".into() };
        let args = two.jailer_args(2, 512).join(" ");
        assert!(
            args.ends_with("--cgroup cpu.max=250000 100000 --cgroup memory.max=1342177280 --cgroup pids.max=34"),
            "{args}"
        );
    }
}
