//! The part of Firecracker's API that the driver uses: typed requests, typed refusals, a time limit on every call.
//!
//! Source: `src/firecracker/swagger/firecracker.yaml` of Firecracker 1.10 to 1.17. Each call opens a connection of its
//! own; the server is one thread, and an idle connection would only take one of its ten places. The limits below are three
//! times as long where the host is emulated.

use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::folder::Folder;
use super::http;
use super::version::Version;
use crate::emulation::patient;
use crate::{DiskLimits, VmmError};

/// Configuration calls only fill a struct.
const QUICK: Duration = Duration::from_secs(10);
/// InstanceStart and load set up devices, vCPUs and memory.
const START: Duration = Duration::from_secs(60);
/// A full snapshot writes all of the guest's memory.
const SNAPSHOT: Duration = Duration::from_secs(300);
/// Longest text of the VMM that goes into an error.
const MAX_FAULT: usize = 1000;

#[derive(Debug, Serialize)]
pub(super) struct MachineConfig {
    pub(super) vcpu_count: u32,
    pub(super) mem_size_mib: u32,
}

#[derive(Debug, Serialize)]
pub(super) struct BootSource<'a> {
    pub(super) kernel_image_path: &'a str,
    pub(super) initrd_path: &'a str,
    pub(super) boot_args: &'a str,
}

#[derive(Debug, Serialize)]
pub(super) struct Drive<'a> {
    pub(super) drive_id: &'a str,
    pub(super) path_on_host: &'a str,
    pub(super) is_root_device: bool,
    pub(super) is_read_only: bool,
    /// `Writeback`: the guest's flushes reach the file, which a snapshot's disk needs.
    pub(super) cache_type: &'a str,
    pub(super) rate_limiter: RateLimiter,
}

/// Limits of a machine on a drive.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct RateLimiter {
    bandwidth: TokenBucket,
    ops: TokenBucket,
}

/// `size` in `refill_time` milliseconds.
#[derive(Debug, Clone, Copy, Serialize)]
struct TokenBucket {
    size: u64,
    refill_time: u64,
}

impl From<DiskLimits> for RateLimiter {
    fn from(limits: DiskLimits) -> Self {
        let bucket = |size| TokenBucket { size, refill_time: 1_000 };
        let DiskLimits { mib_per_second, operations_per_second } = limits;
        Self { bandwidth: bucket(u64::from(mib_per_second) << 20), ops: bucket(operations_per_second.into()) }
    }
}

#[derive(Debug, Serialize)]
struct DriveUpdate<'a> {
    drive_id: &'a str,
    rate_limiter: RateLimiter,
}

#[derive(Debug, Serialize)]
pub(super) struct Vsock<'a> {
    pub(super) guest_cid: u32,
    pub(super) uds_path: &'a str,
}

#[derive(Debug, Serialize)]
pub(super) struct NetworkInterface<'a> {
    pub(super) iface_id: &'a str,
    pub(super) host_dev_name: &'a str,
    pub(super) guest_mac: &'a str,
}

#[derive(Debug, Serialize)]
struct Empty {}

#[derive(Debug, Serialize)]
struct Action {
    action_type: &'static str,
}

#[derive(Debug, Serialize)]
struct State {
    state: &'static str,
}

#[derive(Debug, Serialize)]
struct SnapshotCreate<'a> {
    snapshot_type: &'static str,
    snapshot_path: &'a str,
    mem_file_path: &'a str,
}

#[derive(Debug, Serialize)]
pub(super) struct SnapshotLoad<'a> {
    pub(super) snapshot_path: &'a str,
    pub(super) mem_backend: MemoryBackend<'a>,
    pub(super) resume_vm: bool,
    /// Only with [`Version::sets_clock_at_load`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) clock_realtime: Option<bool>,
}

#[derive(Debug, Serialize)]
pub(super) struct MemoryBackend<'a> {
    backend_type: &'static str,
    backend_path: &'a str,
}

impl<'a> MemoryBackend<'a> {
    /// The file is mapped privately: all machines share its page cache, none writes to it.
    pub(super) fn file(path: &'a str) -> Self {
        Self { backend_type: "File", backend_path: path }
    }
}

#[derive(Debug, Deserialize)]
struct FirecrackerVersion {
    firecracker_version: String,
}

#[derive(Debug, Deserialize)]
struct Fault {
    fault_message: String,
}

/// A client of one VMM's API socket.
#[derive(Debug, Clone)]
pub(super) struct Api {
    folder: Folder,
    socket: &'static str,
}

impl Api {
    /// `socket` is a name in `folder`. Nothing is opened yet.
    pub(super) fn new(folder: Folder, socket: &'static str) -> Self {
        Self { folder, socket }
    }

    /// True when the server accepts connections. The socket's file exists a moment earlier.
    pub(super) async fn listens(&self) -> bool {
        self.folder.connect(self.socket).await.is_ok()
    }

    pub(super) async fn version(&self) -> Result<Version, VmmError> {
        let body = self.call("GET", "/version", None, QUICK).await?;
        serde_json::from_slice::<FirecrackerVersion>(&body)
            .ok()
            .and_then(|answer| Version::parse(&answer.firecracker_version))
            .ok_or_else(|| VmmError::Refused {
                context: "GET /version".into(),
                message: "no version in the answer".into(),
            })
    }

    pub(super) async fn machine_config(&self, config: &MachineConfig) -> Result<(), VmmError> {
        self.put("/machine-config", config, QUICK).await
    }

    pub(super) async fn boot_source(&self, source: &BootSource<'_>) -> Result<(), VmmError> {
        self.put("/boot-source", source, QUICK).await
    }

    pub(super) async fn drive(&self, drive: &Drive<'_>) -> Result<(), VmmError> {
        self.put(&format!("/drives/{}", drive.drive_id), drive, QUICK).await
    }

    /// Limits a drive of a machine that was restored: its snapshot has the limits of when it was made.
    pub(super) async fn limit_drive(&self, drive_id: &str, limits: DiskLimits) -> Result<(), VmmError> {
        let update = DriveUpdate { drive_id, rate_limiter: limits.into() };
        self.send("PATCH", &format!("/drives/{drive_id}"), &update, QUICK).await
    }

    pub(super) async fn vsock(&self, vsock: &Vsock<'_>) -> Result<(), VmmError> {
        self.put("/vsock", vsock, QUICK).await
    }

    pub(super) async fn entropy(&self) -> Result<(), VmmError> {
        self.put("/entropy", &Empty {}, QUICK).await
    }

    pub(super) async fn network_interface(&self, interface: &NetworkInterface<'_>) -> Result<(), VmmError> {
        self.put(&format!("/network-interfaces/{}", interface.iface_id), interface, QUICK).await
    }

    pub(super) async fn start(&self) -> Result<(), VmmError> {
        self.put("/actions", &Action { action_type: "InstanceStart" }, START).await
    }

    pub(super) async fn pause(&self) -> Result<(), VmmError> {
        self.send("PATCH", "/vm", &State { state: "Paused" }, START).await
    }

    pub(super) async fn resume(&self) -> Result<(), VmmError> {
        self.send("PATCH", "/vm", &State { state: "Resumed" }, START).await
    }

    /// A full snapshot; both paths as the VMM sees them.
    pub(super) async fn create_snapshot(&self, state: &str, memory: &str) -> Result<(), VmmError> {
        let request = SnapshotCreate { snapshot_type: "Full", snapshot_path: state, mem_file_path: memory };
        self.put("/snapshot/create", &request, SNAPSHOT).await
    }

    pub(super) async fn load_snapshot(&self, load: &SnapshotLoad<'_>) -> Result<(), VmmError> {
        self.put("/snapshot/load", load, START).await
    }

    async fn put<T: Serialize>(&self, path: &str, body: &T, limit: Duration) -> Result<(), VmmError> {
        self.send("PUT", path, body, limit).await
    }

    async fn send<T: Serialize>(&self, method: &str, path: &str, body: &T, limit: Duration) -> Result<(), VmmError> {
        let body = serde_json::to_vec(body)
            .map_err(|e| VmmError::Io { context: format!("encode {method} {path}"), source: e.into() })?;
        self.call(method, path, Some(body), limit).await.map(drop)
    }

    async fn call(&self, method: &str, path: &str, body: Option<Vec<u8>>, limit: Duration) -> Result<Bytes, VmmError> {
        let (context, limit) = (|| format!("{method} {path}"), patient(limit));
        let exchange = async {
            let stream = self.folder.connect(self.socket).await?;
            http::exchange(stream, method, path, body).await
        };
        let answer = tokio::time::timeout(limit, exchange)
            .await
            .map_err(|_| VmmError::Timeout {
                what: format!("Firecracker's {}", context()),
                limit_ms: u64::try_from(limit.as_millis()).unwrap_or(u64::MAX),
            })?
            .map_err(|source| VmmError::Io { context: context(), source })?;
        if (200..300).contains(&answer.status) {
            return Ok(answer.body);
        }
        Err(VmmError::Refused { context: context(), message: fault(answer.status, &answer.body) })
    }
}

/// Firecracker's own words, bounded; the status when it has none.
fn fault(status: u16, body: &[u8]) -> String {
    let mut message = serde_json::from_slice::<Fault>(body)
        .map(|fault| fault.fault_message)
        .unwrap_or_else(|_| format!("HTTP {status}"));
    if let Some((cut, _)) = message.char_indices().nth(MAX_FAULT) {
        message.truncate(cut);
    }
    message
}

/// Reads any answer as the driver does, `piece` bytes at a time: status, body, and the text that an error would have. For
/// fuzzing.
#[cfg(feature = "fuzzing")]
pub(crate) async fn read_any(answer: &[u8], piece: usize) -> std::io::Result<(u16, Bytes, String)> {
    let answer = http::exchange(http::Scripted::new(answer, piece), "GET", "/version", None).await?;
    let fault = fault(answer.status, &answer.body);
    Ok((answer.status, answer.body, fault))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_keeps_firecrackers_words_within_bounds() {
        assert_eq!(
            fault(400, br#"{"fault_message":"The kernel file cannot be opened"}"#),
            "The kernel file cannot be opened"
        );
        assert_eq!(fault(500, b"<html>"), "HTTP 500");
        let long = format!(r#"{{"fault_message":"{}"}}"#, "é".repeat(5000));
        assert_eq!(fault(400, long.as_bytes()).chars().count(), MAX_FAULT);
    }

    #[test]
    fn requests_are_spelled_as_the_api_has_them() {
        let load = SnapshotLoad {
            snapshot_path: "state",
            mem_backend: MemoryBackend::file("memory"),
            resume_vm: true,
            clock_realtime: None,
        };
        assert_eq!(
            serde_json::to_value(&load).unwrap(),
            serde_json::json!({"snapshot_path": "state", "resume_vm": true,
                "mem_backend": {"backend_type": "File", "backend_path": "memory"}})
        );
    }
}
