//! `restart_pod`: deletes a pod that a controller replaces, with the pod's own grace period.

use std::collections::HashSet;

use k8s_openapi::{
    api::{core::v1::Pod, policy::v1::PodDisruptionBudget},
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::api::ApiResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    actions::{
        BoxFuture, CompletionSpec, Decision, Descriptor, Plan, PlanInput, Plannable, Preview,
        ignored,
        plan::removal,
        shared::{pod::refuse_mirror, restart},
    },
    contract::{
        error::{ActionError, Code},
        names::{Namespace, ObjectName, null_is_default},
        response::{Target, rfc3339_millis},
    },
    k8s::{
        api::{
            client::Cluster,
            preflight::{self, Preflight},
        },
        completion::Completion,
        effect::Effect,
        pdb::{self, PdbDecision},
        pods,
        rbac::PolicyRule,
        replacement::{self, PodQuery, describe, is_replacing},
        workload::{self, WorkloadKind},
    },
};

pub(crate) const DESCRIPTOR: Descriptor = Descriptor {
    name: "restart_pod",
    aliases: &[],
    description: "Restart one pod: delete it with its own grace period, so that its controller \
                  (ReplicaSet, StatefulSet, DaemonSet, Job) creates a new one. Refused for a pod \
                  without a controller, because it would not come back.",
    takes_time: true,
    when: "one pod of several misbehaves and its controller replaces it",
    when_not: "a disruption budget must hold: use evict_pod; all pods are affected: restart the workload",
    destructive: true,
    example: r#"{"pod_name":"web-1"}"#,
    rules: &[
        // `list` only to find the replacement when the request waits, and for warnings: whether it is the only pod, and
        // the pods for which an ordered StatefulSet waits.
        PolicyRule {
            api_groups: &[""],
            resources: &["pods"],
            verbs: &["get", "list", "watch", "delete"],
        },
        restart::EVENTS,
        preflight::PDBS,
    ],
    cluster_rules: &[],
    integration: None,
};

/// What `restart_pod` acts upon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Parameters {
    /// The pod to restart.
    pub pod_name: ObjectName,
    /// Its namespace.
    #[serde(default, deserialize_with = "null_is_default")]
    #[schemars(with = "Option<Namespace>")]
    pub namespace: Namespace,
    /// Ignored, with a warning: the original service's example carries it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("deprecated" = true))]
    pub deployment: Option<String>,
}

impl Plannable for Parameters {
    fn target(&self) -> Target {
        Target::named("v1", "Pod", &self.namespace, &self.pod_name)
    }

    fn namespace(&self) -> &str {
        &self.namespace
    }

    fn warnings(&self) -> Vec<String> {
        self.deployment.iter().map(|_| ignored("deployment", DESCRIPTOR.name)).collect()
    }

    fn preview(&self, _: &PlanInput) -> Preview {
        Preview {
            result: format!(
                "Simulated: Pod '{}' would be deleted for its controller to replace.",
                self.pod_name
            ),
            changes: Vec::new(),
        }
    }

    fn plan<'a>(&'a self, cluster: &'a Cluster, input: &'a PlanInput) -> BoxFuture<'a, Plan> {
        Box::pin(async move {
            let (pod, preflight) = tokio::join!(
                cluster.get::<Pod>(&self.namespace, &self.pod_name, input.deadline),
                Preflight::of_pods(cluster, &self.namespace, input.deadline),
            );
            let pod = pod?;
            let (known, only_pod, order, lost_node) = tokio::join!(
                known_pods(cluster, &pod, input),
                cluster.only_pod_warning(&pod, input.deadline),
                order_warning(cluster, &pod, input),
                cluster.lost_node_warning(&pod, input.deadline),
            );
            let mut plan = decide(self.target(), &pod, &known?, input)?;
            plan.warnings.extend(lost_node);
            if plan.is_change() {
                plan.warnings.extend(only_pod.filter(|_| is_in_use(&pod)));
                plan.warnings.extend(order);
                plan.warnings.extend(pdb_warning(&pod, &preflight.pdbs));
                plan.warnings.extend(preflight.unavailable);
            }
            Ok(plan)
        })
    }
}

/// The pods that are no replacement of this one, since they are there before its deletion. Only a wait needs them.
async fn known_pods(
    cluster: &Cluster,
    pod: &Pod,
    input: &PlanInput,
) -> Result<Vec<Pod>, ActionError> {
    let Some(owner) = pods::controller(pod).filter(|_| input.wait) else { return Ok(Vec::new()) };
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let query = PodQuery::replacement(pod, owner);
    cluster.controlled_pods(namespace, &owner.uid, &query, input.deadline).await
}

/// Whether the pod runs, and its deletion takes something away.
fn is_in_use(pod: &Pod) -> bool {
    !pods::has_finished(pod) && !pods::is_terminating(pod)
}

/// The warning that the pod's StatefulSet does not make it again before the pods of lower ordinals are ready. Where the
/// StatefulSet may not be read, its pods show them.
async fn order_warning(cluster: &Cluster, pod: &Pod, input: &PlanInput) -> Option<String> {
    let owner = pods::controller(pod)
        .filter(|owner| owner.kind == "StatefulSet" && !pods::is_terminating(pod))?;
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let ordinal = pods::ordinal(pod.metadata.name.as_deref().unwrap_or_default());
    let (kind, deadline) = (WorkloadKind::StatefulSet, preflight::end(input.deadline));
    if let Ok(set) = cluster.workload(kind, namespace, &owner.name, deadline).await {
        return cluster.order_warning(&set, ordinal, deadline).await;
    }
    let query = PodQuery::siblings(pod, owner);
    let siblings = cluster.controlled_pods(namespace, &owner.uid, &query, deadline).await.ok()?;
    let unready = workload::unready_pods(&siblings, Some(&owner.uid), ordinal);
    workload::order_warning(&owner.name, &unready)
}

pub(crate) fn decide(
    target: Target,
    pod: &Pod,
    known: &[Pod],
    input: &PlanInput,
) -> Result<Plan, ActionError> {
    let target = target.found(&pod.metadata);
    let uid = target.uid.as_deref();
    input.check_same(&target).map_err(|refusal| refusal.object_uid(uid))?;
    refuse_mirror(&target, pod).map_err(|refusal| refusal.object_uid(uid))?;
    let Some(controller) = pods::controller(pod) else {
        return Err(unmanaged(&target).object_uid(uid));
    };
    let owner = describe(controller);
    let (decision, changes) = if pods::is_terminating(pod) {
        let sentence = format!("Pod '{}' of {owner} is being deleted already.", target.name);
        (Decision::NoOp(sentence), Vec::new())
    } else {
        (deletion(pod, controller, &owner, input), vec![removal(&target)])
    };
    let completion = if is_replaced_already(pod, controller) {
        let uid = target.uid.clone().unwrap_or_default();
        let (namespace, name) = (target.namespace.clone(), target.name.clone());
        Completion::Gone { namespace, name, uid }
    } else {
        replacement(pod, controller, owner, known, &target)
    };
    let completion = CompletionSpec::Known(completion);
    let mut plan = Plan::new(target, &pod.metadata, decision, completion);
    plan.changes = changes;
    plan.warnings = warnings(pod, controller);
    Ok(plan)
}

/// Whether the controller has made a pod in place of this one, or makes none: a ReplicaSet and a Job do so once a pod
/// has finished or is being deleted; a StatefulSet and a DaemonSet once it is gone.
fn is_replaced_already(pod: &Pod, controller: &OwnerReference) -> bool {
    !is_in_use(pod) && !matches!(controller.kind.as_str(), "StatefulSet" | "DaemonSet")
}

fn deletion(pod: &Pod, controller: &OwnerReference, owner: &str, input: &PlanInput) -> Decision {
    let (resource, version) = (ApiResource::erase::<Pod>(&()), input.required_version());
    let effect = Effect::deletion(resource, &pod.metadata, version);
    let at = rfc3339_millis(input.at);
    let name = &effect.name;
    let [replaces, would_replace] = match (is_replaced_already(pod, controller), &*controller.kind)
    {
        (true, "Job") => [
            format!("{owner} replaces it only if it is not finished"),
            format!("{owner} would replace it only if it is not finished"),
        ],
        (true, _) if is_replacing(controller) => {
            [format!("{owner} has replaced it already"), format!("{owner} has replaced it already")]
        }
        _ => replacement::consequence(controller),
    };
    let did = format!("Pod '{name}' deleted at {at}; {replaces}.");
    let would = format!("Simulated: Pod '{name}' would be deleted; {would_replace}.");
    Decision::apply(effect, did, would)
}

fn replacement(
    pod: &Pod,
    controller: &OwnerReference,
    owner: String,
    known: &[Pod],
    target: &Target,
) -> Completion {
    let uids = known.iter().filter_map(|pod| pod.metadata.uid.clone());
    let known: HashSet<String> = uids.chain(target.uid.clone()).collect();
    Completion::Replaced {
        namespace: target.namespace.clone(),
        controller: owner,
        controller_uid: controller.uid.clone(),
        query: PodQuery::replacement(pod, controller),
        known,
    }
}

fn unmanaged(target: &Target) -> ActionError {
    let Target { namespace, name, .. } = target;
    ActionError::new(
        Code::TargetUnmanaged,
        format!(
            "Pod '{name}' in namespace '{namespace}' has no controller; it would not come back"
        ),
    )
    .with_hint(format!("to delete it permanently, run `kubectl -n {namespace} delete pod {name}`"))
}

fn warnings(pod: &Pod, controller: &OwnerReference) -> Vec<String> {
    if pods::is_terminating(pod) {
        return Vec::new();
    }
    if !is_replacing(controller) || !is_replaced_already(pod, controller) {
        return replacement::doubt_warning(controller).into_iter().collect();
    }
    let (phase, kind) = (pods::phase(pod), &controller.kind);
    vec![match kind.as_str() {
        "Job" => {
            format!("the pod is {phase}: its Job creates a new one only if the Job is not finished")
        }
        _ => format!(
            "the pod is {phase}, and its {kind} has replaced it already: its deletion removes what is left of it"
        ),
    }]
}

/// No disruption budget stops a deletion, as it would stop an eviction.
fn pdb_warning(pod: &Pod, pdbs: &[PodDisruptionBudget]) -> Option<String> {
    let PdbDecision::Blocked(pdb) = pdb::classify(pod, pdbs) else { return None };
    let why = pdb::reason(pdb, &[]);
    Some(format!("{why}; a deletion ignores it, evict_pod respects it"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{contract::precondition::Precondition, k8s::effect::Mutation};

    const OWNED: &str = ", ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, \
                         name: web-5d4f, uid: rs, controller: true}]";

    fn pod(metadata: &str) -> Pod {
        serde_yaml_ng::from_str(&format!(
            "metadata: {{name: web-1, namespace: shop, uid: u1, resourceVersion: '7'{metadata}}}"
        ))
        .expect("is a pod")
    }

    fn decide_on(metadata: &str, input: &PlanInput) -> Result<Plan, ActionError> {
        let parameters: Parameters =
            serde_json::from_str(r#"{"pod_name":"web-1","namespace":"shop"}"#).expect("are");
        decide(parameters.target(), &pod(metadata), &[pod(OWNED)], input)
    }

    #[test]
    fn a_deletion_is_bound_to_the_uid() {
        let plan = decide_on(OWNED, &PlanInput::example()).expect("is planned");
        let (effect, did, _) = plan.expect_change();
        assert_eq!(effect.uid, "u1");
        let (resource_version, grace_period_seconds) = (None, None);
        assert_eq!(effect.mutation, Mutation::Delete { resource_version, grace_period_seconds });
        assert_eq!(
            did,
            "Pod 'web-1' deleted at 2026-01-31T12:00:00.987Z; ReplicaSet 'web-5d4f' replaces it."
        );
    }

    #[test]
    fn a_pod_without_a_controller_is_refused() {
        let error = decide_on("", &PlanInput::example()).expect_err("is refused");
        assert_eq!(error.code, Code::TargetUnmanaged);
    }

    #[test]
    fn a_static_pod_is_not_restarted_by_its_deletion() {
        let mirror = ", annotations: {kubernetes.io/config.mirror: x}";
        let error = decide_on(mirror, &PlanInput::example()).expect_err("is refused");
        assert_eq!(error.code, Code::NoEffect);
        assert!(error.hint.is_some_and(|hint| hint.contains("its manifest")));
    }

    #[test]
    fn another_pod_of_the_same_name_is_refused() {
        let precondition = Precondition {
            uid: Some("u0".to_owned().try_into().expect("is")),
            ..Default::default()
        };
        let input = PlanInput { precondition: Some(precondition), ..PlanInput::example() };
        let error = decide_on(OWNED, &input).expect_err("is refused");
        assert_eq!(error.code, Code::PreconditionFailed);
    }

    #[test]
    fn a_terminating_pod_is_left() {
        let metadata = format!("{OWNED}, deletionTimestamp: '2026-01-31T12:00:00Z'");
        let plan = decide_on(&metadata, &PlanInput::example()).expect("is planned");
        assert!(matches!(plan.decision, Decision::NoOp(_)), "{:?}", plan.decision);
    }

    #[test]
    fn a_deletion_that_exceeds_a_budget_is_warned_of() {
        let pdb: PodDisruptionBudget = serde_yaml_ng::from_str(
            "metadata: {name: guard, namespace: shop}\nspec: {selector: {}}\n\
             status: {disruptionsAllowed: 0, currentHealthy: 2, desiredHealthy: 2, expectedPods: 2}",
        )
        .expect("is a PDB");
        let mut running = pod(OWNED);
        running.status = serde_yaml_ng::from_str(
            "{phase: Running, conditions: [{type: Ready, status: 'True'}]}",
        )
        .expect("is a status");
        let warning = pdb_warning(&running, &[pdb]).expect("is a warning");
        assert!(warning.contains("'guard'") && warning.contains("evict_pod respects"), "{warning}");
        assert_eq!(pdb_warning(&running, &[]), None);
    }

    #[test]
    fn the_deleted_pod_is_never_its_own_replacement() {
        let plan = decide_on(OWNED, &PlanInput::example()).expect("is planned");
        let CompletionSpec::Known(Completion::Replaced { known, .. }) = plan.completion else {
            panic!("{:?}", plan.completion)
        };
        assert!(known.contains("u1"));
    }

    #[test]
    fn a_pod_that_is_over_has_a_successor_already_unless_its_controller_waits_until_it_is_gone() {
        let over = ["status: {phase: Failed, reason: Evicted}", "status: {phase: Succeeded}"];
        for (kind, status, is_gone_enough) in [
            ("ReplicaSet", over[0], true),
            ("ReplicaSet", over[1], true),
            ("Job", over[0], true),
            ("Rollout", over[0], true),
            ("StatefulSet", over[0], false),
            ("DaemonSet", over[0], false),
            ("ReplicaSet", "status: {phase: Running}", false),
        ] {
            let owned = OWNED.replace("ReplicaSet", kind);
            let metadata = format!("metadata: {{name: web-1, namespace: shop, uid: u1{owned}}}");
            let pod: Pod =
                serde_yaml_ng::from_str(&format!("{metadata}\n{status}")).expect("is a pod");
            let target = Target::named("v1", "Pod", "shop", "web-1");
            let plan = decide(target, &pod, &[], &PlanInput::example()).expect("is planned");
            let CompletionSpec::Known(completion) = plan.completion else { panic!("is known") };
            let is_gone = matches!(completion, Completion::Gone { .. });
            assert_eq!(is_gone, is_gone_enough, "{kind} {status}");
            assert_eq!(!plan.warnings.is_empty(), is_gone_enough, "{kind} {status}");
        }
    }
}
