//! QEMU's command line.
//!
//! Only numbers of ours, descriptor numbers and a checked id become text here. The same [`Machine`] gives the same
//! devices in the same order at boot and at restore, which is what a migration stream needs; what differs is where
//! memory, disk and card lead to.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use serde_json::{Value, json};

use super::config::Accelerator;
use super::version::Version;
use crate::net::{GATEWAY, GUEST_MAC, SECOND_RESOLVER};

/// Most of the translated code that a guest may make QEMU keep under TCG, MiB. QEMU's own default, an eighth of the
/// host's memory up to a gigabyte, would be memory that no admission counted. Taken as the guest's code runs.
pub(super) const TRANSLATION_CACHE_MIB: u32 = 256;

/// Id of the card's backend.
pub(super) const CARD: &str = "net0";

/// Id of the disk's device, by which it is throttled.
pub(super) const DISK: &str = "disk";

/// The devices of a machine.
#[derive(Debug, Clone)]
pub(super) struct Machine<'a> {
    /// `[a-z0-9-]{1,64}`, checked by the caller.
    pub(super) id: &'a str,
    pub(super) accelerator: Accelerator,
    pub(super) version: &'a Version,
    pub(super) vcpus: u32,
    pub(super) memory_mib: u32,
}

/// The other end of the card. All of them look the same to the guest, except that only [`Netdev::Tap`] offloads checksums
/// and segmentation.
#[derive(Debug)]
pub(super) enum Netdev {
    /// A hub with nobody else on it: not a line of network code between the guest and nothing.
    Nowhere,
    /// QEMU's user network (slirp), with the addresses that a tap has.
    User,
    /// A tap in a namespace of the machine's own; the namespace says what it reaches.
    Tap(OwnedFd),
}

/// The file behind guest memory.
#[derive(Debug)]
pub(super) enum Memory {
    /// The machine's own, shared with us: what a snapshot is taken from.
    Shared(OwnedFd),
    /// A template's, mapped privately.
    Private(OwnedFd),
}

/// Disk images from the base up; each lies on the one before.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) file: OwnedFd,
    pub(super) format: Format,
    /// Only the top may be written.
    pub(super) writable: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Raw,
    Qcow2,
}

/// The block nodes of one layer: the file behind descriptor set `index`, and the format over it. They and their flags are
/// the same from the command line and from the monitor.
fn nodes(index: usize, format: Format, writable: bool, below: Option<String>) -> (Value, Value) {
    let file = format!("file{index}");
    // A machine's disk dies with the service or is published by a copy that is synced: no flush needs to reach the
    // platter. Data and metadata still go to the page cache at every flush and at the end.
    let cache = json!({ "direct": false, "no-flush": true });
    let protocol = json!({
        "driver": "file", "node-name": file, "filename": format!("/dev/fdset/{index}"),
        "read-only": !writable, "locking": "off", "discard": "unmap", "cache": cache,
    });
    let mut node = json!({
        "driver": match format { Format::Raw => "raw", Format::Qcow2 => "qcow2" },
        "node-name": format!("disk{index}"), "file": file, "read-only": !writable, "discard": "unmap", "cache": cache,
    });
    if format == Format::Qcow2 {
        node["backing"] = below.map_or(Value::Null, Value::String);
    }
    (protocol, node)
}

/// The nodes of an overlay that is put on the others later.
pub(super) fn node_of_overlay(index: usize) -> (Value, Value) {
    nodes(index, Format::Qcow2, true, None)
}

/// The start of the machine: a kernel, or a snapshot.
#[derive(Debug)]
pub(super) enum Start {
    /// From a kernel.
    Boot { kernel: OwnedFd, initramfs: OwnedFd, command_line: String },
    /// From a state that the monitor will name.
    Incoming,
}

/// A command line and the descriptors that it names.
#[derive(Debug, Default)]
pub(super) struct CommandLine {
    pub(super) args: Vec<String>,
    pub(super) inherit: Vec<OwnedFd>,
}

impl CommandLine {
    /// Everything but the sockets.
    pub(super) fn new(machine: &Machine<'_>, memory: Memory, disk: Vec<Layer>, card: Netdev, start: Start) -> Self {
        let mut line = Self::default();
        line.machine(machine);
        line.memory(machine, memory);
        line.option("-device", "virtio-rng-device");
        line.disk(disk);
        line.card(card);
        line.start(start);
        line
    }

    /// Monitor, agent and console: QEMU's ends of three connected sockets.
    pub(super) fn sockets(&mut self, monitor: OwnedFd, agent: OwnedFd, console: OwnedFd) {
        for (id, fd) in [("monitor", monitor), ("agent", agent), ("console", console)] {
            let number = self.pass(fd);
            self.option("-chardev", format!("socket,id={id},fd={number}"));
        }
        self.option("-mon", "chardev=monitor,mode=control");
        self.option("-serial", "chardev:console");
        self.option("-device", "virtio-serial-device,max_ports=2");
        self.option("-device", "virtserialport,chardev=agent,name=nullspace.agent");
    }

    fn machine(&mut self, machine: &Machine<'_>) {
        self.option("-name", machine.id.to_owned());
        // No option ROMs: the kernel is started by the machine's own firmware, 5 KiB of code instead of a BIOS.
        self.option("-M", "microvm,x-option-roms=off,isa-serial=on,rtc=on,memory-backend=mem");
        match machine.accelerator {
            Accelerator::Kvm => {
                self.option("-accel", "kvm");
                self.option("-cpu", "host");
            }
            Accelerator::Tcg => {
                self.option("-accel", format!("tcg,tb-size={TRANSLATION_CACHE_MIB}"));
                // All that TCG can do, so that programs built for x86-64-v3 run. Without 5-level paging, which costs and
                // brings nothing, and without `erms`, for which kernels copy memory by `rep movsb`: byte by byte in TCG.
                self.option("-cpu", "max,-la57,-erms");
            }
        }
        // TCG leaves memory barriers and the atomicity of `lock` instructions out where a machine can have one CPU only.
        // Its devices run in threads of their own all the same, so that once in some million requests a guest does not
        // see that its device went to sleep, and waits for ever. (QEMU's `CF_PARALLEL`; since 8.1 barriers stay, `lock`
        // does not.) Room for a second CPU, which is never plugged, keeps both.
        let most = match machine.accelerator {
            Accelerator::Kvm => machine.vcpus,
            Accelerator::Tcg => machine.vcpus.max(2),
        };
        self.option("-smp", format!("{},maxcpus={most}", machine.vcpus));
        self.option("-m", format!("{}M", machine.memory_mib));
        for flag in ["-nodefaults", "-no-user-config", "-no-reboot"] {
            self.args.push(flag.into());
        }
        self.option("-display", "none");
        self.option("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
    }

    fn memory(&mut self, machine: &Machine<'_>, memory: Memory) {
        let (fd, mode) = match memory {
            Memory::Shared(fd) => (fd, "share=on"),
            // From 8.2 on a private mapping can be asked for without write access to the file.
            Memory::Private(fd) if machine.version.maps_read_only() => (fd, "share=off,readonly=on,rom=off"),
            Memory::Private(fd) => (fd, "share=off"),
        };
        let number = self.pass(fd);
        let size = machine.memory_mib;
        self.option(
            "-object",
            // No KSM and no core dump of guest memory.
            format!(
                "memory-backend-file,id=mem,size={size}M,mem-path=/proc/self/fd/{number},{mode},merge=off,dump=off"
            ),
        );
    }

    fn disk(&mut self, layers: Vec<Layer>) {
        let mut below: Option<String> = None;
        for (index, layer) in layers.into_iter().enumerate() {
            let number = self.pass(layer.file);
            self.option("-add-fd", format!("fd={number},set={index}"));
            let (file, format) = nodes(index, layer.format, layer.writable, below);
            self.node(&file);
            self.node(&format);
            below = Some(format!("disk{index}"));
        }
        if let Some(top) = below {
            // A full host disk is the guest's I/O error, and not a machine that stands still without a word.
            self.option("-device", format!("virtio-blk-device,id={DISK},drive={top},werror=report,rerror=report"));
        }
    }

    fn card(&mut self, netdev: Netdev) {
        let backend = match netdev {
            Netdev::Nowhere => format!("hubport,id={CARD},hubid=0"),
            Netdev::User => {
                let (network, guest) = user_network();
                format!("user,id={CARD},ipv6=off,net={network},host={GATEWAY},dns={SECOND_RESOLVER},dhcpstart={guest}")
            }
            Netdev::Tap(fd) => {
                let number = self.pass(fd);
                format!("tap,id={CARD},fd={number},vhost=off")
            }
        };
        self.option("-netdev", backend);
        self.option("-device", format!("virtio-net-device,netdev={CARD},mac={GUEST_MAC}"));
    }

    fn start(&mut self, start: Start) {
        match start {
            Start::Boot { kernel, initramfs, command_line } => {
                let (kernel, initramfs) = (self.pass(kernel), self.pass(initramfs));
                self.option("-kernel", format!("/proc/self/fd/{kernel}"));
                self.option("-initrd", format!("/proc/self/fd/{initramfs}"));
                self.option("-append", command_line);
            }
            Start::Incoming => {
                // Whatever the state says, the machine runs when it is told to: its disk's limits come first.
                self.args.push("-S".into());
                self.option("-incoming", "defer");
            }
        }
    }

    fn node(&mut self, node: &Value) {
        self.option("-blockdev", node.to_string());
    }

    fn option(&mut self, name: &str, value: impl Into<String>) {
        self.args.push(name.into());
        self.args.push(value.into());
    }

    /// Passes a descriptor on; it has this number in QEMU too.
    fn pass(&mut self, fd: OwnedFd) -> RawFd {
        let number = fd.as_raw_fd();
        self.inherit.push(fd);
        number
    }
}

/// The user network that has the addresses of [`crate::net`]: its range and the guest's address.
fn user_network() -> (String, &'static str) {
    let (guest, prefix) = crate::net::GUEST_ADDRESS.split_once('/').unwrap_or((crate::net::GUEST_ADDRESS, "29"));
    let bits = prefix.parse().unwrap_or(29).min(32);
    let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
    (format!("{}/{bits}", std::net::Ipv4Addr::from_bits(GATEWAY.to_bits() & mask)), guest)
}

/// The kernel's command line. `tsc_khz` is the host's TSC rate under TCG, where the guest reads the host's own counter.
pub(super) fn kernel_command_line(accelerator: Accelerator, tsc_khz: Option<u64>) -> String {
    // A panic or reboot ends QEMU (-no-reboot). The self tests of the kernel's crypto cost a sixth of the boot.
    let mut line = "console=ttyS0 quiet panic=-1 reboot=t random.trust_cpu=on nowatchdog audit=0 8250.nr_uarts=1 \
                    cryptomgr.notests"
        .to_owned();
    if accelerator == Accelerator::Tcg {
        // Emulated timers disagree when the host is busy: the kernel would hang in its calibration now and then, call the
        // TSC unstable, or the timer dead, and then count time in jiffies.
        line.push_str(" tsc=reliable no_timer_check");
        if let Some(khz) = tsc_khz {
            line.push_str(&format!(" tsc_early_khz={khz} lpj={}", khz.saturating_mul(2)));
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fd() -> OwnedFd {
        tempfile::tempfile().unwrap().into()
    }

    fn line(version: &str, accelerator: Accelerator, card: Netdev) -> CommandLine {
        let version = Version::parse(version).unwrap();
        let machine = Machine { id: "sb-1", accelerator, version: &version, vcpus: 2, memory_mib: 512 };
        let layers = vec![
            Layer { file: fd(), format: Format::Raw, writable: false },
            Layer { file: fd(), format: Format::Qcow2, writable: true },
        ];
        CommandLine::new(&machine, Memory::Private(fd()), layers, card, Start::Incoming)
    }

    fn value_of<'a>(line: &'a CommandLine, option: &str) -> &'a str {
        let at = line.args.iter().position(|arg| arg == option).unwrap();
        &line.args[at + 1]
    }

    const DEBIAN: &str = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)";

    #[test]
    fn every_descriptor_named_is_inherited() {
        let mut line = line(DEBIAN, Accelerator::Tcg, Netdev::Tap(fd()));
        line.sockets(fd(), fd(), fd());
        let text = line.args.join(" ");
        assert_eq!(line.inherit.len(), 7);
        for fd in &line.inherit {
            let number = fd.as_raw_fd();
            assert!(text.contains(&format!("fd={number}")) || text.contains(&format!("fd/{number},")), "{text}");
        }
    }

    #[test]
    fn the_top_of_the_disk_is_writable_and_nothing_below() {
        let line = line(DEBIAN, Accelerator::Tcg, Netdev::Nowhere);
        let nodes: Vec<Value> = line
            .args
            .windows(2)
            .filter(|pair| pair[0] == "-blockdev")
            .map(|pair| serde_json::from_str(&pair[1]).unwrap())
            .collect();
        let read_only: Vec<bool> = nodes.iter().map(|node| node["read-only"].as_bool().unwrap()).collect();
        assert_eq!(read_only, [true, true, false, false]);
        assert_eq!(nodes[3]["backing"], "disk0");
        assert!(value_of(&line, "-add-fd").ends_with(",set=0"));
    }

    #[test]
    fn software_emulation_is_never_of_a_machine_for_one_cpu() {
        let version = Version::parse(DEBIAN).unwrap();
        for (accelerator, vcpus, expected) in [
            (Accelerator::Tcg, 1, "1,maxcpus=2"),
            (Accelerator::Tcg, 4, "4,maxcpus=4"),
            (Accelerator::Kvm, 1, "1,maxcpus=1"),
        ] {
            let machine = Machine { id: "sb-1", accelerator, version: &version, vcpus, memory_mib: 512 };
            let line = CommandLine::new(&machine, Memory::Private(fd()), Vec::new(), Netdev::Nowhere, Start::Incoming);
            assert_eq!(value_of(&line, "-smp"), expected);
        }
    }

    #[test]
    fn a_newer_qemu_maps_the_template_read_only() {
        assert!(!value_of(&line(DEBIAN, Accelerator::Tcg, Netdev::Nowhere), "-object").contains("readonly"));
        let newer = line("QEMU emulator version 8.2.0", Accelerator::Kvm, Netdev::Nowhere);
        assert!(value_of(&newer, "-object").contains("share=off,readonly=on,rom=off"));
    }

    #[test]
    fn the_user_network_has_the_addresses_that_a_tap_has() {
        let line = line(DEBIAN, Accelerator::Tcg, Netdev::User);
        assert_eq!(
            value_of(&line, "-netdev"),
            "user,id=net0,ipv6=off,net=172.30.255.0/29,host=172.30.255.1,dns=172.30.255.3,dhcpstart=172.30.255.2"
        );
    }

    #[test]
    fn only_software_emulation_is_told_the_tsc_rate() {
        assert!(kernel_command_line(Accelerator::Tcg, Some(2_600_000)).ends_with("tsc_early_khz=2600000 lpj=5200000"));
        assert!(!kernel_command_line(Accelerator::Kvm, Some(2_600_000)).contains("tsc"));
    }
}
