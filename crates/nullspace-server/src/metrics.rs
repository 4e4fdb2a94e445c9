//! Metrics of the HTTP layer, for Prometheus: number and duration of requests, by operation and status. The domain adds its
//! own to the same page.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// Seconds. A status is read in milliseconds; a log that is followed takes as long as its build.
const BUCKETS: [f64; 12] = [0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0, 300.0];

/// Routes are patterns, so that there are as many label sets as operations and not as many as paths.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Request {
    method: &'static str,
    route: String,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Route {
    method: &'static str,
    route: String,
}

/// The counters of one server.
#[derive(Debug)]
pub(crate) struct HttpMetrics {
    registry: Registry,
    requests: Family<Request, Counter>,
    seconds: Family<Route, Histogram, fn() -> Histogram>,
    buffered: Gauge,
}

impl Default for HttpMetrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        let requests = Family::<Request, Counter>::default();
        registry.register("nullspace_http_requests", "Requests answered", requests.clone());
        let seconds: Family<Route, Histogram, fn() -> Histogram> =
            Family::new_with_constructor(|| Histogram::new(BUCKETS));
        registry.register(
            "nullspace_http_request_seconds",
            "From a request's head to its answer's head",
            seconds.clone(),
        );
        let buffered = Gauge::default();
        registry.register("nullspace_http_buffered_bytes", "What requests hold in memory", buffered.clone());
        Self { registry, requests, seconds, buffered }
    }
}

impl HttpMetrics {
    /// Counts an answer.
    pub(crate) fn answered(&self, method: &'static str, route: &str, status: u16, took: Duration) {
        let route = route.to_owned();
        self.requests.get_or_create(&Request { method, route: route.clone(), status }).inc();
        self.seconds.get_or_create(&Route { method, route }).observe(took.as_secs_f64());
    }

    /// The page: the domain's metrics and those of this layer. `buffered` is the memory of requests now, bytes.
    pub(crate) fn page(&self, domain: &str, buffered: usize) -> Result<String, std::fmt::Error> {
        self.buffered.set(i64::try_from(buffered).unwrap_or(i64::MAX));
        let mut page = domain.trim_end().trim_end_matches("# EOF").to_owned();
        encode(&mut page, &self.registry)?;
        Ok(page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_one_document() {
        let metrics = HttpMetrics::default();
        metrics.answered("GET", "/v1/templates", 200, Duration::from_millis(3));
        let page = metrics.page("# TYPE a gauge\na 1\n# EOF\n", 5).unwrap();
        assert_eq!(page.matches("# EOF").count(), 1);
        assert!(page.starts_with("# TYPE a gauge\na 1\n") && page.ends_with("# EOF\n"), "{page}");
        let line = "nullspace_http_requests_total{method=\"GET\",route=\"/v1/templates\",status=\"200\"} 1";
        assert!(page.contains(line), "{page}");
    }
}
