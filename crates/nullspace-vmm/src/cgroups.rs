//! A control group for each machine: limits on the processor, memory and threads of its VMM.
//!
//! ```text
//!   <hierarchy>/nullspace-<pid of the service>-<driver>             all machines of a driver: a small share of the CPUs
//!   <hierarchy>/nullspace-<pid of the service>-<driver>/<machine>   limits on memory, CPU and threads
//! ```
//! Under contention the service, which is outside, gets the processors before its machines do: together they weigh a
//! quarter of what it weighs. A machine's group is made here, or by Firecracker's jailer, and removed here.
//!
//! Both versions: the unified hierarchy when the controllers are in it, else those of version 1 that are mounted. The
//! service's pid is in the name so that leftovers of a killed service are known as such.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

const PREFIX: &str = "nullspace-";
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];
/// Weight of all machines together where the service's is 100 (version 2) or 1024 (version 1).
const WEIGHT: u32 = 25;
const SHARES: u32 = 256;
/// Period of the CPU quota, µs.
const PERIOD: u64 = 100_000;

/// The limits of one machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) vcpus: u32,
    /// Memory of the guest, of the VMM, and room for the page cache of what it reads and writes, MiB.
    pub(crate) memory_mib: u64,
    /// Threads of the VMM besides those of its vCPUs.
    pub(crate) more_threads: u32,
}

impl Limits {
    /// The files of a machine's group and what is written to them.
    fn files(self, version: u8, controllers: &[&'static str]) -> Vec<(&'static str, String)> {
        // A full core for each vCPU and half of one for device emulation.
        let quota = PERIOD * u64::from(self.vcpus) + PERIOD / 2;
        let memory = self.memory_mib << 20;
        let threads = self.vcpus.saturating_add(self.more_threads);
        let mut files = Vec::new();
        for controller in controllers {
            match (*controller, version) {
                ("cpu", 2) => {
                    files.push(("cpu.max", format!("{quota} {PERIOD}")));
                    files.push(("cpu.weight", self.vcpus.saturating_mul(100).clamp(1, 10_000).to_string()));
                }
                ("cpu", _) => {
                    files.push(("cpu.cfs_quota_us", quota.to_string()));
                    files.push(("cpu.shares", self.vcpus.saturating_mul(1024).clamp(2, 262_144).to_string()));
                }
                ("memory", 2) => files.push(("memory.max", memory.to_string())),
                ("memory", _) => files.push(("memory.limit_in_bytes", memory.to_string())),
                _ => files.push(("pids.max", threads.to_string())),
            }
        }
        files
    }
}

/// A driver's part of the host's control groups. Dropping it removes that part.
#[derive(Debug)]
pub(crate) struct Cgroups {
    version: u8,
    /// Folder of this service in each hierarchy that is used, with the controllers that are in it.
    parents: Vec<(PathBuf, Vec<&'static str>)>,
    name: String,
    /// Files of limits that this kernel does not have.
    lacking: Vec<&'static str>,
}

impl Cgroups {
    /// Looks what the host has, sweeps leftovers, makes the driver's folders. `None`, with a warning in the log, when
    /// no limit can be set here.
    pub(crate) fn set_up() -> Option<Self> {
        static DRIVERS: AtomicU32 = AtomicU32::new(0);
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let name = format!("{PREFIX}{}-{}", std::process::id(), DRIVERS.fetch_add(1, Ordering::Relaxed));
        for (version, hierarchies) in [(2, unified(&mounts)), (1, version_1(&mounts))] {
            let mut parents = Vec::new();
            for (root, controllers) in hierarchies {
                sweep(&root);
                match prepare(&root, &name, version, &controllers) {
                    Ok(parent) => parents.push((parent, controllers)),
                    Err(error) => {
                        tracing::warn!(%error, hierarchy = %root.display(), "control groups cannot be created here");
                    }
                }
            }
            if !parents.is_empty() {
                let mut cgroups = Self { version, parents, name, lacking: Vec::new() };
                cgroups.lacking = cgroups.try_limits();
                return Some(cgroups);
            }
        }
        tracing::warn!("no control groups: virtual machines run without limits on CPU, memory and threads");
        None
    }

    /// Makes a group to see which limits cannot be set: kernels are built without some.
    fn try_limits(&self) -> Vec<&'static str> {
        let limits = Limits { vcpus: 1, memory_mib: 64, more_threads: 1 };
        let mut lacking = Vec::new();
        for (parent, controllers) in &self.parents {
            let folder = parent.join("trial");
            for (file, value) in limits.files(self.version, controllers) {
                let set = match fs::create_dir(&folder) {
                    Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
                    _ => fs::write(folder.join(file), value),
                };
                if let Err(error) = set {
                    tracing::warn!(%error, file, "machines run without this limit");
                    lacking.push(file);
                }
            }
            remove_dir(&folder);
        }
        lacking
    }

    /// The limits of a machine in a hierarchy with these controllers.
    fn files(&self, limits: Limits, controllers: &[&'static str]) -> Vec<(&'static str, String)> {
        let mut files = limits.files(self.version, controllers);
        files.retain(|(file, _)| !self.lacking.contains(file));
        files
    }

    /// Arguments for the jailer.
    pub(crate) fn jailer_args(&self, limits: Limits) -> Vec<String> {
        let mut args =
            vec!["--cgroup-version".into(), self.version.to_string(), "--parent-cgroup".into(), self.name.clone()];
        for (_, controllers) in &self.parents {
            for (file, value) in self.files(limits, controllers) {
                args.extend(["--cgroup".into(), format!("{file}={value}")]);
            }
        }
        args
    }

    /// Makes a machine's group, for a process that enters it by itself ([`Group::entrances`]).
    pub(crate) fn make(self: &Arc<Self>, machine: &str, limits: Limits) -> io::Result<Group> {
        let mut group = Group { folders: Vec::new(), _owner: Arc::clone(self) };
        for (parent, controllers) in &self.parents {
            let folder = parent.join(machine);
            fs::create_dir(&folder)?;
            // Removed by its drop from here on, whatever happens.
            group.folders.push(folder.clone());
            for (file, value) in self.files(limits, controllers) {
                fs::write(folder.join(file), value)?;
            }
        }
        Ok(group)
    }

    /// The controllers that machines are limited by, for people.
    pub(crate) fn describe(&self) -> String {
        let names: Vec<_> = self.parents.iter().flat_map(|(_, controllers)| controllers.iter().copied()).collect();
        format!("v{}: {}", self.version, names.join(", "))
    }

    /// Removes a machine's groups; its processes are gone.
    pub(crate) fn remove(&self, machine: &str) {
        for (parent, _) in &self.parents {
            remove_dir(&parent.join(machine));
        }
    }
}

/// One machine's group. Dropping it removes it: its processes are gone by then.
#[derive(Debug)]
pub(crate) struct Group {
    /// In each hierarchy that is used.
    folders: Vec<PathBuf>,
    /// Removes the folder around them, last.
    _owner: Arc<Cgroups>,
}

impl Group {
    /// The files that a process enters the group by, writing `0` to each.
    pub(crate) fn entrances(&self) -> io::Result<Vec<OwnedFd>> {
        let open = |folder: &PathBuf| OpenOptions::new().write(true).open(folder.join("cgroup.procs")).map(File::into);
        self.folders.iter().map(open).collect()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.folders.iter().for_each(|folder| remove_dir(folder));
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
    if controllers.contains(&"cpu") {
        let (file, weight) = if version == 2 { ("cpu.weight", WEIGHT) } else { ("cpu.shares", SHARES) };
        if let Err(error) = fs::write(parent.join(file), weight.to_string()) {
            tracing::warn!(%error, group = %parent.display(), "machines have the same CPU weight as the service itself");
        }
    }
    Ok(parent)
}

/// Removes groups of services that are gone. Their machines went with them.
fn sweep(root: &Path) {
    let Ok(entries) = fs::read_dir(root) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        let pid = name.and_then(|name| name.split('-').next()).and_then(|pid| pid.parse::<u32>().ok());
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
                tracing::warn!(%error, group = %group.display(), "a control group was not removed");
                return;
            }
            _ => return,
        }
    }
    tracing::warn!(group = %group.display(), "a control group stays busy and was not removed");
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
        let limits = Limits { vcpus: 2, memory_mib: 1280, more_threads: 32 };
        let one = Cgroups { version: 1, parents: vec![], name: "nullspace-7-0".into(), lacking: vec![] };
        assert_eq!(one.jailer_args(limits), ["--cgroup-version", "1", "--parent-cgroup", "nullspace-7-0"]);
        let spelled = |version| {
            let files = limits.files(version, &CONTROLLERS);
            files.iter().map(|(file, value)| format!("{file}={value}")).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(spelled(1), "cpu.cfs_quota_us=250000 cpu.shares=2048 memory.limit_in_bytes=1342177280 pids.max=34");
        assert_eq!(spelled(2), "cpu.max=250000 100000 cpu.weight=200 memory.max=1342177280 pids.max=34");
        let parents = vec![(PathBuf::from("/nowhere"), CONTROLLERS.to_vec())];
        let two = Cgroups { version: 2, parents, name: "nullspace-7-0".into(), lacking: vec![] };
        let args = two.jailer_args(limits).join(" ");
        assert!(
            args.contains("--cgroup cpu.max=250000 100000 --cgroup cpu.weight=200 --cgroup memory.max=1342"),
            "{args}"
        );
    }

    /// A mounted hierarchy with one of our controllers in which a group can be made, found without the code under test.
    fn usable_hierarchy(mounts: &str) -> Option<PathBuf> {
        let has =
            |text: &str| ["cpu", "memory", "pids"].iter().any(|name| text.split([',', ' ', '\n']).any(|a| a == *name));
        let mut found = mounts.lines().filter_map(|line| {
            let fields: Vec<&str> = line.split(' ').collect();
            let path = PathBuf::from(fields[1]);
            let handed_down = || fs::read_to_string(path.join("cgroup.subtree_control")).unwrap_or_default();
            let ours = match fields[2] {
                "cgroup" => has(fields[3]),
                // Version 2 hands controllers down only where no process is in the way: here somebody has done so.
                "cgroup2" => has(&handed_down()),
                _ => false,
            };
            let trial = path.join(format!("trial-{}", std::process::id()));
            (ours && fs::create_dir(&trial).is_ok() && fs::remove_dir(&trial).is_ok()).then_some(path)
        });
        found.next()
    }

    #[test]
    fn as_root_a_machine_has_a_group_while_it_runs_and_weighs_less_than_the_service() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: control groups of machines need root");
            return;
        }
        let Some(cgroups) = Cgroups::set_up().map(Arc::new) else {
            let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
            if let Some(hierarchy) = usable_hierarchy(&mounts) {
                panic!("no control groups were set up, though a group can be made in {}", hierarchy.display());
            }
            eprintln!("skipped: no control groups with cpu, memory or pids can be written here:");
            mounts.lines().filter(|line| line.contains(" cgroup")).for_each(|line| eprintln!("  {line}"));
            return;
        };
        let group = cgroups.make("m1", Limits { vcpus: 1, memory_mib: 300, more_threads: 32 }).unwrap();
        assert_eq!(group.entrances().unwrap().len(), cgroups.parents.len());
        let folders: Vec<_> = cgroups.parents.iter().map(|(parent, _)| parent.clone()).collect();
        for (parent, controllers) in &cgroups.parents {
            let read = |path: PathBuf| fs::read_to_string(&path).unwrap_or_default().trim().to_owned();
            if controllers.contains(&"memory") && cgroups.lacking.is_empty() {
                let file = if cgroups.version == 2 { "memory.max" } else { "memory.limit_in_bytes" };
                assert_eq!(read(parent.join("m1").join(file)), (300u64 << 20).to_string());
            }
            if controllers.contains(&"cpu") {
                let (file, weight) = if cgroups.version == 2 { ("cpu.weight", WEIGHT) } else { ("cpu.shares", SHARES) };
                assert_eq!(read(parent.join(file)), weight.to_string());
            }
        }
        assert!(cgroups.make("m1", Limits { vcpus: 1, memory_mib: 300, more_threads: 32 }).is_err());
        drop(group);
        assert!(folders.iter().all(|folder| !folder.join("m1").exists() && folder.exists()));
        drop(cgroups);
        assert!(folders.iter().all(|folder| !folder.exists()));
    }
}
