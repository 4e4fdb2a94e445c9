//! The test of an accelerator: a guest is booted with it.
//!
//! A `/dev/kvm` that opens says little: a nested or para-virtual KVM creates machines and then hangs in their kernel.
//! So a guest is booted, with an empty disk, as the user and in the sandbox that machines will have, and the verdict is
//! whether its agent answers in time.
//!
//! A verdict holds until the host reboots, or QEMU or the guest's kernel changes: it is kept in this process, and in
//! [`QemuConfig::cache_dir`] for the next one, so that a start does not wait for a hanging guest each time. "Does not
//! work" holds for a day: the host may only have been too busy.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nullspace_guest::host::Agent;
use serde::{Deserialize, Serialize};

use super::config::{Accelerator, QemuConfig};
use super::driver::{Driver, Parts};
use super::host::{boot_id, kvm_device};
use crate::VmmError;
use crate::emulation::patient;

/// Software emulation on a busy host may take this long to boot; only `doctor` waits for it.
const TCG_LIMIT: Duration = Duration::from_secs(60);
/// Validity of the verdict "does not work".
const NEGATIVE_HOLDS: Duration = Duration::from_secs(24 * 3600);
/// Memory of the guest that is booted, MiB.
const MEMORY_MIB: u32 = 256;
/// Name of the verdict's file.
const FILE: &str = "kvm-verdict.json";
/// A verdict has a few hundred bytes.
const MAX_FILE: u64 = 64 * 1024;

/// The accelerators and walls that work on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeReport {
    /// QEMU's version.
    pub vmm_version: String,
    /// KVM first.
    pub accelerators: Vec<AcceleratorReport>,
    /// The walls between a guest and this host.
    pub walls: String,
    /// The missing walls, each with its reason.
    pub missing_walls: Vec<String>,
}

/// The result of one accelerator's test.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcceleratorReport {
    /// `kvm` or `tcg`.
    pub accelerator: String,
    /// True when a guest booted.
    pub works: bool,
    /// A sentence: how it went, or what is wrong and what to do.
    pub detail: String,
    /// Duration of the test, ms.
    pub took_ms: u64,
    /// True when the verdict is from an earlier trial of this boot of the host.
    pub cached: bool,
}

/// A verdict and what it was made of.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Verdict {
    boot_id: String,
    fingerprint: String,
    /// Seconds since 1970.
    tried_at: u64,
    report: AcceleratorReport,
}

/// Tests KVM, or returns the result of an earlier test if nothing has changed.
pub(crate) async fn kvm(config: &QemuConfig, parts: &Parts) -> AcceleratorReport {
    // Looked at each time: it costs nothing, and may have been cured since.
    if let Err(detail) = kvm_device(parts.has_own_users()) {
        return AcceleratorReport { accelerator: "kvm".into(), works: false, detail, took_ms: 0, cached: false };
    }
    static VERDICTS: Mutex<Option<HashMap<String, Verdict>>> = Mutex::new(None);
    let fingerprint = parts.fingerprint();
    let boot_id = boot_id().unwrap_or_default();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let fits = |verdict: &Verdict| {
        let recent = verdict.report.works || now.abs_diff(verdict.tried_at) < NEGATIVE_HOLDS.as_secs();
        verdict.boot_id == boot_id && verdict.fingerprint == fingerprint && recent
    };
    let known = {
        let verdicts = VERDICTS.lock().unwrap_or_else(PoisonError::into_inner);
        verdicts.as_ref().and_then(|verdicts| verdicts.get(&fingerprint).cloned())
    };
    let known = known.or_else(|| config.cache_dir.as_deref().and_then(load)).filter(fits);
    let verdict = match known {
        Some(verdict) => Verdict { report: AcceleratorReport { cached: true, ..verdict.report }, ..verdict },
        None => {
            let report = boot(config, parts, Accelerator::Kvm).await;
            let verdict = Verdict { boot_id: boot_id.clone(), fingerprint: fingerprint.clone(), tried_at: now, report };
            if let Some(folder) = config.cache_dir.as_deref()
                && let Err(error) = store(folder, &verdict)
            {
                tracing::warn!(%error, folder = %folder.display(), "the verdict on KVM could not be stored");
            }
            verdict
        }
    };
    let mut verdicts = VERDICTS.lock().unwrap_or_else(PoisonError::into_inner);
    verdicts.get_or_insert_default().insert(fingerprint, verdict.clone());
    verdict.report
}

/// Boots a guest and asks its agent for a sign of life.
pub(crate) async fn boot(config: &QemuConfig, parts: &Parts, accelerator: Accelerator) -> AcceleratorReport {
    let limit = match accelerator {
        Accelerator::Kvm => patient(config.probe_limit),
        Accelerator::Tcg => TCG_LIMIT,
    };
    let start = Instant::now();
    let config = QemuConfig { network: None, ..config.clone() };
    let driver = Arc::new(Driver::new(&config, parts, accelerator).await);
    let tried = try_boot(&driver, limit).await;
    let took_ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
    let (works, detail) = match tried {
        Ok(kernel) => (true, format!("a guest with kernel {kernel} booted in {took_ms} ms")),
        Err(detail) => (false, detail),
    };
    AcceleratorReport { accelerator: accelerator.name().into(), works, detail, took_ms, cached: false }
}

async fn try_boot(driver: &Arc<Driver>, limit: Duration) -> Result<String, String> {
    let machine = driver.boot_trial(MEMORY_MIB).await.map_err(|error| explain(&error))?;
    let greeting = async {
        let stream = machine.agent().await.map_err(|error| error.to_string())?;
        let (_agent, info) = Agent::connect(stream, limit).await.map_err(|error| error.to_string())?;
        Ok(info.kernel)
    };
    let outcome = tokio::select! {
        outcome = greeting => outcome,
        ended = machine.exited() => Err(ended.how),
    };
    if let Err(error) = machine.kill().await {
        tracing::error!(%error, "the guest of a probe could not be ended");
    }
    outcome.map_err(|error| {
        let console = machine.console_tail();
        let last = console.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("nothing on its console").trim();
        format!("a guest does not boot within {} s: {error}; last seen: {last}", limit.as_secs())
    })
}

fn explain(error: &VmmError) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

fn load(folder: &Path) -> Option<Verdict> {
    use std::io::Read;
    let mut text = Vec::new();
    std::fs::File::open(folder.join(FILE)).ok()?.take(MAX_FILE).read_to_end(&mut text).ok()?;
    // A file that cannot be read is no verdict, and the next trial replaces it.
    serde_json::from_slice(&text).ok()
}

fn store(folder: &Path, verdict: &Verdict) -> std::io::Result<()> {
    let (target, draft) = (folder.join(FILE), folder.join(format!("{FILE}.{}", std::process::id())));
    let written = std::fs::write(&draft, serde_json::to_vec(verdict)?).and_then(|()| std::fs::rename(&draft, &target));
    if written.is_err() {
        let _ = std::fs::remove_file(&draft);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_survives_the_process_and_a_damaged_file_is_none() {
        let folder = tempfile::tempdir().unwrap();
        assert!(load(folder.path()).is_none());
        let report = AcceleratorReport {
            accelerator: "kvm".into(),
            works: false,
            detail: "hangs".into(),
            took_ms: 8000,
            cached: false,
        };
        let verdict = Verdict { boot_id: "b".into(), fingerprint: "f".into(), tried_at: 1, report };
        store(folder.path(), &verdict).unwrap();
        let read = load(folder.path()).unwrap();
        assert_eq!(
            (read.boot_id, read.fingerprint, read.report),
            (verdict.boot_id, verdict.fingerprint, verdict.report)
        );
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        std::fs::write(folder.path().join(FILE), b"{").unwrap();
        assert!(load(folder.path()).is_none());
    }
}
