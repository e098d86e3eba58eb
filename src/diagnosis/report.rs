//! The report: what a diagnosis says, in at most [`MAX_BYTES`] of JSON. Pure, and the same for the same facts.
//!
//! Every text of the cluster is masked, in one line, and bounded. What does not fit is cut in this order, and `cut`
//! says so: log lines, the oldest first, down to a few; then Events, the oldest first; then pods, the healthy ones
//! first; the same three again, to none; then what was done before, the owners, and the least important findings.

use k8s_openapi::api::core::v1::{Event, Node, Pod};
use schemars::JsonSchema;
use serde::Serialize;

use crate::{
    contract::response::Target,
    diagnosis::{
        facts::{Facts, Object, Unread},
        findings::{self, Finding, ago},
        parts::Part,
    },
    k8s::{
        FIELD_MANAGER, autoscaling, events, gitops, jobs,
        mask::{masked, masked_line},
        nodes, pods,
        replacement::describe,
        rollout::{self, RolloutStatus},
        taints,
        workload::Workload,
    },
    ledger::history::HistoryEntry,
};

/// The longest report, in bytes of its JSON: a model reads it beside its work.
pub(crate) const MAX_BYTES: usize = 8192;

/// What a report has at most before it is cut to its length.
const MAX_LOG_LINES: usize = 40;
const MAX_EVENTS: usize = 10;
const MAX_PODS: usize = 10;
const MAX_HISTORY: usize = 5;
const MAX_OWNERS: usize = 6;
const MAX_FINDINGS: usize = 12;
const MAX_TAINTS: usize = 10;

/// What is left of each list until all of them are cut so far.
const MIN_LOG_LINES: usize = 5;
const MIN_EVENTS: usize = 3;
const MIN_PODS: usize = 3;
const MIN_FINDINGS: usize = 3;

/// The longest line of a log, the longest finding, and the longest other text, in bytes of their JSON.
const MAX_LINE_BYTES: usize = 240;
const MAX_FINDING_BYTES: usize = 320;
const MAX_TEXT_BYTES: usize = 240;

/// What is known of a target, what is wrong with it, and what could not be read.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[schemars(rename = "Diagnosis", deny_unknown_fields)]
pub(crate) struct Report {
    /// The object.
    pub target: Target,
    /// The cluster's name, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// When it was read, by the API server's clock (UTC).
    #[schemars(extend("format" = "date-time"))]
    pub at: String,
    /// Whether the target does its work, according to Kubernetes; null if that is not known.
    pub healthy: Option<bool>,
    /// How far its rollout is, or in which state it is, in a sentence.
    pub state: String,
    /// What is wrong or of interest, the most important first.
    pub findings: Vec<Finding>,
    /// Of a node: its conditions and taints.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeState>,
    /// Its pods; of a node, those that do not run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pods: Option<PodList>,
    /// The last Events of the target and of failing pods, the newest first.
    pub events: Vec<EventLine>,
    /// The end of the log of the container that fails.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log: Option<LogTail>,
    /// Who controls it, sets its replicas, and resets it to a source.
    pub owners: Vec<String>,
    /// What was done to it through this program, the newest first.
    pub history: Vec<Done>,
    /// What could not be read, with the rule that is missing.
    pub unread: Vec<Unread>,
    /// What was left out to keep the report short.
    pub cut: Vec<String>,
}

/// What a node says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(crate) struct NodeState {
    /// For example `Ready=True`.
    pub conditions: Vec<String>,
    /// In the form `key=value:effect`.
    pub taints: Vec<String>,
}

/// Pods, and how many there are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(crate) struct PodList {
    /// How many there are, or at least.
    pub total: usize,
    /// Whether there may be more than were read.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schemars(default)]
    pub more: bool,
    /// How many of these are ready.
    pub ready: usize,
    /// Some of them, those that are not ready first.
    pub listed: Vec<PodLine>,
}

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(crate) struct PodLine {
    /// Its name; of a node, with its namespace.
    pub name: String,
    /// Its state in a word or two, as `kubectl get pods` shows it.
    pub status: String,
    /// Whether it is ready.
    pub ready: bool,
    /// How often its containers were started again.
    pub restarts: i32,
    /// Its node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
}

/// An Event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(crate) struct EventLine {
    /// How long ago it happened last.
    pub age: String,
    /// Its object, for example `Pod web-5d4f`.
    pub object: String,
    /// Its reason.
    pub reason: String,
    /// Its message.
    pub message: String,
    /// How often it happened.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<i32>,
}

/// The end of a log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(crate) struct LogTail {
    /// The pod.
    pub pod: String,
    /// The container.
    pub container: String,
    /// Whether it is the log of the container's instance before.
    pub previous: bool,
    /// Its last lines, the newest last.
    pub lines: Vec<String>,
}

/// A request that acted on the target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(crate) struct Done {
    /// When its record was last written (UTC).
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    pub at: Option<String>,
    /// Its id; null for a refusal.
    pub id: Option<String>,
    /// The action.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// The Event's reason, for example `ActionApplied`.
    pub event: Option<String>,
    /// The requester.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requester: Option<String>,
}

/// How many there were of what is cut.
struct Totals {
    log_lines: usize,
    events: usize,
    pods: usize,
    history: usize,
    owners: usize,
    findings: usize,
}

impl Report {
    /// The report of these facts.
    pub(crate) fn of(facts: &Facts, cluster: Option<&str>) -> Self {
        let findings = findings::of(facts);
        let (events, all_events) = event_lines(facts);
        let (log, all_lines) = log_tail(facts).unzip();
        let (status, is_complete) = state(facts);
        let has_problem = findings.iter().any(|finding| finding.kind.is_problem());
        let healthy = match facts.is_unread(Part::Pods) || facts.is_unread(Part::Jobs) {
            _ if has_problem || !is_complete => Some(false),
            true => None,
            false => Some(true),
        };
        let report = Report {
            target: facts.target.clone().found(facts.object.metadata()),
            cluster: cluster.map(|name| text(name, MAX_TEXT_BYTES)),
            at: facts.now.to_rfc3339_opts(chrono::SecondsFormat::Secs, true),
            healthy,
            state: text(&status, MAX_TEXT_BYTES),
            findings: findings
                .into_iter()
                .map(|finding| Finding {
                    message: text(&finding.message, MAX_FINDING_BYTES),
                    ..finding
                })
                .collect(),
            node: match &facts.object {
                Object::Node(node) => Some(NodeState::of(node)),
                _ => None,
            },
            pods: pod_list(facts),
            events,
            log,
            owners: owners(facts),
            history: facts.history.iter().map(Done::of).collect(),
            unread: facts.unread.iter().map(short).collect(),
            cut: Vec::new(),
        };
        let totals =
            Totals { events: all_events, log_lines: all_lines.unwrap_or(0), ..report.totals() };
        report.bounded(&totals)
    }

    /// The report with its lists cut until it is short enough.
    fn bounded(mut self, totals: &Totals) -> Self {
        self.findings.truncate(MAX_FINDINGS);
        self.keep(MAX_LOG_LINES, MAX_EVENTS, MAX_PODS);
        self.history.truncate(MAX_HISTORY);
        self.owners.truncate(MAX_OWNERS);
        loop {
            self.cut = self.cuts(totals);
            let is_short = serde_json::to_string(&self).is_ok_and(|text| text.len() <= MAX_BYTES);
            if is_short || !self.cut_one() {
                return self;
            }
        }
    }

    fn totals(&self) -> Totals {
        Totals {
            log_lines: self.log.as_ref().map_or(0, |log| log.lines.len()),
            events: self.events.len(),
            pods: self.pods.as_ref().map_or(0, |pods| pods.listed.len()),
            history: self.history.len(),
            owners: self.owners.len(),
            findings: self.findings.len(),
        }
    }

    fn keep(&mut self, log_lines: usize, events: usize, pods: usize) {
        if let Some(log) = &mut self.log {
            let surplus = log.lines.len().saturating_sub(log_lines);
            log.lines.drain(..surplus);
        }
        self.events.truncate(events);
        if let Some(list) = &mut self.pods {
            list.listed.truncate(pods);
        }
    }

    /// Cuts the next entry; false if nothing is left to cut.
    fn cut_one(&mut self) -> bool {
        let Totals { log_lines, events, pods, history, owners, findings } = self.totals();
        for (few_lines, few_events, few_pods) in [(MIN_LOG_LINES, MIN_EVENTS, MIN_PODS), (0, 0, 0)]
        {
            if log_lines > few_lines {
                self.keep(log_lines - 1, events, pods);
                return true;
            }
            if events > few_events {
                self.keep(log_lines, events - 1, pods);
                return true;
            }
            if pods > few_pods {
                self.keep(log_lines, events, pods - 1);
                return true;
            }
        }
        if history > 0 {
            self.history.truncate(history - 1);
        } else if owners > 0 {
            self.owners.truncate(owners - 1);
        } else if findings > MIN_FINDINGS {
            self.findings.truncate(findings - 1);
        } else {
            return false;
        }
        true
    }

    /// What was cut, in the order of cutting.
    fn cuts(&self, before: &Totals) -> Vec<String> {
        let now = self.totals();
        let cut = |what: &str, now: usize, before: usize| {
            (now < before).then(|| format!("{} of {before} {what}", before - now))
        };
        [
            cut("log lines, the oldest", now.log_lines, before.log_lines),
            cut("Events, the oldest", now.events, before.events),
            cut("pods, those that are ready first", now.pods, before.pods),
            cut("earlier actions, the oldest", now.history, before.history),
            cut("owners", now.owners, before.owners),
            cut("findings, the least important", now.findings, before.findings),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

/// The state in a sentence, and whether it is what the target is to be.
fn state(facts: &Facts) -> (String, bool) {
    match &facts.object {
        Object::Workload(workload) => of_rollout(rollout_status(workload)),
        Object::Job(job) => match jobs::status(job) {
            RolloutStatus::Waiting(stage) => (format!("the Job runs: {stage}"), true),
            status => of_rollout(status),
        },
        Object::CronJob(cron_job) => {
            let schedule = cron_job.spec.as_ref().map(|spec| spec.schedule.as_str());
            let last = findings::newest_job(facts).map(|job| {
                let name = job.metadata.name.as_deref().unwrap_or_default();
                match jobs::status(job) {
                    RolloutStatus::Waiting(stage) => format!("its last Job '{name}' runs: {stage}"),
                    RolloutStatus::Complete(_) => format!("its last Job '{name}' is complete"),
                    RolloutStatus::Failed(_) => format!("its last Job '{name}' has failed"),
                }
            });
            let last = last.unwrap_or_else(|| "it has no Job".to_owned());
            (format!("schedule {}; {last}", schedule.unwrap_or_default()), true)
        }
        Object::Pod(pod) => {
            let status = pod_status(pod);
            let is_well = pods::is_ready(pod) || pods::phase(pod) == "Succeeded";
            (
                format!("the pod is {status}{}", if is_well { "" } else { ", and not ready" }),
                is_well,
            )
        }
        Object::Node(node) => match nodes::not_ready_warning(node) {
            None => ("the node is ready".to_owned(), true),
            Some(why) => (why, false),
        },
    }
}

fn rollout_status(workload: &Workload) -> RolloutStatus {
    rollout::status(workload, 0, None)
}

fn of_rollout(status: RolloutStatus) -> (String, bool) {
    match status {
        RolloutStatus::Complete(message) => (message, true),
        RolloutStatus::Waiting(stage) => (format!("not complete: {stage}"), false),
        RolloutStatus::Failed(why) => (format!("failed: {why}"), false),
    }
}

impl NodeState {
    fn of(node: &Node) -> Self {
        let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
        let conditions = conditions.into_iter().flatten();
        let taints = taints::taints(node).iter().take(MAX_TAINTS);
        NodeState {
            conditions: conditions
                .take(MAX_TAINTS)
                .map(|it| text(&format!("{}={}", it.type_, it.status), MAX_TEXT_BYTES))
                .collect(),
            taints: taints.map(|it| text(&taints::describe(it), MAX_TEXT_BYTES)).collect(),
        }
    }
}

/// None of a pod, which is the target itself, and where pods could not be read.
fn pod_list(facts: &Facts) -> Option<PodList> {
    if matches!(facts.object, Object::Pod(_)) || facts.is_unread(Part::Pods) {
        return None;
    }
    let is_on_node = matches!(facts.object, Object::Node(_));
    let mut listed: Vec<_> = facts.pods.iter().collect();
    listed.sort_by_key(|pod| (is_well(pod), pod.metadata.name.clone()));
    let ready = listed.iter().filter(|pod| pods::is_ready(pod)).count();
    Some(PodList {
        total: listed.len(),
        more: facts.more_pods,
        ready,
        listed: listed.into_iter().map(|pod| PodLine::of(pod, is_on_node)).collect(),
    })
}

/// Whether a pod serves, or has done its work.
fn is_well(pod: &Pod) -> bool {
    pods::is_ready(pod) || pods::phase(pod) == "Succeeded"
}

impl PodLine {
    fn of(pod: &Pod, with_namespace: bool) -> Self {
        let name = pod.metadata.name.clone().unwrap_or_default();
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        PodLine {
            name: if with_namespace { format!("{namespace}/{name}") } else { name },
            status: text(&pod_status(pod), MAX_TEXT_BYTES),
            ready: pods::is_ready(pod),
            restarts: pods::restarts(pod),
            node: pods::node_name(pod).filter(|_| !with_namespace).map(str::to_owned),
        }
    }
}

/// As kubectl shows it (`printPod` of `pkg/printers/internalversion`): the reason of a container before that of the
/// pod.
fn pod_status(pod: &Pod) -> String {
    if pods::is_terminating(pod) {
        return "Terminating".to_owned();
    }
    let of_container = pods::containers_of(pod).find_map(|container| {
        let state = container.state.as_ref()?;
        let waiting = state.waiting.as_ref().and_then(|waiting| waiting.reason.clone());
        let ended = state.terminated.as_ref().filter(|ended| ended.exit_code != 0);
        waiting.or_else(|| ended.map(|ended| ended.reason.clone().unwrap_or("Error".to_owned())))
    });
    let own = pods::reason(pod).map(str::to_owned);
    of_container.or(own).unwrap_or_else(|| pods::phase(pod).to_owned())
}

/// The newest Events of others, and how many there are.
fn event_lines(facts: &Facts) -> (Vec<EventLine>, usize) {
    let is_ours = |event: &&Event| event.reporting_component.as_deref() == Some(FIELD_MANAGER);
    let mut others: Vec<_> = facts.events.iter().filter(|event| !is_ours(event)).collect();
    others.sort_by_key(|event| {
        (std::cmp::Reverse(events::last_seen(event)), event.metadata.name.clone())
    });
    let line = |event: &Event| {
        let object = &event.involved_object;
        let known = |text: &Option<String>| text.clone().unwrap_or_default();
        let series = event.series.as_ref().and_then(|series| series.count);
        EventLine {
            age: events::last_seen(event).map_or_else(String::new, |at| ago(facts.now, at)),
            object: text(
                &format!("{} {}", known(&object.kind), known(&object.name)),
                MAX_TEXT_BYTES,
            ),
            reason: text(&known(&event.reason), MAX_TEXT_BYTES),
            message: text(&known(&event.message), MAX_TEXT_BYTES),
            count: series.or(event.count).filter(|count| *count > 1),
        }
    };
    let total = others.len();
    (others.into_iter().take(MAX_EVENTS).map(line).collect(), total)
}

/// The end of the log, and how many lines were read. The whole is masked before it is split: a secret may have several
/// lines.
fn log_tail(facts: &Facts) -> Option<(LogTail, usize)> {
    let log = facts.log.as_ref()?;
    let masked = masked(&log.text);
    let lines: Vec<_> = masked.lines().collect();
    let newest = lines.iter().skip(lines.len().saturating_sub(MAX_LOG_LINES));
    let tail = LogTail {
        pod: log.pod.clone(),
        container: log.container.clone(),
        previous: log.is_previous,
        lines: newest.map(|line| text(line, MAX_LINE_BYTES)).collect(),
    };
    Some((tail, lines.len()))
}

fn owners(facts: &Facts) -> Vec<String> {
    let metadata = facts.object.metadata();
    let mut all: Vec<_> = metadata
        .owner_references
        .iter()
        .flatten()
        .map(|owner| {
            let verb = if owner.controller == Some(true) { "controls" } else { "owns" };
            format!("{} {verb} it", describe(owner))
        })
        .collect();
    if let Some(autoscaler) = autoscaling::autoscaler_of(&facts.autoscalers, &facts.target) {
        let name = autoscaler.metadata.name.as_deref().unwrap_or_default();
        let [min, max] = autoscaling::bounds(autoscaler);
        let keda = autoscaling::scaled_object_of(autoscaler);
        let keda = keda.map(|name| format!(", for KEDA's ScaledObject '{name}'"));
        all.push(format!(
            "HorizontalPodAutoscaler '{name}' sets its replicas, from {min} to {max}{}",
            keda.unwrap_or_default()
        ));
    }
    all.extend(gitops::source(metadata));
    all.iter().map(|owner| text(owner, MAX_TEXT_BYTES)).collect()
}

impl Done {
    fn of(entry: &HistoryEntry) -> Self {
        let short = |it: &Option<String>| it.as_ref().map(|it| text(it, MAX_TEXT_BYTES));
        Done {
            at: entry.at.clone(),
            id: short(&entry.id),
            kind: short(&entry.kind),
            event: short(&entry.event),
            requester: short(&entry.requester),
        }
    }
}

/// A text of the cluster: masked, in one line, of at most so many bytes of JSON.
fn text(original: &str, max: usize) -> String {
    let mut text = masked_line(original, max);
    // Escapes and characters of several bytes; two are the quotes.
    while serde_json::to_string(&text).map_or(0, |json| json.len()) > max + 2 {
        text.pop();
    }
    text
}

fn short(unread: &Unread) -> Unread {
    Unread {
        part: unread.part,
        why: text(&unread.why, MAX_TEXT_BYTES),
        hint: unread.hint.as_ref().map(|hint| text(hint, MAX_TEXT_BYTES)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        contract::error::{ActionError, Code},
        diagnosis::{facts::Log, findings::FindingKind},
    };

    fn yaml<T: serde::de::DeserializeOwned>(text: &str) -> T {
        serde_yaml_ng::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    fn facts(pods: Vec<Pod>) -> Facts {
        let object: k8s_openapi::api::apps::v1::Deployment = yaml(
            "metadata: {name: web, namespace: shop, uid: u1, generation: 1, labels: {argocd.argoproj.io/instance: shop}}\n\
             spec: {replicas: 1, selector: {}, template: {}}\n\
             status: {observedGeneration: 1, replicas: 1, updatedReplicas: 1, availableReplicas: 1}",
        );
        Facts {
            target: Target::named("apps/v1", "Deployment", "shop", "web"),
            object: Object::Workload(object.into()),
            pods,
            more_pods: false,
            jobs: Vec::new(),
            events: Vec::new(),
            autoscalers: Vec::new(),
            pdbs: Vec::new(),
            log: None,
            history: Vec::new(),
            unread: Vec::new(),
            now: "2026-01-31T12:00:00Z".parse().expect("is a time"),
        }
    }

    fn ready(name: &str) -> Pod {
        yaml(&format!(
            "metadata: {{name: {name}, uid: {name}}}\nspec: {{containers: [], nodeName: n1}}\n\
             status: {{phase: Running, conditions: [{{type: Ready, status: 'True'}}]}}"
        ))
    }

    fn failing(name: &str, message: &str) -> Pod {
        yaml(&format!(
            "metadata: {{name: {name}, uid: {name}}}\nstatus: {{phase: Pending, containerStatuses: [{{name: app, \
             image: i, imageID: '', ready: false, restartCount: 0, state: {{waiting: {{reason: ImagePullBackOff, \
             message: '{message}'}}}}}}]}}"
        ))
    }

    fn event(number: usize, message: &str) -> Event {
        yaml(&format!(
            "metadata: {{name: e{number:03}}}\ninvolvedObject: {{kind: Pod, name: web-1}}\ntype: Warning\n\
             reason: BackOff\nmessage: '{message}'\nlastTimestamp: '2026-01-31T11:59:{:02}Z'",
            number % 60
        ))
    }

    fn size(report: &Report) -> usize {
        serde_json::to_string(report).expect("is JSON").len()
    }

    #[test]
    fn a_healthy_target_says_so_and_who_owns_it() {
        let report = Report::of(&facts(vec![ready("web-1")]), Some("test"));
        assert_eq!(report.healthy, Some(true));
        assert!(report.state.starts_with("Deployment 'web' is rolled out"), "{}", report.state);
        assert_eq!((report.findings.len(), report.cut.len(), report.unread.len()), (0, 0, 0));
        let pods = report.pods.expect("are read");
        assert_eq!((pods.total, pods.ready, &*pods.listed[0].status), (1, 1, "Running"));
        assert_eq!(report.owners, ["Argo CD (application 'shop') resets it to its source"]);
        assert_eq!(report.target.uid.as_deref(), Some("u1"));
    }

    #[test]
    fn a_part_that_is_missing_is_named_and_health_is_not_guessed() {
        let mut facts = facts(Vec::new());
        let refused = ActionError::new(Code::Forbidden, "x may not list pods").with_hint("a rule");
        facts.unread = vec![Unread::new(Part::Pods, &refused)];
        let report = Report::of(&facts, None);
        assert_eq!((report.healthy, report.pods.as_ref()), (None, None));
        let json = serde_json::to_value(&report).expect("is JSON");
        assert_eq!(
            json["unread"][0],
            serde_json::json!({ "part": "pods", "why": "x may not list pods", "hint": "a rule" })
        );
    }

    #[test]
    fn failing_pods_are_listed_first() {
        let pods =
            (0..20).map(|number| ready(&format!("a-{number:02}"))).chain([failing("z", "x")]);
        let report = Report::of(&facts(pods.collect()), None);
        let list = report.pods.expect("are read");
        assert_eq!((list.total, list.ready, list.listed.len()), (21, 20, MAX_PODS));
        assert_eq!((&*list.listed[0].name, &*list.listed[0].status), ("z", "ImagePullBackOff"));
        assert_eq!(report.cut, ["11 of 21 pods, those that are ready first"]);
        assert_eq!(report.findings[0].kind, FindingKind::ImagePull);
        assert_eq!(report.healthy, Some(false));
    }

    #[test]
    fn a_report_of_500_failing_pods_and_enormous_texts_fits_and_says_what_was_cut() {
        let huge = "ü\\\"€".repeat(5_000).replace('\'', "");
        let huge_yaml = "ü€".repeat(5_000);
        let mut facts = facts(
            (0..500).map(|number| failing(&format!("web-{number:03}"), &huge_yaml)).collect(),
        );
        facts.events = (0..60).map(|number| event(number, &huge_yaml)).collect();
        let text = (0..60).map(|number| format!("line {number} {huge}\n")).collect();
        facts.log = Some(Log {
            pod: "web-000".to_owned(),
            container: "app".to_owned(),
            is_previous: true,
            text,
        });
        facts.unread = (0..7)
            .map(|_| {
                Unread::new(
                    Part::Events,
                    &ActionError::new(Code::Forbidden, huge.clone()).with_hint(huge.clone()),
                )
            })
            .collect();
        let report = Report::of(&facts, Some(&huge));
        assert!(size(&report) <= MAX_BYTES, "{}", size(&report));
        assert!(report.findings[0].message.starts_with("ImagePullBackOff"), "{report:?}");
        assert_eq!(report.pods.as_ref().map(|pods| pods.total), Some(500));
        let cut = report.cut.join("; ");
        for part in ["of 60 log lines", "of 60 Events", "of 500 pods"] {
            assert!(cut.contains(part), "{cut}");
        }
        assert_eq!(report, Report::of(&facts, Some(&huge)), "the same facts make the same report");
    }

    #[test]
    fn log_lines_are_cut_before_events_and_events_before_pods() {
        let mut facts =
            facts((0..10).map(|number| failing(&format!("web-{number}"), "x")).collect());
        facts.events = (0..10).map(|number| event(number, &"y".repeat(200))).collect();
        let lines = |number: usize| {
            (0..number).map(|line| format!("{line} {}\n", "z".repeat(200))).collect()
        };
        let mut cuts = Vec::new();
        for number in [0, 10, 40] {
            let (pod, container) = ("web-0".to_owned(), "app".to_owned());
            facts.log = Some(Log { pod, container, is_previous: false, text: lines(number) });
            let report = Report::of(&facts, None);
            assert!(size(&report) <= MAX_BYTES);
            let lines = report.log.as_ref().expect("is there").lines.len();
            cuts.push((
                number - lines,
                report.events.len(),
                report.pods.expect("are read").listed.len(),
            ));
            // The newest are kept.
            let log = report.log.expect("is there");
            assert!(
                number == 0
                    || log.lines.last().is_some_and(|it| it.starts_with(&(number - 1).to_string()))
            );
        }
        assert_eq!(cuts[0], (0, 10, 10));
        assert!(cuts[2].0 > 10 && cuts[2].1 == 10 && cuts[2].2 == 10, "{cuts:?}");
    }

    #[test]
    fn a_secret_over_several_lines_of_a_log_is_masked() {
        let mut facts = facts(Vec::new());
        let text = "start\n-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBg\n-----END PRIVATE KEY-----\npassword=hunter2\n";
        facts.log = Some(Log {
            pod: "a".to_owned(),
            container: "app".to_owned(),
            is_previous: false,
            text: text.to_owned(),
        });
        let log = Report::of(&facts, None).log.expect("is there");
        assert_eq!(log.lines, ["start", "[masked PEM block]", "password=[masked]"]);
    }
}
