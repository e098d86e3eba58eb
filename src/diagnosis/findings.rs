//! What is wrong with a target, from what was read of it: each problem once, the most important first, in the words of
//! Kubernetes. Pure, and the same for the same facts.
//!
//! The words of waiting containers and of conditions are those of the kubelet, the scheduler and the controllers
//! (`pkg/kubelet/images/types.go`, `pkg/kubelet/container/sync_result.go`, `pkg/controller/deployment/util`).

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use k8s_openapi::{
    api::{
        core::v1::{ContainerStateTerminated, ContainerStatus, Event, Node, Pod},
        policy::v1::PodDisruptionBudget,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use schemars::JsonSchema;
use serde::Serialize;

use crate::{
    diagnosis::facts::{Facts, Object},
    k8s::{
        autoscaling, events, jobs,
        mask::masked_line,
        nodes, pdb, pods, rollout,
        rollout::{ExceededDeadline, RolloutStatus},
        workload::Workload,
    },
};

/// What a finding is about, the most important first: what ends containers, what keeps them from starting, what keeps
/// pods from being created, what keeps them from serving, and then what is no problem by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FindingKind {
    /// The node does not report, or is not ready.
    NodeNotReady,
    /// A container ends repeatedly.
    CrashLoop,
    /// An image cannot be pulled.
    ImagePull,
    /// A container cannot be created.
    ContainerCreation,
    /// No node takes a pod.
    Unschedulable,
    /// A controller cannot create pods, for example with an exhausted quota.
    PodCreation,
    /// A volume cannot be mounted.
    Volume,
    /// A container ended with an error.
    ContainerExit,
    /// A Job has failed.
    JobFailed,
    /// A probe fails.
    Probe,
    /// A pod runs and is not ready.
    NotReady,
    /// The node lacks memory, disk space or process ids.
    Pressure,
    /// The rollout made no progress in time.
    DeadlineExceeded,
    /// A pod does not terminate.
    Terminating,
    /// The target is being deleted.
    BeingDeleted,
    /// A container was restarted lately, and runs.
    Restarted,
    /// An autoscaler cannot do its work.
    Autoscaler,
    /// The Deployment is paused, or the Job or CronJob suspended.
    Paused,
    /// The node is cordoned, or its taints keep pods away.
    Cordoned,
    /// The target has no replicas by its own specification.
    ScaledToZero,
    /// A disruption budget allows no disruption.
    DisruptionBudget,
}

impl FindingKind {
    /// Whether the target does not do its work because of it. The others are of interest to who acts on it.
    pub(crate) fn is_problem(self) -> bool {
        self < FindingKind::Terminating
    }
}

/// One problem.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(crate) struct Finding {
    /// What it is about.
    pub kind: FindingKind,
    /// In a sentence, with the words of Kubernetes.
    pub message: String,
}

/// How old an Event or a restart may be to be a finding.
const RECENT_SECONDS: i64 = 600;

/// The longest message, in characters, without the pods that have it.
const MAX_CHARACTERS: usize = 220;

/// The reasons of containers that wait for an image (`pkg/kubelet/images/types.go`).
const IMAGE_REASONS: [&str; 7] = [
    "ErrImageNeverPull",
    "ErrImagePull",
    "ImageInspectError",
    "ImagePullBackOff",
    "InvalidImageName",
    "RegistryUnavailable",
    "SignatureValidationFailed",
];

/// The reasons of containers that are about to start.
const STARTING: [&str; 2] = ["ContainerCreating", "PodInitializing"];

/// The findings, the most important first.
pub(crate) fn of(facts: &Facts) -> Vec<Finding> {
    let mut all = Findings::default();
    all.of_object(facts);
    for pod in pods_of(facts) {
        all.of_pod(pod, facts.now);
    }
    all.of_events(facts);
    for pdb in exhausted_pdbs(facts) {
        all.add(
            FindingKind::DisruptionBudget,
            pdb::reason(pdb, &pods_of(facts).cloned().collect::<Vec<_>>()),
        );
    }
    all.sorted()
}

/// The pods of the target; a pod is its own.
pub(crate) fn pods_of(facts: &Facts) -> impl Iterator<Item = &Pod> + Clone {
    let own = match &facts.object {
        Object::Pod(pod) => Some(&**pod),
        _ => None,
    };
    own.into_iter().chain(&facts.pods)
}

/// The disruption budgets of the target's pods that allow no disruption.
fn exhausted_pdbs(facts: &Facts) -> impl Iterator<Item = &PodDisruptionBudget> {
    facts.pdbs.iter().filter(|pdb| {
        let selects = |pod| !pdb::pdbs_of(pod, std::slice::from_ref(*pdb)).is_empty();
        pdb::disruptions_allowed(pdb) == 0 && pods_of(facts).any(selects)
    })
}

/// The cause of a problem, by which pods with the same problem are counted together.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Cause {
    /// A sentence.
    Text(String),
    /// A container that ended.
    Exit {
        container: String,
        code: i32,
        reason: String,
        /// Whether the kubelet waits before it starts it again.
        backs_off: bool,
    },
}

#[derive(Clone, Debug)]
struct Group {
    kind: FindingKind,
    cause: Cause,
    /// The pods with it, by name.
    pods: Vec<String>,
    /// How often it ended at most, in one pod.
    times: i32,
    /// When it ended last.
    last: Option<DateTime<Utc>>,
}

#[derive(Clone, Debug, Default)]
struct Findings {
    groups: Vec<Group>,
    now: Option<DateTime<Utc>>,
}

impl Findings {
    fn add(&mut self, kind: FindingKind, text: impl Into<String>) {
        self.add_of_pod(kind, text, None);
    }

    fn add_of_pod(&mut self, kind: FindingKind, text: impl Into<String>, pod: Option<&Pod>) {
        let group = self.group(kind, Cause::Text(text.into()));
        group.pods.extend(pod.map(name_of));
    }

    fn has(&self, kind: FindingKind) -> bool {
        self.groups.iter().any(|group| group.kind == kind)
    }

    fn group(&mut self, kind: FindingKind, cause: Cause) -> &mut Group {
        let found = self.groups.iter().position(|it| it.kind == kind && it.cause == cause);
        let at = found.unwrap_or_else(|| {
            self.groups.push(Group { kind, cause, pods: Vec::new(), times: 0, last: None });
            self.groups.len() - 1
        });
        &mut self.groups[at]
    }

    fn sorted(mut self) -> Vec<Finding> {
        self.groups.sort_by_key(|group| (group.kind, std::cmp::Reverse(group.pods.len())));
        let now = self.now;
        let finding = |group: Group| Finding { kind: group.kind, message: group.sentence(now) };
        self.groups.into_iter().map(finding).collect()
    }

    fn of_object(&mut self, facts: &Facts) {
        self.now = Some(facts.now);
        let metadata = facts.object.metadata();
        if let Some(since) = &metadata.deletion_timestamp {
            let finalizers = metadata.finalizers.as_deref().unwrap_or_default();
            let held = match finalizers {
                [] => String::new(),
                all => format!(", held by the finalizers {}", all.join(", ")),
            };
            self.add(
                FindingKind::BeingDeleted,
                format!("it is being deleted, since {}{held}", since.0),
            );
        }
        match &facts.object {
            Object::Workload(workload) => self.of_workload(workload),
            Object::Pod(_) => {}
            Object::Job(job) => {
                if let RolloutStatus::Failed(why) = jobs::status(job) {
                    self.add(FindingKind::JobFailed, format!("the Job has failed: {why}"));
                }
                if job.spec.as_ref().and_then(|spec| spec.suspend) == Some(true) {
                    self.add(FindingKind::Paused, "suspended: the Job starts no pods");
                }
            }
            Object::CronJob(cron_job) => {
                if jobs::is_suspended(cron_job) {
                    self.add(FindingKind::Paused, "suspended: the CronJob starts no Jobs");
                }
                if let Some(job) = newest_job(facts)
                    && let RolloutStatus::Failed(why) = jobs::status(job)
                {
                    let name = job.metadata.name.as_deref().unwrap_or_default();
                    self.add(
                        FindingKind::JobFailed,
                        format!("its last Job '{name}' has failed: {why}"),
                    );
                }
            }
            Object::Node(node) => self.of_node(node),
        }
        self.of_autoscaler(facts);
    }

    fn of_workload(&mut self, workload: &Workload) {
        if let Some(exceeded) = ExceededDeadline::on(workload) {
            let text = format!("progress deadline exceeded: {}", exceeded.message);
            self.add(FindingKind::DeadlineExceeded, text);
        }
        if workload.is_paused() {
            self.add(FindingKind::Paused, "paused: changes of the Deployment are not rolled out");
        }
        if workload.replicas() == Some(0) {
            self.add(FindingKind::ScaledToZero, "it is scaled to 0: no pod runs");
        }
        for condition in rollout::failing_conditions(workload) {
            if workload.is_paused() && condition.contains("is paused") {
                continue;
            }
            self.add(FindingKind::PodCreation, creation_failure(&condition));
        }
    }

    fn of_node(&mut self, node: &Node) {
        let lost = nodes::lost_warning(node).or_else(|| nodes::not_ready_warning(node));
        if let Some(why) = lost {
            self.add(FindingKind::NodeNotReady, why);
        }
        let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
        for condition in conditions.into_iter().flatten() {
            if condition.type_ != "Ready" && condition.status == "True" {
                let message = condition.message.as_deref().unwrap_or_default();
                self.add(FindingKind::Pressure, format!("{}: {message}", condition.type_));
            }
        }
        if nodes::is_cordoned(node) {
            self.add(FindingKind::Cordoned, "cordoned: no new pods are scheduled on the node");
        }
        let taints = nodes::out_of_service_taints(node);
        if !taints.is_empty() {
            let text = format!("taints take the node out of service: {}", taints.join(", "));
            self.add(FindingKind::Cordoned, text);
        }
    }

    fn of_autoscaler(&mut self, facts: &Facts) {
        let Some(found) = autoscaling::autoscaler_of(&facts.autoscalers, &facts.target) else {
            return;
        };
        let conditions = found.status.iter().flat_map(|it| it.conditions.iter().flatten());
        for condition in conditions {
            let is_failing = matches!(condition.type_.as_str(), "AbleToScale" | "ScalingActive")
                && condition.status == "False"
                // It was scaled to 0, which is a finding of its own.
                && condition.reason.as_deref() != Some("ScalingDisabled");
            if is_failing {
                let reason = condition.reason.as_deref().unwrap_or("unknown");
                let message = condition.message.as_deref().unwrap_or_default();
                self.add(
                    FindingKind::Autoscaler,
                    format!("its autoscaler does not work: {reason}: {message}"),
                );
            }
        }
    }

    fn of_pod(&mut self, pod: &Pod, now: DateTime<Utc>) {
        if let Some(until) = &pod.metadata.deletion_timestamp {
            if until.0.as_second() < now.timestamp() {
                for why in pods::termination_blockers(pod, now) {
                    self.add(FindingKind::Terminating, why);
                }
            }
            return;
        }
        if let Some((node, at)) = pods::node_name(pod).zip(pods::marked_unready_at(pod)) {
            let text = nodes::may_be_lost_warning(node, &at);
            self.add_of_pod(FindingKind::NodeNotReady, text, Some(pod));
        }
        if let Some(why) = pods::unschedulable(pod) {
            self.add_of_pod(FindingKind::Unschedulable, format!("Unschedulable: {why}"), Some(pod));
        }
        if pods::phase(pod) == "Failed"
            && let Some(reason) = pods::reason(pod)
        {
            let message = pods::message(pod).unwrap_or_default();
            let text = format!("{reason}: {message}");
            self.add_of_pod(
                FindingKind::ContainerExit,
                text.trim_end_matches([':', ' ']),
                Some(pod),
            );
        }
        let before = self.count_of(pod);
        for container in pods::containers_of(pod) {
            self.of_container(container, pod, now);
        }
        let is_running = pods::phase(pod) == "Running";
        if is_running && !pods::is_ready(pod) && self.count_of(pod) == before {
            let why =
                pods::unready_reason(pod).unwrap_or_else(|| "the pod is not ready".to_owned());
            self.add_of_pod(FindingKind::NotReady, format!("not ready: {why}"), Some(pod));
        }
    }

    /// In how many groups the pod is.
    fn count_of(&self, pod: &Pod) -> usize {
        let name = name_of(pod);
        self.groups.iter().filter(|group| group.pods.contains(&name)).count()
    }

    fn of_container(&mut self, container: &ContainerStatus, pod: &Pod, now: DateTime<Utc>) {
        let Some(state) = &container.state else { return };
        let name = &container.name;
        let last = container.last_state.as_ref().and_then(|last| last.terminated.as_ref());
        if let Some(waiting) = &state.waiting {
            let reason = waiting.reason.as_deref().unwrap_or_default();
            let message = waiting.message.as_deref().unwrap_or_default();
            match (reason, last) {
                ("CrashLoopBackOff", Some(last)) => {
                    // It ran once more often than it was started again.
                    let times = container.restart_count + 1;
                    self.exit(FindingKind::CrashLoop, name, last, times, true, pod);
                }
                ("CrashLoopBackOff", None) => self.add_of_pod(
                    FindingKind::CrashLoop,
                    format!("CrashLoopBackOff: container {name}"),
                    Some(pod),
                ),
                ("", _) => {}
                (reason, _) if STARTING.contains(&reason) => {}
                (reason, _) if IMAGE_REASONS.contains(&reason) => self.add_of_pod(
                    FindingKind::ImagePull,
                    format!("{reason}: container {name}, image {}: {message}", container.image),
                    Some(pod),
                ),
                (reason, _) => self.add_of_pod(
                    FindingKind::ContainerCreation,
                    format!("{reason}: container {name}: {message}"),
                    Some(pod),
                ),
            }
            return;
        }
        if let Some(ended) = state.terminated.as_ref().filter(|ended| ended.exit_code != 0) {
            let times = container.restart_count + 1;
            self.exit(kind_of_exit(ended), name, ended, times, false, pod);
            return;
        }
        let Some(last) = last.filter(|last| last.exit_code != 0) else { return };
        let is_recent = ended_at(last).is_none_or(|at| (now - at).num_seconds() <= RECENT_SECONDS);
        if state.running.is_some() && !container.ready {
            self.exit(kind_of_exit(last), name, last, container.restart_count, false, pod);
        } else if state.running.is_some() && is_recent {
            self.exit(FindingKind::Restarted, name, last, container.restart_count, false, pod);
        }
    }

    fn exit(
        &mut self,
        kind: FindingKind,
        container: &str,
        ended: &ContainerStateTerminated,
        times: i32,
        backs_off: bool,
        pod: &Pod,
    ) {
        let reason = ended.reason.clone().filter(|reason| reason != "Error").unwrap_or_default();
        let (container, code) = (container.to_owned(), ended.exit_code);
        let group = self.group(kind, Cause::Exit { container, code, reason, backs_off });
        group.pods.push(name_of(pod));
        group.times = group.times.max(times);
        group.last = group.last.max(ended_at(ended));
    }

    /// What only Events report.
    fn of_events(&mut self, facts: &Facts) {
        let is_recent = |event: &&Event| {
            let at = events::last_seen(event);
            at.is_none_or(|at| (facts.now - at).num_seconds() <= RECENT_SECONDS)
        };
        let mut known = BTreeSet::new();
        let mut warnings: Vec<_> =
            facts.events.iter().filter(|it| it.type_.as_deref() == Some("Warning")).collect();
        warnings.sort_by_key(|event| std::cmp::Reverse(events::last_seen(event)));
        for event in warnings.into_iter().filter(is_recent) {
            let (reason, message) =
                (event.reason.as_deref().unwrap_or_default(), event.message.as_deref());
            let message = message.unwrap_or_default().trim();
            let (kind, text) = match reason {
                "FailedScheduling" if !self.has(FindingKind::Unschedulable) => {
                    (FindingKind::Unschedulable, format!("Unschedulable: {message}"))
                }
                "FailedCreate" if !self.has(FindingKind::PodCreation) => {
                    (FindingKind::PodCreation, creation_failure(&format!("{reason}: {message}")))
                }
                "Unhealthy" => (FindingKind::Probe, probe_failure(message)),
                "FailedMount" | "FailedAttachVolume" | "FailedMapVolume" => {
                    (FindingKind::Volume, format!("{reason}: {message}"))
                }
                "FailedCreatePodSandBox" | "NetworkNotReady" => {
                    (FindingKind::ContainerCreation, format!("{reason}: {message}"))
                }
                _ => continue,
            };
            // Of each reason the newest one; a probe has its own.
            let key = (kind, text.split(':').next().unwrap_or_default().to_owned());
            let is_of_a_ready_pod = kind == FindingKind::Probe && is_ready_now(event, facts);
            if !is_of_a_ready_pod && known.insert(key) {
                self.add(kind, text);
            }
        }
    }
}

/// Whether the event is about a pod that is ready by now.
fn is_ready_now(event: &Event, facts: &Facts) -> bool {
    let uid = event.involved_object.uid.as_ref();
    pods_of(facts).any(|pod| pod.metadata.uid.as_ref() == uid && pods::is_ready(pod))
}

impl Group {
    fn sentence(&self, now: Option<DateTime<Utc>>) -> String {
        let what = match &self.cause {
            Cause::Text(text) => text.clone(),
            Cause::Exit { container, code, reason, backs_off } => {
                let lead = if *backs_off { "CrashLoopBackOff: " } else { "" };
                let reason = match reason.as_str() {
                    "" => String::new(),
                    reason => format!(" ({reason})"),
                };
                let times = match self.times {
                    ..=1 => String::new(),
                    times => format!(" {times} times"),
                };
                let last = self.last.zip(now).map(|(at, now)| format!(", last {}", ago(now, at)));
                format!(
                    "{lead}container {container} exited {code}{reason}{times}{}",
                    last.unwrap_or_default()
                )
            }
        };
        // A message may be long, and how many pods have it must be seen.
        let what = masked_line(&what, MAX_CHARACTERS);
        match self.pods.as_slice() {
            [] => what,
            [pod] => format!("{what}; pod {pod}"),
            [pod, more @ ..] => format!("{what}; pod {pod} and {} more", more.len()),
        }
    }
}

/// `20 s ago`, `5 min ago`, `3 h ago`.
pub(crate) fn ago(now: DateTime<Utc>, at: DateTime<Utc>) -> String {
    match (now - at).num_seconds().max(0) {
        seconds @ ..120 => format!("{seconds} s ago"),
        seconds @ ..7200 => format!("{} min ago", seconds / 60),
        seconds => format!("{} h ago", seconds / 3600),
    }
}

/// The newest Job of a CronJob.
pub(crate) fn newest_job(facts: &Facts) -> Option<&k8s_openapi::api::batch::v1::Job> {
    facts.jobs.iter().max_by_key(|job| job.metadata.creation_timestamp.as_ref().map(|at| at.0))
}

/// An exit for lack of memory, or of a container that was restarted before, is a loop at its begin.
fn kind_of_exit(ended: &ContainerStateTerminated) -> FindingKind {
    match ended.reason.as_deref() {
        Some("OOMKilled") => FindingKind::CrashLoop,
        _ => FindingKind::ContainerExit,
    }
}

/// A condition or an Event that says why pods are not created, with an exhausted quota by its name.
fn creation_failure(text: &str) -> String {
    match text.contains("exceeded quota") {
        true => format!("quota exceeded: {text}"),
        false => text.to_owned(),
    }
}

/// `Readiness probe failed: why` as the kubelet writes it.
fn probe_failure(message: &str) -> String {
    match message.split_once(" probe failed: ") {
        Some((probe, why)) => format!("{} probe fails: {why}", probe.to_lowercase()),
        None => message.to_owned(),
    }
}

fn ended_at(ended: &ContainerStateTerminated) -> Option<DateTime<Utc>> {
    let Time(at) = ended.finished_at.as_ref()?;
    DateTime::from_timestamp(at.as_second(), 0)
}

fn name_of(pod: &Pod) -> String {
    pod.metadata.name.clone().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{contract::response::Target, k8s::workload::WorkloadKind};

    fn now() -> DateTime<Utc> {
        "2026-01-31T12:00:00Z".parse().expect("is a time")
    }

    fn yaml<T: serde::de::DeserializeOwned>(text: &str) -> T {
        serde_yaml_ng::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    pub(super) fn facts(object: Object) -> Facts {
        Facts {
            target: Target::named("apps/v1", "Deployment", "shop", "web"),
            object,
            pods: Vec::new(),
            more_pods: false,
            jobs: Vec::new(),
            events: Vec::new(),
            autoscalers: Vec::new(),
            pdbs: Vec::new(),
            log: None,
            history: Vec::new(),
            unread: Vec::new(),
            now: now(),
        }
    }

    fn deployment(spec: &str, conditions: &str) -> Object {
        let object: k8s_openapi::api::apps::v1::Deployment = yaml(&format!(
            "metadata: {{name: web, uid: u1, generation: 1}}\n\
             spec: {{replicas: 2, selector: {{matchLabels: {{app: web}}}}, template: {{}}{spec}}}\n\
             status: {{observedGeneration: 1, conditions: [{conditions}]}}"
        ));
        assert_eq!(Workload::from(object.clone()).kind(), WorkloadKind::Deployment);
        Object::Workload(object.into())
    }

    fn pod(name: &str, phase: &str, more: &str) -> Pod {
        yaml(&format!(
            "metadata: {{name: {name}, uid: {name}, namespace: shop, labels: {{app: web}}}}\n\
             spec: {{containers: [{{name: app, image: i}}]}}\n\
             status: {{phase: {phase}{more}}}"
        ))
    }

    fn container(state: &str, restarts: i32, last: &str) -> String {
        format!(
            ", containerStatuses: [{{name: app, image: 'i:1', imageID: '', ready: false, restartCount: {restarts}, \
             state: {{{state}}}, lastState: {{{last}}}}}]"
        )
    }

    fn event(reason: &str, message: &str) -> Event {
        yaml(&format!(
            "metadata: {{}}\ninvolvedObject: {{kind: Pod, name: a, uid: a}}\ntype: Warning\nreason: {reason}\n\
             message: '{message}'\nlastTimestamp: '2026-01-31T11:59:30Z'"
        ))
    }

    fn messages(facts: &Facts) -> Vec<String> {
        of(facts).into_iter().map(|finding| finding.message).collect()
    }

    const KILLED: &str =
        "terminated: {exitCode: 137, reason: OOMKilled, finishedAt: '2026-01-31T11:59:40Z'}";

    #[test]
    fn a_crash_loop_says_how_how_often_and_when() {
        let crashing = |name: &str, restarts| {
            pod(
                name,
                "Running",
                &container("waiting: {reason: CrashLoopBackOff}", restarts, KILLED),
            )
        };
        let mut facts = facts(deployment("", ""));
        facts.pods = vec![crashing("a", 6)];
        assert_eq!(
            messages(&facts),
            [
                "CrashLoopBackOff: container app exited 137 (OOMKilled) 7 times, last 20 s ago; pod a"
            ]
        );
        facts.pods.extend([crashing("b", 1), crashing("c", 8)]);
        assert_eq!(
            messages(&facts),
            [
                "CrashLoopBackOff: container app exited 137 (OOMKilled) 9 times, last 20 s ago; pod a and 2 more"
            ]
        );
    }

    #[test]
    fn the_most_important_finding_comes_first() {
        let mut facts = facts(deployment(
            ", paused: true",
            "{type: Progressing, status: 'False', reason: ProgressDeadlineExceeded, message: timed out}, \
             {type: ReplicaFailure, status: 'True', reason: FailedCreate, message: 'pods is forbidden: exceeded quota: q'}",
        ));
        facts.pods = vec![
            pod(
                "a",
                "Pending",
                ", conditions: [{type: PodScheduled, status: 'False', reason: Unschedulable, \
                 message: '0/3 nodes are available'}]",
            ),
            pod(
                "b",
                "Pending",
                &container("waiting: {reason: ImagePullBackOff, message: Back-off}", 0, ""),
            ),
            pod(
                "c",
                "Running",
                ", conditions: [{type: Ready, status: 'False', reason: ContainersNotReady}]",
            ),
            pod("d", "Running", &container("waiting: {reason: CrashLoopBackOff}", 2, KILLED)),
            pod(
                "e",
                "Pending",
                &container(
                    "waiting: {reason: CreateContainerConfigError, message: 'secret \"x\" not found'}",
                    0,
                    "",
                ),
            ),
            pod("f", "Pending", &container("waiting: {reason: ContainerCreating}", 0, "")),
        ];
        facts.pdbs = vec![yaml(
            "metadata: {name: web, namespace: shop}\nspec: {selector: {matchLabels: {app: web}}, minAvailable: 2}\n\
             status: {disruptionsAllowed: 0, currentHealthy: 1, desiredHealthy: 2, expectedPods: 2}",
        )];
        let kinds: Vec<_> = of(&facts).into_iter().map(|finding| finding.kind).collect();
        use FindingKind as Kind;
        assert_eq!(
            kinds,
            [
                Kind::CrashLoop,
                Kind::ImagePull,
                Kind::ContainerCreation,
                Kind::Unschedulable,
                Kind::PodCreation,
                Kind::NotReady,
                Kind::DeadlineExceeded,
                Kind::Paused,
                Kind::DisruptionBudget,
            ]
        );
        let messages = messages(&facts);
        for (at, part) in [
            (1, "ImagePullBackOff: container app, image i:1: Back-off; pod b"),
            (3, "Unschedulable: 0/3 nodes are available; pod a"),
            (4, "quota exceeded: FailedCreate: pods is forbidden: exceeded quota: q"),
            (6, "progress deadline exceeded: timed out"),
            (8, "PodDisruptionBudget 'web' allows 0 disruptions now"),
        ] {
            assert!(messages[at].starts_with(part), "{}", messages[at]);
        }
    }

    #[test]
    fn a_failing_probe_is_known_by_its_event_while_the_pod_is_not_ready() {
        let mut facts = facts(deployment("", ""));
        let with = |ready: &str| {
            pod(
                "a",
                "Running",
                &format!(
                    ", conditions: [{{type: Ready, status: '{ready}', reason: ContainersNotReady}}]"
                ),
            )
        };
        facts.pods = vec![with("False")];
        facts.events = vec![
            event("Unhealthy", "Readiness probe failed: HTTP probe failed with statuscode: 500"),
            event("Unhealthy", "Readiness probe failed: connection refused"),
        ];
        assert_eq!(
            messages(&facts),
            [
                "readiness probe fails: HTTP probe failed with statuscode: 500",
                "not ready: ContainersNotReady; pod a",
            ]
        );
        facts.pods = vec![with("True")];
        assert_eq!(messages(&facts), [""; 0]);
    }

    #[test]
    fn an_old_event_is_no_finding() {
        let mut facts = facts(deployment("", ""));
        facts.events = vec![event("FailedCreate", "exceeded quota")];
        assert_eq!(messages(&facts), ["quota exceeded: FailedCreate: exceeded quota"]);
        facts.now = "2026-01-31T13:00:00Z".parse().expect("is a time");
        assert_eq!(messages(&facts), [""; 0]);
    }

    #[test]
    fn a_restart_is_a_finding_for_a_time_although_the_container_runs() {
        let running = |finished: &str| {
            let last =
                format!("terminated: {{exitCode: 1, reason: Error, finishedAt: '{finished}'}}");
            let text = container("running: {}", 1, &last).replace("ready: false", "ready: true");
            pod("a", "Running", &format!(", conditions: [{{type: Ready, status: 'True'}}]{text}"))
        };
        let mut facts = facts(deployment("", ""));
        facts.pods = vec![running("2026-01-31T11:55:00Z")];
        assert_eq!(messages(&facts), ["container app exited 1, last 5 min ago; pod a"]);
        facts.pods = vec![running("2026-01-31T10:55:00Z")];
        assert_eq!(messages(&facts), [""; 0]);
    }

    #[test]
    fn a_node_says_what_it_lacks() {
        let node: Node = yaml(
            "metadata: {name: n1}\nspec: {unschedulable: true}\n\
             status: {conditions: [{type: Ready, status: 'False', reason: KubeletNotReady}, \
             {type: DiskPressure, status: 'True', message: kubelet has disk pressure}]}",
        );
        let mut facts = facts(Object::Node(Box::new(node)));
        facts.target = Target::named("v1", "Node", "", "n1");
        assert_eq!(
            messages(&facts),
            [
                "the node is not ready: KubeletNotReady",
                "DiskPressure: kubelet has disk pressure",
                "cordoned: no new pods are scheduled on the node",
            ]
        );
    }

    #[test]
    fn secrets_in_messages_are_masked() {
        let mut facts = facts(deployment("", ""));
        let waiting =
            "waiting: {reason: ErrImagePull, message: 'GET https://jo:hunter2@registry/v2'}";
        facts.pods = vec![pod("a", "Pending", &container(waiting, 0, ""))];
        let message = messages(&facts).remove(0);
        assert!(message.contains("https://[masked]@registry") && !message.contains("hunter2"));
    }
}
