//! `restart_pod`: deletes a pod that a controller replaces, with the pod's own grace period.

use std::collections::HashSet;

use k8s_openapi::{
    api::{core::v1::Pod, policy::v1::PodDisruptionBudget},
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::api::ApiResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::actions::PlanInput;
use crate::actions::CompletionSpec;
use crate::actions::Descriptor;
use crate::actions::Plan;
use crate::actions::Plannable;
use crate::actions::Preview;
use crate::k8s::rbac::PolicyRule;
use crate::actions::BoxFuture;
use crate::actions::Decision;
use crate::actions::ignored;
use crate::contract::error::ActionError;
use crate::contract::error::Code;
use crate::k8s::api::client::Cluster;
use crate::k8s::api::completion::Completion;
use crate::k8s::pdb;
use crate::k8s::pdb::BudgetVerdict;
use crate::k8s::api::mutation::Effect;
use crate::k8s::pods;
use crate::k8s::api::preflight;
use crate::k8s::api::preflight::Preflight;
use crate::contract::names::Namespace;
use crate::contract::names::ObjectName;
use crate::contract::names::null_is_default;
use crate::contract::response::Change;
use crate::contract::response::Target;
use crate::contract::response::rfc3339_millis;

pub(crate) const DESCRIPTOR: Descriptor = Descriptor {
    name: "restart_pod",
    aliases: &[],
    description: "Restart one pod: delete it with its own grace period, so that its controller \
                  (ReplicaSet, StatefulSet, DaemonSet, Job) makes a new one. Refused for a pod \
                  without a controller, because it would not come back.",
    example: r#"{"pod_name":"web-1"}"#,
    rules: &[
        // `list` only to find the replacement when it is waited for.
        PolicyRule { api_groups: &[""], resources: &["pods"], verbs: &["get", "list", "delete"] },
        preflight::BUDGETS,
    ],
    cluster_rules: &[],
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

    fn plan<'a>(&'a self, cluster: &'a Cluster, asked: &'a PlanInput) -> BoxFuture<'a, Plan> {
        Box::pin(async move {
            let pod: Pod = cluster.get(&self.namespace, &self.pod_name, asked.deadline).await?;
            let siblings = if asked.wait {
                let selector = pods::sibling_selector(&pod);
                cluster.list::<Pod>(&self.namespace, &selector, asked.deadline).await?
            } else {
                Vec::new()
            };
            let mut plan = decide(self.target(), &pod, &siblings, asked)?;
            if let Decision::Apply(..) = plan.decision {
                let namespace = &self.namespace;
                let around = Preflight::of_pods(cluster, namespace, asked.deadline).await;
                plan.warnings.extend(beyond_budget(&pod, &around.budgets));
                plan.warnings.extend(around.unavailable);
            }
            Ok(plan)
        })
    }
}

/// From the pod and its siblings as they were read to what is to be done.
fn decide(
    target: Target,
    pod: &Pod,
    siblings: &[Pod],
    asked: &PlanInput,
) -> Result<Plan, ActionError> {
    let target = target.found(&pod.metadata);
    let uid = target.uid.as_deref();
    asked.check_same(&target).map_err(|refusal| refusal.object_uid(uid))?;
    let Some(controller) = pods::controller(pod) else {
        return Err(unmanaged(&target).object_uid(uid));
    };
    let owner = format!("{} '{}'", controller.kind, controller.name);
    let (todo, changes) = if pods::is_terminating(pod) {
        let sentence =
            format!("Pod '{}' is being deleted already; {owner} replaces it.", target.name);
        (Decision::NoOp(sentence), Vec::new())
    } else {
        (deletion(pod, &owner, asked), vec![disappears(&target)])
    };
    let completion = CompletionSpec::Known(replacement(pod, controller, owner, siblings, &target));
    let mut plan = Plan::new(target, &pod.metadata, todo, completion);
    plan.changes = changes;
    plan.warnings = warnings(pod, controller);
    Ok(plan)
}

fn deletion(pod: &Pod, owner: &str, asked: &PlanInput) -> Decision {
    let precondition = asked.precondition.as_ref();
    let version = precondition.and_then(|it| it.resource_version.as_deref()).map(str::to_owned);
    let effect = Effect::deletion(ApiResource::erase::<Pod>(&()), &pod.metadata, version);
    let at = rfc3339_millis(asked.at);
    let name = &effect.name;
    let done = format!("Pod '{name}' deleted at {at}; {owner} replaces it.");
    let would = format!("Simulated: Pod '{name}' would be deleted; {owner} would replace it.");
    Decision::Apply(Box::new(effect), done, would)
}

/// What differs once the target has gone.
pub(crate) fn disappears(target: &Target) -> Change {
    let uid = target.uid.clone().unwrap_or_default();
    Change { path: "/metadata/uid".to_owned(), from: uid.into(), to: serde_json::Value::Null }
}

fn replacement(
    pod: &Pod,
    controller: &OwnerReference,
    owner: String,
    siblings: &[Pod],
    target: &Target,
) -> Completion {
    let mut known: HashSet<String> = pods::uids_owned_by(siblings, &controller.uid);
    known.extend(target.uid.clone());
    Completion::Replaced {
        namespace: target.namespace.clone(),
        controller: owner,
        controller_uid: controller.uid.clone(),
        selector: pods::sibling_selector(pod),
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
    .with_hint(format!(
        "if it is meant to go for good, `kubectl -n {namespace} delete pod {name}` deletes it"
    ))
}

fn warnings(pod: &Pod, controller: &OwnerReference) -> Vec<String> {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    match phase {
        Some(phase @ ("Succeeded" | "Failed")) if controller.kind == "Job" => {
            vec![format!("the pod is {phase}: its Job makes a new one only if it is not finished")]
        }
        _ => Vec::new(),
    }
}

/// A deletion is not stopped by a disruption budget, as an eviction would be.
fn beyond_budget(pod: &Pod, budgets: &[PodDisruptionBudget]) -> Option<String> {
    let BudgetVerdict::Blocked(budget) = pdb::classify(pod, budgets) else { return None };
    let why = pdb::reason(budget, &[]);
    Some(format!("{why}; a deletion does not ask it, evict_pod does"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::k8s::api::mutation::Mutation;
    use crate::contract::precondition::Precondition;

    const OWNED: &str = ", ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, \
                         name: web-5d4f, uid: rs, controller: true}]";

    fn pod(metadata: &str) -> Pod {
        serde_yaml_ng::from_str(&format!(
            "metadata: {{name: web-1, namespace: shop, uid: u1, resourceVersion: '7'{metadata}}}"
        ))
        .expect("is a pod")
    }

    fn decide_on(metadata: &str, asked: &PlanInput) -> Result<Plan, ActionError> {
        let parameters: Parameters =
            serde_json::from_str(r#"{"pod_name":"web-1","namespace":"shop"}"#).expect("are");
        decide(parameters.target(), &pod(metadata), &[pod(OWNED)], asked)
    }

    #[test]
    fn plans_one_deletion_bound_to_the_uid() {
        let plan = decide_on(OWNED, &PlanInput::example()).expect("is planned");
        let Decision::Apply(effect, did, _) = plan.decision else { panic!("{:?}", plan.decision) };
        assert_eq!(effect.uid, "u1");
        assert_eq!(effect.mutation, Mutation::Delete { resource_version: None });
        assert_eq!(
            did,
            "Pod 'web-1' deleted at 2026-01-31T12:00:00.987Z; ReplicaSet 'web-5d4f' replaces it."
        );
    }

    #[test]
    fn refuses_a_pod_without_a_controller() {
        let error = decide_on("", &PlanInput::example()).expect_err("is refused");
        assert_eq!(error.code, Code::TargetUnmanaged);
    }

    #[test]
    fn refuses_another_pod_of_the_same_name() {
        let precondition = Precondition {
            uid: Some("u0".to_owned().try_into().expect("is")),
            ..Default::default()
        };
        let asked = PlanInput { precondition: Some(precondition), ..PlanInput::example() };
        let error = decide_on(OWNED, &asked).expect_err("is refused");
        assert_eq!(error.code, Code::PreconditionFailed);
    }

    #[test]
    fn leaves_a_pod_that_is_going_already() {
        let metadata = format!("{OWNED}, deletionTimestamp: '2026-01-31T12:00:00Z'");
        let plan = decide_on(&metadata, &PlanInput::example()).expect("is planned");
        assert!(matches!(plan.decision, Decision::NoOp(_)), "{:?}", plan.decision);
    }

    #[test]
    fn tells_that_a_deletion_goes_beyond_a_budget() {
        let budget: PodDisruptionBudget = serde_yaml_ng::from_str(
            "metadata: {name: guard, namespace: shop}\nspec: {selector: {}}\n\
             status: {disruptionsAllowed: 0, currentHealthy: 2, desiredHealthy: 2, expectedPods: 2}",
        )
        .expect("is a budget");
        let mut running = pod(OWNED);
        running.status = serde_yaml_ng::from_str(
            "{phase: Running, conditions: [{type: Ready, status: 'True'}]}",
        )
        .expect("is a status");
        let told = beyond_budget(&running, &[budget]).expect("is told");
        assert!(told.contains("'guard'") && told.contains("evict_pod does"), "{told}");
        assert_eq!(beyond_budget(&running, &[]), None);
    }

    #[test]
    fn the_deleted_pod_itself_is_never_its_replacement() {
        let plan = decide_on(OWNED, &PlanInput::example()).expect("is planned");
        let CompletionSpec::Known(Completion::Replaced { known, .. }) = plan.completion else {
            panic!("{:?}", plan.completion)
        };
        assert!(known.contains("u1"));
    }
}
