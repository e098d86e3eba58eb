//! `evict_pod`: evicts a pod within its disruption budget, as `kubectl drain` does for each pod of a node.

use std::time::Duration;

use k8s_openapi::{
    api::{core::v1::Pod, policy::v1::PodDisruptionBudget},
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    actions::{
        BoxFuture, CompletionSpec, Decision, Descriptor, Plan, PlanInput, Plannable, Preview,
        plan::removal, shared::pod::refuse_mirror,
    },
    contract::{
        error::{ActionError, Code},
        names::{Namespace, ObjectName, null_is_default},
        response::Target,
    },
    k8s::{
        api::{client::Cluster, preflight},
        completion::Completion,
        drain_filter,
        effect::Effect,
        pdb::{self, PdbDecision},
        pods,
        rbac::PolicyRule,
        replacement::{self, describe},
    },
};

/// When an exhausted disruption budget may allow a disruption again.
const RETRY_AFTER: Duration = Duration::from_secs(5);

pub(crate) const DESCRIPTOR: Descriptor = Descriptor {
    name: "evict_pod",
    aliases: &[],
    description: "Evict one pod: delete it if its PodDisruptionBudget allows, so that its controller \
                  creates a new one. Prefer this to restart_pod where its disruption budget must hold. \
                  Refused while that budget allows no disruption, unless wait is set; refused for a pod \
                  without a controller unless allow_unmanaged is set, because it would not come back.",
    takes_time: true,
    when: "one pod has to go and its disruption budget must hold",
    when_not: "all pods of a workload have to be replaced: restart it",
    destructive: true,
    example: r#"{"pod_name":"web-1"}"#,
    rules: &[
        PolicyRule { api_groups: &[""], resources: &["pods"], verbs: &["get", "list", "watch"] },
        PolicyRule { api_groups: &[""], resources: &["pods/eviction"], verbs: &["create"] },
        preflight::PDBS,
    ],
    cluster_rules: &[],
    integration: None,
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
                "Simulated: Pod '{}' would be evicted if its disruption budget allows it.",
                self.pod_name
            ),
            changes: Vec::new(),
        }
    }

    fn plan<'a>(&'a self, cluster: &'a Cluster, input: &'a PlanInput) -> BoxFuture<'a, Plan> {
        Box::pin(async move {
            let (namespace, deadline) = (&self.namespace, input.deadline);
            let (pod, pdbs) = tokio::try_join!(
                cluster.get::<Pod>(namespace, &self.pod_name, deadline),
                cluster.list(namespace, "", deadline),
            )?;
            let (protected, never) = match pdb::classify(&pod, &pdbs) {
                PdbDecision::Blocked(pdb) => {
                    let selector = pdb::selector_of(pdb).map(|it| it.to_string());
                    let selector = selector.unwrap_or_default();
                    let protected = cluster.list(namespace, &selector, deadline).await?;
                    let never = cluster.never_allows(pdb, &protected, deadline).await;
                    (protected, never)
                }
                _ => (Vec::new(), None),
            };
            let mut plan = self.decide(&pod, &pdbs, &protected, never, input)?;
            let (only_pod, lost_node) = tokio::join!(
                cluster.only_pod_warning(&pod, deadline),
                cluster.lost_node_warning(&pod, deadline),
            );
            plan.warnings.extend(only_pod.filter(|_| plan.is_change()));
            plan.warnings.extend(lost_node);
            Ok(plan)
        })
    }
}

impl Parameters {
    /// From the pod, all disruption budgets of its namespace and the pods of an exhausted one as they were read to what
    /// is to be done. `never`: why the disruption budget of the pod never allows an eviction.
    fn decide(
        &self,
        pod: &Pod,
        pdbs: &[PodDisruptionBudget],
        protected: &[Pod],
        never: Option<String>,
        input: &PlanInput,
    ) -> Result<Plan, ActionError> {
        let target = self.target().found(&pod.metadata);
        let with_uid = |refusal: ActionError| refusal.object_uid(target.uid.as_deref());
        input.check_same(&target).map_err(with_uid)?;
        refuse_mirror(&target, pod).and_then(|()| self.refuse_unmanaged(pod)).map_err(with_uid)?;
        let controller = pods::controller(pod);
        let (decision, changes) = if pods::is_terminating(pod) {
            let sentence = format!("Pod '{}' is being deleted already.", target.name);
            (Decision::NoOp(sentence), Vec::new())
        } else {
            refuse_exhausted_pdb(&target, pod, pdbs, protected, never, input).map_err(with_uid)?;
            (self.eviction(pod, controller, input), vec![removal(&target)])
        };
        let completion = CompletionSpec::Known(Completion::Gone {
            namespace: target.namespace.clone(),
            name: target.name.clone(),
            uid: target.uid.clone().unwrap_or_default(),
        });
        let warnings = match decision {
            Decision::Apply { .. } => self.warnings_of(pod, controller, input),
            _ => Vec::new(),
        };
        let mut plan = Plan::new(target, &pod.metadata, decision, completion);
        plan.changes = changes;
        plan.warnings = warnings;
        Ok(plan)
    }

    fn refuse_unmanaged(&self, pod: &Pod) -> Result<(), ActionError> {
        let (name, namespace) = (&self.pod_name, &self.namespace);
        if pods::controller(pod).is_none() && !self.allow_unmanaged {
            return Err(ActionError::new(
                Code::TargetUnmanaged,
                format!(
                    "Pod '{name}' in namespace '{namespace}' has no controller; it would not come back"
                ),
            )
            .with_hint("to delete it permanently, set parameters.allow_unmanaged"));
        }
        Ok(())
    }

    fn eviction(
        &self,
        pod: &Pod,
        controller: Option<&OwnerReference>,
        input: &PlanInput,
    ) -> Decision {
        let effect = Effect::eviction(&pod.metadata, input.required_version());
        let effect = effect.with_grace_period(self.grace_period_seconds);
        let name = &self.pod_name;
        let [replaces, would_replace] = match controller {
            Some(owner) => replacement::consequence(owner),
            None => ["nothing replaces it".to_owned(), "nothing would replace it".to_owned()],
        };
        let did = format!("Pod '{name}' evicted; {replaces}.");
        let would = format!("Simulated: Pod '{name}' would be evicted; {would_replace}.");
        Decision::apply(effect, did, would)
    }

    fn warnings_of(
        &self,
        pod: &Pod,
        controller: Option<&OwnerReference>,
        input: &PlanInput,
    ) -> Vec<String> {
        let mut warnings = Vec::new();
        match controller {
            None => warnings.push("the pod has no controller: it does not come back".to_owned()),
            Some(owner) if owner.kind == "DaemonSet" => {
                let node = pods::node_name(pod).map(|name| format!(", {name}")).unwrap_or_default();
                warnings
                    .push(format!("{} creates it again on the same node{node}", describe(owner)));
            }
            Some(owner) => warnings.extend(replacement::doubt_warning(owner)),
        }
        if self.grace_period_seconds == Some(0) {
            warnings.push(
                "with grace period 0 the pod object is removed at once; its containers may still be \
                 running"
                    .to_owned(),
            );
        }
        let objection = drain_filter::disruption_objection(&pod.metadata);
        warnings.extend(objection.map(|annotation| {
            format!("the pod is annotated with {annotation}, and is evicted anyway")
        }));
        let wait = input.timeout;
        let slow = drain_filter::grace_period_beyond(pod, self.grace_period_seconds, wait);
        warnings.extend(slow.filter(|_| input.wait).map(|seconds| {
            let wait = wait.as_secs();
            format!("the pod may take {seconds} s to stop, longer than the wait of {wait} s")
        }));
        warnings
    }
}

/// The API server would refuse it too, but without the names of the blocking pods.
fn refuse_exhausted_pdb(
    target: &Target,
    pod: &Pod,
    pdbs: &[PodDisruptionBudget],
    protected: &[Pod],
    never: Option<String>,
    input: &PlanInput,
) -> Result<(), ActionError> {
    match (pdb::classify(pod, pdbs), never) {
        (PdbDecision::Blocked(pdb), Some(why)) => {
            let detail = format!("{target} cannot be evicted: {why}");
            Err(ActionError::new(Code::RejectedByCluster, detail).with_hint(pdb::way_out(pdb)))
        }
        (PdbDecision::Unprotected | PdbDecision::Allowed(_), _) => Ok(()),
        (PdbDecision::Blocked(pdb) | PdbDecision::Stale(pdb), _) => {
            let why = pdb::reason(pdb, protected);
            let detail = format!("{target} cannot be evicted now: {why}");
            let refusal = ActionError::new(Code::DisruptionBudget, detail)
                .with_retry_after(Some(RETRY_AFTER));
            // With wait, the request has waited already.
            let hint = "set \"wait\": true to wait until the disruption budget allows it";
            Err(if input.wait { refusal } else { refusal.with_hint(hint) })
        }
        (PdbDecision::Ambiguous(pdbs), _) => {
            let names: Vec<_> =
                pdbs.into_iter().map(|pdb| format!("'{}'", pdb::name_of(pdb))).collect();
            Err(ActionError::new(
                Code::RejectedByCluster,
                format!(
                    "{target} is selected by the PodDisruptionBudgets {}, and the API server evicts \
                     no pod with more than one",
                    names.join(" and ")
                ),
            )
            .with_hint("change the selector of one of them so that it does not select the pod"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::k8s::effect::Mutation;

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

    fn pdb(name: &str, allowed: i32) -> PodDisruptionBudget {
        serde_yaml_ng::from_str(&format!(
            "metadata: {{name: {name}, namespace: shop, generation: 1}}\n\
             spec: {{selector: {{matchLabels: {{app: web}}}}}}\n\
             status: {{observedGeneration: 1, currentHealthy: 2, desiredHealthy: 2, \
             disruptionsAllowed: {allowed}, expectedPods: 2}}"
        ))
        .expect("is a PDB")
    }

    fn parameters(more: &str) -> Parameters {
        serde_json::from_str(&format!(r#"{{"pod_name":"web-1","namespace":"shop"{more}}}"#))
            .expect("are parameters")
    }

    fn decide_on(
        metadata: &str,
        pdbs: &[PodDisruptionBudget],
        more: &str,
    ) -> Result<Plan, ActionError> {
        let pods = [pod("web-1", metadata), pod("web-2", metadata)];
        let (pod, input) = (&pods[0], PlanInput::example());
        parameters(more).decide(pod, pdbs, &pods, None, &input)
    }

    #[test]
    fn an_eviction_is_bound_to_the_uid() {
        let plan = decide_on(OWNED, &[pdb("web", 1)], "").expect("is planned");
        let (effect, did, would) = plan.expect_change();
        assert_eq!(effect.uid, "u-web-1");
        let mutation = Mutation::Evict { resource_version: None, grace_period_seconds: None };
        assert_eq!(effect.mutation, mutation);
        assert_eq!(did, "Pod 'web-1' evicted; ReplicaSet 'web-5d4f' replaces it.");
        assert!(would.starts_with("Simulated: Pod 'web-1' would be evicted;"), "{would}");
        assert!(plan.warnings.is_empty(), "{:?}", plan.warnings);
    }

    #[test]
    fn a_grace_period_is_sent_and_a_grace_period_of_0_is_warned_of() {
        let plan = decide_on(OWNED, &[], r#","grace_period_seconds":0"#).expect("is planned");
        let effect = plan.expect_change().0;
        assert!(matches!(effect.mutation, Mutation::Evict { grace_period_seconds: Some(0), .. }));
        assert!(plan.warnings[0].contains("may still be running"), "{:?}", plan.warnings);
    }

    #[test]
    fn an_exhausted_budget_is_refused_as_retryable() {
        let error = decide_on(OWNED, &[pdb("web", 0)], "").expect_err("is refused");
        assert_eq!(error.code, Code::DisruptionBudget);
        assert!(error.detail.contains("PodDisruptionBudget 'web' allows 0"), "{}", error.detail);
        assert_eq!(error.refused_uid(), Some("u-web-1"));
    }

    #[test]
    fn a_pdb_that_never_allows_a_disruption_is_refused_permanently() {
        let (pod, never) = (pod("web-1", OWNED), Some("'web' never allows it".to_owned()));
        for wait in [true, false] {
            let input = PlanInput { wait, ..PlanInput::example() };
            let pdbs = [pdb("web", 0)];
            let error = parameters("").decide(&pod, &pdbs, &[], never.clone(), &input);
            let error = error.expect_err("is refused");
            assert_eq!(error.code, Code::RejectedByCluster);
            assert!(error.detail.contains("never allows"), "{}", error.detail);
            assert!(error.hint.expect("has one").contains("restart_pod"));
        }
    }

    #[test]
    fn a_pod_of_two_budgets_is_refused_for_good() {
        let pdbs = [pdb("web", 1), pdb("front", 1)];
        let error = decide_on(OWNED, &pdbs, "").expect_err("is refused");
        assert_eq!(error.code, Code::RejectedByCluster);
        assert!(error.detail.contains("'web' and 'front'"), "{}", error.detail);
    }

    #[test]
    fn an_unmanaged_pod_is_evicted_only_with_allow_unmanaged() {
        let error = decide_on("", &[], "").expect_err("is refused");
        assert_eq!(error.code, Code::TargetUnmanaged);
        assert!(error.hint.expect("has one").contains("allow_unmanaged"));
        let plan = decide_on("", &[], r#","allow_unmanaged":true"#).expect("is planned");
        assert!(plan.warnings[0].contains("does not come back"), "{:?}", plan.warnings);
    }

    #[test]
    fn the_mirror_of_a_static_pod_is_always_refused() {
        let mirror = ", annotations: {kubernetes.io/config.mirror: x}";
        let error = decide_on(mirror, &[], r#","allow_unmanaged":true"#).expect_err("is refused");
        assert_eq!(error.code, Code::NoEffect);
    }

    #[test]
    fn a_terminating_pod_is_left_whatever_its_budget() {
        let terminating = format!("{OWNED}, deletionTimestamp: '2026-01-31T12:00:00Z'");
        let plan = decide_on(&terminating, &[pdb("web", 0)], "").expect("is planned");
        assert!(matches!(plan.decision, Decision::NoOp(_)), "{:?}", plan.decision);
        assert!(plan.warnings.is_empty(), "{:?}", plan.warnings);
    }

    #[test]
    fn a_pod_that_returns_to_its_node_or_may_not_come_back_is_warned_of() {
        for (kind, api_version, expected) in [
            ("DaemonSet", "apps/v1", "same node"),
            ("Workflow", "argoproj.io/v1alpha1", "not known to replace its pods"),
        ] {
            let owned = OWNED.replace("ReplicaSet", kind).replace("apps/v1", api_version);
            let plan = decide_on(&owned, &[], "").expect("is planned");
            assert!(plan.warnings[0].contains(expected), "{:?}", plan.warnings);
            let did = plan.expect_change().1;
            assert_eq!(did.contains("replaces it"), kind == "DaemonSet", "{did}");
        }
    }
}
