//! The metrics of a server, for Prometheus (text format 0.0.4).
//!
//! Names have their unit as suffix and start with `action_executor_`, except those of the process, whose names
//! Prometheus defines. Labels contain only the program's own words (actions, outcomes, codes, served paths):
//! no text of a request becomes a label, so callers cannot create time series. The names of the clusters come from
//! the administrator's list.

use std::{
    borrow::Cow,
    fs,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use prometheus_client::{
    encoding::{EncodeLabelSet, prometheus_text},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::{Registry, Unit},
};

use crate::{
    contract::error::{ActionError, Code},
    telemetry::{
        calls::{CallLabels, Calls, ClusterLabel, no_calls},
        deliveries::{Deliveries, no_deliveries},
    },
};

/// The media type of [`Metrics::text`].
pub(crate) const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// From a millisecond to ten seconds, for calls and simulations.
const SHORT_SECONDS: [f64; 13] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// From ten milliseconds to an hour, since an action may wait for a rollout.
const ACTION_SECONDS: [f64; 12] =
    [0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0];

/// What becomes of a receipt.
const RECEIPT_RESULTS: [&str; 2] = ["written", "failed"];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ActionLabels {
    action: &'static str,
    simulate: &'static str,
    /// An outcome, or an error code.
    result: Cow<'static, str>,
    #[prometheus(flatten)]
    cluster: ClusterLabel,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabels {
    action: &'static str,
    simulate: &'static str,
    #[prometheus(flatten)]
    cluster: ClusterLabel,
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
    #[prometheus(flatten)]
    cluster: ClusterLabel,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabels {
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

/// The registry and its metrics.
pub(crate) struct Metrics {
    registry: Registry,
    actions: Family<ActionLabels, Counter>,
    durations: Family<KindLabels, Histogram, fn() -> Histogram>,
    http: Family<HttpLabels, Counter>,
    problems: Family<ProblemLabels, Counter>,
    in_flight: Gauge,
    connections: Gauge,
    refused_connections: Counter,
    failed_handshakes: Counter,
    expiry: Family<CertificateLabels, Gauge>,
    queued: Family<ClusterLabel, Gauge>,
    queue_duration: Histogram,
    concurrency_in_use: Family<LaneLabels, Gauge>,
    concurrency_limit: Family<LaneLabels, Gauge>,
    rejected_requests: Family<ReasonLabels, Counter>,
    client_disconnects: Counter,
    receipts: Family<ResultLabels, Counter>,
    config_reloads: Family<FileLabels, Gauge>,
    memory: Gauge,
    descriptors: Gauge,
}

impl Metrics {
    /// New metrics; `calls` are those of the cluster's client.
    pub(crate) fn new(calls: Option<&Calls>) -> Self {
        let mut metrics = Metrics {
            registry: Registry::default(),
            actions: Family::default(),
            durations: Family::new_with_constructor(|| Histogram::new(ACTION_SECONDS)),
            http: Family::default(),
            problems: Family::default(),
            in_flight: Gauge::default(),
            connections: Gauge::default(),
            refused_connections: Counter::default(),
            failed_handshakes: Counter::default(),
            expiry: Family::default(),
            queued: Family::default(),
            queue_duration: Histogram::new(SHORT_SECONDS),
            concurrency_in_use: Family::default(),
            concurrency_limit: Family::default(),
            rejected_requests: Family::default(),
            client_disconnects: Counter::default(),
            receipts: Family::default(),
            config_reloads: Family::default(),
            memory: Gauge::default(),
            descriptors: Gauge::default(),
        };
        // An increase is seen from a value on: without these, the first failure would be none.
        for result in RECEIPT_RESULTS {
            metrics.receipts.get_or_create(&ResultLabels { result }).inc_by(0);
        }
        metrics.register(calls);
        metrics
    }

    fn register(&mut self, calls: Option<&Calls>) {
        let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        let ours = self.registry.sub_registry_with_prefix("action_executor");
        ours.register("build", "The program", build);
        ours.register(
            "actions",
            "Actions by their result: an outcome or an error code",
            self.actions.clone(),
        );
        ours.register_with_unit(
            "action_duration",
            "Time from a request to its answer",
            Unit::Seconds,
            self.durations.clone(),
        );
        ours.register("http_requests", "HTTP requests answered", self.http.clone());
        ours.register("problems", "Problem documents sent", self.problems.clone());
        ours.register(
            "http_requests_in_flight",
            "HTTP requests being served",
            self.in_flight.clone(),
        );
        ours.register("connections", "Open client connections", self.connections.clone());
        ours.register(
            "refused_connections",
            "Client connections refused because the limit was reached",
            self.refused_connections.clone(),
        );
        ours.register("queued_requests", "Actions that wait for a permit", self.queued.clone());
        ours.register_with_unit(
            "queue_duration",
            "Time that actions waited for a permit",
            Unit::Seconds,
            self.queue_duration.clone(),
        );
        ours.register("concurrency_in_use", "Permits in use", self.concurrency_in_use.clone());
        ours.register(
            "concurrency_limit",
            "Maximum number of permits",
            self.concurrency_limit.clone(),
        );
        ours.register(
            "rejected_requests",
            "Requests rejected before they were dispatched",
            self.rejected_requests.clone(),
        );
        ours.register(
            "client_disconnects",
            "Requests whose client disconnected before the answer",
            self.client_disconnects.clone(),
        );
        ours.register(
            "receipts",
            "Receipts of real actions, written or failed to be written",
            self.receipts.clone(),
        );
        ours.register(
            "failed_handshakes",
            "Client connections that ended before the TLS handshake was complete",
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
            "1 if the file's current content is in use, 0 if an older one is, since the new one is invalid",
            self.config_reloads.clone(),
        );
        if let Some(calls) = calls {
            ours.register_with_unit(
                "kubernetes_request_duration",
                "Calls to the API server, each attempt by itself",
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
            "Resident memory",
            Unit::Bytes,
            self.memory.clone(),
        );
        process.register("open_fds", "Open file descriptors", self.descriptors.clone());
    }

    /// Also exposes what became of notifications.
    pub(crate) fn with_deliveries(mut self, deliveries: &Deliveries) -> Self {
        let ours = self.registry.sub_registry_with_prefix("action_executor");
        ours.register("notifications", "Notifications by what became of them", deliveries.clone());
        self
    }

    /// A description of every metric.
    pub(crate) fn reference() -> Vec<MetricDescription> {
        let calls = no_calls();
        let cluster = ClusterLabel(Some("a".into()));
        let labels = CallLabels { result: "ok", cluster: cluster.clone() };
        calls.get_or_create(&labels).observe(0.0);
        let metrics = Metrics::new(Some(&calls)).with_deliveries(&no_deliveries());
        // A family without a series prints no labels.
        metrics.action("cordon", true, "simulated".into(), cluster.clone(), Duration::ZERO);
        metrics.http("other", 404);
        metrics.problem(&ActionError::new(Code::RouteNotFound, ""));
        metrics.certificate_expires("server", 0);
        metrics.concurrency_limit("actions", &cluster, 1);
        metrics.queue(&cluster);
        metrics.rejected_requests("deadline").inc();
        let text = metrics.text(&[("policy", true)]);
        let help = |name: &str| {
            let line = text.lines().find_map(|it| it.strip_prefix(&format!("# HELP {name} ")));
            line.unwrap_or_default().trim_end_matches('.').to_owned()
        };
        let labels = |name: &str| {
            let series = text.lines().find_map(|line| {
                let rest = line.strip_prefix(name)?;
                rest.strip_prefix("_bucket").unwrap_or(rest).strip_prefix('{')
            });
            let pairs = series.and_then(|it| it.split('}').next()).unwrap_or_default().split(',');
            let names = pairs.filter_map(|pair| pair.split_once('=')).map(|(name, _)| name);
            names.filter(|name| *name != "le").map(str::to_owned).collect()
        };
        let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
        types
            .map(|(name, kind)| MetricDescription {
                name: name.to_owned(),
                kind: kind.to_owned(),
                labels: labels(name),
                help: help(name),
            })
            .collect()
    }

    /// Counts an answered action on this cluster; `result` is its outcome or its error code.
    pub(crate) fn action(
        &self,
        action: &'static str,
        simulate: bool,
        result: Cow<'static, str>,
        cluster: ClusterLabel,
        took: Duration,
    ) {
        let simulate = if simulate { "true" } else { "false" };
        let labels = ActionLabels { action, simulate, result, cluster: cluster.clone() };
        self.actions.get_or_create(&labels).inc();
        let labels = KindLabels { action, simulate, cluster };
        self.durations.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// Counts an HTTP request to a served path, or to `other`.
    pub(crate) fn http(&self, path: &'static str, status: u16) {
        self.http.get_or_create(&HttpLabels { path, status }).inc();
    }

    /// Counts a problem document that was sent.
    pub(crate) fn problem(&self, error: &ActionError) {
        self.problems.get_or_create(&ProblemLabels { code: error.code.name() }).inc();
    }

    /// An HTTP request is in flight until the guard is dropped.
    pub(crate) fn in_flight(&self) -> GaugeGuard {
        GaugeGuard::new(&self.in_flight)
    }

    /// A connection is open until the guard is dropped.
    pub(crate) fn connected(&self) -> GaugeGuard {
        GaugeGuard::new(&self.connections)
    }

    /// Counts a connection that was refused.
    pub(crate) fn connection_refused(&self) {
        self.refused_connections.inc();
    }

    /// Counts a failed TLS handshake.
    pub(crate) fn handshake_failed(&self) {
        self.failed_handshakes.inc();
    }

    /// Sets when this certificate expires, in seconds since 1970.
    pub(crate) fn certificate_expires(&self, certificate: &'static str, at: i64) {
        self.expiry.get_or_create(&CertificateLabels { certificate }).set(at);
    }

    /// The gauge of the actions that are queued for this cluster.
    pub(crate) fn queue(&self, cluster: &ClusterLabel) -> Gauge {
        self.queued.get_or_create(cluster).clone()
    }

    /// Observes the time that an action was queued.
    pub(crate) fn queued_for(&self, time: Duration) {
        self.queue_duration.observe(time.as_secs_f64());
    }

    /// Sets the number of permits of a lane, for this cluster; returns the gauge of those in use.
    pub(crate) fn concurrency_limit(
        &self,
        lane: &'static str,
        cluster: &ClusterLabel,
        permits: usize,
    ) -> Gauge {
        let labels = LaneLabels { lane, cluster: cluster.clone() };
        self.concurrency_limit.get_or_create(&labels).set(permits as i64);
        self.concurrency_in_use.get_or_create(&labels).clone()
    }

    /// The counter of requests rejected for this reason.
    pub(crate) fn rejected_requests(&self, reason: &'static str) -> Counter {
        self.rejected_requests.get_or_create(&ReasonLabels { reason }).clone()
    }

    /// Counts a request whose client disconnected.
    pub(crate) fn client_disconnects(&self) {
        self.client_disconnects.inc();
    }

    /// Counts a receipt that was written, or could not be.
    pub(crate) fn receipt(&self, is_written: bool) {
        let [written, failed] = RECEIPT_RESULTS;
        let result = if is_written { written } else { failed };
        self.receipts.get_or_create(&ResultLabels { result }).inc();
    }

    /// All metrics as text; `files` are the reloaded files, and whether the present content of each is in use.
    pub(crate) fn text(&self, files: &[(&'static str, bool)]) -> String {
        for (file, current) in files {
            self.config_reloads.get_or_create(&FileLabels { file }).set(i64::from(*current));
        }
        self.memory.set(resident_memory().unwrap_or(0));
        self.descriptors.set(fs::read_dir("/proc/self/fd").map_or(0, |all| all.count() as i64));
        let mut text = String::new();
        // Writing to a String does not fail.
        let _ = prometheus_text::encode(&mut text, &self.registry);
        text
    }
}

/// A metric as it is exposed.
pub(crate) struct MetricDescription {
    pub name: String,
    pub kind: String,
    pub labels: Vec<String>,
    pub help: String,
}

/// Counts one in a gauge until it is dropped.
pub(crate) struct GaugeGuard(Gauge);

impl GaugeGuard {
    /// Counts one in this gauge.
    pub(crate) fn new(gauge: &Gauge) -> Self {
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

/// Bytes of resident memory (proc(5), status).
fn resident_memory() -> Option<i64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    let kibibytes: i64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kibibytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_has_its_labels_and_its_value() {
        let metrics = Metrics::new(None);
        let (denied, took) = ("policy_denied", Duration::from_millis(20));
        metrics.action("restart_k8s", true, denied.into(), ClusterLabel::default(), took);
        let blue = ClusterLabel(Some("blue".into()));
        metrics.action("restart_k8s", true, denied.into(), blue, took);
        metrics.problem(&ActionError::new(Code::PolicyDenied, "canary"));
        metrics.http("/readyz", 200);
        let in_flight = metrics.in_flight();
        let text = metrics.text(&[("policy", false)]);
        drop(in_flight);
        for line in [
            r#"action_executor_actions_total{action="restart_k8s",simulate="true",result="policy_denied"} 1"#,
            r#"action_executor_actions_total{action="restart_k8s",simulate="true",result="policy_denied",cluster="blue"} 1"#,
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
