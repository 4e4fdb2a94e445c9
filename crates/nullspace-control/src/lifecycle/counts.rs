//! Counters of events and deliveries, for Prometheus.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    operation: String,
    status: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

/// Counters of this process.
#[derive(Debug, Clone, Default)]
pub(crate) struct Counts {
    events: Family<Kind, Counter>,
    lost: Counter,
    deliveries: Family<Outcome, Counter>,
}

impl Counts {
    /// Registers the counters.
    pub(crate) fn register(&self, registry: &mut Registry) {
        let help = "Lifecycle events, by operation and status";
        registry.register("lifecycle_events", help, self.events.clone());
        let help = "Lifecycle events that were not stored: the queue was full, or the database refused them";
        registry.register("lifecycle_events_lost", help, self.lost.clone());
        let help = "Attempts to deliver an event to a webhook, by outcome";
        registry.register("lifecycle_deliveries", help, self.deliveries.clone());
    }

    /// Counts an event.
    pub(super) fn recorded(&self, operation: String, status: String) {
        self.events.get_or_create(&Kind { operation, status }).inc();
    }

    /// Counts an event that is not stored.
    pub(super) fn lost(&self) {
        self.lost.inc();
    }

    /// Counts an attempt: `succeeded`, `retried` or `dead_letter`.
    pub(super) fn delivered(&self, outcome: &'static str) {
        self.deliveries.get_or_create(&Outcome { outcome }).inc();
    }

    /// Events that were not stored.
    #[cfg(test)]
    pub(super) fn lost_so_far(&self) -> u64 {
        self.lost.get()
    }
}
