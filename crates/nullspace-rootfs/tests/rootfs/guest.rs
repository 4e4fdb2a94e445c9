//! A guest with Debian's kernel that mounts many filesystems, one after the other, and says what is in them.
//!
//! ```text
//!  images ─▶ one disk, each at an offset ─▶ QEMU: vmlinuz, initramfs + `lister.rs` ─▶ another disk ─▶ listings
//! ```

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{SeekFrom, seek};

use crate::expected::{Listing, Node, listing};
use crate::support::case::unescape;

const MARK: &[u8] = b"nullspace: lists go here";
/// Room for what the guest says.
const LISTS: u64 = 256 << 20;
/// A boot and everything after it, with the processors shared with many others.
const LIMIT: Duration = Duration::from_secs(500);

/// The guest's kernel and initramfs; `make guest` makes them.
fn guest_file(name: &str) -> PathBuf {
    let made = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/guest");
    let folder = std::env::var_os("NULLSPACE_GUEST_DIR").map_or(made, PathBuf::from);
    let path = folder.join(name);
    assert!(path.exists(), "{} is missing: run `make guest`", path.display());
    path
}

/// What the guest found.
pub(crate) struct Seen {
    /// For each image, in their order: its tree, or why it could not be listed or written to.
    pub(crate) listings: Vec<Result<Listing, String>>,
    /// What the kernel complained of.
    pub(crate) complaints: Vec<String>,
    /// The images as the guest left them, and where each begins.
    pub(crate) disk: PathBuf,
    pub(crate) offsets: Vec<u64>,
}

/// Boots the guest on copies of these images.
pub(crate) fn mount_all(images: &[PathBuf], folder: &Path) -> Seen {
    let (disk, lists) = (folder.join("disk"), folder.join("lists"));
    let mut plan = String::new();
    let mut offsets = Vec::new();
    let target = File::create(&disk).unwrap();
    // The first MiB is left free, so that the disk does not begin with a filesystem.
    let mut offset = 1 << 20;
    for image in images {
        let length = copy_sparse(image, &target, offset);
        plan.push_str(&format!("{offset} {length}\n"));
        offsets.push(offset);
        offset += length.next_multiple_of(1 << 20);
    }
    target.set_len(offset).unwrap();
    let out = File::create(&lists).unwrap();
    out.set_len(LISTS).unwrap();
    out.write_all_at(MARK, 0).unwrap();
    boot(folder, &plan, &disk, &lists);

    let mut file = File::open(&lists).unwrap();
    let mut length = [0; 8];
    file.read_exact(&mut length).unwrap();
    let length = u64::from_le_bytes(length);
    let console = || fs::read_to_string(folder.join("console")).unwrap_or_default();
    assert!(length < LISTS, "the guest wrote no lists:\n{}", console());
    let mut text = String::new();
    file.take(length).read_to_string(&mut text).unwrap();
    let mut seen = Seen { listings: Vec::new(), complaints: Vec::new(), disk, offsets };
    let mut current: Result<BTreeMap<Vec<u8>, Node>, String> = Ok(BTreeMap::new());
    for line in text.lines() {
        match line.split_once('\t') {
            None if line == "end" => {
                let done = std::mem::replace(&mut current, Ok(BTreeMap::new()));
                seen.listings.push(done.map(|nodes| listing(&nodes)));
            }
            Some(("kernel", complaint)) => seen.complaints.push(complaint.to_owned()),
            Some(("error", error)) => current = Err(error.to_owned()),
            _ => {
                let (path, node) = parse(line);
                if let Ok(nodes) = &mut current {
                    nodes.insert(path, node);
                }
            }
        }
    }
    assert_eq!(seen.listings.len(), images.len(), "{}", console());
    seen
}

/// One line of the lister.
fn parse(line: &str) -> (Vec<u8>, Node) {
    let fields: Vec<&str> = line.split('\t').collect();
    let &[path, mode, uid, gid, seconds, nanoseconds, names, inode, size, content, ref xattrs @ ..] = &fields[..]
    else {
        panic!("{line}");
    };
    let node = Node {
        mode: u32::from_str_radix(mode, 8).unwrap(),
        uid: uid.parse().unwrap(),
        gid: gid.parse().unwrap(),
        seconds: seconds.parse().unwrap(),
        nanoseconds: nanoseconds.parse().unwrap(),
        names: Some(names.parse().unwrap()),
        size: size.parse().unwrap(),
        content: content.to_owned(),
        xattrs: xattrs
            .iter()
            .map(|xattr| xattr.split_once('=').unwrap())
            .map(|(name, value)| (unescape(name), unescape(value)))
            .collect(),
        identity: inode.parse().unwrap(),
    };
    (unescape(path), node)
}

/// Copies what is no hole; returns the image's length.
fn copy_sparse(image: &Path, target: &File, offset: u64) -> u64 {
    let source = File::open(image).unwrap();
    let length = source.metadata().unwrap().len();
    let mut buffer = vec![0; 1 << 20];
    let mut at = 0;
    while let Ok(start) = seek(&source, SeekFrom::Data(at)) {
        let end = seek(&source, SeekFrom::Hole(start)).unwrap();
        at = start;
        while at < end {
            let piece = usize::try_from(end - at).unwrap().min(buffer.len());
            source.read_exact_at(&mut buffer[..piece], at).unwrap();
            target.write_all_at(&buffer[..piece], offset + at).unwrap();
            at += piece as u64;
        }
    }
    length
}

/// Runs the guest to its end.
fn boot(folder: &Path, plan: &str, disk: &Path, lists: &Path) {
    let initramfs = initramfs(folder, plan);
    let console = File::create(folder.join("console")).unwrap();
    // The rate of the processor's own counter, which the guest reads and cannot measure; near enough will do.
    let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let mhz = processor.lines().find_map(|line| line.strip_prefix("cpu MHz")?.split_once(": ")?.1.parse::<f64>().ok());
    let khz: u64 = format!("{:.0}", mhz.unwrap_or(2000.0) * 1000.0).parse().unwrap();
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-M", "microvm,x-option-roms=off,isa-serial=on,rtc=on", "-accel", "tcg", "-cpu", "max,-la57,-erms"]);
    // Room for a second processor: see `nullspace-vmm`, qemu/args.rs. So are the kernel's arguments.
    qemu.args([
        "-smp",
        "1,maxcpus=2",
        "-m",
        "512M",
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
        "-display",
        "none",
    ]);
    qemu.args(["-serial", "stdio", "-append"]);
    qemu.arg(format!(
        "console=ttyS0 quiet panic=-1 reboot=t random.trust_cpu=on nowatchdog audit=0 8250.nr_uarts=1 cryptomgr.notests \
         tsc=reliable no_timer_check tsc_early_khz={khz} lpj={} rdinit=/lister",
        khz * 2
    ));
    qemu.arg("-kernel").arg(guest_file("vmlinuz")).arg("-initrd").arg(&initramfs);
    for (name, path) in [("images", disk), ("lists", lists)] {
        qemu.arg("-drive");
        qemu.arg(format!("id={name},file={},format=raw,if=none,cache=unsafe,discard=unmap", path.display()));
        qemu.args(["-device", &format!("virtio-blk-device,drive={name}")]);
    }
    qemu.stdin(Stdio::null()).stdout(console.try_clone().unwrap()).stderr(console);
    let mut child = Running(qemu.spawn().expect("run qemu-system-x86_64"));
    let begun = Instant::now();
    while child.0.try_wait().unwrap().is_none() {
        let said = || fs::read_to_string(folder.join("console")).unwrap_or_default();
        assert!(begun.elapsed() < LIMIT, "the guest does not end:\n{}", said());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Ends with the test, however that ends.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The guest's own initramfs for its modules, and behind it another archive, as the kernel allows: lister and plan.
fn initramfs(folder: &Path, plan: &str) -> PathBuf {
    let program = folder.join("lister");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/rootfs/lister.rs");
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc)
        .args(["--edition", "2024", "-O", "-C", "target-feature=+crt-static", "-C", "strip=symbols", "-o"])
        .args([&program, &source])
        .output()
        .expect("run rustc");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut archive = fs::read(guest_file("initramfs.cpio")).unwrap();
    archive.resize(archive.len().next_multiple_of(512), 0);
    cpio(&mut archive, "lister", 0o100_755, &fs::read(program).unwrap());
    cpio(&mut archive, "plan", 0o100_644, plan.as_bytes());
    cpio(&mut archive, "TRAILER!!!", 0, b"");
    let path = folder.join("initramfs");
    fs::write(&path, archive).unwrap();
    path
}

/// Appends a file to a cpio archive of the form that the kernel reads ("newc").
fn cpio(archive: &mut Vec<u8>, name: &str, mode: u32, data: &[u8]) {
    let [name_len, data_len] = [name.len() + 1, data.len()].map(|len| u32::try_from(len).unwrap());
    let fields = [0, mode, 0, 0, 1, 0, data_len, 0, 0, 0, 0, name_len, 0];
    archive.extend_from_slice(b"070701");
    archive.extend(fields.iter().flat_map(|field| format!("{field:08x}").into_bytes()));
    archive.extend_from_slice(name.as_bytes());
    archive.push(0);
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend_from_slice(data);
    archive.resize(archive.len().next_multiple_of(4), 0);
}
