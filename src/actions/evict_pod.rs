//! `evict_pod`: asks the API server to delete a pod as far as its disruption budgets allow, as `kubectl
//! drain` does for each pod of a node.

use std::time::Duration;

use k8s_openapi::{
    api::{core::v1::Pod, policy::v1::PodDisruptionBudget},
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
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
use crate::actions::restart_pod::disappears;
use crate::contract::error::ActionError;
use crate::contract::error::Code;
use crate::k8s::api::client::Cluster;
use crate::k8s::api::completion::Completion;
use crate::k8s::pdb;
use crate::k8s::pdb::BudgetVerdict;
use crate::k8s::api::mutation::Effect;
use crate::k8s::pods;
use crate::k8s::api::preflight;
use crate::contract::names::Namespace;
use crate::contract::names::ObjectName;
use crate::contract::names::null_is_default;
use crate::contract::response::Target;

/// When a refused eviction is worth another try.
const RETRY_AFTER: Duration = Duration::from_secs(5);

pub(crate) const DESCRIPTOR: Descriptor = Descriptor {
    name: "evict_pod",
    aliases: &[],
    description: "Evict one pod: delete it as far as its PodDisruptionBudget allows, so that its \
                  controller makes a new one. Prefer this to restart_pod where a budget is meant to be \
                  kept. Refused while the budget has no room, unless it is waited for; refused for a pod \
                  without a controller unless allow_unmanaged is set, because it would not come back.",
    example: r#"{"pod_name":"web-1"}"#,
    rules: &[
        PolicyRule { api_groups: &[""], resources: &["pods"], verbs: &["get", "list"] },
        PolicyRule { api_groups: &[""], resources: &["pods/eviction"], verbs: &["create"] },
        preflight::BUDGETS,
    ],
    cluster_rules: &[],
};

/// What `evict_pod` acts upon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Parameters {
    /// The pod to evict.
    pub pod_name: ObjectName,
    /// Its namespace.
    #[serde(default, deserialize_with = "null_is_default")]
    #[schemars(with = "Option<Namespace>")]
    pub namespace: Namespace,
    /// How many seconds it may take to stop, instead of its own grace period.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_period_seconds: Option<u32>,
    /// Evict it even if it has no controller, and so will not come back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub allow_unmanaged: bool,
}

impl Plannable for Parameters {
    fn target(&self) -> Target {
        Target::named("v1", "Pod", &self.namespace, &self.pod_name)
    }

    fn namespace(&self) -> &str {
        &self.namespace
    }

    fn preview(&self, _: &PlanInput) -> Preview {
        Preview {
            result: format!(
                "Simulated: Pod '{}' would be evicted, if its disruption budget has room.",
                self.pod_name
            ),
            changes: Vec::new(),
        }
    }

    fn plan<'a>(&'a self, cluster: &'a Cluster, asked: &'a PlanInput) -> BoxFuture<'a, Plan> {
        Box::pin(async move {
            let (namespace, deadline) = (&self.namespace, asked.deadline);
            let pod: Pod = cluster.get(namespace, &self.pod_name, deadline).await?;
            let budgets = cluster.list_all(Some(&**namespace), "", deadline).await?;
            let selector = neighbours(&pod, &budgets);
            let neighbours = cluster.list(namespace, &selector, deadline).await?;
            self.decide(&pod, &budgets, &neighbours, asked)
        })
    }
}

/// The pods that matter: those that the budget waits for if there is no room, else the pod's siblings.
fn neighbours(pod: &Pod, budgets: &[PodDisruptionBudget]) -> String {
    match pdb::classify(pod, budgets) {
        BudgetVerdict::Blocked(budget) => {
            pdb::selector_of(budget).map(|it| it.to_string()).unwrap_or_default()
        }
        _ => pods::sibling_selector(pod),
    }
}

impl Parameters {
    /// From the pod, all budgets of its namespace and its neighbours as they were read to what is to be
    /// done.
    fn decide(
        &self,
        pod: &Pod,
        budgets: &[PodDisruptionBudget],
        neighbours: &[Pod],
        asked: &PlanInput,
    ) -> Result<Plan, ActionError> {
        let target = self.target().found(&pod.metadata);
        let refuse = |refusal: ActionError| refusal.object_uid(target.uid.as_deref());
        asked.check_same(&target).map_err(refuse)?;
        self.refuse_what_does_not_come_back(pod).map_err(refuse)?;
        let controller = pods::controller(pod);
        let (todo, changes) = if pods::is_terminating(pod) {
            let sentence = format!("Pod '{}' is being deleted already.", target.name);
            (Decision::NoOp(sentence), Vec::new())
        } else {
            refuse_without_room(&target, pod, budgets, neighbours, asked).map_err(refuse)?;
            (self.eviction(pod, controller, asked), vec![disappears(&target)])
        };
        let completion = CompletionSpec::Known(Completion::Gone {
            namespace: target.namespace.clone(),
            name: target.name.clone(),
            uid: target.uid.clone().unwrap_or_default(),
        });
        let warnings = match todo {
            Decision::Apply(..) => self.warnings_of(pod, controller, neighbours),
            _ => Vec::new(),
        };
        let mut plan = Plan::new(target, &pod.metadata, todo, completion);
        plan.changes = changes;
        plan.warnings = warnings;
        Ok(plan)
    }

    fn refuse_what_does_not_come_back(&self, pod: &Pod) -> Result<(), ActionError> {
        let (name, namespace) = (&self.pod_name, &self.namespace);
        if pods::is_mirror(pod) {
            return Err(ActionError::new(
                Code::NoEffect,
                format!(
                    "Pod '{name}' in namespace '{namespace}' is the mirror of a static pod, which its \
                     kubelet runs all the same"
                ),
            )
            .with_hint("move its manifest away on the node"));
        }
        if pods::controller(pod).is_none() && !self.allow_unmanaged {
            return Err(ActionError::new(
                Code::TargetUnmanaged,
                format!(
                    "Pod '{name}' in namespace '{namespace}' has no controller; it would not come back"
                ),
            )
            .with_hint("if it is meant to go for good, set parameters.allow_unmanaged"));
        }
        Ok(())
    }

    fn eviction(&self, pod: &Pod, controller: Option<&OwnerReference>, asked: &PlanInput) -> Decision {
        let precondition = asked.precondition.as_ref();
        let version = precondition.and_then(|it| it.resource_version.as_deref()).map(str::to_owned);
        let effect = Effect::eviction(&pod.metadata, version);
        let effect = effect.with_grace_period(self.grace_period_seconds);
        let name = &self.pod_name;
        let (replaces, would_replace) = match controller.map(described) {
            Some(owner) => (format!("{owner} replaces it"), format!("{owner} would replace it")),
            None => ("nothing replaces it".to_owned(), "nothing would replace it".to_owned()),
        };
        let done = format!("Pod '{name}' evicted; {replaces}.");
        let would = format!("Simulated: Pod '{name}' would be evicted; {would_replace}.");
        Decision::Apply(Box::new(effect), done, would)
    }

    fn warnings_of(
        &self,
        pod: &Pod,
        controller: Option<&OwnerReference>,
        neighbours: &[Pod],
    ) -> Vec<String> {
        let mut warnings = Vec::new();
        match controller {
            None => warnings.push("the pod has no controller: it does not come back".to_owned()),
            Some(owner) if owner.kind == "DaemonSet" => {
                let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
                let node = node.map(|name| format!(", {name}")).unwrap_or_default();
                warnings.push(format!("{} puts it back on the same node{node}", described(owner)));
            }
            Some(owner) if is_alone(owner, neighbours) => warnings.push(format!(
                "it is the only pod of {}: none is there until the new one is ready",
                described(owner)
            )),
            Some(_) => {}
        }
        if self.grace_period_seconds == Some(0) {
            warnings.push(
                "with a grace period of 0 the pod is forgotten at once, while its containers may \
                 still run"
                    .to_owned(),
            );
        }
        warnings
    }
}

/// `ReplicaSet 'web-5d4f'`
fn described(owner: &OwnerReference) -> String {
    format!("{} '{}'", owner.kind, owner.name)
}

/// Whether the controller has at most one pod that stays.
fn is_alone(owner: &OwnerReference, neighbours: &[Pod]) -> bool {
    let staying = neighbours.iter().filter(|pod| !pods::is_terminating(pod));
    let owned = staying
        .filter(|pod| pods::controller(pod).is_some_and(|controller| controller.uid == owner.uid));
    owned.count() <= 1
}

/// The API server would refuse it too, without saying which pods keep the budget from having room.
fn refuse_without_room(
    target: &Target,
    pod: &Pod,
    budgets: &[PodDisruptionBudget],
    neighbours: &[Pod],
    asked: &PlanInput,
) -> Result<(), ActionError> {
    match pdb::classify(pod, budgets) {
        BudgetVerdict::Unprotected | BudgetVerdict::Allowed(_) => Ok(()),
        BudgetVerdict::Blocked(budget) | BudgetVerdict::Stale(budget) => {
            let why = pdb::reason(budget, neighbours);
            let detail = format!("{target} may not be evicted now: {why}");
            let refusal =
                ActionError::new(Code::DisruptionBudget, detail).with_retry_after(Some(RETRY_AFTER));
            // Who waits has waited for it.
            let hint = "with \"wait\": true, room is waited for";
            Err(if asked.wait { refusal } else { refusal.with_hint(hint) })
        }
        BudgetVerdict::Ambiguous(several) => {
            let names: Vec<_> = several
                .into_iter()
                .map(|budget| format!("'{}'", pdb::name_of(budget)))
                .collect();
            Err(ActionError::new(
                Code::RejectedByCluster,
                format!(
                    "{target} is selected by the PodDisruptionBudgets {}, and the API server evicts \
                     no pod with more than one",
                    names.join(" and ")
                ),
            )
            .with_hint("narrow the selector of one of them"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::k8s::api::mutation::Mutation;

    const OWNED: &str = ", ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: web-5d4f, \
                         uid: rs, controller: true}]";

    fn pod(name: &str, metadata: &str) -> Pod {
        serde_yaml_ng::from_str(&format!(
            "metadata: {{name: {name}, namespace: shop, uid: u-{name}, resourceVersion: '7', \
             labels: {{app: web}}{metadata}}}\n\
             status: {{phase: Running, conditions: [{{type: Ready, status: 'True'}}]}}"
        ))
        .expect("is a pod")
    }

    fn budget(name: &str, allowed: i32) -> PodDisruptionBudget {
        serde_yaml_ng::from_str(&format!(
            "metadata: {{name: {name}, namespace: shop, generation: 1}}\n\
             spec: {{selector: {{matchLabels: {{app: web}}}}}}\n\
             status: {{observedGeneration: 1, currentHealthy: 2, desiredHealthy: 2, \
             disruptionsAllowed: {allowed}, expectedPods: 2}}"
        ))
        .expect("is a budget")
    }

    fn parameters(more: &str) -> Parameters {
        serde_json::from_str(&format!(r#"{{"pod_name":"web-1","namespace":"shop"{more}}}"#))
            .expect("are parameters")
    }

    fn decide_on(
        metadata: &str,
        budgets: &[PodDisruptionBudget],
        more: &str,
    ) -> Result<Plan, ActionError> {
        let neighbours = [pod("web-1", metadata), pod("web-2", metadata)];
        parameters(more).decide(&neighbours[0], budgets, &neighbours, &PlanInput::example())
    }

    #[test]
    fn plans_one_eviction_bound_to_the_uid() {
        let plan = decide_on(OWNED, &[budget("web", 1)], "").expect("is planned");
        let Decision::Apply(effect, did, would) = plan.decision else { panic!("{:?}", plan.decision) };
        assert_eq!(effect.uid, "u-web-1");
        let mutation = Mutation::Evict { resource_version: None, grace_period_seconds: None };
        assert_eq!(effect.mutation, mutation);
        assert_eq!(did, "Pod 'web-1' evicted; ReplicaSet 'web-5d4f' replaces it.");
        assert!(would.starts_with("Simulated: Pod 'web-1' would be evicted;"), "{would}");
        assert!(plan.warnings.is_empty(), "{:?}", plan.warnings);
    }

    #[test]
    fn a_grace_period_goes_with_the_eviction_and_none_at_all_is_warned_of() {
        let plan = decide_on(OWNED, &[], r#","grace_period_seconds":0"#).expect("is planned");
        let Decision::Apply(effect, ..) = plan.decision else { panic!("{:?}", plan.decision) };
        assert!(matches!(
            effect.mutation,
            Mutation::Evict { grace_period_seconds: Some(0), .. }
        ));
        assert!(plan.warnings[0].contains("may still run"), "{:?}", plan.warnings);
    }

    #[test]
    fn is_refused_for_now_while_the_budget_has_no_room() {
        let error = decide_on(OWNED, &[budget("web", 0)], "").expect_err("is refused");
        assert_eq!(error.code, Code::DisruptionBudget);
        assert!(error.detail.contains("PodDisruptionBudget 'web' allows 0"), "{}", error.detail);
        assert_eq!(error.about.as_deref(), Some("u-web-1"));
    }

    #[test]
    fn is_refused_for_good_where_two_budgets_select_the_pod() {
        let budgets = [budget("web", 1), budget("front", 1)];
        let error = decide_on(OWNED, &budgets, "").expect_err("is refused");
        assert_eq!(error.code, Code::RejectedByCluster);
        assert!(error.detail.contains("'web' and 'front'"), "{}", error.detail);
    }

    #[test]
    fn a_pod_without_a_controller_goes_only_if_that_is_allowed() {
        let error = decide_on("", &[], "").expect_err("is refused");
        assert_eq!(error.code, Code::TargetUnmanaged);
        assert!(error.hint.expect("has one").contains("allow_unmanaged"));
        let plan = decide_on("", &[], r#","allow_unmanaged":true"#).expect("is planned");
        assert!(plan.warnings[0].contains("does not come back"), "{:?}", plan.warnings);
    }

    #[test]
    fn a_static_pods_mirror_is_always_refused() {
        let mirror = ", annotations: {kubernetes.io/config.mirror: x}";
        let error = decide_on(mirror, &[], r#","allow_unmanaged":true"#).expect_err("is refused");
        assert_eq!(error.code, Code::NoEffect);
    }

    #[test]
    fn a_pod_that_is_going_already_is_left_whatever_its_budget_says() {
        let going = format!("{OWNED}, deletionTimestamp: '2026-01-31T12:00:00Z'");
        let plan = decide_on(&going, &[budget("web", 0)], "").expect("is planned");
        assert!(matches!(plan.decision, Decision::NoOp(_)), "{:?}", plan.decision);
        assert!(plan.warnings.is_empty(), "{:?}", plan.warnings);
    }

    #[test]
    fn warns_of_a_controllers_only_pod_and_of_one_that_returns_to_its_node() {
        let only = pod("web-1", OWNED);
        let neighbours = std::slice::from_ref(&only);
        let plan = parameters("").decide(&only, &[], neighbours, &PlanInput::example());
        let warnings = plan.expect("is planned").warnings;
        assert!(warnings[0].contains("only pod of ReplicaSet 'web-5d4f'"), "{warnings:?}");
        let agent = OWNED.replace("ReplicaSet", "DaemonSet");
        let warnings = decide_on(&agent, &[], "").expect("is planned").warnings;
        assert!(warnings[0].contains("same node"), "{warnings:?}");
    }
}
