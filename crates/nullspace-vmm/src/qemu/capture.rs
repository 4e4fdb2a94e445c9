//! Captures: the writes of a machine since the last capture, read while it runs.
//!
//! ```text
//!   before        image <- disk1 (written)
//!   capture       image <- disk1 <- disk2 (written)       disk1 holds what changed, and nothing writes it any more
//!   snapshot      folder: disk2 alone; its base is the image with disk1 applied
//! ```
//! QEMU is handed a new empty overlay and puts it on top in one step (QMP `blockdev-snapshot`), for which it flushes and
//! stops the disk for a moment, not the machine. What the old one holds is read from its tables at leisure. Every capture
//! leaves a layer more that reads pass through, hence a limit.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::args::node_of_overlay;
use super::machine::Machine;
use super::qmp::timed_out;
use crate::changes::DiskChanges;
use crate::{VmmError, qcow2};

/// Most captures of one machine.
pub(super) const MAX_CAPTURES: u32 = 64;
/// QEMU flushes the disk's tables to the page cache; a host short of memory writes that out.
const LIMIT: Duration = Duration::from_secs(60);

impl Machine {
    /// See [`Vm::capture`](crate::Vm::capture).
    pub(super) async fn take_changes(&self) -> Result<DiskChanges, VmmError> {
        let _one_at_a_time = self.capturing.lock().await;
        let (disk, index) = {
            let own = self.own();
            (Arc::clone(&own.disk), own.captures)
        };
        if self.restored || !disk.is_a_single_overlay() {
            return Err(refused("only a machine that was booted over an image of its own has its writes told apart"));
        }
        if index >= MAX_CAPTURES {
            return Err(refused("it was captured too often: boot another one from what was captured"));
        }
        let (folder, size) = (self.work_dir.clone(), self.disk_bytes);
        let fresh = blocking(move || disk.successor(&folder)).await?;
        let descriptor = fresh.descriptor().map_err(io("make a disk overlay"))?;
        // Of a machine that boots, the image is layer 0 and its own overlay layer 1.
        let (below, above) = (1 + index as usize, 2 + index as usize);
        let run = async {
            let monitor = &self.running.monitor;
            let set = monitor.send("add-fd", json!({ "fdset-id": above }), Some(descriptor.as_fd())).await?;
            let (file, node) = node_of_overlay(above);
            let file = monitor.send("blockdev-add", file, None).await?;
            let node = monitor.send("blockdev-add", node, None).await?;
            for answer in [set, file, node] {
                answer.answer().await?;
            }
            let put = json!({ "node": format!("disk{below}"), "overlay": format!("disk{above}") });
            monitor.send("blockdev-snapshot", put, None).await?.answer().await
        };
        let put = tokio::time::timeout(LIMIT, run).await.unwrap_or_else(|_| Err(timed_out("blockdev-snapshot", LIMIT)));
        // After a failure nobody knows what QEMU writes to: the number is spent, so that a node's name is never used twice.
        self.own().captures = index + 1;
        self.explain(put).await?;
        let written = std::mem::replace(&mut self.own().disk, Arc::new(fresh));
        blocking(move || {
            let file = written.overlay_file()?;
            let parts = qcow2::allocated(&file, size)?;
            Ok(DiskChanges::new(size, parts, file))
        })
        .await
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, VmmError> {
    let done = tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(error.into()));
    done.map_err(io("capture a machine's writes"))
}

fn io(context: &'static str) -> impl FnOnce(std::io::Error) -> VmmError {
    move |source| VmmError::Io { context: context.into(), source }
}

fn refused(message: &str) -> VmmError {
    VmmError::Refused { context: "capture a machine's writes".into(), message: message.into() }
}
