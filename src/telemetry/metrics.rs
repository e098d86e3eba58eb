//! What a server counts and times, for Prometheus (text format 0.0.4).
//!
//! Names carry their units and begin with `action_executor_`, those about the process excepted, whose
//! names Prometheus gives. Labels hold only words of our own (actions, outcomes, codes, paths that are
//! served), so that no caller can make them many, and nothing of a request gets in.

use std::{
    fs,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use prometheus_client::{
    encoding::{EncodeLabelSet, prometheus_text},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::{Registry, Unit},
};

use crate::{contract::error::ActionError, telemetry::calls::Calls};

/// The media type of what [`Metrics::text`] writes.
pub const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// From a millisecond to ten seconds: a call, a question, a simulation.
const SHORT_SECONDS: [f64; 13] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// From ten milliseconds to an hour: an action may wait for a rollout.
const ACTION_SECONDS: [f64; 12] =
    [0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ActionLabels {
    action: &'static str,
    simulate: &'static str,
    /// The outcome of an answer, or the code of a problem.
    result: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabels {
    action: &'static str,
    simulate: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HttpLabels {
    path: &'static str,
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ProblemLabels {
    code: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FileLabels {
    file: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CertificateLabels {
    certificate: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LaneLabels {
    lane: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

/// Everything that is counted.
pub struct Metrics {
    registry: Registry,
    actions: Family<ActionLabels, Counter>,
    durations: Family<KindLabels, Histogram, fn() -> Histogram>,
    http: Family<HttpLabels, Counter>,
    problems: Family<ProblemLabels, Counter>,
    under_way: Gauge,
    connections: Gauge,
    refused_connections: Counter,
    failed_handshakes: Counter,
    expiry: Family<CertificateLabels, Gauge>,
    queued: Gauge,
    queue_duration: Histogram,
    concurrency_in_use: Family<LaneLabels, Gauge>,
    places_limit: Family<LaneLabels, Gauge>,
    edge_refusals: Family<ReasonLabels, Counter>,
    hung_up: Counter,
    config_reloads: Family<FileLabels, Gauge>,
    memory: Gauge,
    descriptors: Gauge,
}

impl Metrics {
    /// Nothing counted yet; `calls` are those of the cluster.
    #[must_use]
    pub fn new(calls: Option<&Calls>) -> Self {
        let mut metrics = Metrics {
            registry: Registry::default(),
            actions: Family::default(),
            durations: Family::new_with_constructor(|| Histogram::new(ACTION_SECONDS)),
            http: Family::default(),
            problems: Family::default(),
            under_way: Gauge::default(),
            connections: Gauge::default(),
            refused_connections: Counter::default(),
            failed_handshakes: Counter::default(),
            expiry: Family::default(),
            queued: Gauge::default(),
            queue_duration: Histogram::new(SHORT_SECONDS),
            concurrency_in_use: Family::default(),
            places_limit: Family::default(),
            edge_refusals: Family::default(),
            hung_up: Counter::default(),
            config_reloads: Family::default(),
            memory: Gauge::default(),
            descriptors: Gauge::default(),
        };
        metrics.register(calls);
        metrics
    }

    fn register(&mut self, calls: Option<&Calls>) {
        let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        let ours = self.registry.sub_registry_with_prefix("action_executor");
        ours.register("build", "The program", build);
        ours.register("actions", "Actions by what came of them", self.actions.clone());
        ours.register_with_unit(
            "action_duration",
            "Time from a request to its answer",
            Unit::Seconds,
            self.durations.clone(),
        );
        ours.register("http_requests", "HTTP requests answered", self.http.clone());
        ours.register("problems", "Problem documents sent, by code", self.problems.clone());
        ours.register(
            "http_requests_in_flight",
            "HTTP requests being answered",
            self.under_way.clone(),
        );
        ours.register("connections", "Open client connections", self.connections.clone());
        ours.register(
            "refused_connections",
            "Client connections for which there was no room",
            self.refused_connections.clone(),
        );
        ours.register("queued_requests", "Actions in line for a place", self.queued.clone());
        ours.register_with_unit(
            "queue_duration",
            "Time in line of actions that found no place at once",
            Unit::Seconds,
            self.queue_duration.clone(),
        );
        ours.register(
            "concurrency_in_use",
            "Requests under way, by room",
            self.concurrency_in_use.clone(),
        );
        ours.register(
            "concurrency_limit",
            "Most requests under way at once, by room",
            self.places_limit.clone(),
        );
        ours.register(
            "rejected_requests",
            "Requests for which there was no place or no time, by reason",
            self.edge_refusals.clone(),
        );
        ours.register(
            "client_disconnects",
            "Requests whose client did not wait for the answer",
            self.hung_up.clone(),
        );
        ours.register(
            "failed_handshakes",
            "Client connections that ended before TLS was agreed on",
            self.failed_handshakes.clone(),
        );
        ours.register_with_unit(
            "certificate_expiry_timestamp",
            "When the server's certificate, or the first of the clients' authorities, expires",
            Unit::Seconds,
            self.expiry.clone(),
        );
        ours.register(
            "config_reload_successful",
            "Whether the document's file is what holds (1), or an older one since the new one is wrong (0)",
            self.config_reloads.clone(),
        );
        if let Some(calls) = calls {
            ours.register_with_unit(
                "kubernetes_request_duration",
                "Calls to the API server by result, each try by itself",
                Unit::Seconds,
                calls.clone(),
            );
        }
        let process = self.registry.sub_registry_with_prefix("process");
        let started: Gauge = Gauge::default();
        started.set(seconds(SystemTime::now()));
        process.register_with_unit(
            "start_time",
            "When the process started",
            Unit::Seconds,
            started,
        );
        process.register_with_unit(
            "resident_memory",
            "Memory that the process holds",
            Unit::Bytes,
            self.memory.clone(),
        );
        process.register("open_fds", "Open file descriptors", self.descriptors.clone());
    }

    /// Counts an answered action: its kind, whether it was a simulation, and the outcome of its answer
    /// or the code of its problem.
    pub fn action(&self, action: &'static str, simulate: bool, result: &str, took: Duration) {
        let simulate = if simulate { "true" } else { "false" };
        let labels = ActionLabels { action, simulate, result: result.to_owned() };
        self.actions.get_or_create(&labels).inc();
        self.durations.get_or_create(&KindLabels { action, simulate }).observe(took.as_secs_f64());
    }

    /// Counts an HTTP request on a path that is served, or on `other`.
    pub fn http(&self, path: &'static str, status: u16) {
        self.http.get_or_create(&HttpLabels { path, status }).inc();
    }

    /// Counts a problem document that was sent.
    pub fn problem(&self, error: &ActionError) {
        self.problems.get_or_create(&ProblemLabels { code: error.code.name() }).inc();
    }

    /// An HTTP request is under way until this is dropped.
    #[must_use]
    pub fn in_flight(&self) -> GaugeGuard {
        GaugeGuard::new(&self.under_way)
    }

    /// A connection is open until this is dropped.
    #[must_use]
    pub fn connected(&self) -> GaugeGuard {
        GaugeGuard::new(&self.connections)
    }

    /// There was no room for a connection.
    pub fn connection_refused(&self) {
        self.refused_connections.inc();
    }

    /// A client and we did not agree on TLS.
    pub fn handshake_failed(&self) {
        self.failed_handshakes.inc();
    }

    /// When this certificate expires, in seconds since 1970.
    pub fn certificate_expires(&self, certificate: &'static str, at: i64) {
        self.expiry.get_or_create(&CertificateLabels { certificate }).set(at);
    }

    /// An action is in line until this is dropped.
    #[must_use]
    pub fn queued(&self) -> GaugeGuard {
        GaugeGuard::new(&self.queued)
    }

    /// An action was in line for so long.
    pub fn queued_for(&self, time: Duration) {
        self.queue_duration.observe(time.as_secs_f64());
    }

    /// A place in this room is taken until this is dropped.
    #[must_use]
    pub fn permit_acquired(&self, lane: &'static str) -> GaugeGuard {
        GaugeGuard::new(&self.concurrency_in_use.get_or_create(&LaneLabels { lane }))
    }

    /// This room has so many places.
    pub fn concurrency_limit(&self, lane: &'static str, places: usize) {
        let _ = self.concurrency_in_use.get_or_create(&LaneLabels { lane });
        self.places_limit.get_or_create(&LaneLabels { lane }).set(places as i64);
    }

    /// The requests that got no further than the edge for this reason.
    #[must_use]
    pub fn rejected_requests(&self, reason: &'static str) -> Counter {
        self.edge_refusals.get_or_create(&ReasonLabels { reason }).clone()
    }

    /// Counts a request whose client has gone.
    pub fn client_disconnects(&self) {
        self.hung_up.inc();
    }

    /// All of it as text; `documents` are those that are followed, and whether each is current.
    #[must_use]
    pub fn text(&self, documents: &[(&'static str, bool)]) -> String {
        for (document, current) in documents {
            self.config_reloads
                .get_or_create(&FileLabels { file: document })
                .set(i64::from(*current));
        }
        self.memory.set(resident_memory().unwrap_or(0));
        self.descriptors.set(fs::read_dir("/proc/self/fd").map_or(0, |all| all.count() as i64));
        let mut text = String::new();
        // Writing to a String does not fail.
        let _ = prometheus_text::encode(&mut text, &self.registry);
        text
    }
}

/// One more in a gauge, for as long as it lives.
pub struct GaugeGuard(Gauge);

impl GaugeGuard {
    fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        GaugeGuard(gauge.clone())
    }
}

impl Drop for GaugeGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}

fn seconds(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs().cast_signed())
}

/// Bytes in memory, as Linux counts them (proc(5), status).
fn resident_memory() -> Option<i64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    let kibibytes: i64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kibibytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::error::Code;

    #[test]
    fn what_is_counted_is_told_with_its_unit() {
        let metrics = Metrics::new(None);
        metrics.action("restart_k8s", true, "policy_denied", Duration::from_millis(20));
        metrics.problem(&ActionError::new(Code::PolicyDenied, "canary"));
        metrics.http("/readyz", 200);
        let under_way = metrics.in_flight();
        let text = metrics.text(&[("policy", false)]);
        drop(under_way);
        for line in [
            r#"action_executor_actions_total{action="restart_k8s",simulate="true",result="policy_denied"} 1"#,
            r#"action_executor_action_duration_seconds_count{action="restart_k8s",simulate="true"} 1"#,
            r#"action_executor_http_requests_total{path="/readyz",status="200"} 1"#,
            "action_executor_http_requests_in_flight 1",
            r#"action_executor_config_reload_successful{file="policy"} 0"#,
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
        assert!(!text.contains("canary"), "{text}");
        assert!(metrics.text(&[]).contains("action_executor_http_requests_in_flight 0"));
    }
}
