//! The calls of a diagnosis: the target first, then all that belongs to it at the same time, then what its pods point
//! to. Each step has a share of the time, each list a limit, and each part that cannot be read is named and left out.
//!
//! It reads no Secret, and of a pod's environment nothing reaches a report. Must not decide what the objects mean: that
//! is for `findings` and `report`.

use std::time::Duration;

use k8s_openapi::api::{
    batch::v1::{CronJob, Job},
    core::v1::{Event, Node, Pod},
};
use kube::{ResourceExt, api::ListParams};
use tokio::time::{Instant, timeout_at};

use crate::{
    contract::error::{ActionError, Code},
    diagnosis::{
        DiagnosisScope,
        facts::{Facts, Log, Object, Unread},
        parts::{NODE_EVENTS, Part},
        target::{Target, TargetKind},
    },
    k8s::{
        api::client::Cluster,
        jobs::{self, LogSource},
        pods,
    },
    ledger::history::{self, Filter, HistoryEntry},
};

/// The most pods, and the most Events of one object, that are read.
const MAX_PODS: u32 = 500;
const MAX_EVENTS: u32 = 200;

/// The most Jobs of a namespace among which those of a CronJob are searched.
const MAX_JOBS: u32 = 500;

/// The most failing pods whose Events are read.
const MAX_PODS_WITH_EVENTS: usize = 3;

/// How much of a log is read: the last lines, and of those not more bytes than this.
const LOG_LINES: i64 = 60;
const LOG_BYTES: i64 = 64 * 1024;

/// How long the log is waited for: it comes from the node, which may not answer.
const LOG_TIMEOUT: Duration = Duration::from_secs(5);

/// The newest records of the target that are read.
const MAX_HISTORY: usize = 5;

/// The part of the time by which the target is read, and that by which what belongs to it is.
const TARGET_SHARE: f64 = 0.4;
const PARTS_SHARE: f64 = 0.7;

/// Reads the facts about one target.
pub(super) struct Reader<'a> {
    cluster: &'a Cluster,
    target: &'a Target,
    scope: DiagnosisScope<'a>,
    began: Instant,
    deadline: Instant,
}

/// A part as it was read, or why it was not.
type PartResult<T> = (T, Option<Unread>);

impl<'a> Reader<'a> {
    pub(super) fn new(
        cluster: &'a Cluster,
        target: &'a Target,
        scope: DiagnosisScope<'a>,
        deadline: Instant,
    ) -> Self {
        Reader { cluster, target, scope, began: Instant::now(), deadline }
    }

    /// When this share of the time has passed.
    fn share(&self, part: f64) -> Instant {
        self.began + self.deadline.saturating_duration_since(self.began).mul_f64(part)
    }

    pub(super) async fn facts(&self) -> Result<Facts, ActionError> {
        let object = self.object(self.share(TARGET_SHARE)).await?;
        let uid = object.metadata().uid.clone();
        let end = self.share(PARTS_SHARE);
        let namespace = self.target.namespace();
        let (jobs, pods, own_events, autoscalers, pdbs, history) = tokio::join!(
            self.part(Part::Jobs, end, self.jobs(uid.as_deref(), end)),
            self.part(Part::Pods, end, self.pods(&object, end)),
            self.part(Part::Events, end, self.events_of(uid.as_deref(), end)),
            self.part(Part::Autoscalers, end, self.cluster.list_cached(namespace, end)),
            self.part(Part::DisruptionBudgets, end, self.cluster.list_cached(namespace, end)),
            self.part(Part::History, end, self.history(end)),
        );
        let ((pods, more_pods), no_pods) = pods;
        let mut facts = Facts {
            target: self.target.object(),
            object,
            pods,
            more_pods,
            jobs: jobs.0,
            events: own_events.0,
            autoscalers: autoscalers.0,
            pdbs: pdbs.0,
            log: None,
            history: history.0,
            unread: [no_pods, jobs.1, own_events.1, autoscalers.1, pdbs.1, history.1]
                .into_iter()
                .flatten()
                .collect(),
            now: self.cluster.now(),
        };
        self.add_pods_of_the_newest_job(&mut facts).await;
        self.add_what_pods_point_to(&mut facts).await;
        facts.unread.sort_by_key(|unread| unread.part as u8);
        facts.unread.dedup_by_key(|unread| unread.part);
        Ok(facts)
    }

    async fn object(&self, end: Instant) -> Result<Object, ActionError> {
        let (cluster, namespace, name) =
            (self.cluster, self.target.namespace(), &*self.target.name);
        let read = async {
            Ok(match self.target.kind {
                TargetKind::Workload(kind) => {
                    Object::Workload(cluster.workload(kind, namespace, name, end).await?)
                }
                TargetKind::Pod => {
                    Object::Pod(Box::new(cluster.get::<Pod>(namespace, name, end).await?))
                }
                TargetKind::Job => {
                    Object::Job(Box::new(cluster.get::<Job>(namespace, name, end).await?))
                }
                TargetKind::CronJob => {
                    Object::CronJob(Box::new(cluster.get::<CronJob>(namespace, name, end).await?))
                }
                TargetKind::Node => {
                    Object::Node(Box::new(cluster.get_global::<Node>(name, end).await?))
                }
            })
        };
        // The explanation of an error is a call, too.
        timeout_at(self.deadline, read).await.unwrap_or_else(|_| Err(too_slow()))
    }

    /// What a part is, unless the target has none, the caller may not read it, or it cannot be read in time.
    async fn part<T: Default>(
        &self,
        part: Part,
        end: Instant,
        read: impl Future<Output = Result<T, ActionError>>,
    ) -> PartResult<T> {
        if !Part::of(self.target.kind).contains(&part) {
            return (T::default(), None);
        }
        if let Some(refused) = self.scope.refused.iter().find(|it| it.part == part) {
            return (T::default(), Some(refused.clone()));
        }
        match timeout_at(end.max(Instant::now()), read).await {
            Ok(Ok(found)) => (found, None),
            Ok(Err(error)) => (T::default(), Some(Unread::new(part, &error))),
            Err(_) => (T::default(), Some(Unread::new(part, &too_slow()))),
        }
    }

    /// The pods of a workload or a Job; of a node, those that do not run and may be read. And whether there are more.
    async fn pods(&self, object: &Object, end: Instant) -> Result<(Vec<Pod>, bool), ActionError> {
        let namespace = self.target.namespace();
        match object {
            Object::Workload(workload) => {
                let params = ListParams::default().labels(&workload.label_selector());
                self.pods_of(namespace, params, end).await
            }
            Object::Job(job) => {
                self.pods_of(namespace, jobs::pods_query(job).list_params(), end).await
            }
            Object::Node(_) => {
                let fields = format!(
                    "spec.nodeName={},status.phase!=Running,status.phase!=Succeeded",
                    self.target.name
                );
                let params = ListParams::default().fields(&fields).limit(MAX_PODS);
                let page = self.cluster.page::<Pod>(&params, end).await?;
                let more = page.metadata.continue_.is_some_and(|token| !token.is_empty());
                let includes =
                    |pod: &Pod| (self.scope.includes)(&pod.namespace().unwrap_or_default());
                Ok((page.items.into_iter().filter(includes).collect(), more))
            }
            Object::Pod(_) | Object::CronJob(_) => Ok((Vec::new(), false)),
        }
    }

    async fn pods_of(
        &self,
        namespace: &str,
        params: ListParams,
        end: Instant,
    ) -> Result<(Vec<Pod>, bool), ActionError> {
        // One more shows that there are more.
        let params = params.limit(MAX_PODS + 1);
        let mut pods = self.cluster.list_with::<Pod>(namespace, &params, end).await?;
        let more = pods.len() > MAX_PODS as usize;
        pods.truncate(MAX_PODS as usize);
        Ok((pods, more))
    }

    /// The Jobs that the CronJob with this uid owns.
    async fn jobs(&self, uid: Option<&str>, end: Instant) -> Result<Vec<Job>, ActionError> {
        let params = ListParams::default().limit(MAX_JOBS);
        let mut jobs = self.cluster.list_with::<Job>(self.target.namespace(), &params, end).await?;
        jobs.retain(|job| {
            job.metadata.owner_references.iter().flatten().any(|owner| Some(&*owner.uid) == uid)
        });
        Ok(jobs)
    }

    /// The Events of the object with this uid. Those of a node have its name as uid (`kubelet`) or its uid.
    async fn events_of(&self, uid: Option<&str>, end: Instant) -> Result<Vec<Event>, ActionError> {
        let (namespace, fields) = match (self.target.node(), uid) {
            (Some(node), _) => {
                (NODE_EVENTS, format!("involvedObject.kind=Node,involvedObject.name={node}"))
            }
            (None, Some(uid)) => (self.target.namespace(), format!("involvedObject.uid={uid}")),
            (None, None) => return Ok(Vec::new()),
        };
        let params = ListParams::default().fields(&fields).limit(MAX_EVENTS);
        self.cluster.list_with::<Event>(namespace, &params, end).await
    }

    async fn history(&self, end: Instant) -> Result<Vec<HistoryEntry>, ActionError> {
        let (kind, name) = (self.target.kind.name(), &self.target.name);
        let namespace = Part::History.namespace(self.target).to_owned();
        let filter = Filter {
            namespace: Some(namespace),
            target: Some(format!("{kind}/{name}")),
            ..Filter::default()
        };
        Ok(history::query(self.cluster, &filter, MAX_HISTORY, end).await?.entries)
    }

    /// A CronJob has no pods of its own.
    async fn add_pods_of_the_newest_job(&self, facts: &mut Facts) {
        if self.target.kind != TargetKind::CronJob {
            return;
        }
        let Some(query) = super::findings::newest_job(facts).map(jobs::pods_query) else { return };
        let end = self.share(PARTS_SHARE);
        let read = self.pods_of(self.target.namespace(), query.list_params(), end);
        let ((pods, more), unread) = self.part(Part::Pods, end, read).await;
        (facts.pods, facts.more_pods) = (pods, more);
        facts.unread.extend(unread);
    }

    /// The Events of pods that fail, and the log of the container that fails.
    async fn add_what_pods_point_to(&self, facts: &mut Facts) {
        if self.target.kind == TargetKind::Node {
            return;
        }
        let own = match &facts.object {
            Object::Pod(pod) => vec![(**pod).clone()],
            _ => Vec::new(),
        };
        let all = if own.is_empty() { &facts.pods } else { &own };
        let failing = most_telling(all);
        let mut uids: Vec<_> = failing.iter().filter_map(|pod| pod.uid()).collect();
        // Its Events are read already.
        uids.retain(|uid| Some(uid) != facts.object.metadata().uid.as_ref());
        let source = failing.iter().find_map(|pod| log_source(pod));
        let end = self.deadline;
        let log_end = end.min(Instant::now() + LOG_TIMEOUT);
        let (events, log) = tokio::join!(
            self.part(Part::Events, end, self.events_of_all(&uids, end)),
            self.part(Part::Log, log_end, self.log(source, log_end)),
        );
        let unread = [events.1, log.1];
        facts.events.extend(events.0);
        facts.log = log.0;
        facts.unread.extend(unread.into_iter().flatten());
    }

    async fn events_of_all(
        &self,
        uids: &[String],
        end: Instant,
    ) -> Result<Vec<Event>, ActionError> {
        let mut reads = uids.iter().map(|uid| self.events_of(Some(uid), end));
        let (first, second, third) = (reads.next(), reads.next(), reads.next());
        let read = async |read: Option<_>| match read {
            Some(read) => read.await,
            None => Ok(Vec::new()),
        };
        let (first, second, third) = tokio::try_join!(read(first), read(second), read(third))?;
        Ok([first, second, third].concat())
    }

    async fn log(
        &self,
        source: Option<LogSource<'_>>,
        end: Instant,
    ) -> Result<Option<Log>, ActionError> {
        let Some(source) = source else { return Ok(None) };
        let namespace = self.target.namespace();
        let text = self.cluster.log(namespace, &source, LOG_LINES, Some(LOG_BYTES), end).await?;
        let LogSource { pod, container, is_previous } = source;
        let text = whole_lines(text);
        Ok(Some(Log { pod: pod.to_owned(), container: container.to_owned(), is_previous, text }))
    }
}

/// A line that was cut may hold a part of a secret, which no pattern knows.
fn whole_lines(mut text: String) -> String {
    if text.len() >= LOG_BYTES as usize {
        text.truncate(text.rfind('\n').map_or(0, |end| end + 1));
    }
    text
}

/// The pods that fail, those with a container that failed first, then by name.
fn most_telling(pods: &[Pod]) -> Vec<&Pod> {
    let fails = |pod: &&Pod| {
        let has_failed = !pods::failed_containers(pod).is_empty();
        let has_ended_well = pods::phase(pod) == "Succeeded";
        has_failed || !(pods::is_ready(pod) || has_ended_well)
    };
    let mut failing: Vec<_> = pods.iter().filter(fails).collect();
    failing.sort_by_key(|pod| {
        let created = pod.metadata.creation_timestamp.as_ref().map(|at| at.0);
        (
            pods::failed_containers(pod).is_empty(),
            pods::is_ready(pod),
            std::cmp::Reverse(created),
            pod.metadata.name.clone(),
        )
    });
    failing.truncate(MAX_PODS_WITH_EVENTS);
    failing
}

/// The log that shows why the pod fails: that of the container that failed, of its instance before if it waits or runs
/// again; else that of a container that runs and is not ready. None if no container has run.
fn log_source(pod: &Pod) -> Option<LogSource<'_>> {
    let name = pod.metadata.name.as_deref()?;
    let failed = pods::failed_containers(pod).into_iter().next();
    let unready = || {
        pods::containers_of(pod).find(|container| {
            let state = container.state.as_ref();
            !container.ready && state.is_some_and(|state| state.running.is_some())
        })
    };
    let container = failed.or_else(unready)?;
    let state = container.state.as_ref();
    let has_ended = state.is_some_and(|state| state.terminated.is_some());
    let is_previous = failed.is_some() && !has_ended;
    Some(LogSource { pod: name, container: &container.name, is_previous })
}

fn too_slow() -> ActionError {
    ActionError::new(Code::ClusterUnreachable, "the cluster did not answer in time")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, state: &str, last: &str, ready: bool) -> Pod {
        serde_yaml_ng::from_str(&format!(
            "metadata: {{name: {name}, uid: {name}}}\nstatus: {{phase: Running, conditions: [{{type: Ready, status: \
             '{}'}}], containerStatuses: [{{name: app, image: i, imageID: '', ready: {ready}, restartCount: 1, \
             state: {{{state}}}, lastState: {{{last}}}}}]}}",
            if ready { "True" } else { "False" }
        ))
        .expect("is a pod")
    }

    const FAILED: &str = "terminated: {exitCode: 1}";

    #[test]
    fn the_log_is_that_of_the_instance_that_failed() {
        for (state, last, ready, expected) in [
            ("waiting: {reason: CrashLoopBackOff}", FAILED, false, Some(true)),
            ("running: {}", FAILED, false, Some(true)),
            (FAILED, "", false, Some(false)),
            ("running: {}", "", false, Some(false)),
            ("running: {}", "", true, None),
            ("waiting: {reason: ImagePullBackOff}", "", false, None),
        ] {
            let pod = pod("a", state, last, ready);
            let source = log_source(&pod).map(|source| source.is_previous);
            assert_eq!(source, expected, "{state} {last}");
        }
    }

    #[test]
    fn the_pods_with_failed_containers_are_the_most_telling() {
        let waiting = "waiting: {reason: ContainerCreating}";
        let all = [
            pod("a", "running: {}", "", true),
            pod("b", waiting, "", false),
            pod("c", FAILED, "", false),
            pod("d", waiting, "", false),
            pod("e", waiting, "", false),
        ];
        let names: Vec<_> = most_telling(&all).iter().map(|pod| pod.name_any()).collect();
        assert_eq!(names, ["c", "b", "d"]);
    }

    #[test]
    fn the_last_line_of_a_cut_log_is_left_out() {
        let long = format!("{}\npass", "x".repeat(LOG_BYTES as usize));
        assert!(whole_lines(long).ends_with("x\n"));
        assert_eq!(whole_lines("a\nb".to_owned()), "a\nb");
        assert_eq!(whole_lines("y".repeat(LOG_BYTES as usize)), "");
    }
}
