//! The Firecracker driver.
//!
//! ```text
//!  boot / restore
//!    uid, network ------------------+
//!    folder: disk copy, sockets ----+--> launch: holder (PID namespace) -> jailer -> firecracker
//!    template files bound read-only +            |
//!                                               API socket: configure + InstanceStart | snapshot load + resume
//!                                               |
//!    Vm  <--------------------------------------+       the end of the process, whatever ends it:
//!                                                       groups, folder, network, uid are removed by the watching task
//! ```
//!
//! As root with a jailer, every VMM runs under its own uid in its own folder, process, mount and network namespaces and
//! control groups; what it restores from is visible to it read-only. Without root it is a plain child of the service:
//! no network card, no limits but Firecracker's own seccomp filter; [`Firecracker::is_jailed`] says which.
//!
//! Disks are raw files or, for restored machines on filesystems without reflinks, device-mapper snapshots: `disk.rs`
//! says which when, and what that costs.
//!
//! Versions 1.10 to 1.17; what differs between them is in `version.rs`.

mod agent;
mod api;
mod capture;
mod compatibility;
mod disk;
mod driver;
mod exit;
mod files;
mod folder;
mod http;
mod jail;
mod machine;
mod overlay;
mod setup;
mod version;

#[cfg(feature = "fuzzing")]
pub(crate) use self::api::read_any;
pub use self::driver::Firecracker;
pub use self::setup::FirecrackerConfig;
pub use self::version::{OLDEST, Version};
pub use crate::uids::RunAs;
