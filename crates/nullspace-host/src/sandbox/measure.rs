//! The use of a running sandbox over time.
//!
//! ```text
//!   every 10 s ──> VMM's process (processor time, memory, card) ──┐
//!              └─> guest's agent (memory, disk, processors) ──────┴─> at most an hour of samples, oldest first
//! ```
//! Processor time and traffic are the host's figures where it has them. Memory and disk are the guest's, as it alone knows
//! what it could give back. A guest that lies about them lies to its owner: no limit depends on them. An agent that cannot
//! tell, or does not in time, is replaced by the host's figures.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use nullspace_guest::message::Usage;
use nullspace_host_interface::SandboxUse;
use nullspace_vmm::VmUsage;

use super::live::Live;

/// Time between two samples.
pub(super) const EVERY: Duration = Duration::from_secs(10);
/// Time before the first one: it would delay the first command.
const FIRST: Duration = Duration::from_secs(1);
/// Most samples that are kept: an hour.
const MOST: usize = 360;
/// Time limit of the agent's answer.
const ANSWER: Duration = Duration::from_secs(3);
/// Least time between two samples: a caller that asks often gets the last one.
const LEAST: Duration = Duration::from_millis(500);

/// The samples of one sandbox.
#[derive(Debug, Default)]
pub(super) struct Measured(Mutex<Samples>);

#[derive(Debug, Default)]
struct Samples {
    kept: VecDeque<SandboxUse>,
    last: Option<Counters>,
    /// Traffic that the guest had counted when it was measured first.
    before: Option<(u64, u64)>,
}

/// Counters at a moment.
#[derive(Debug, Clone, Copy)]
struct Counters {
    at: Instant,
    /// Processor time by the VMM's process, and by the guest.
    cpu: (Option<Duration>, Option<Duration>),
}

/// The size of a sandbox's machine.
#[derive(Debug, Clone, Copy)]
struct Size {
    vcpus: u32,
    memory: u64,
    disk: u64,
}

/// What was read at one moment.
#[derive(Debug, Clone, Copy, Default)]
struct Read {
    vmm: Option<VmUsage>,
    guest: Option<Usage>,
    /// Bytes that the machine has written of its disk.
    written: u64,
}

impl Live {
    /// Takes a sample, unless the last one is of this moment.
    pub(super) async fn measure(&self) {
        if self.measured.lock().last.is_some_and(|last| last.at.elapsed() < LEAST) {
            return;
        }
        let guest = async {
            // While a snapshot is taken, the agent cannot be asked.
            let agent = self.gate.agent_if_open()?;
            tokio::time::timeout(ANSWER, agent.usage()).await.ok()?.ok()
        };
        let (vmm, guest) = tokio::join!(self.machine.vm.usage(), guest);
        let read = Read { vmm, guest, written: self.machine.vm.nameless_bytes() };
        let size =
            Size { vcpus: self.size.vcpus, memory: u64::from(self.size.memory_mib) << 20, disk: self.size.disk_bytes };
        self.measured.lock().add(Instant::now(), Timestamp::now(), size, read);
    }

    /// Takes a sample every so often, until the sandbox ends.
    pub(super) async fn keep_measuring(&self) {
        let mut rest = FIRST;
        loop {
            tokio::select! {
                () = self.ended.cancelled() => return,
                () = tokio::time::sleep(rest) => {}
            }
            self.measure().await;
            rest = EVERY;
        }
    }
}

impl Measured {
    fn lock(&self) -> MutexGuard<'_, Samples> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All samples, oldest first.
    pub(super) fn all(&self) -> Vec<SandboxUse> {
        self.lock().kept.iter().cloned().collect()
    }
}

impl Samples {
    fn add(&mut self, now: Instant, at: Timestamp, size: Size, read: Read) {
        let Read { vmm, guest, written } = read;
        let cpu =
            (vmm.map(|vmm| Duration::from_nanos(vmm.cpu_ns)), guest.map(|guest| Duration::from_millis(guest.cpu_ms)));
        let cpu_percent = self.last.and_then(|last| busy(last, now, cpu)).unwrap_or(0.0);
        self.last = Some(Counters { at: now, cpu });
        let previous = self.kept.back();
        let guest_counts = guest.map(|guest| {
            let (received, sent) = *self.before.get_or_insert((guest.received, guest.sent));
            (guest.received.saturating_sub(received), guest.sent.saturating_sub(sent))
        });
        let counted = vmm.and_then(|vmm| vmm.network).map(|card| (card.received_bytes, card.sent_bytes));
        // Neither is read in every sample, and traffic does not go down.
        let traffic = counted.or(guest_counts).or(previous.map(|previous| (previous.received, previous.sent)));
        let (received, sent) = traffic.unwrap_or_default();
        let memory = guest.map(|guest| (guest.memory_used, guest.memory_total));
        let (memory_used, memory_total) =
            memory.unwrap_or((vmm.map_or(0, |vmm| vmm.private_bytes.min(size.memory)), size.memory));
        let disk = guest.map(|guest| (guest.disk_used, guest.disk_total));
        let (disk_used, disk_total) = disk.unwrap_or((written.min(size.disk), size.disk));
        while self.kept.len() >= MOST {
            self.kept.pop_front();
        }
        self.kept.push_back(SandboxUse {
            at,
            cpu_percent,
            vcpus: size.vcpus,
            memory_used,
            memory_total,
            disk_used,
            disk_total,
            received,
            sent,
        });
    }
}

/// Processor time since the sample before, in percent of one processor: the VMM's, or else the guest's.
fn busy(last: Counters, now: Instant, cpu: (Option<Duration>, Option<Duration>)) -> Option<f64> {
    let time = now.checked_duration_since(last.at).filter(|time| !time.is_zero())?;
    let since = |now: Option<Duration>, then: Option<Duration>| Some(now?.saturating_sub(then?));
    let used = since(cpu.0, last.cpu.0).or_else(|| since(cpu.1, last.cpu.1))?;
    Some(100.0 * used.as_secs_f64() / time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use nullspace_vmm::NetworkUsage;

    use super::*;

    const SIZE: Size = Size { vcpus: 2, memory: 1 << 30, disk: 4 << 30 };

    fn guest(cpu_ms: u64, received: u64) -> Usage {
        Usage {
            memory_total: 1000,
            memory_used: 400,
            disk_total: 5000,
            disk_used: 70,
            cpu_ms,
            received,
            sent: 2 * received,
        }
    }

    fn vmm(cpu_ms: u64) -> VmUsage {
        VmUsage { cpu_ns: cpu_ms * 1_000_000, private_bytes: 9 << 20, network: None }
    }

    fn add(samples: &mut Samples, second: u64, read: Read) -> SandboxUse {
        let now = start() + Duration::from_secs(second);
        let at = Timestamp::from_second(1_700_000_000 + i64::try_from(second).unwrap()).unwrap();
        samples.add(now, at, SIZE, read);
        samples.kept.back().unwrap().clone()
    }

    fn start() -> Instant {
        static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
        *START.get_or_init(Instant::now)
    }

    #[test]
    fn processor_time_is_the_hosts_and_memory_and_disk_are_the_guests() {
        let mut samples = Samples::default();
        let first = add(&mut samples, 0, Read { vmm: Some(vmm(1000)), guest: Some(guest(70_000, 50)), written: 5 });
        assert_eq!((first.cpu_percent, first.received, first.sent), (0.0, 0, 0));
        let next = add(&mut samples, 10, Read { vmm: Some(vmm(6000)), guest: Some(guest(70_001, 80)), written: 5 });
        assert!((next.cpu_percent - 50.0).abs() < 0.01, "{next:?}");
        assert_eq!((next.memory_used, next.memory_total, next.disk_used, next.disk_total), (400, 1000, 70, 5000));
        assert_eq!((next.received, next.sent), (30, 60));
    }

    #[test]
    fn each_side_stands_in_for_the_other() {
        let mut samples = Samples::default();
        let network = Some(NetworkUsage { received_bytes: 5, sent_bytes: 6 });
        let read = Read { vmm: Some(VmUsage { network, ..vmm(0) }), guest: None, written: 1 << 20 };
        let host_alone = add(&mut samples, 0, read);
        assert_eq!((host_alone.memory_used, host_alone.memory_total), (9 << 20, 1 << 30));
        assert_eq!((host_alone.disk_used, host_alone.disk_total), (1 << 20, 4 << 30));
        assert_eq!((host_alone.received, host_alone.sent), (5, 6));
        let nobody = add(&mut samples, 10, Read::default());
        assert_eq!((nobody.cpu_percent, nobody.received, nobody.sent), (0.0, 5, 6));
        add(&mut samples, 20, Read { vmm: None, guest: Some(guest(100, 0)), written: 0 });
        let guest_alone = add(&mut samples, 30, Read { vmm: None, guest: Some(guest(20_100, 0)), written: 0 });
        assert!((guest_alone.cpu_percent - 200.0).abs() < 0.01, "{guest_alone:?}");
    }

    #[test]
    fn an_hour_is_kept() {
        let mut samples = Samples::default();
        for second in 0..400 {
            add(&mut samples, 10 * second, Read::default());
        }
        assert_eq!(samples.kept.len(), MOST);
        let oldest = samples.kept.front().unwrap().at;
        let newest = samples.kept.back().unwrap().at;
        assert_eq!(newest.duration_since(oldest).as_secs(), 10 * 359);
    }
}
