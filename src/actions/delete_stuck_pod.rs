//! `delete_stuck_pod`: removes the object of a pod whose deletion nobody carries out, as
//! `kubectl delete pod --force --grace-period=0` does.
//!
//! A forced deletion stops no container: it only removes the object, and with it what keeps a second pod of the same
//! identity from starting. So it is made only where the pod's node is gone, out of service or not ready for long, and
//! only for a pod that was to be gone already.

use chrono::{DateTime, TimeDelta, Utc};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::ApiResource;
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
        response::{Target, rfc3339_millis},
    },
    k8s::{
        api::client::Cluster, completion::Completion, effect::Effect, nodes, pods,
        rbac::PolicyRule, replacement::describe,
    },
};

/// How many seconds ago the pod must have had to be gone: a kubelet that works removes it within a few.
const DEFAULT_OVERDUE_SECONDS: u32 = 60;
const MIN_OVERDUE_SECONDS: u32 = 10;
const MAX_OVERDUE_SECONDS: u32 = 86_400;

pub(crate) const DESCRIPTOR: Descriptor = Descriptor {
    name: "delete_stuck_pod",
    aliases: &[],
    description: "Remove the object of a pod that is being deleted and that no kubelet removes. It stops no container. \
                  Refused unless the pod should have been gone for a while and its node is gone, not ready for 300 s, or \
                  tainted out of service; refused for a pod with finalizers, and for one of a StatefulSet unless \
                  accept_running_twice is set.",
    takes_time: true,
    when: "a deleted pod stays because its node is lost, and blocks what comes after it",
    when_not: "the node is ready, or may come back soon; the pod is not being deleted: use restart_pod",
    destructive: true,
    example: r#"{"pod_name":"web-1"}"#,
    rules: &[PolicyRule {
        api_groups: &[""],
        resources: &["pods"],
        verbs: &["get", "watch", "delete"],
    }],
    cluster_rules: &[PolicyRule { api_groups: &[""], resources: &["nodes"], verbs: &["get"] }],
    integration: None,
};

/// What `delete_stuck_pod` acts upon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Parameters {
    /// The pod that is stuck.
    pub pod_name: ObjectName,
    /// Its namespace.
    #[serde(default, deserialize_with = "null_is_default")]
    #[schemars(with = "Option<Namespace>")]
    pub namespace: Namespace,
    /// How many seconds ago its grace period must have ended; 10 to 86400.
    #[serde(default = "overdue_by_default", skip_serializing_if = "is_default")]
    #[schemars(range(min = 10, max = 86400), extend("default" = 60))]
    pub overdue_seconds: u32,
    /// Accept that two pods of one identity run if the node still runs. Required for a pod of a StatefulSet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub accept_running_twice: bool,
}

fn overdue_by_default() -> u32 {
    DEFAULT_OVERDUE_SECONDS
}

fn is_default(seconds: &u32) -> bool {
    *seconds == DEFAULT_OVERDUE_SECONDS
}

impl Plannable for Parameters {
    fn target(&self) -> Target {
        Target::named("v1", "Pod", &self.namespace, &self.pod_name)
    }

    fn namespace(&self) -> &str {
        &self.namespace
    }

    fn check(&self) -> Result<(), ActionError> {
        if (MIN_OVERDUE_SECONDS..=MAX_OVERDUE_SECONDS).contains(&self.overdue_seconds) {
            return Ok(());
        }
        let what = format!("must be from {MIN_OVERDUE_SECONDS} to {MAX_OVERDUE_SECONDS}");
        Err(ActionError::invalid_field("parameters.overdue_seconds", what))
    }

    fn preview(&self, _: &PlanInput) -> Preview {
        let result = format!(
            "Simulated: Pod '{}' would be removed by force, if it is stuck.",
            self.pod_name
        );
        Preview { result, changes: Vec::new() }
    }

    fn plan<'a>(&'a self, cluster: &'a Cluster, input: &'a PlanInput) -> BoxFuture<'a, Plan> {
        Box::pin(async move {
            let pod: Pod = cluster.get(&self.namespace, &self.pod_name, input.deadline).await?;
            let node = match pods::node_name(&pod) {
                Some(name) => match cluster.get_global::<Node>(name, input.deadline).await {
                    Err(error) if error.code == Code::TargetNotFound => None,
                    node => Some(node?),
                },
                None => None,
            };
            self.decide(&pod, node.as_ref(), cluster.now(), input)
        })
    }
}

impl Parameters {
    /// From the pod, its node if there is one, and the API server's time to the plan.
    fn decide(
        &self,
        pod: &Pod,
        node: Option<&Node>,
        now: DateTime<Utc>,
        input: &PlanInput,
    ) -> Result<Plan, ActionError> {
        let target = self.target().found(&pod.metadata);
        let with_uid = |refusal: ActionError| refusal.object_uid(target.uid.as_deref());
        input.check_same(&target).map_err(with_uid)?;
        refuse_mirror(&target, pod).map_err(with_uid)?;
        self.refuse_overdue_not(&target, pod, now).map_err(with_uid)?;
        refuse_finalizers(&target, pod).map_err(with_uid)?;
        let why = unattended(&target, pod, node, now).map_err(with_uid)?;
        self.refuse_identity(&target, pod).map_err(with_uid)?;
        // No finalizer can be added to an object that is being deleted, so the uid is enough.
        let precondition = input.precondition.as_ref();
        let version = precondition.and_then(|it| it.resource_version.as_deref()).map(str::to_owned);
        let effect =
            Effect::forced_deletion(ApiResource::erase::<Pod>(&()), &pod.metadata, version);
        let name = &target.name;
        let did = format!("Pod '{name}' removed by force at {}: {why}.", rfc3339_millis(input.at));
        let would = format!("Simulated: Pod '{name}' would be removed by force: {why}.");
        let decision = Decision::apply(effect, did, would);
        let completion = CompletionSpec::Known(Completion::Gone {
            namespace: target.namespace.clone(),
            name: name.clone(),
            uid: target.uid.clone().unwrap_or_default(),
        });
        let change = removal(&target);
        let mut plan = Plan::new(target, &pod.metadata, decision, completion);
        plan.changes = vec![change];
        plan.warnings = self.warnings(pod);
        Ok(plan)
    }

    /// Refuses a pod that is not being deleted, or whose time to stop is not over for long enough.
    fn refuse_overdue_not(
        &self,
        target: &Target,
        pod: &Pod,
        now: DateTime<Utc>,
    ) -> Result<(), ActionError> {
        let refused = |detail: String| ActionError::new(Code::PreconditionFailed, detail);
        let Some(until) = &pod.metadata.deletion_timestamp else {
            return Err(refused(format!("{target} is not being deleted"))
                .with_hint("restart_pod or evict_pod delete it within its grace period"));
        };
        let until = DateTime::from_timestamp(until.0.as_second(), 0).unwrap_or(now);
        let end = until + TimeDelta::seconds(i64::from(self.overdue_seconds));
        if now >= end {
            return Ok(());
        }
        let (until, end) = (rfc3339_millis(until), rfc3339_millis(end));
        let detail = format!(
            "{target} has until {until} to stop, and is not stuck before {} s have passed since",
            self.overdue_seconds
        );
        Err(refused(detail).with_hint(format!("send a new request after {end}")))
    }

    /// A StatefulSet makes the next pod of this name, with its volumes, as soon as the object is gone.
    fn refuse_identity(&self, target: &Target, pod: &Pod) -> Result<(), ActionError> {
        let owner = pods::controller(pod).filter(|owner| owner.kind == "StatefulSet");
        let Some(owner) = owner.filter(|_| !self.accept_running_twice) else { return Ok(()) };
        let detail = format!(
            "{} makes another {target} as soon as this one is gone: if its node still runs, two pods of one identity run, \
             and may write to one volume",
            describe(owner)
        );
        Err(ActionError::new(Code::TargetManaged, detail)
            .with_field("parameters.accept_running_twice")
            .with_hint(
                "make certain that the machine is off; then set accept_running_twice: true, or taint the node with \
                 node.kubernetes.io/out-of-service=nodeshutdown:NoExecute, which also frees its volumes",
            ))
    }

    fn warnings(&self, pod: &Pod) -> Vec<String> {
        let place = match pods::node_name(pod) {
            Some(node) => format!("on Node '{node}'"),
            None => return Vec::new(),
        };
        let running = format!(
            "no container is stopped: if the machine runs, the pod's containers keep running {place} until its \
             kubelet is back"
        );
        let twice = pods::controller(pod).filter(|owner| owner.kind == "StatefulSet").map(|owner| {
            format!(
                "{} makes a pod of the same name and volumes now: while both run, two pods have one identity and may \
                 write to the same volume",
                describe(owner)
            )
        });
        [running].into_iter().chain(twice).collect()
    }
}

/// A forced deletion leaves a pod with finalizers as it is, until they are removed.
fn refuse_finalizers(target: &Target, pod: &Pod) -> Result<(), ActionError> {
    let finalizers = pod.metadata.finalizers.as_deref().unwrap_or_default();
    if finalizers.is_empty() {
        return Ok(());
    }
    let detail = format!(
        "{target} is kept by the finalizers {}, which a forced deletion does not remove",
        finalizers.join(", ")
    );
    Err(ActionError::new(Code::NoEffect, detail)
        .with_hint("find out why the controller that set them does not remove them"))
}

/// Why no kubelet removes the pod.
fn unattended(
    target: &Target,
    pod: &Pod,
    node: Option<&Node>,
    now: DateTime<Utc>,
) -> Result<String, ActionError> {
    let why_not = match (pods::node_name(pod), node) {
        (None, _) => return Ok("it was never assigned to a node".to_owned()),
        (Some(name), None) => return Ok(format!("its Node '{name}' does not exist")),
        (Some(_), Some(node)) => match nodes::unattended(node, now) {
            Ok(why) => return Ok(why),
            Err(why_not) => why_not,
        },
    };
    let detail = format!("{target} may still be removed by its kubelet: {why_not}");
    Err(ActionError::new(Code::PreconditionFailed, detail)
        .with_hint("if the machine is certainly off, delete its Node, or taint it with node.kubernetes.io/out-of-service"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{contract::precondition::Precondition, k8s::effect::Mutation};

    const DELETED: &str =
        "deletionTimestamp: '2026-01-31T12:00:00Z', deletionGracePeriodSeconds: 30";
    const OF_A_SET: &str = ", ownerReferences: [{apiVersion: apps/v1, kind: StatefulSet, name: db, uid: s, \
                            controller: true}]";
    const LOST: &str = "status: {conditions: [{type: Ready, status: Unknown, lastTransitionTime: \
                        '2026-01-31T11:55:00Z'}]}";

    fn parameters(more: &str) -> Parameters {
        let text = format!(r#"{{"pod_name":"web-1","namespace":"shop"{more}}}"#);
        serde_json::from_str(&text).expect("are parameters")
    }

    fn pod(metadata: &str) -> Pod {
        serde_yaml_ng::from_str(&format!(
            "metadata: {{name: web-1, namespace: shop, uid: u1, resourceVersion: '7', {metadata}}}\n\
             spec: {{containers: [], nodeName: n1}}"
        ))
        .expect("is a pod")
    }

    fn node(yaml: &str) -> Node {
        serde_yaml_ng::from_str(&format!("metadata: {{name: n1}}\n{yaml}")).expect("is a Node")
    }

    fn decide_at(
        more: &str,
        pod: &Pod,
        node: Option<&Node>,
        now: &str,
    ) -> Result<Plan, ActionError> {
        let now = now.parse().expect("is a time");
        parameters(more).decide(pod, node, now, &PlanInput::example())
    }

    fn decide(more: &str, metadata: &str, node: Option<&Node>) -> Result<Plan, ActionError> {
        decide_at(more, &pod(metadata), node, "2026-01-31T12:01:00Z")
    }

    #[test]
    fn the_deletion_is_forced_and_bound_to_the_uid() {
        let plan = decide("", DELETED, Some(&node(LOST))).expect("is planned");
        let (effect, did, _) = plan.expect_change();
        assert_eq!(effect.uid, "u1");
        let (resource_version, grace_period_seconds) = (None, Some(0));
        assert_eq!(effect.mutation, Mutation::Delete { resource_version, grace_period_seconds });
        assert!(did.starts_with("Pod 'web-1' removed by force at"), "{did}");
        assert!(did.contains("not ready since 2026-01-31T11:55:00Z"), "{did}");
        assert!(plan.warnings[0].contains("no container is stopped"), "{:?}", plan.warnings);
        let CompletionSpec::Known(Completion::Gone { uid, .. }) = plan.completion else {
            panic!("{:?}", plan.completion)
        };
        assert_eq!(uid, "u1");
    }

    #[test]
    fn a_pod_is_stuck_only_once_its_time_is_over_by_the_margin() {
        let lost = node(LOST);
        for (more, now, is_stuck) in [
            ("", "2026-01-31T12:01:00Z", true),
            ("", "2026-01-31T12:00:59Z", false),
            (r#","overdue_seconds":10"#, "2026-01-31T12:00:10Z", true),
            (r#","overdue_seconds":120"#, "2026-01-31T12:01:00Z", false),
        ] {
            let decided = decide_at(more, &pod(DELETED), Some(&lost), now);
            assert_eq!(decided.is_ok(), is_stuck, "{more} {now}");
        }
        let error = decide("", "labels: {}", Some(&lost)).expect_err("is refused");
        assert_eq!(error.code, Code::PreconditionFailed);
        assert!(error.detail.contains("is not being deleted"), "{}", error.detail);
        assert!(parameters(r#","overdue_seconds":9"#).check().is_err());
    }

    #[test]
    fn the_node_must_be_gone_lost_for_long_or_out_of_service() {
        let ready = |status: &str, since: &str| {
            node(&format!(
                "status: {{conditions: [{{type: Ready, status: '{status}', lastTransitionTime: '{since}'}}]}}"
            ))
        };
        let off =
            "{key: node.kubernetes.io/out-of-service, value: nodeshutdown, effect: NoExecute}";
        let off = node(&format!("spec: {{taints: [{off}]}}"));
        for (node, part) in [
            (None, Ok("Node 'n1' does not exist")),
            (Some(off), Ok("out-of-service")),
            (Some(ready("Unknown", "2026-01-31T11:56:00Z")), Ok("not ready since")),
            (Some(ready("False", "2026-01-31T11:56:00Z")), Ok("not ready since")),
            (Some(ready("Unknown", "2026-01-31T11:56:01Z")), Err("less than 300 s")),
            (Some(ready("True", "2026-01-31T11:00:00Z")), Err("is ready")),
            (Some(node("status: {}")), Err("has never reported")),
        ] {
            match (decide("", DELETED, node.as_ref()), part) {
                (Ok(plan), Ok(part)) => {
                    let did = plan.expect_change().1;
                    assert!(did.contains(part), "{did}");
                }
                (Err(error), Err(part)) => {
                    assert_eq!(error.code, Code::PreconditionFailed);
                    assert!(error.detail.contains(part), "{}", error.detail);
                }
                (decided, expected) => panic!("{decided:?} {expected:?}"),
            }
        }
    }

    #[test]
    fn a_pod_of_a_stateful_set_needs_that_two_of_one_identity_are_accepted() {
        let metadata = format!("{DELETED}{OF_A_SET}");
        let error = decide("", &metadata, None).expect_err("is refused");
        assert_eq!(error.code, Code::TargetManaged);
        assert_eq!(error.field.as_deref(), Some("parameters.accept_running_twice"));
        assert!(error.detail.contains("two pods of one identity"), "{}", error.detail);
        let accepted = decide(r#","accept_running_twice":true"#, &metadata, None);
        let warnings = accepted.expect("is planned").warnings.join("; ");
        assert!(warnings.contains("StatefulSet 'db' makes a pod of the same name"), "{warnings}");
    }

    #[test]
    fn a_pod_with_finalizers_is_refused_with_their_names() {
        let metadata = format!("{DELETED}, finalizers: [example.org/keep]");
        let error = decide("", &metadata, None).expect_err("is refused");
        assert_eq!(error.code, Code::NoEffect);
        assert!(error.detail.contains("example.org/keep"), "{}", error.detail);
    }

    #[test]
    fn a_static_pod_and_another_pod_of_the_same_name_are_refused() {
        let mirror = format!("{DELETED}, annotations: {{kubernetes.io/config.mirror: x}}");
        assert_eq!(decide("", &mirror, None).expect_err("is refused").code, Code::NoEffect);
        let precondition = Precondition {
            uid: Some("u0".to_owned().try_into().expect("is")),
            ..Default::default()
        };
        let input = PlanInput { precondition: Some(precondition), ..PlanInput::example() };
        let now = "2026-01-31T13:00:00Z".parse().expect("is a time");
        let error = parameters("").decide(&pod(DELETED), None, now, &input);
        assert_eq!(error.expect_err("is refused").code, Code::PreconditionFailed);
    }
}
