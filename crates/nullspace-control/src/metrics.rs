//! Metrics of the domain, for Prometheus. They answer: does the queue move, which phase of a build takes long, how much do
//! caches save, why do builds fail, how fast do sandboxes start.

use std::time::Duration;

use jiff::Timestamp;
use nullspace_api::TemplateBuildLogEntryCacheStatus as CacheStatus;
use nullspace_host_interface::{CacheKind, CacheLookup, HostInfo, ObjectStoreUsage};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::Inner;
use crate::error::{Result, Stored, internal};
use crate::lifecycle;
/// Seconds of a build's phase.
const PHASE: [f64; 11] = [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 1800.0];
/// Seconds from a request for a sandbox until it runs.
const RESTORE: [f64; 11] = [0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 30.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Status {
    status: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Failure {
    phase: &'static str,
    reason: &'static str,
}

/// VMM and accelerator of the machines.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Driver {
    vmm: &'static str,
    version: String,
    accelerator: String,
    walls: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Phase {
    phase: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Lookup {
    kind: &'static str,
    status: &'static str,
}

type Seconds<L> = Family<L, Histogram, fn() -> Histogram>;

/// Metrics of this process.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    builds: Family<Status, Counter>,
    failures: Family<Failure, Counter>,
    retries: Counter,
    phases: Seconds<Phase>,
    cache: Family<Lookup, Counter>,
    restores: Family<Status, Counter>,
    restore_seconds: Histogram,
    sandbox_failures: Family<Reason, Counter>,
    driver: Family<Driver, Gauge>,
    memory_used: Gauge,
    memory_limit: Gauge,
    vcpus_used: Gauge,
    vcpus_limit: Gauge,
    waiting: Gauge,
    oldest_waiting: Gauge<f64, std::sync::atomic::AtomicU64>,
    building: Gauge,
    sandboxes: Gauge,
    chunks: Gauge,
    chunk_bytes: Gauge,
    image_bytes: Gauge,
    raw_files: Gauge,
    raw_bytes: Gauge,
    written_back: Gauge,
    layer_files: Gauge,
    layer_bytes: Gauge,
    layer_hits: Gauge,
    /// In the order of their registration.
    objects: [Gauge; 8],
    /// Machines, disks, bytes.
    builders: [Gauge; 3],
    disk_free: Gauge,
    disk_reserve: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("nullspace");
        let builds = Family::<Status, Counter>::default();
        registry.register("builds", "Builds that ended on this host", builds.clone());
        let failures = Family::<Failure, Counter>::default();
        registry.register("build_failures", "Builds that ended with an error, by phase and reason", failures.clone());
        let retries = Counter::default();
        registry.register("build_retries", "Attempts that failed and were given back to the queue", retries.clone());
        let phases: Seconds<Phase> = Family::new_with_constructor(|| Histogram::new(PHASE));
        registry.register("build_phase_seconds", "Time of a build's phases", phases.clone());
        let cache = Family::<Lookup, Counter>::default();
        registry.register("cache_lookups", "Answers of caches, by kind and status", cache.clone());
        let restores = Family::<Status, Counter>::default();
        registry.register("sandbox_starts", "Requests for a sandbox, by result", restores.clone());
        let restore_seconds = Histogram::new(RESTORE);
        registry.register("sandbox_start_seconds", "Time from a request to a running sandbox", restore_seconds.clone());
        let sandbox_failures = Family::<Reason, Counter>::default();
        let help = "Sandboxes that ended by a fault after they had run, by reason";
        registry.register("sandbox_failures", help, sandbox_failures.clone());
        let driver = Family::<Driver, Gauge>::default();
        registry.register("machine_driver", "VMM and accelerator of machines, in the labels; always 1", driver.clone());
        let [memory_used, memory_limit, vcpus_used, vcpus_limit] = [
            ("machines_memory_mib", "Memory of admitted machines, with that of their VMMs"),
            ("machines_memory_limit_mib", "Limit of the memory of all machines"),
            ("machines_vcpus", "Virtual CPUs of admitted machines"),
            ("machines_vcpus_limit", "Limit of the virtual CPUs of all machines"),
        ]
        .map(|(name, help)| {
            let gauge: Gauge = Gauge::default();
            registry.register(name, help, gauge.clone());
            gauge
        });
        let waiting = Gauge::default();
        registry.register("builds_waiting", "Builds that wait for a worker", waiting.clone());
        let oldest_waiting = Gauge::default();
        registry.register("builds_oldest_waiting_seconds", "Wait of the oldest waiting build", oldest_waiting.clone());
        let building = Gauge::default();
        registry.register("builds_running", "Builds in the state building", building.clone());
        let sandboxes = Gauge::default();
        registry.register("sandboxes_live", "Sandboxes that have not ended", sandboxes.clone());
        let chunks = Gauge::default();
        registry.register("store_chunks", "Different chunks of root images", chunks.clone());
        let chunk_bytes = Gauge::default();
        registry.register("store_bytes", "Size of the packs of the chunk store", chunk_bytes.clone());
        let image_bytes = Gauge::default();
        registry.register("store_plain_bytes", "Size of the chunks before compression", image_bytes.clone());
        let raw_files = Gauge::default();
        registry.register("rootfs_cache_files", "Raw root images in the cache", raw_files.clone());
        let raw_bytes = Gauge::default();
        registry.register("rootfs_cache_bytes", "Size of the raw root images on the disk", raw_bytes.clone());
        let written_back = Gauge::default();
        let help = "Raw root images made from chunks since the start";
        registry.register("rootfs_written_back", help, written_back.clone());
        let [layer_files, layer_bytes, layer_hits] = [
            ("image_layer_cache_files", "Image layers in the cache"),
            ("image_layer_cache_bytes", "Size of the image layers in the cache"),
            ("image_layer_cache_hits", "Image layers that were found in the cache since the start"),
        ]
        .map(|(name, help)| {
            let gauge: Gauge = Gauge::default();
            registry.register(name, help, gauge.clone());
            gauge
        });
        let objects = [
            ("object_store_uploads", "Objects that were stored in the object store since the start"),
            ("object_store_uploaded_bytes", "Bytes of them"),
            ("object_store_downloads", "Reads of objects and parts of objects since the start"),
            ("object_store_downloaded_bytes", "Bytes of them"),
            ("object_store_failures", "Calls of the object store that failed after all their tries since the start"),
            ("object_store_pack_bytes", "Size of the packs in the object store"),
            ("object_store_missing_bytes", "Size of the packs that are not in the object store yet"),
            ("object_cache_bytes", "Size of what the data folder keeps of the object store as a cache"),
        ]
        .map(|(name, help)| {
            let gauge: Gauge = Gauge::default();
            registry.register(name, help, gauge.clone());
            gauge
        });
        let builders = [
            ("builder_machines", "Machines that build Dockerfiles"),
            ("builder_disks", "Disks of such machines, also of those that have ended"),
            ("builder_disk_bytes", "Size of these disks"),
        ]
        .map(|(name, help)| {
            let gauge: Gauge = Gauge::default();
            registry.register(name, help, gauge.clone());
            gauge
        });
        let disk_free = Gauge::default();
        registry.register("disk_free_bytes", "Free space on the disk under the data folder", disk_free.clone());
        let disk_reserve = Gauge::default();
        registry.register("disk_reserve_bytes", "Free space below which new work is refused", disk_reserve.clone());
        Self {
            registry,
            builds,
            failures,
            retries,
            phases,
            cache,
            restores,
            restore_seconds,
            sandbox_failures,
            driver,
            memory_used,
            memory_limit,
            vcpus_used,
            vcpus_limit,
            waiting,
            oldest_waiting,
            building,
            sandboxes,
            chunks,
            chunk_bytes,
            image_bytes,
            raw_files,
            raw_bytes,
            written_back,
            layer_files,
            layer_bytes,
            layer_hits,
            objects,
            builders,
            disk_free,
            disk_reserve,
        }
    }
}

impl Metrics {
    /// The metrics, with the counters of lifecycle events.
    pub(crate) fn with(lifecycle: &lifecycle::State) -> Self {
        let mut metrics = Self::default();
        lifecycle.counts().register(&mut metrics.registry);
        metrics
    }

    /// Counts a build that is ready or was cancelled.
    pub(crate) fn ended(&self, status: &'static str) {
        self.builds.get_or_create(&Status { status }).inc();
    }

    /// Counts a build that ended with an error.
    pub(crate) fn failed(&self, phase: &'static str, reason: &'static str) {
        self.ended("error");
        self.failures.get_or_create(&Failure { phase, reason }).inc();
    }

    /// Counts an attempt that goes back to the queue.
    pub(crate) fn retried(&self) {
        self.retries.inc();
    }

    /// Counts a phase that succeeded.
    pub(crate) fn phase(&self, phase: &'static str, took: Duration) {
        self.phases.get_or_create(&Phase { phase }).observe(took.as_secs_f64());
    }

    /// Counts a cache's answer.
    pub(crate) fn looked_up(&self, lookup: CacheLookup) {
        let kind = match lookup.kind {
            CacheKind::FileBlob => "file_blob",
            CacheKind::FinalArtifact => "final_artifact",
            CacheKind::Layer => "layer",
        };
        let status = match lookup.status {
            CacheStatus::Bypass => "bypass",
            CacheStatus::Hit => "hit",
            CacheStatus::Miss => "miss",
            CacheStatus::Stored => "stored",
        };
        self.cache.get_or_create(&Lookup { kind, status }).inc();
    }

    /// Counts a running sandbox that ended by a fault.
    pub(crate) fn sandbox_failed(&self, reason: &'static str) {
        self.sandbox_failures.get_or_create(&Reason { reason }).inc();
    }

    /// Counts a request for a sandbox.
    pub(crate) fn started(&self, well: bool, took: Duration) {
        let status = if well { "running" } else { "error" };
        self.restores.get_or_create(&Status { status }).inc();
        if well {
            self.restore_seconds.observe(took.as_secs_f64());
        }
    }
}

impl Inner {
    /// Returns all metrics, with the current values of gauges, in Prometheus' text form.
    pub(crate) async fn metrics_page(&self) -> Result<String> {
        let counters = self.db.counters().await.stored()?;
        let metrics = &self.metrics;
        let gauge = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        let (used, limit) = self.host.admitted();
        metrics.memory_used.set(gauge(used.memory_mib));
        metrics.memory_limit.set(gauge(limit.memory_mib));
        metrics.vcpus_used.set(gauge(used.vcpus));
        metrics.vcpus_limit.set(gauge(limit.vcpus));
        let HostInfo { vmm, version, accelerator, walls } = self.host.info();
        metrics.driver.get_or_create(&Driver { vmm, version, accelerator, walls }).set(1);
        metrics.waiting.set(gauge(counters.builds_waiting));
        metrics.building.set(gauge(counters.builds_building));
        metrics.sandboxes.set(gauge(counters.sandboxes_live));
        let usage = self.host.usage().await.map_err(|error| internal("ask what the host stores", &error))?;
        metrics.chunks.set(gauge(usage.images.chunks));
        metrics.chunk_bytes.set(gauge(usage.images.pack_bytes));
        metrics.image_bytes.set(gauge(usage.images.plain_bytes));
        metrics.raw_files.set(gauge(usage.raw.files));
        metrics.raw_bytes.set(gauge(usage.raw.bytes));
        metrics.written_back.set(gauge(usage.raw.written_back));
        metrics.layer_files.set(gauge(usage.layers.files));
        metrics.layer_bytes.set(gauge(usage.layers.bytes));
        metrics.layer_hits.set(gauge(usage.layers.hits));
        let ObjectStoreUsage {
            uploads,
            uploaded_bytes,
            downloads,
            downloaded_bytes,
            failures,
            pack_bytes,
            missing_bytes,
            cache_bytes,
        } = usage.objects;
        let moved = [uploads, uploaded_bytes, downloads, downloaded_bytes, failures];
        for (metric, value) in
            metrics.objects.iter().zip(moved.into_iter().chain([pack_bytes, missing_bytes, cache_bytes]))
        {
            metric.set(gauge(value));
        }
        let builders = [usage.builder_machines, usage.builder_disks, usage.builder_disk_bytes];
        for (metric, value) in metrics.builders.iter().zip(builders) {
            metric.set(gauge(value));
        }
        metrics.disk_free.set(gauge(usage.disk_free));
        metrics.disk_reserve.set(gauge(usage.disk_reserve));
        let age = counters.oldest_waiting.map(|since| Timestamp::now().duration_since(since).as_secs_f64());
        metrics.oldest_waiting.set(age.unwrap_or_default().max(0.0));
        let mut page = String::new();
        encode(&mut page, &metrics.registry).map_err(|error| internal("write metrics", &error))?;
        Ok(page)
    }
}
