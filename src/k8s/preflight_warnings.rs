//! What a careful person would want to know before a workload's pods are replaced.
//!
//! From the workload and what stands around it to sentences; nothing here is a reason to refuse.

use chrono::{DateTime, Utc};
use k8s_openapi::{
    api::{
        apps::v1::Deployment, autoscaling::v2::HorizontalPodAutoscaler,
        policy::v1::PodDisruptionBudget,
    },
    apimachinery::pkg::util::intstr::IntOrString,
};
use kube::core::SelectorExt;

use crate::k8s::{
    REQUEST_ID_ANNOTATION, api::preflight::Preflight, autoscaling::autoscaler_of, pdb,
    restart::RESTARTED_AT_ANNOTATION, rollout, rollout::RolloutStatus, workload::Workload,
};

/// How long ago a restart is still worth mentioning, in seconds.
const RECENT_SECONDS: i64 = 600;

/// From how many seconds on a wait for each new pod is worth mentioning.
const LONG_GRACE_SECONDS: i32 = 60;

/// What to know before all pods of a workload are replaced by its own rollout, at this time.
#[must_use]
pub fn on_rollout(workload: &Workload, around: &Preflight, now: DateTime<Utc>) -> Vec<String> {
    // Where no pod is replaced by itself there is nothing to look out for.
    if rollout::manual_update_reason(workload).is_some() {
        return around.unavailable.clone();
    }
    let mut advice = Vec::new();
    let kind = workload.kind().name();
    advice.extend(rollout::partition(workload).map(|partition| {
        format!("the partition is {partition}: only pods with that ordinal and above are replaced")
    }));
    match workload.replicas() {
        Some(0) => advice.push(format!("the {kind} is scaled to 0: there is no pod to restart")),
        Some(replicas) => advice.extend(interruption_warning(workload, replicas)),
        None => {}
    }
    advice.extend(slow_rollout_warning(workload));
    // What was held up by a pause is the rollout that is meant.
    if !workload.is_paused()
        && let RolloutStatus::Waiting(what) = rollout::status(workload, 0)
    {
        advice.push(format!("another rollout is under way: {what}"));
    }
    advice.extend(restarted_recently(workload, now));
    advice.extend(shared_volumes(workload, around));
    advice.extend(capacity_warnings(workload, around));
    advice.extend(around.unavailable.iter().cloned());
    advice
}

/// What to know of a workload's pods before any of them goes: who scales them, who guards them.
#[must_use]
pub fn capacity_warnings(workload: &Workload, around: &Preflight) -> Vec<String> {
    let metadata = workload.metadata();
    let name = metadata.name.as_deref().unwrap_or_default();
    let target = workload.kind().target(metadata.namespace.as_deref().unwrap_or_default(), name);
    let scaled = autoscaler_of(&around.autoscalers, &target).and_then(at_its_end);
    let guarded = around.budgets.iter().filter(|it| guards(it, workload)).filter_map(without_room);
    scaled.into_iter().chain(guarded).collect()
}

/// Whether there is a moment without a pod, or with none of them.
fn interruption_warning(workload: &Workload, replicas: i32) -> Option<String> {
    match workload {
        Workload::Deployment(_) if rollout::recreates(workload) => Some(format!(
            "the strategy is Recreate: all {replicas} pods stop before new ones start"
        )),
        Workload::Deployment(deployment) => {
            let (surge, unavailable) = pace(deployment, replicas);
            (replicas == 1 && surge == 0 && unavailable > 0).then(|| {
                "the only replica stops before the new one starts: there is an interruption"
                    .to_owned()
            })
        }
        Workload::StatefulSet(_) if replicas == 1 => Some(
            "there is one replica, and its pod stops before the new one starts: there is an \
             interruption"
                .to_owned(),
        ),
        _ => None,
    }
}

/// How many pods a Deployment starts beside the old ones, and how many old ones it may stop first
/// (`ResolveFenceposts`: the surge is rounded up, the other down, and both are never 0).
fn pace(deployment: &Deployment, replicas: i32) -> (i32, i32) {
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
        pace => pace,
    }
}

/// Whether the rollout takes its time by design.
fn slow_rollout_warning(workload: &Workload) -> Option<String> {
    let seconds = match workload {
        Workload::Deployment(it) => it.spec.as_ref()?.min_ready_seconds,
        Workload::StatefulSet(it) => it.spec.as_ref()?.min_ready_seconds,
        Workload::DaemonSet(it) => it.spec.as_ref()?.min_ready_seconds,
        Workload::ReplicaSet(it) => it.spec.as_ref()?.min_ready_seconds,
    }?;
    (seconds >= LONG_GRACE_SECONDS).then(|| {
        format!("each new pod counts only after {seconds} s of being ready (minReadySeconds)")
    })
}

/// Whether the pods were restarted a moment ago, and by whom.
fn restarted_recently(workload: &Workload, now: DateTime<Utc>) -> Option<String> {
    let at = DateTime::parse_from_rfc3339(workload.template_annotation(RESTARTED_AT_ANNOTATION)?);
    let ago = (now - at.ok()?.to_utc()).num_seconds();
    if !(0..RECENT_SECONDS).contains(&ago) {
        return None;
    }
    let by = match workload.template_annotation(REQUEST_ID_ANNOTATION) {
        Some(id) if last_restarted_by(workload).is_none_or(is_ours) => format!("request {id}"),
        _ => last_restarted_by(workload).unwrap_or("somebody").to_owned(),
    };
    Some(format!("it was restarted {ago} s ago by {by}"))
}

/// The field manager that wrote the time of the last restart.
fn last_restarted_by(workload: &Workload) -> Option<&str> {
    let entries = workload.metadata().managed_fields.as_deref().unwrap_or_default();
    let key = RESTARTED_AT_ANNOTATION.replace('/', "~1");
    let path = format!("/f:spec/f:template/f:metadata/f:annotations/f:{key}");
    let wrote = entries.iter().find(|entry| {
        entry.fields_v1.as_ref().is_some_and(|fields| fields.0.pointer(&path).is_some())
    });
    wrote?.manager.as_deref()
}

fn is_ours(manager: &str) -> bool {
    manager == super::FIELD_MANAGER
}

/// Volumes that only one node can mount, while the new pod starts before the old one stops.
fn shared_volumes(workload: &Workload, around: &Preflight) -> Vec<String> {
    let Workload::Deployment(deployment) = workload else { return Vec::new() };
    let replicas = workload.replicas().unwrap_or(1);
    if rollout::recreates(workload) || replicas == 0 || pace(deployment, replicas).0 == 0 {
        return Vec::new();
    }
    let claims = around.claims.iter().filter_map(|claim| {
        let modes = claim.spec.as_ref()?.access_modes.as_deref()?;
        let name = claim.metadata.name.as_deref()?;
        match modes {
            [mode] if mode == "ReadWriteOncePod" => Some(format!(
                "PersistentVolumeClaim '{name}' is for one pod alone and the new pod starts before the \
                 old one stops: it will wait for ever"
            )),
            [mode] if mode == "ReadWriteOnce" => Some(format!(
                "PersistentVolumeClaim '{name}' is ReadWriteOnce and the new pod starts before the old one \
                 stops: on another node it will wait for ever"
            )),
            _ => None,
        }
    });
    claims.collect()
}

fn at_its_end(autoscaler: &HorizontalPodAutoscaler) -> Option<String> {
    let name = autoscaler.metadata.name.as_deref()?;
    let most = autoscaler.spec.as_ref()?.max_replicas;
    let now = autoscaler.status.as_ref()?.current_replicas?;
    (now >= most).then(|| {
        format!(
            "HorizontalPodAutoscaler '{name}' is at its maximum of {most}: there is no pod to spare"
        )
    })
}

/// Whether this budget guards this workload's pods, by their template's labels.
fn guards(budget: &PodDisruptionBudget, workload: &Workload) -> bool {
    let labels = workload.template().and_then(|it| it.metadata.as_ref()?.labels.as_ref());
    let selector = pdb::selector_of(budget);
    selector.zip(labels).is_some_and(|(selector, labels)| selector.matches(labels))
}

fn without_room(budget: &PodDisruptionBudget) -> Option<String> {
    let name = budget.metadata.name.as_deref()?;
    let status = budget.status.as_ref()?;
    (status.disruptions_allowed == 0 && status.expected_pods > 0).then(|| {
        format!(
            "PodDisruptionBudget '{name}' has no room ({} of {} pods are healthy, {} have to be), and a \
             rollout does not ask it",
            status.current_healthy, status.expected_pods, status.desired_healthy
        )
    })
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::StatefulSet;

    use super::*;

    fn noon() -> DateTime<Utc> {
        "2026-01-31T12:00:00Z".parse().expect("is a time")
    }

    /// A rolled-out Deployment `web` with this spec and these annotations of the template.
    fn deployment(spec: &str, annotations: &str) -> Workload {
        let deployment: Deployment = serde_yaml_ng::from_str(&format!(
            "metadata: {{name: web, generation: 1}}\n\
             spec: {{selector: {{}}, template: {{metadata: {{labels: {{app: web}}, annotations: \
             {annotations}}}}}{spec}}}\n\
             status: {{observedGeneration: 1, replicas: 2, updatedReplicas: 2, availableReplicas: 2}}"
        ))
        .expect("is a Deployment");
        deployment.into()
    }

    fn advice_on(workload: &Workload, around: &Preflight) -> String {
        on_rollout(workload, around, noon()).join("; ")
    }

    fn advice(spec: &str) -> String {
        advice_on(&deployment(spec, "{}"), &Preflight::default())
    }

    #[test]
    fn there_is_nothing_to_say_of_a_healthy_workload() {
        assert_eq!(advice(", replicas: 2"), "");
    }

    #[test]
    fn tells_an_interruption() {
        assert!(advice(", replicas: 0").contains("scaled to 0"));
        assert!(advice(", replicas: 2, strategy: {type: Recreate}").contains("all 2 pods stop"));
        let stopped_first =
            ", replicas: 1, strategy: {rollingUpdate: {maxSurge: 0, maxUnavailable: 1}}";
        assert!(advice(stopped_first).contains("there is an interruption"));
        let set: StatefulSet = serde_yaml_ng::from_str(
            "spec: {selector: {}, template: {}}\nstatus: {replicas: 1, readyReplicas: 1, updatedReplicas: 1}",
        )
        .expect("is a StatefulSet");
        let told = advice_on(&set.into(), &Preflight::default());
        assert!(told.contains("one replica"), "{told}");
    }

    #[test]
    fn tells_that_a_partition_holds_some_pods_back() {
        let set = |strategy: &str| -> Workload {
            let set: StatefulSet = serde_yaml_ng::from_str(&format!(
                "spec: {{replicas: 3, selector: {{}}, template: {{}}, updateStrategy: {strategy}}}\n\
                 status: {{replicas: 3, readyReplicas: 3, updatedReplicas: 3}}"
            ))
            .expect("is a StatefulSet");
            set.into()
        };
        let partitioned = set("{type: RollingUpdate, rollingUpdate: {partition: 2}}");
        let told = advice_on(&partitioned, &Preflight::default());
        assert!(told.contains("partition is 2"), "{told}");
        let unseen =
            Preflight { unavailable: vec!["not looked at: x".into()], ..Default::default() };
        assert_eq!(advice_on(&set("{type: OnDelete}"), &unseen), "not looked at: x");
    }

    #[test]
    fn the_pace_is_rounded_as_the_controller_does() {
        let pace = |replicas, strategy: &str| {
            let Workload::Deployment(it) = deployment(&format!(", strategy: {strategy}"), "{}")
            else {
                panic!("is another")
            };
            pace(&it, replicas)
        };
        assert_eq!(pace(1, "{}"), (1, 0));
        assert_eq!(pace(10, "{}"), (3, 2));
        assert_eq!(pace(3, "{rollingUpdate: {maxSurge: 0, maxUnavailable: 10%}}"), (0, 1));
    }

    #[test]
    fn tells_a_rollout_that_is_under_way_and_one_that_will_be_slow() {
        assert!(advice(", replicas: 3").contains("another rollout is under way"));
        assert!(advice(", replicas: 2, minReadySeconds: 90").contains("after 90 s"));
        assert_eq!(advice(", replicas: 2, minReadySeconds: 5"), "");
    }

    #[test]
    fn tells_a_recent_restart_and_who_made_it() {
        let restarted = |at: &str, id: &str| {
            let annotations = format!("{{kubectl.kubernetes.io/restartedAt: '{at}'{id}}}");
            advice_on(&deployment(", replicas: 2", &annotations), &Preflight::default())
        };
        let ours = ", action-executor.dev/request-id: r1";
        assert_eq!(
            restarted("2026-01-31T11:59:18Z", ours),
            "it was restarted 42 s ago by request r1"
        );
        assert_eq!(restarted("2026-01-31T11:59:18Z", ""), "it was restarted 42 s ago by somebody");
        assert_eq!(restarted("2026-01-31T11:00:00Z", ours), "");
    }

    #[test]
    fn a_restart_by_kubectl_after_ours_is_kubectls() {
        let mut workload = deployment(
            ", replicas: 2",
            "{kubectl.kubernetes.io/restartedAt: '2026-01-31T11:59:50Z', \
             action-executor.dev/request-id: r1}",
        );
        let Workload::Deployment(it) = &mut workload else { panic!("is another") };
        it.metadata.managed_fields = serde_yaml_ng::from_str(
            "[{manager: kubectl-rollout, fieldsV1: {'f:spec': {'f:template': {'f:metadata': \
             {'f:annotations': {'f:kubectl.kubernetes.io/restartedAt': {}}}}}}}]",
        )
        .expect("are entries");
        let told = advice_on(&workload, &Preflight::default());
        assert_eq!(told, "it was restarted 10 s ago by kubectl-rollout");
    }

    fn around(yaml: &str) -> Preflight {
        #[derive(Default, serde::Deserialize)]
        #[serde(default)]
        struct Restart {
            autoscalers: Vec<HorizontalPodAutoscaler>,
            budgets: Vec<PodDisruptionBudget>,
            claims: Vec<k8s_openapi::api::core::v1::PersistentVolumeClaim>,
        }
        let Restart { autoscalers, budgets, claims } =
            serde_yaml_ng::from_str(yaml).expect("are objects");
        Preflight { autoscalers, budgets, claims, unavailable: Vec::new() }
    }

    #[test]
    fn tells_a_volume_that_the_new_pod_cannot_have() {
        let claim = |mode: &str| {
            around(&format!(
                "claims: [{{metadata: {{name: data}}, spec: {{accessModes: [{mode}]}}}}]"
            ))
        };
        let one = deployment(", replicas: 1", "{}");
        assert!(advice_on(&one, &claim("ReadWriteOnce")).contains("'data' is ReadWriteOnce"));
        assert!(advice_on(&one, &claim("ReadWriteOncePod")).contains("for one pod alone"));
        assert!(!advice_on(&one, &claim("ReadWriteMany")).contains("'data'"));
        let recreated = deployment(", replicas: 1, strategy: {type: Recreate}", "{}");
        assert!(!advice_on(&recreated, &claim("ReadWriteOnce")).contains("'data'"));
    }

    #[test]
    fn tells_an_autoscaler_that_has_none_to_spare_and_a_budget_without_room() {
        let found = around(
            "autoscalers: [{metadata: {name: web}, spec: {maxReplicas: 2, scaleTargetRef: \
             {kind: Deployment, name: web, apiVersion: apps/v1}}, status: {currentReplicas: 2, \
             desiredReplicas: 2}}]\n\
             budgets: [{metadata: {name: guard}, spec: {selector: {matchLabels: {app: web}}}, \
             status: {disruptionsAllowed: 0, currentHealthy: 2, desiredHealthy: 2, expectedPods: 2}}]",
        );
        let told = advice_on(&deployment(", replicas: 2", "{}"), &found);
        assert!(told.contains("'web' is at its maximum of 2"), "{told}");
        assert!(told.contains("'guard' has no room (2 of 2 pods are healthy"), "{told}");
    }

    #[test]
    fn another_ones_autoscaler_and_budget_are_no_concern() {
        let found = around(
            "autoscalers: [{metadata: {name: api}, spec: {maxReplicas: 2, scaleTargetRef: \
             {kind: Deployment, name: api}}, status: {currentReplicas: 2, desiredReplicas: 2}}]\n\
             budgets: [{metadata: {name: guard}, spec: {selector: {matchLabels: {app: api}}}, \
             status: {disruptionsAllowed: 0, currentHealthy: 2, desiredHealthy: 2, expectedPods: 2}}]",
        );
        assert_eq!(advice_on(&deployment(", replicas: 2", "{}"), &found), "");
    }
}
