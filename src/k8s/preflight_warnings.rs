//! Warnings before a workload's pods are replaced, from the workload and its autoscalers, disruption budgets and volume
//! claims. Pure; nothing here refuses an action.

use chrono::{DateTime, Utc};
use k8s_openapi::api::{autoscaling::v2::HorizontalPodAutoscaler, policy::v1::PodDisruptionBudget};
use kube::core::SelectorExt;

use crate::{
    contract::response::Target,
    k8s::{
        REQUEST_ID_ANNOTATION, api::preflight::Preflight, autoscaling::autoscaler_of, pdb, pods,
        restart::RESTARTED_AT_ANNOTATION, rollout, workload::Workload,
    },
};

/// A restart within this many seconds is warned of.
const RECENT_SECONDS: i64 = 600;

/// A `minReadySeconds` from this value on is warned of.
const MIN_WARNED_READY_SECONDS: i32 = 60;

/// Before all pods of a workload are replaced by its rollout.
pub(crate) fn on_rollout(
    workload: &Workload,
    preflight: &Preflight,
    now: DateTime<Utc>,
) -> Vec<String> {
    // If no pod is replaced automatically, there is nothing to warn of.
    if rollout::manual_update_reason(workload).is_some() {
        return preflight.unavailable.clone();
    }
    let mut warnings = Vec::new();
    let kind = workload.kind().name();
    warnings.extend(rollout::partition(workload).map(|partition| {
        format!("the partition is {partition}: only pods with that ordinal and above are replaced")
    }));
    match workload.replicas() {
        Some(0) => warnings.push(format!("the {kind} is scaled to 0: there is no pod to restart")),
        Some(replicas) => warnings.extend(interruption_warning(workload, replicas)),
        None => {}
    }
    warnings.extend(slow_rollout_warning(workload));
    // The rollout that a pause interrupted is the one that is resumed.
    if !workload.is_paused() {
        warnings.extend(rollout::unfinished_warning(workload));
    }
    warnings.extend(recent_restart_warning(workload, now));
    warnings.extend(shared_volume_warnings(workload, preflight));
    warnings.extend(capacity_warnings(workload, preflight));
    warnings.extend(preflight.unavailable.iter().cloned());
    warnings
}

/// Before any pod of a workload is replaced: an autoscaler at its maximum, exhausted disruption budgets.
pub(crate) fn capacity_warnings(workload: &Workload, preflight: &Preflight) -> Vec<String> {
    let metadata = workload.metadata();
    let name = metadata.name.as_deref().unwrap_or_default();
    let target = workload.kind().target(metadata.namespace.as_deref().unwrap_or_default(), name);
    let autoscaler = maximum_warning(&preflight.autoscalers, &target);
    let of_pdbs = preflight.pdbs.iter().filter(|it| selects(it, workload)).filter_map(pdb_warning);
    autoscaler.into_iter().chain(of_pdbs).collect()
}

/// The warning that the autoscaler of this object, if it is among these, is at its maximum.
pub(crate) fn maximum_warning(
    autoscalers: &[HorizontalPodAutoscaler],
    target: &Target,
) -> Option<String> {
    autoscaler_of(autoscalers, target).and_then(autoscaler_warning)
}

/// A time without any pod.
fn interruption_warning(workload: &Workload, replicas: i32) -> Option<String> {
    match workload {
        Workload::Deployment(_) if rollout::recreates(workload) => Some(format!(
            "the strategy is Recreate: all {replicas} pods stop before new ones start"
        )),
        Workload::Deployment(deployment) => {
            let (surge, unavailable) = rollout::surge_and_unavailable(deployment, replicas);
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

fn slow_rollout_warning(workload: &Workload) -> Option<String> {
    let seconds = match workload {
        Workload::Deployment(it) => it.spec.as_ref()?.min_ready_seconds,
        Workload::StatefulSet(it) => it.spec.as_ref()?.min_ready_seconds,
        Workload::DaemonSet(it) => it.spec.as_ref()?.min_ready_seconds,
        Workload::ReplicaSet(it) => it.spec.as_ref()?.min_ready_seconds,
    }?;
    (seconds >= MIN_WARNED_READY_SECONDS).then(|| {
        format!("each new pod counts as available only after {seconds} s (minReadySeconds)")
    })
}

fn recent_restart_warning(workload: &Workload, now: DateTime<Utc>) -> Option<String> {
    let at = DateTime::parse_from_rfc3339(workload.template_annotation(RESTARTED_AT_ANNOTATION)?);
    let ago = (now - at.ok()?.to_utc()).num_seconds();
    if !(0..RECENT_SECONDS).contains(&ago) {
        return None;
    }
    let by = match workload.template_annotation(REQUEST_ID_ANNOTATION) {
        Some(id) if last_restart_manager(workload).is_none_or(is_ours) => format!("request {id}"),
        _ => last_restart_manager(workload).unwrap_or("an unknown client").to_owned(),
    };
    Some(format!("it was restarted {ago} s ago by {by}"))
}

/// The field manager that wrote the time of the last restart.
fn last_restart_manager(workload: &Workload) -> Option<&str> {
    let entries = workload.metadata().managed_fields.as_deref().unwrap_or_default();
    let key = RESTARTED_AT_ANNOTATION.replace('/', "~1");
    let path = format!("/f:spec/f:template/f:metadata/f:annotations/f:{key}");
    let entry = entries.iter().find(|entry| {
        entry.fields_v1.as_ref().is_some_and(|fields| fields.0.pointer(&path).is_some())
    });
    entry?.manager.as_deref()
}

fn is_ours(manager: &str) -> bool {
    manager == super::FIELD_MANAGER
}

/// Volumes that only one node or pod can mount, while the new pod starts before the old one stops.
fn shared_volume_warnings(workload: &Workload, preflight: &Preflight) -> Vec<String> {
    let Workload::Deployment(deployment) = workload else { return Vec::new() };
    let replicas = workload.replicas().unwrap_or(1);
    if rollout::recreates(workload)
        || replicas == 0
        || rollout::surge_and_unavailable(deployment, replicas).0 == 0
    {
        return Vec::new();
    }
    let template = workload.template().and_then(|template| template.spec.as_ref());
    let mounted: Vec<&str> = pods::pvcs(template).collect();
    let warnings = preflight.pvcs.iter().filter_map(|claim| {
        let modes = claim.spec.as_ref()?.access_modes.as_deref()?;
        let name = claim.metadata.name.as_deref().filter(|name| mounted.contains(name))?;
        match modes {
            [mode] if mode == "ReadWriteOncePod" => Some(format!(
                "PersistentVolumeClaim '{name}' is ReadWriteOncePod and the new pod starts before the \
                 old one stops: it will wait forever"
            )),
            [mode] if mode == "ReadWriteOnce" => Some(format!(
                "PersistentVolumeClaim '{name}' is ReadWriteOnce and the new pod starts before the old one \
                 stops: on another node it will wait forever"
            )),
            _ => None,
        }
    });
    let unavailable = preflight.pvcs_unavailable.clone().filter(|_| !mounted.is_empty());
    warnings.chain(unavailable).collect()
}

fn autoscaler_warning(autoscaler: &HorizontalPodAutoscaler) -> Option<String> {
    let name = autoscaler.metadata.name.as_deref()?;
    let max = autoscaler.spec.as_ref()?.max_replicas;
    let now = autoscaler.status.as_ref()?.current_replicas?;
    (now >= max).then(|| {
        format!(
            "HorizontalPodAutoscaler '{name}' is at its maximum of {max}: it cannot add a pod during the rollout"
        )
    })
}

/// Whether this disruption budget selects this workload's pods, by their template's labels.
fn selects(pdb: &PodDisruptionBudget, workload: &Workload) -> bool {
    let labels = workload.template().and_then(|it| it.metadata.as_ref()?.labels.as_ref());
    let selector = pdb::selector_of(pdb);
    selector.zip(labels).is_some_and(|(selector, labels)| selector.matches(labels))
}

fn pdb_warning(pdb: &PodDisruptionBudget) -> Option<String> {
    let name = pdb.metadata.name.as_deref()?;
    let status = pdb.status.as_ref()?;
    (status.disruptions_allowed == 0 && status.expected_pods > 0).then(|| {
        format!(
            "PodDisruptionBudget '{name}' allows no disruption ({} of {} pods are healthy, {} must be), \
             and a rollout ignores it",
            status.current_healthy, status.expected_pods, status.desired_healthy
        )
    })
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};

    use super::*;

    fn now() -> DateTime<Utc> {
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

    /// The same, whose pods mount this volume claim.
    fn mounting(claim: &str, spec: &str) -> Workload {
        let Workload::Deployment(mut mounting) = deployment(spec, "{}") else { panic!("is none") };
        let pod = serde_yaml_ng::from_str(&format!(
            "{{containers: [], volumes: [{{name: v, persistentVolumeClaim: {{claimName: {claim}}}}}]}}"
        ));
        mounting.spec.as_mut().expect("has one").template.spec = Some(pod.expect("is a spec"));
        Workload::Deployment(mounting)
    }

    fn warnings_on(workload: &Workload, preflight: &Preflight) -> String {
        on_rollout(workload, preflight, now()).join("; ")
    }

    fn warnings(spec: &str) -> String {
        warnings_on(&deployment(spec, "{}"), &Preflight::default())
    }

    #[test]
    fn a_healthy_workload_has_no_warning() {
        assert_eq!(warnings(", replicas: 2"), "");
    }

    #[test]
    fn an_interruption_is_warned_of() {
        assert!(warnings(", replicas: 0").contains("scaled to 0"));
        assert!(warnings(", replicas: 2, strategy: {type: Recreate}").contains("all 2 pods stop"));
        let stopped_first =
            ", replicas: 1, strategy: {rollingUpdate: {maxSurge: 0, maxUnavailable: 1}}";
        assert!(warnings(stopped_first).contains("there is an interruption"));
        let set: StatefulSet = serde_yaml_ng::from_str(
            "spec: {selector: {}, template: {}}\nstatus: {replicas: 1, readyReplicas: 1, availableReplicas: 1, \
             updatedReplicas: 1}",
        )
        .expect("is a StatefulSet");
        let text = warnings_on(&set.into(), &Preflight::default());
        assert!(text.contains("one replica"), "{text}");
    }

    #[test]
    fn a_partition_is_warned_of() {
        let set = |strategy: &str| -> Workload {
            let set: StatefulSet = serde_yaml_ng::from_str(&format!(
                "spec: {{replicas: 3, selector: {{}}, template: {{}}, updateStrategy: {strategy}}}\n\
                 status: {{replicas: 3, readyReplicas: 3, availableReplicas: 3, updatedReplicas: 3}}"
            ))
            .expect("is a StatefulSet");
            set.into()
        };
        let partitioned = set("{type: RollingUpdate, rollingUpdate: {partition: 2}}");
        let text = warnings_on(&partitioned, &Preflight::default());
        assert!(text.contains("partition is 2"), "{text}");
        let unavailable =
            Preflight { unavailable: vec!["not checked: x".into()], ..Default::default() };
        assert_eq!(warnings_on(&set("{type: OnDelete}"), &unavailable), "not checked: x");
    }

    #[test]
    fn a_missing_pod_and_a_slow_rollout_are_warned_of() {
        assert!(warnings(", replicas: 3").contains("not all pods are available: 2 of 3"));
        assert!(warnings(", replicas: 2, minReadySeconds: 90").contains("after 90 s"));
        assert_eq!(warnings(", replicas: 2, minReadySeconds: 5"), "");
    }

    #[test]
    fn a_recent_restart_is_warned_of_with_its_client() {
        let restarted = |at: &str, id: &str| {
            let annotations = format!("{{kubectl.kubernetes.io/restartedAt: '{at}'{id}}}");
            warnings_on(&deployment(", replicas: 2", &annotations), &Preflight::default())
        };
        let ours = ", action-executor.dev/request-id: r1";
        assert_eq!(
            restarted("2026-01-31T11:59:18Z", ours),
            "it was restarted 42 s ago by request r1"
        );
        assert_eq!(
            restarted("2026-01-31T11:59:18Z", ""),
            "it was restarted 42 s ago by an unknown client"
        );
        assert_eq!(restarted("2026-01-31T11:00:00Z", ours), "");
    }

    #[test]
    fn a_restart_by_kubectl_after_ours_is_attributed_to_kubectl() {
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
        let text = warnings_on(&workload, &Preflight::default());
        assert_eq!(text, "it was restarted 10 s ago by kubectl-rollout");
    }

    fn preflight(yaml: &str) -> Preflight {
        #[derive(Default, serde::Deserialize)]
        #[serde(default)]
        struct Restart {
            autoscalers: Vec<HorizontalPodAutoscaler>,
            pdbs: Vec<PodDisruptionBudget>,
            pvcs: Vec<k8s_openapi::api::core::v1::PersistentVolumeClaim>,
        }
        let Restart { autoscalers, pdbs, pvcs } =
            serde_yaml_ng::from_str(yaml).expect("are objects");
        Preflight { autoscalers, pdbs, pvcs, ..Preflight::default() }
    }

    #[test]
    fn a_volume_that_the_new_pod_cannot_mount_is_warned_of() {
        let claim = |mode: &str| {
            preflight(&format!(
                "pvcs: [{{metadata: {{name: data}}, spec: {{accessModes: [{mode}]}}}}]"
            ))
        };
        let one = mounting("data", ", replicas: 1");
        assert!(warnings_on(&one, &claim("ReadWriteOnce")).contains("'data' is ReadWriteOnce"));
        assert!(warnings_on(&one, &claim("ReadWriteOncePod")).contains("is ReadWriteOncePod"));
        assert!(!warnings_on(&one, &claim("ReadWriteMany")).contains("'data'"));
        let recreated = mounting("data", ", replicas: 1, strategy: {type: Recreate}");
        assert!(!warnings_on(&recreated, &claim("ReadWriteOnce")).contains("'data'"));
        let other = mounting("cache", ", replicas: 1");
        assert!(!warnings_on(&other, &claim("ReadWriteOnce")).contains("'data'"));
    }

    #[test]
    fn unreadable_claims_are_warned_of_if_the_pod_mounts_one() {
        let unavailable = Preflight {
            pvcs_unavailable: Some("not checked: may not list".to_owned()),
            ..Preflight::default()
        };
        let mounting = mounting("data", ", replicas: 2");
        assert!(warnings_on(&mounting, &unavailable).contains("not checked"));
        assert_eq!(warnings_on(&deployment(", replicas: 2", "{}"), &unavailable), "");
    }

    #[test]
    fn an_autoscaler_at_its_maximum_and_an_exhausted_budget_are_warned_of() {
        let found = preflight(
            "autoscalers: [{metadata: {name: web}, spec: {maxReplicas: 2, scaleTargetRef: \
             {kind: Deployment, name: web, apiVersion: apps/v1}}, status: {currentReplicas: 2, \
             desiredReplicas: 2}}]\n\
             pdbs: [{metadata: {name: guard}, spec: {selector: {matchLabels: {app: web}}}, \
             status: {disruptionsAllowed: 0, currentHealthy: 2, desiredHealthy: 2, expectedPods: 2}}]",
        );
        let text = warnings_on(&deployment(", replicas: 2", "{}"), &found);
        assert!(text.contains("'web' is at its maximum of 2"), "{text}");
        assert!(text.contains("'guard' allows no disruption (2 of 2 pods are healthy"), "{text}");
    }

    #[test]
    fn an_autoscaler_and_a_budget_of_another_workload_are_ignored() {
        let found = preflight(
            "autoscalers: [{metadata: {name: api}, spec: {maxReplicas: 2, scaleTargetRef: \
             {kind: Deployment, name: api}}, status: {currentReplicas: 2, desiredReplicas: 2}}]\n\
             pdbs: [{metadata: {name: guard}, spec: {selector: {matchLabels: {app: api}}}, \
             status: {disruptionsAllowed: 0, currentHealthy: 2, desiredHealthy: 2, expectedPods: 2}}]",
        );
        assert_eq!(warnings_on(&deployment(", replicas: 2", "{}"), &found), "");
    }
}
