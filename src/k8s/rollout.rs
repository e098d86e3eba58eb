//! Whether a workload's rollout is complete, from the object alone. Pure.
//!
//! The checks and their order are those of `kubectl rollout status`
//! (`polymorphichelpers/rollout_status.go`), with these differences:
//!
//! - The generation that counts is at least the one that our own patch returned. An older status is about an earlier
//!   rollout.
//! - So is a `ProgressDeadlineExceeded` that was there before: the controller keeps it in the status of the next
//!   rollout until that makes progress, if a ReplicaSet for its template exists already (`syncRolloutStatus` and
//!   `getNewReplicaSet` in `pkg/controller/deployment`).
//! - A StatefulSet is complete once its pods are available, not only ready (`minReadySeconds`).

use k8s_openapi::{
    api::apps::v1::{DaemonSet, Deployment, DeploymentStatus, ReplicaSet, StatefulSet},
    apimachinery::pkg::util::intstr::IntOrString,
};

use crate::k8s::workload::Workload;

/// How far a rollout is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RolloutStatus {
    /// In progress; says what is missing.
    Waiting(String),
    /// All replicas are updated and available, and no old one is left.
    Complete(String),
    /// It does not complete; says why.
    Failed(String),
}

/// A progress deadline that a Deployment's status says was exceeded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ExceededDeadline {
    pub message: String,
    /// When the condition was written.
    pub at: Option<String>,
}

impl ExceededDeadline {
    /// What the workload's status says; `None` for other kinds than a Deployment.
    pub(crate) fn on(workload: &Workload) -> Option<Self> {
        let Workload::Deployment(deployment) = workload else { return None };
        Self::in_status(deployment.status.as_ref()?)
    }

    pub(crate) fn in_status(status: &DeploymentStatus) -> Option<Self> {
        let condition = status.conditions.iter().flatten().find(|condition| {
            condition.type_ == "Progressing"
                && condition.reason.as_deref() == Some("ProgressDeadlineExceeded")
        })?;
        Some(ExceededDeadline {
            message: condition.message.clone().unwrap_or_default(),
            at: condition.last_update_time.as_ref().map(|time| time.0.to_string()),
        })
    }

    /// The ReplicaSet that made no progress, as the controller's message names it.
    pub(crate) fn replica_set(&self) -> Option<&str> {
        self.message.strip_prefix("ReplicaSet \"")?.split('"').next()
    }
}

/// The status of the rollout of this `generation`. `stale` is when the progress deadline of an earlier rollout was
/// exceeded.
///
/// # Caveats
/// Complete means that every updated replica is *available* now; not that it stays so. A
/// workload scaled to zero is complete at once. With the strategy `OnDelete` it is complete once all old
/// pods were deleted.
pub(crate) fn status(workload: &Workload, generation: i64, stale: Option<&str>) -> RolloutStatus {
    match workload {
        Workload::Deployment(it) => deployment(it, generation, stale),
        Workload::StatefulSet(it) => stateful_set(it, generation),
        Workload::DaemonSet(it) => daemon_set(it, generation),
        Workload::ReplicaSet(it) => replica_set(it, generation),
    }
}

/// Whether the status is about the change.
fn is_observed(observed: Option<i64>, current: Option<i64>, generation: i64) -> bool {
    observed.unwrap_or(0) >= current.unwrap_or(0).max(generation)
}

fn not_observed() -> RolloutStatus {
    RolloutStatus::Waiting("waiting for the change to be observed".to_owned())
}

fn deployment(deployment: &Deployment, generation: i64, stale: Option<&str>) -> RolloutStatus {
    let name = deployment.metadata.name.as_deref().unwrap_or_default();
    let status = deployment.status.clone().unwrap_or_default();
    let spec_replicas = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let updated = status.updated_replicas.unwrap_or(0);
    let total = status.replicas.unwrap_or(0);
    let available = status.available_replicas.unwrap_or(0);

    if !is_observed(status.observed_generation, deployment.metadata.generation, generation) {
        return not_observed();
    }
    let exceeded = ExceededDeadline::in_status(&status);
    if let Some(exceeded) = exceeded.filter(|it| stale.is_none() || it.at.as_deref() != stale) {
        return RolloutStatus::Failed(format!("ProgressDeadlineExceeded: {}", exceeded.message));
    }
    if updated < spec_replicas {
        return RolloutStatus::Waiting(format!(
            "{updated} of {spec_replicas} new replicas have been updated"
        ));
    }
    if total > updated {
        return RolloutStatus::Waiting(format!(
            "{} old replicas are pending termination",
            total - updated
        ));
    }
    if available < updated {
        return RolloutStatus::Waiting(format!(
            "{available} of {updated} updated replicas are available"
        ));
    }
    RolloutStatus::Complete(format!(
        "Deployment '{name}' is rolled out: {available} of {spec_replicas} replicas are updated and available{}",
        terminating_phrase(status.terminating_replicas)
    ))
}

fn stateful_set(set: &StatefulSet, generation: i64) -> RolloutStatus {
    let name = set.metadata.name.as_deref().unwrap_or_default();
    let status = set.status.clone().unwrap_or_default();
    if !is_observed(status.observed_generation, set.metadata.generation, generation) {
        return not_observed();
    }
    let spec = set.spec.as_ref();
    let replicas = spec.and_then(|spec| spec.replicas).unwrap_or(1);
    let (ready, available) =
        (status.ready_replicas.unwrap_or(0), status.available_replicas.unwrap_or(0));
    let updated = status.updated_replicas.unwrap_or(0);
    if ready < replicas {
        return RolloutStatus::Waiting(format!("{ready} of {replicas} pods are ready"));
    }
    if available < replicas {
        return RolloutStatus::Waiting(format!("{available} of {replicas} pods are available"));
    }
    let strategy = spec.and_then(|spec| spec.update_strategy.as_ref());
    let partition = strategy.and_then(|it| it.rolling_update.as_ref()).and_then(|it| it.partition);
    let desired = match partition {
        Some(partition) if partition > 0 => (replicas - partition).max(0),
        _ => replicas,
    };
    // Without a partition kubectl compares the revisions. They are equal after the last pod, but also before
    // the controller has created the new revision; the number of pods is not.
    if updated < desired
        || (desired == replicas && status.update_revision != status.current_revision)
    {
        return RolloutStatus::Waiting(format!(
            "{updated} of {desired} pods are of the new revision"
        ));
    }
    let revision = status.update_revision.as_deref().unwrap_or("unknown");
    RolloutStatus::Complete(format!(
        "StatefulSet '{name}' is rolled out: {updated} of {replicas} pods are of revision {revision}, \
         {available} are available"
    ))
}

fn daemon_set(set: &DaemonSet, generation: i64) -> RolloutStatus {
    let name = set.metadata.name.as_deref().unwrap_or_default();
    let status = set.status.clone().unwrap_or_default();
    if !is_observed(status.observed_generation, set.metadata.generation, generation) {
        return not_observed();
    }
    let desired = status.desired_number_scheduled;
    let updated = status.updated_number_scheduled.unwrap_or(0);
    let available = status.number_available.unwrap_or(0);
    if updated < desired {
        return RolloutStatus::Waiting(format!(
            "{updated} of {desired} new pods have been updated"
        ));
    }
    if available < desired {
        return RolloutStatus::Waiting(format!(
            "{available} of {desired} updated pods are available"
        ));
    }
    RolloutStatus::Complete(format!(
        "DaemonSet '{name}' is rolled out: {available} of {desired} pods are updated and available"
    ))
}

/// A ReplicaSet replaces no pod; it is complete once it has the desired number.
fn replica_set(set: &ReplicaSet, generation: i64) -> RolloutStatus {
    let name = set.metadata.name.as_deref().unwrap_or_default();
    let status = set.status.clone().unwrap_or_default();
    if !is_observed(status.observed_generation, set.metadata.generation, generation) {
        return not_observed();
    }
    let replicas = set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let available = status.available_replicas.unwrap_or(0);
    if status.replicas != replicas || available < replicas {
        return RolloutStatus::Waiting(format!("{available} of {replicas} replicas are available"));
    }
    RolloutStatus::Complete(format!("ReplicaSet '{name}' has its {replicas} replicas"))
}

/// Whether a workload has the desired number of pods, all available, of any revision. `kubectl scale` checks
/// the number only. At 0 no pod is left either that is terminating, where the API server counts these (KEP 3973).
///
/// # Caveats
/// A Deployment that was paused in the middle of a rollout keeps that rollout's surplus.
pub(crate) fn scale_status(workload: &Workload) -> RolloutStatus {
    let (observed, total, available, terminating) = match workload {
        Workload::Deployment(it) => {
            let it = it.status.clone().unwrap_or_default();
            let total = it.replicas.unwrap_or(0);
            (it.observed_generation, total, it.available_replicas, it.terminating_replicas)
        }
        // Its replicas include those that are terminating.
        Workload::StatefulSet(it) => {
            let it = it.status.clone().unwrap_or_default();
            (it.observed_generation, it.replicas, it.available_replicas, None)
        }
        Workload::ReplicaSet(it) => {
            let it = it.status.clone().unwrap_or_default();
            (it.observed_generation, it.replicas, it.available_replicas, it.terminating_replicas)
        }
        Workload::DaemonSet(it) => return daemon_set(it, 0),
    };
    if !is_observed(observed, workload.metadata().generation, 0) {
        return not_observed();
    }
    let (desired, available) = (workload.replicas().unwrap_or(1), available.unwrap_or(0));
    if available < desired {
        return RolloutStatus::Waiting(format!("{available} of {desired} replicas are available"));
    }
    let keeps_surplus = workload.is_paused() && workload.outdated_pods().is_some();
    if total > desired && !keeps_surplus {
        return RolloutStatus::Waiting(format!(
            "{} surplus replicas are pending termination",
            total - desired
        ));
    }
    if let Some(number) = terminating.filter(|&number| desired == 0 && number > 0) {
        return RolloutStatus::Waiting(format!("{number} replicas are terminating"));
    }
    let (kind, name) = (workload.kind().name(), workload.metadata().name.as_deref());
    let name = name.unwrap_or_default();
    RolloutStatus::Complete(format!(
        "{kind} '{name}' has {desired} replicas, all available{}",
        terminating_phrase(terminating)
    ))
}

/// The replicas that are terminating and not counted otherwise, if the API server counts them (KEP 3973).
fn terminating_phrase(number: Option<i32>) -> String {
    match number {
        None | Some(..=0) => String::new(),
        Some(number) => format!("; {number} more terminating"),
    }
}

/// What is unfinished about a workload before an action, as a warning.
pub(crate) fn unfinished_warning(workload: &Workload) -> Option<String> {
    match status(workload, 0, None) {
        RolloutStatus::Complete(_) => None,
        RolloutStatus::Failed(why) => Some(format!("its last rollout has failed: {why}")),
        RolloutStatus::Waiting(what) if is_rolling_out(workload) => {
            Some(format!("a rollout is in progress: {what}"))
        }
        RolloutStatus::Waiting(what) => Some(format!("not all pods are available: {what}")),
    }
}

/// Whether pods are being replaced by those of another template. A pod that is missing or not available does not show
/// it.
fn is_rolling_out(workload: &Workload) -> bool {
    match workload {
        Workload::Deployment(it) => {
            let status = it.status.clone().unwrap_or_default();
            let conditions = status.conditions.as_deref().unwrap_or_default();
            let progress = conditions.iter().find(|condition| condition.type_ == "Progressing");
            // The controller keeps this reason once a rollout is complete, whatever becomes of the pods.
            let was_complete =
                progress.is_none_or(|it| it.reason.as_deref() == Some("NewReplicaSetAvailable"));
            !is_observed(status.observed_generation, it.metadata.generation, 0)
                || status.replicas > status.updated_replicas
                || !was_complete
        }
        Workload::StatefulSet(it) => {
            let status = it.status.clone().unwrap_or_default();
            !is_observed(status.observed_generation, it.metadata.generation, 0)
                || status.update_revision != status.current_revision
        }
        Workload::DaemonSet(it) => {
            let status = it.status.clone().unwrap_or_default();
            !is_observed(status.observed_generation, it.metadata.generation, 0)
                || status.updated_number_scheduled.unwrap_or(0) < status.current_number_scheduled
        }
        Workload::ReplicaSet(_) => false,
    }
}

/// What the workload's own conditions say is wrong. An exceeded deadline is not among them: it says no more than that
/// there is no progress, and may be of an earlier rollout.
pub(crate) fn failing_conditions(workload: &Workload) -> Vec<String> {
    let describe = |reason: Option<&str>, message: Option<&str>| {
        format!("{}: {}", reason.unwrap_or("unknown"), message.unwrap_or_default())
    };
    let mut problems = Vec::new();
    if workload.is_paused() {
        problems.push("the Deployment is paused".to_owned());
    }
    match workload {
        Workload::Deployment(it) => {
            let conditions = it.status.as_ref().and_then(|status| status.conditions.as_ref());
            for it in conditions.into_iter().flatten() {
                let reason = it.reason.as_deref();
                let is_failing = match it.type_.as_str() {
                    "ReplicaFailure" => it.status == "True",
                    "Progressing" => {
                        it.status == "False" && reason != Some("ProgressDeadlineExceeded")
                    }
                    _ => false,
                };
                if is_failing {
                    problems.push(describe(reason, it.message.as_deref()));
                }
            }
        }
        Workload::ReplicaSet(it) => {
            let conditions = it.status.as_ref().and_then(|status| status.conditions.as_ref());
            let failing = conditions
                .into_iter()
                .flatten()
                .filter(|it| it.type_ == "ReplicaFailure" && it.status == "True");
            problems
                .extend(failing.map(|it| describe(it.reason.as_deref(), it.message.as_deref())));
        }
        // Their controllers write no conditions.
        Workload::StatefulSet(_) | Workload::DaemonSet(_) => {}
    }
    problems
}

/// Why no pod would be replaced automatically, if that is so.
pub(crate) fn manual_update_reason(workload: &Workload) -> Option<String> {
    let (strategy, partition) = match workload {
        Workload::StatefulSet(set) => {
            let strategy = set.spec.as_ref()?.update_strategy.as_ref()?;
            let rolling = strategy.rolling_update.as_ref();
            (strategy.type_.as_deref(), rolling.and_then(|it| it.partition))
        }
        Workload::DaemonSet(set) => {
            (set.spec.as_ref()?.update_strategy.as_ref()?.type_.as_deref(), None)
        }
        _ => return None,
    };
    if strategy == Some("OnDelete") {
        return Some("its update strategy is OnDelete".to_owned());
    }
    let (partition, replicas) = (partition?, workload.replicas().unwrap_or(0));
    (partition > 0 && partition >= replicas)
        .then(|| format!("its partition {partition} covers all {replicas} pods"))
}

/// The warning about pods for which a StatefulSet waits before it replaces any.
pub(crate) fn stuck_pods_warning(pods: &[&str]) -> String {
    format!(
        "pod {} is not ready, and an ordered StatefulSet may wait for it forever instead of \
         replacing it: if it does not become ready, delete it with restart_pod",
        pods.join(", ")
    )
}

/// Whether all old pods stop before new ones start.
pub(crate) fn recreates(workload: &Workload) -> bool {
    let Workload::Deployment(deployment) = workload else { return false };
    let strategy = deployment.spec.as_ref().and_then(|spec| spec.strategy.as_ref());
    strategy.is_some_and(|it| it.type_.as_deref() == Some("Recreate"))
}

/// How many pods a Deployment starts beside the old ones, and how many old ones it may stop first
/// (`ResolveFenceposts`: the surge is rounded up, the other down, and not both are 0).
pub(crate) fn surge_and_unavailable(deployment: &Deployment, replicas: i32) -> (i32, i32) {
    let strategy = deployment.spec.as_ref().and_then(|spec| spec.strategy.as_ref());
    let rolling = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
    let quarter = IntOrString::String("25%".to_owned());
    let surge = rolling.and_then(|it| it.max_surge.as_ref()).unwrap_or(&quarter);
    let unavailable = rolling.and_then(|it| it.max_unavailable.as_ref()).unwrap_or(&quarter);
    let share = |value: &IntOrString, round: fn(f64) -> f64| match value {
        IntOrString::Int(number) => *number,
        IntOrString::String(text) => {
            let percent: f64 = text.trim_end_matches('%').parse().unwrap_or(0.0);
            round(percent * f64::from(replicas) / 100.0) as i32
        }
    };
    match (share(surge, f64::ceil), share(unavailable, f64::floor)) {
        (0, 0) => (0, 1),
        surge_and_unavailable => surge_and_unavailable,
    }
}

/// Whether a new pod is created before an old one is removed.
pub(crate) fn adds_pods_first(workload: &Workload) -> bool {
    let Workload::Deployment(deployment) = workload else { return false };
    let replicas = workload.replicas().unwrap_or(0);
    !recreates(workload) && surge_and_unavailable(deployment, replicas).0 > 0
}

/// The partition of a StatefulSet that excludes some of its pods from the rollout.
pub(crate) fn partition(workload: &Workload) -> Option<i32> {
    let Workload::StatefulSet(set) = workload else { return None };
    let strategy = set.spec.as_ref()?.update_strategy.as_ref()?;
    let partition = strategy.rolling_update.as_ref()?.partition?;
    (partition > 0 && manual_update_reason(workload).is_none()).then_some(partition)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A Deployment of generation 4 with three replicas wanted and the status given as YAML.
    fn rollout_status(status: &str) -> RolloutStatus {
        rollout_status_after(4, status)
    }

    fn rollout_status_after(generation: i64, status: &str) -> RolloutStatus {
        let text = format!(
            "metadata: {{name: web, generation: 4}}\n\
             spec: {{replicas: 3, selector: {{}}, template: {{}}}}\n\
             status: {status}"
        );
        deployment(&serde_yaml_ng::from_str(&text).expect("is a Deployment"), generation, None)
    }

    fn waits(status: &str, for_what: &str) {
        assert_eq!(rollout_status(status), RolloutStatus::Waiting(for_what.to_owned()));
    }

    const DONE: &str =
        "{observedGeneration: 4, replicas: 3, updatedReplicas: 3, availableReplicas: 3}";

    #[test]
    fn a_deployment_is_complete_when_all_replicas_are_updated_and_available() {
        assert!(matches!(rollout_status(DONE), RolloutStatus::Complete(_)));
    }

    #[test]
    fn a_status_older_than_the_change_is_ignored() {
        waits(
            "{observedGeneration: 3, replicas: 3, updatedReplicas: 3, availableReplicas: 3}",
            "waiting for the change to be observed",
        );
    }

    #[test]
    fn a_stale_object_is_not_the_patched_one() {
        // A read served from before the patch still shows the old generation, and all is well there.
        assert!(matches!(rollout_status_after(5, DONE), RolloutStatus::Waiting(_)));
    }

    #[test]
    fn a_stale_deadline_does_not_fail_the_new_rollout() {
        waits(
            "{observedGeneration: 3, conditions: [{type: Progressing, status: 'False', reason: ProgressDeadlineExceeded}]}",
            "waiting for the change to be observed",
        );
    }

    #[test]
    fn an_exceeded_deadline_fails_with_the_controllers_message() {
        let status = "{observedGeneration: 4, updatedReplicas: 1, conditions: [{type: Progressing, \
                      status: 'False', reason: ProgressDeadlineExceeded, message: no progress}]}";
        assert_eq!(
            rollout_status(status),
            RolloutStatus::Failed("ProgressDeadlineExceeded: no progress".to_owned())
        );
    }

    #[test]
    fn a_deployment_waits_for_updated_replicas_first() {
        waits(
            "{observedGeneration: 4, replicas: 4, updatedReplicas: 1, availableReplicas: 3}",
            "1 of 3 new replicas have been updated",
        );
    }

    #[test]
    fn a_deployment_waits_for_old_replicas_to_terminate() {
        waits(
            "{observedGeneration: 4, replicas: 4, updatedReplicas: 3, availableReplicas: 3}",
            "1 old replicas are pending termination",
        );
    }

    #[test]
    fn a_deployment_waits_for_availability_last() {
        waits(
            "{observedGeneration: 4, replicas: 3, updatedReplicas: 3, availableReplicas: 2}",
            "2 of 3 updated replicas are available",
        );
    }

    #[test]
    fn an_empty_status_is_waited_for() {
        waits("{}", "waiting for the change to be observed");
    }

    fn of_stateful_set(spec: &str, status: &str) -> RolloutStatus {
        let text = format!(
            "metadata: {{name: db, generation: 4}}\n\
             spec: {{replicas: 3, selector: {{}}, template: {{}}{spec}}}\n\
             status: {{observedGeneration: 4{status}}}"
        );
        stateful_set(&serde_yaml_ng::from_str(&text).expect("is a StatefulSet"), 4)
    }

    const PARTITION: &str =
        ", updateStrategy: {type: RollingUpdate, rollingUpdate: {partition: 2}}";

    #[test]
    fn a_stateful_set_waits_for_ready_pods_then_for_the_revision() {
        let waiting = |status: &str, what: &str| {
            assert_eq!(of_stateful_set("", status), RolloutStatus::Waiting(what.to_owned()));
        };
        waiting(", replicas: 3, readyReplicas: 2, updatedReplicas: 1", "2 of 3 pods are ready");
        let revisions = ", currentRevision: a, updateRevision: b";
        waiting(
            &format!(
                ", replicas: 3, readyReplicas: 3, availableReplicas: 3, updatedReplicas: 1{revisions}"
            ),
            "1 of 3 pods are of the new revision",
        );
        let done = ", replicas: 3, readyReplicas: 3, updatedReplicas: 3, currentRevision: b, \
                    updateRevision: b";
        // Ready, but not for minReadySeconds yet.
        waiting(done, "0 of 3 pods are available");
        let done = format!("{done}, availableReplicas: 3");
        assert!(matches!(of_stateful_set("", &done), RolloutStatus::Complete(_)));
    }

    #[test]
    fn a_partitioned_stateful_set_is_complete_with_the_pods_above_the_partition() {
        let revisions = ", currentRevision: a, updateRevision: b";
        let status = |updated: i32| {
            format!(
                ", replicas: 3, readyReplicas: 3, availableReplicas: 3, \
                 updatedReplicas: {updated}{revisions}"
            )
        };
        let rollout_status = of_stateful_set(PARTITION, &status(1));
        assert!(
            matches!(rollout_status, RolloutStatus::Complete(what) if what.contains("1 of 3 pods are of revision b"))
        );
        assert!(matches!(of_stateful_set(PARTITION, &status(0)), RolloutStatus::Waiting(_)));
    }

    #[test]
    fn a_daemon_set_waits_for_updated_then_for_available_pods() {
        let rollout_status = |status: &str| {
            let text = format!(
                "metadata: {{name: agent, generation: 2}}\n\
                 status: {{observedGeneration: 2, desiredNumberScheduled: 3, currentNumberScheduled: 3, \
                 numberMisscheduled: 0, numberReady: 3{status}}}"
            );
            daemon_set(&serde_yaml_ng::from_str(&text).expect("is a DaemonSet"), 2)
        };
        let waiting = |what: &str| RolloutStatus::Waiting(what.to_owned());
        assert_eq!(
            rollout_status(", updatedNumberScheduled: 1, numberAvailable: 3"),
            waiting("1 of 3 new pods have been updated")
        );
        assert_eq!(
            rollout_status(", updatedNumberScheduled: 3, numberAvailable: 2"),
            waiting("2 of 3 updated pods are available")
        );
        let done = rollout_status(", updatedNumberScheduled: 3, numberAvailable: 3");
        assert!(matches!(done, RolloutStatus::Complete(_)));
    }

    #[test]
    fn a_scaling_is_complete_once_all_pods_are_available_and_none_is_surplus() {
        let rollout_status = |spec: &str, status: &str| {
            let text = format!(
                "metadata: {{name: web, generation: 4}}\n\
                 spec: {{replicas: 3, selector: {{}}, template: {{}}{spec}}}\n\
                 status: {{{status}}}"
            );
            let deployment: Deployment = serde_yaml_ng::from_str(&text).expect("is a Deployment");
            scale_status(&deployment.into())
        };
        let waiting = |what: &str| RolloutStatus::Waiting(what.to_owned());
        let unobserved = "observedGeneration: 3, replicas: 3, availableReplicas: 3";
        assert_eq!(
            rollout_status("", unobserved),
            waiting("waiting for the change to be observed")
        );
        let few = "observedGeneration: 4, replicas: 3, availableReplicas: 2";
        assert_eq!(rollout_status("", few), waiting("2 of 3 replicas are available"));
        let many = "observedGeneration: 4, replicas: 5, updatedReplicas: 5, availableReplicas: 5";
        assert_eq!(rollout_status("", many), waiting("2 surplus replicas are pending termination"));
        // Whatever their revision: a paused Deployment's pods do not become new ones.
        let old = "observedGeneration: 4, replicas: 4, updatedReplicas: 1, availableReplicas: 3";
        assert_eq!(rollout_status("", old), waiting("1 surplus replicas are pending termination"));
        assert!(matches!(rollout_status(", paused: true", old), RolloutStatus::Complete(_)));
    }

    #[test]
    fn a_status_from_before_the_change_is_ignored_for_every_kind() {
        let set: DaemonSet = serde_yaml_ng::from_str(
            "metadata: {name: agent, generation: 1}\n\
             status: {observedGeneration: 1, desiredNumberScheduled: 0, currentNumberScheduled: 0, \
             numberMisscheduled: 0, numberReady: 0}",
        )
        .expect("is a DaemonSet");
        assert!(matches!(rollout_status_of(set.clone(), 1), RolloutStatus::Complete(_)));
        assert!(matches!(rollout_status_of(set, 2), RolloutStatus::Waiting(_)));
    }

    fn rollout_status_of(set: DaemonSet, generation: i64) -> RolloutStatus {
        super::status(&set.into(), generation, None)
    }

    #[test]
    fn a_complete_rollout_says_how_many_old_pods_are_terminating() {
        let text = "metadata: {name: web, generation: 1}\nspec: {replicas: 1, selector: {}, template: {}}\n\
                    status: {observedGeneration: 1, replicas: 1, updatedReplicas: 1, availableReplicas: 1, \
                    terminatingReplicas: 2}";
        let found: Deployment = serde_yaml_ng::from_str(text).expect("is a Deployment");
        let status = deployment(&found, 1, None);
        let RolloutStatus::Complete(message) = status else { panic!("{status:?}") };
        assert!(message.ends_with("available; 2 more terminating"), "{message}");
    }

    #[test]
    fn a_scaling_to_0_is_complete_once_no_pod_is_terminating() {
        let status = |replicas: i32, terminating: &str| {
            let text = format!(
                "metadata: {{name: web, generation: 1}}\n\
                 spec: {{replicas: {replicas}, selector: {{}}, template: {{}}}}\n\
                 status: {{observedGeneration: 1, replicas: {replicas}, availableReplicas: {replicas}{terminating}}}"
            );
            scale_status(&serde_yaml_ng::from_str::<Deployment>(&text).expect("is one").into())
        };
        let terminating = ", terminatingReplicas: 2";
        assert!(matches!(status(0, ""), RolloutStatus::Complete(_)));
        assert!(
            matches!(status(0, terminating), RolloutStatus::Waiting(what) if what.starts_with("2 "))
        );
        assert_eq!(
            status(3, terminating),
            RolloutStatus::Complete(
                "Deployment 'web' has 3 replicas, all available; 2 more terminating".into()
            )
        );
    }

    #[test]
    fn a_deadline_that_was_exceeded_before_the_change_does_not_fail_the_new_rollout() {
        let text = "metadata: {name: web, generation: 4}\n\
                    spec: {replicas: 1, selector: {}, template: {}}\n\
                    status: {observedGeneration: 4, replicas: 2, updatedReplicas: 1, conditions: [{type: \
                    Progressing, status: 'False', reason: ProgressDeadlineExceeded, lastUpdateTime: \
                    '2026-01-31T12:00:00Z', message: 'ReplicaSet \"web-5d4f\" has timed out progressing.'}]}";
        let found: Deployment = serde_yaml_ng::from_str(text).expect("is a Deployment");
        let status = |stale| deployment(&found, 4, stale);
        assert!(matches!(status(Some("2026-01-31T12:00:00Z")), RolloutStatus::Waiting(_)));
        assert!(matches!(status(Some("2026-01-31T11:59:59Z")), RolloutStatus::Failed(_)));
        assert!(matches!(status(None), RolloutStatus::Failed(_)));
        let exceeded = ExceededDeadline::on(&found.into()).expect("is exceeded");
        assert_eq!(exceeded.replica_set(), Some("web-5d4f"));
        let other = "Deployment \"web\" has timed out progressing.".to_owned();
        assert_eq!(ExceededDeadline { message: other, at: None }.replica_set(), None);
    }

    #[test]
    fn failing_conditions_are_reported_and_an_exceeded_deadline_is_not() {
        let problems = |conditions: &str| {
            let text = format!(
                "spec: {{selector: {{}}, template: {{}}}}\nstatus: {{conditions: [{conditions}]}}"
            );
            let found: Deployment = serde_yaml_ng::from_str(&text).expect("is a Deployment");
            failing_conditions(&found.into())
        };
        assert_eq!(
            problems(
                "{type: ReplicaFailure, status: 'True', reason: FailedCreate, message: exceeded quota}"
            ),
            ["FailedCreate: exceeded quota"]
        );
        assert_eq!(
            problems(
                "{type: Progressing, status: 'False', reason: ReplicaSetCreateError, message: no}"
            ),
            ["ReplicaSetCreateError: no"]
        );
        let exceeded = "{type: Progressing, status: 'False', reason: ProgressDeadlineExceeded}";
        let unavailable = "{type: Available, status: 'False', reason: MinimumReplicasUnavailable}";
        assert!(problems(&format!("{exceeded}, {unavailable}")).is_empty());
    }

    #[test]
    fn a_pod_that_is_not_available_is_no_rollout() {
        let warning = |workload: Workload| unfinished_warning(&workload).unwrap_or_default();
        let deployment = |status: &str| -> Workload {
            let text = format!(
                "metadata: {{name: web, generation: 4}}\n\
                 spec: {{replicas: 3, selector: {{}}, template: {{}}}}\n\
                 status: {{observedGeneration: 4, {status}}}"
            );
            serde_yaml_ng::from_str::<Deployment>(&text).expect("is a Deployment").into()
        };
        let complete =
            "conditions: [{type: Progressing, status: 'True', reason: NewReplicaSetAvailable}]";
        let progressing =
            "conditions: [{type: Progressing, status: 'True', reason: ReplicaSetUpdated}]";
        for (status, expected) in [
            (
                "replicas: 3, updatedReplicas: 3, availableReplicas: 2",
                "not all pods are available: 2 of 3",
            ),
            (
                "replicas: 2, updatedReplicas: 2, availableReplicas: 2",
                "not all pods are available: 2 of 3",
            ),
            (
                "replicas: 4, updatedReplicas: 1, availableReplicas: 3",
                "a rollout is in progress: 1 of 3",
            ),
            ("replicas: 3, updatedReplicas: 3, availableReplicas: 3", ""),
        ] {
            let found = warning(deployment(&format!("{status}, {complete}")));
            assert!(
                found.starts_with(expected) && found.is_empty() == expected.is_empty(),
                "{found}"
            );
        }
        let last = format!("replicas: 3, updatedReplicas: 3, availableReplicas: 2, {progressing}");
        assert!(warning(deployment(&last)).starts_with("a rollout is in progress"));
        let failed = progressing.replace("ReplicaSetUpdated", "ProgressDeadlineExceeded");
        assert!(warning(deployment(&failed)).starts_with("its last rollout has failed"));
        let stateful_set = |current: &str| -> Workload {
            let text = format!(
                "spec: {{replicas: 2, selector: {{}}, template: {{}}}}\n\
                 status: {{replicas: 2, readyReplicas: 1, updatedReplicas: 2, currentRevision: {current}, \
                 updateRevision: b}}"
            );
            serde_yaml_ng::from_str::<StatefulSet>(&text).expect("is a StatefulSet").into()
        };
        assert_eq!(warning(stateful_set("b")), "not all pods are available: 1 of 2 pods are ready");
        assert!(warning(stateful_set("a")).starts_with("a rollout is in progress"));
        let daemon_set = |updated: i32| -> Workload {
            let text = format!(
                "status: {{desiredNumberScheduled: 3, currentNumberScheduled: 2, numberMisscheduled: 0, \
                 numberReady: 2, numberAvailable: 2, updatedNumberScheduled: {updated}}}"
            );
            serde_yaml_ng::from_str::<DaemonSet>(&text).expect("is a DaemonSet").into()
        };
        assert!(warning(daemon_set(2)).starts_with("not all pods are available"));
        assert!(warning(daemon_set(1)).starts_with("a rollout is in progress"));
    }

    #[test]
    fn surge_and_unavailable_are_rounded_as_by_the_controller() {
        let surge_and_unavailable = |replicas, strategy: &str| {
            let it: Deployment = serde_yaml_ng::from_str(&format!(
                "spec: {{selector: {{}}, template: {{}}, strategy: {strategy}}}"
            ))
            .expect("is a Deployment");
            surge_and_unavailable(&it, replicas)
        };
        assert_eq!(surge_and_unavailable(1, "{}"), (1, 0));
        assert_eq!(surge_and_unavailable(10, "{}"), (3, 2));
        assert_eq!(
            surge_and_unavailable(3, "{rollingUpdate: {maxSurge: 0, maxUnavailable: 10%}}"),
            (0, 1)
        );
    }
}
