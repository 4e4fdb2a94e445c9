//! Copy-on-write disks on filesystems whose files cannot share blocks: a device-mapper snapshot over loop devices.
//!
//! ```text
//!   image (read-only) -- loop --+
//!                               +-- dm "snapshot" -- block device, the VMM's disk
//!   unlinked sparse file - loop -+      writes go to the file, block by block of 4 KiB
//! ```
//!
//! Its cost is a handful of ioctls, whatever the image's size, and what it occupies is what the guest writes. Nothing
//! of it has to be removed by anybody: the file has no name, loop devices clear themselves when the mapping goes, and
//! the mapping is marked for removal as soon as the VMM has opened it, so the kernel takes it down when the VMM ends,
//! whatever ended it. Only a service killed in the milliseconds between leaves one; the next sweeps it.
//!
//! Needs root and the kernel's dm-snapshot and loop. (Kernel documentation: `admin-guide/device-mapper/snapshot.rst`,
//! `include/uapi/linux/dm-ioctl.h`, `include/uapi/linux/loop.h`.)

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use super::files::nameless;
use rustix::fs::{FileType, Mode, OFlags, mknodat};

const PREFIX: &str = "nullspace-";
const SECTOR: u64 = 512;
/// Sectors that are copied at once: 4 KiB, a page of the guest.
const CHUNK_SECTORS: u32 = 8;

/// A mapped disk. Dropping it lets the kernel remove it as soon as nobody has it open.
#[derive(Debug)]
pub(super) struct Overlay {
    control: File,
    name: String,
    device: u64,
    written: File,
}

impl Overlay {
    /// The nameless file that is written to.
    pub(super) fn written(&self) -> io::Result<File> {
        self.written.try_clone()
    }

    /// Maps a new disk over `image`, keeping what is written in a nameless file in the folder `scratch`.
    pub(super) fn make(image: &File, scratch: &Path) -> io::Result<Self> {
        let bytes = image.metadata()?.len();
        if bytes == 0 || !bytes.is_multiple_of(u64::from(CHUNK_SECTORS) * SECTOR) {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "the image is no whole number of pages"));
        }
        let control = open_control()?;
        let written = nameless(scratch)?;
        // Every chunk goes there at most once.
        written.set_len(bytes)?;
        let below = Loop::attach(image, true)?;
        let above = Loop::attach(&written, false)?;

        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("{PREFIX}{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let mut request = Request::new(&name)?;
        request.call(&control, DEV_CREATE)?;
        let mut overlay = Self { control, name, device: request.device(), written };
        // N: not persistent. What the mapping knows lives in the kernel's memory and ends with it.
        let parameters = format!("{} {} N {CHUNK_SECTORS}", below.number()?, above.number()?);
        let mut request = Request::new(&overlay.name)?;
        request.table(bytes / SECTOR, "snapshot", &parameters)?;
        request.call(&overlay.control, TABLE_LOAD)?;
        let mut request = Request::new(&overlay.name)?;
        // Without the suspend flag it resumes: the table becomes live. The event that this sends must not make udev look
        // for filesystems in what a guest writes.
        request.put(OFFSET_EVENT, &UDEV_QUIET.to_ne_bytes());
        request.call(&overlay.control, DEV_SUSPEND)?;
        overlay.device = request.device();
        Ok(overlay)
    }

    /// Makes a device node of it at `path`, for `owner` alone, and opens it.
    pub(super) fn place(&self, path: &Path, owner: u32) -> io::Result<File> {
        mknodat(rustix::fs::CWD, path, FileType::BlockDevice, Mode::RUSR | Mode::WUSR, self.device)?;
        std::os::unix::fs::chown(path, Some(owner), Some(owner))?;
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(path)?;
        let meta = file.metadata()?;
        if !meta.file_type().is_block_device() || meta.rdev() != self.device {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "another device is there"));
        }
        Ok(file)
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.control, &self.name) {
            tracing::warn!(%error, name = self.name, "a device mapping was not removed");
        }
    }
}

/// True when this host can map disks; also removes mappings that a killed service left.
pub(super) fn available() -> bool {
    let Ok(control) = open_control() else { return false };
    for name in list(&control).unwrap_or_default() {
        let pid =
            name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()).and_then(|pid| pid.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            let _ = remove(&control, &name);
        }
    }
    Path::new("/dev/loop-control").exists()
}

fn open_control() -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open("/dev/mapper/control")
}

fn remove(control: &File, name: &str) -> io::Result<()> {
    let mut request = Request::new(name)?;
    request.put(OFFSET_FLAGS, &DEFERRED_REMOVE.to_ne_bytes());
    match request.call(control, DEV_REMOVE) {
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(()),
        other => other,
    }
}

fn list(control: &File) -> io::Result<Vec<String>> {
    let mut request = Request::with_room("", 64 << 10)?;
    request.call(control, LIST_DEVICES)?;
    Ok(request.names())
}

// ---------------------------------------------------------------- device mapper

/// `_IOWR(0xfd, command, struct dm_ioctl)`.
const fn command(number: libc::c_ulong) -> libc::c_ulong {
    0xc138_fd00 | number
}
const LIST_DEVICES: libc::c_ulong = command(2);
const DEV_CREATE: libc::c_ulong = command(3);
const DEV_REMOVE: libc::c_ulong = command(4);
const DEV_SUSPEND: libc::c_ulong = command(6);
const TABLE_LOAD: libc::c_ulong = command(9);
const DEFERRED_REMOVE: u32 = 1 << 17;
/// `DM_UDEV_{PRIMARY_SOURCE,DISABLE_OTHER_RULES,DISABLE_DISK_RULES,DISABLE_SUBSYSTEM_RULES}_FLAG`, as libdevmapper
/// passes them.
const UDEV_QUIET: u32 = 0x4e << 16;

/// `struct dm_ioctl`: offsets of the fields that are used.
const OFFSET_VERSION: usize = 0;
const OFFSET_SIZE: usize = 12;
const OFFSET_START: usize = 16;
const OFFSET_TARGETS: usize = 20;
const OFFSET_FLAGS: usize = 28;
const OFFSET_EVENT: usize = 32;
const OFFSET_DEVICE: usize = 40;
const OFFSET_NAME: usize = 48;
const NAME_ROOM: usize = 128;
/// With the seven bytes of `data` that C counts in.
const HEAD: usize = 312;
/// `struct dm_target_spec`.
const TARGET_HEAD: usize = 40;

/// The buffer of one ioctl: a head, then what the command has.
struct Request(Vec<u8>);

impl Request {
    fn new(name: &str) -> io::Result<Self> {
        Self::with_room(name, 1024)
    }

    fn with_room(name: &str, room: usize) -> io::Result<Self> {
        if name.len() >= NAME_ROOM {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut request = Self(vec![0; HEAD + room]);
        let size = u32::try_from(request.0.len()).unwrap_or(u32::MAX);
        for (at, value) in [(OFFSET_VERSION, 4), (OFFSET_SIZE, size), (OFFSET_START, HEAD as u32)] {
            request.put(at, &value.to_ne_bytes());
        }
        request.put(OFFSET_NAME, name.as_bytes());
        Ok(request)
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        if let Some(place) = self.0.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    }

    fn word<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.0.get(at..at.checked_add(N)?)?.try_into().ok()
    }

    /// One target over the whole device.
    fn table(&mut self, sectors: u64, kind: &str, parameters: &str) -> io::Result<()> {
        if kind.len() >= 16 || HEAD + TARGET_HEAD + parameters.len() >= self.0.len() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.put(OFFSET_TARGETS, &1u32.to_ne_bytes());
        // sector_start 0, length, status and next 0, type, then the parameters with their NUL.
        self.put(HEAD + 8, &sectors.to_ne_bytes());
        self.put(HEAD + 24, kind.as_bytes());
        self.put(HEAD + TARGET_HEAD, parameters.as_bytes());
        Ok(())
    }

    #[allow(unsafe_code, reason = "the device mapper is used by ioctls on a buffer")]
    fn call(&mut self, control: &File, command: libc::c_ulong) -> io::Result<()> {
        // SAFETY: the buffer starts with a `dm_ioctl` that tells its whole size, and the kernel stays within it.
        let done = unsafe { libc::ioctl(control.as_raw_fd(), command, self.0.as_mut_ptr()) };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// The device's number, in the form of `st_rdev`.
    fn device(&self) -> u64 {
        // The kernel writes its "huge" encoding, which for majors below 4096 is glibc's too.
        self.word(OFFSET_DEVICE).map_or(0, u64::from_ne_bytes)
    }

    /// The names in the answer to `LIST_DEVICES`: entries of device, offset of the next, name.
    fn names(&self) -> Vec<String> {
        let mut names = Vec::new();
        let mut at = self.word(OFFSET_START).map_or(HEAD, |start| u32::from_ne_bytes(start) as usize);
        while let (Some(device), Some(next)) = (self.word::<8>(at), self.word::<4>(at + 8)) {
            if device == [0; 8] {
                break;
            }
            let name = self.0.get(at + 12..).unwrap_or_default();
            let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
            names.push(String::from_utf8_lossy(name).into_owned());
            match u32::from_ne_bytes(next) as usize {
                0 => break,
                step => at += step,
            }
        }
        names
    }
}

// ---------------------------------------------------------------- loop devices

const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4c82;
const LOOP_CONFIGURE: libc::c_ulong = 0x4c0a;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
/// `struct loop_config`, and the offset of its `info.lo_flags`.
const LOOP_CONFIG: usize = 304;
const LOOP_FLAGS: usize = 8 + 52;

/// A file as a block device. It clears itself when the last user closes it.
struct Loop(File);

impl Loop {
    #[allow(unsafe_code, reason = "loop devices are configured by ioctls")]
    fn attach(file: &File, read_only: bool) -> io::Result<Self> {
        let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control")?;
        let mut config = [0u8; LOOP_CONFIG];
        let fd = file.as_fd().as_raw_fd();
        let flags = LO_FLAGS_AUTOCLEAR | if read_only { LO_FLAGS_READ_ONLY } else { 0 };
        config[..4].copy_from_slice(&fd.to_ne_bytes());
        config[LOOP_FLAGS..LOOP_FLAGS + 4].copy_from_slice(&flags.to_ne_bytes());
        // Between asking for a free one and taking it another process may have it.
        for _ in 0..64 {
            // SAFETY: takes no argument.
            let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
            if number < 0 {
                return Err(io::Error::last_os_error());
            }
            let flags = OFlags::RDWR | OFlags::CLOEXEC;
            let device = match rustix::fs::open(format!("/dev/loop{number}"), flags, Mode::empty()) {
                Ok(device) => File::from(device),
                Err(rustix::io::Errno::NXIO) => continue,
                Err(error) => return Err(error.into()),
            };
            // SAFETY: reads one `loop_config`, which lives past the call.
            let done = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, config.as_ptr()) };
            if done == 0 {
                return Ok(Self(device));
            }
            let error = io::Error::last_os_error();
            if error.raw_os_error() != Some(libc::EBUSY) {
                return Err(error);
            }
        }
        Err(io::Error::new(io::ErrorKind::ResourceBusy, "no loop device is free"))
    }

    /// `major:minor`.
    fn number(&self) -> io::Result<String> {
        let device = self.0.metadata()?.rdev();
        Ok(format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device)))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn the_layout_is_the_kernels() {
        let mut request = Request::new("nullspace-1-2").unwrap();
        request.table(2048, "snapshot", "7:0 7:1 N 8").unwrap();
        let bytes = &request.0;
        assert_eq!(bytes[0..4], 4u32.to_ne_bytes());
        assert_eq!(bytes[12..16], (bytes.len() as u32).to_ne_bytes());
        assert_eq!(&bytes[48..62], b"nullspace-1-2\0");
        assert_eq!(bytes[HEAD + 8..HEAD + 16], 2048u64.to_ne_bytes());
        assert_eq!(&bytes[HEAD + 24..HEAD + 33], b"snapshot\0");
        assert_eq!(&bytes[HEAD + 40..HEAD + 52], b"7:0 7:1 N 8\0");
        assert!(Request::new(&"x".repeat(128)).is_err());
    }

    #[test]
    fn names_are_read_as_the_kernel_lists_them() {
        let mut request = Request::with_room("", 256).unwrap();
        assert!(request.names().is_empty());
        for (at, device, next, name) in [(0, 5u64, 24u32, "a-b"), (24, 6, 0, "second")] {
            request.put(HEAD + at, &device.to_ne_bytes());
            request.put(HEAD + at + 8, &next.to_ne_bytes());
            request.put(HEAD + at + 12, name.as_bytes());
        }
        assert_eq!(request.names(), ["a-b", "second"]);
        // An offset that leads out of the buffer ends the list.
        request.put(HEAD + 8, &u32::MAX.to_ne_bytes());
        assert_eq!(request.names(), ["a-b"]);
    }

    #[test]
    fn a_mapping_takes_writes_leaves_its_image_and_goes_with_its_last_user() {
        if !rustix::process::geteuid().is_root() || !available() {
            eprintln!("skipped: needs root and the kernel's device mapper");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        std::fs::write(&path, vec![b'i'; 1 << 20]).unwrap();
        let image = File::open(&path).unwrap();
        let overlay = Overlay::make(&image, dir.path()).unwrap();
        let name = overlay.name.clone();
        let node = dir.path().join("node");
        let mut held = overlay.place(&node, 0).unwrap();
        {
            let mut writer = OpenOptions::new().write(true).open(&node).unwrap();
            writer.write_all(b"written").unwrap();
            writer.sync_all().unwrap();
        }
        let control = open_control().unwrap();
        drop(overlay);
        assert!(list(&control).unwrap().contains(&name), "in use, it stays");
        let mut start = [0; 8];
        held.read_exact(&mut start).unwrap();
        assert_eq!(&start, b"writteni");
        drop(held);
        for _ in 0..100 {
            if !list(&control).unwrap().contains(&name) {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        assert!(!list(&control).unwrap().contains(&name));
        let mut start = [0; 7];
        image.read_exact_at(&mut start, 0).unwrap();
        assert_eq!(&start, b"iiiiiii");
    }
}
