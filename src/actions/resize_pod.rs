//! `resize_pod`: sets the requests and limits of containers of a running pod in place (KEP-1287), as
//! `kubectl patch --subresource resize` does.
//!
//! The resize subresource accepts no annotation, so the change is recognised by a field manager of the request.

use k8s_openapi::api::core::v1::Pod;
use kube::api::{ApiResource, DynamicObject};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{
    actions::{
        BoxFuture, CompletionSpec, Decision, Descriptor, Plan, PlanInput, Plannable, Preview,
        shared::{
            amounts::{self, AmountChange, ContainerAmounts},
            pod::refuse_mirror,
        },
    },
    contract::{
        error::{ActionError, Code},
        names::{Namespace, ObjectName, null_is_default},
        response::{Target, rfc3339_millis},
    },
    k8s::{
        api::client::Cluster, completion::Completion, conditional_patch::after, effect::Effect,
        field_managers::has_resized, pods, rbac::PolicyRule, replacement::describe,
        resources::resize_warnings,
    },
};

pub(crate) const DESCRIPTOR: Descriptor = Descriptor {
    name: "resize_pod",
    aliases: &[],
    description: "Set CPU and memory requests and limits of containers of one running pod, in place and without a new \
                  pod. Refused beyond the policy's factor and maximum, for a request above its limit, and where the \
                  QoS class would change. The pod's controller keeps its template, so the next pod has the earlier \
                  resources. Unchanged if they are set already.",
    takes_time: true,
    when: "one running pod needs more memory or CPU now and must not be replaced",
    when_not: "every pod of a workload needs more, also the next ones: use set_resources",
    destructive: true,
    example: r#"{"pod_name":"web-1","resources":[{"container":"web","memory_limit":"1Gi"}]}"#,
    rules: &[
        PolicyRule { api_groups: &[""], resources: &["pods"], verbs: &["get", "watch"] },
        PolicyRule { api_groups: &[""], resources: &["pods/resize"], verbs: &["patch"] },
    ],
    cluster_rules: &[],
    integration: None,
};

/// Where the spec is in a pod.
const POD_SPEC: [&str; 1] = ["spec"];

/// What `resize_pod` acts upon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Parameters {
    /// The pod.
    pub pod_name: ObjectName,
    /// Its namespace.
    #[serde(default, deserialize_with = "null_is_default")]
    #[schemars(with = "Option<Namespace>")]
    pub namespace: Namespace,
    /// The containers and their requests and limits; 1 to 20.
    #[schemars(extend("minItems" = 1, "maxItems" = 20))]
    pub resources: Vec<ContainerAmounts>,
}

impl Plannable for Parameters {
    fn target(&self) -> Target {
        Target::named("v1", "Pod", &self.namespace, &self.pod_name)
    }

    fn namespace(&self) -> &str {
        &self.namespace
    }

    fn check(&self) -> Result<(), ActionError> {
        amounts::check(&self.resources)
    }

    fn preview(&self, _: &PlanInput) -> Preview {
        Preview { result: self.would(), changes: Vec::new() }
    }

    fn plan<'a>(&'a self, cluster: &'a Cluster, input: &'a PlanInput) -> BoxFuture<'a, Plan> {
        Box::pin(async move {
            let resource = ApiResource::erase::<Pod>(&());
            let (namespace, name) = (&self.namespace, &self.pod_name);
            let found = cluster.get_dynamic(&resource, namespace, name, input.deadline).await?;
            self.decide(&found, input)
        })
    }
}

impl Parameters {
    /// `found` is the pod, with unknown fields.
    fn decide(&self, found: &DynamicObject, input: &PlanInput) -> Result<Plan, ActionError> {
        let (target, metadata) = (self.target(), &found.metadata);
        let did = format!("{} set at {}.", self.what(), rfc3339_millis(input.at));
        // A resize leaves no mark; another request with the same id may have left one.
        input.has_changed(metadata)?;
        let completion = CompletionSpec::Known(Completion::Resized {
            namespace: target.namespace.clone(),
            name: target.name.clone(),
            uid: metadata.uid.clone().unwrap_or_default(),
            amounts: amounts::wanted(&self.resources),
        });
        if has_resized(metadata, &input.mark) {
            return Ok(Plan::already_applied(target, metadata, did, completion));
        }
        input.check_found(&target, metadata)?;
        let with_uid = |refusal: ActionError| refusal.object_uid(metadata.uid.as_deref());
        let value = json!({ "spec": found.data["spec"] });
        refuse_unresizable(&target, found).map_err(with_uid)?;
        let changes = amounts::changes(&target, &value, &self.resources).map_err(with_uid)?;
        if changes.is_empty() {
            let decision = Decision::NoOp(format!("{} set already.", self.what()));
            return Ok(Plan::new(target, metadata, decision, completion));
        }
        let operations = amounts::operations(&changes, &POD_SPEC);
        let after = after(value.clone(), &operations);
        let effect = Effect::resize(metadata, &input.mark, input.precondition.as_ref(), operations);
        let decision = Decision::apply(effect, did, self.would());
        let mut plan = Plan::new(target, metadata, decision, completion);
        plan.changes = changes.iter().map(|it| it.change(&POD_SPEC)).collect();
        plan.resources = changes.iter().map(AmountChange::resource_change).collect();
        plan.warnings = resize_warnings(&value, &after);
        plan.warnings.extend(pods::controller_of(metadata).map(|owner| {
            format!(
                "{} keeps its template: the next pod has the earlier resources",
                describe(owner)
            )
        }));
        Ok(plan)
    }

    /// For example `Pod 'web-1': memory limit of 'app' to 1Gi`, without the verb.
    fn what(&self) -> String {
        format!("Pod '{}': {}", self.pod_name, amounts::describe(&self.resources))
    }

    fn would(&self) -> String {
        format!("Simulated: {} would be set.", self.what())
    }
}

/// Refuses a pod whose containers nobody would resize.
fn refuse_unresizable(target: &Target, pod: &DynamicObject) -> Result<(), ActionError> {
    let Ok(pod) = pod.clone().try_parse::<Pod>() else {
        // The message of serde may contain values of the pod, which may be secret.
        let detail = format!("the cluster returned a {target} that cannot be read");
        return Err(ActionError::new(Code::ClusterUnavailable, detail));
    };
    refuse_mirror(target, &pod)?;
    if pods::has_finished(&pod) {
        let detail = format!("{target} has finished: its containers do not run any more");
        return Err(ActionError::new(Code::NoEffect, detail)
            .with_hint("use set_resources for the pods to come"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::k8s::{effect::Mutation, field_managers::request_manager};

    fn pod(metadata: &str, phase: &str) -> DynamicObject {
        serde_yaml_ng::from_str(&format!(
            "metadata: {{name: web-1, namespace: shop, uid: u1, resourceVersion: '7', generation: 3{metadata}}}\n\
             spec: {{containers: [{{name: web, image: a, ofALaterVersion: 1, resources: {{limits: {{memory: 1Gi}}}}}}]}}\n\
             status: {{phase: {phase}}}"
        ))
        .expect("is a pod")
    }

    fn decide(found: &DynamicObject, limit: &str) -> Result<Plan, ActionError> {
        let resources = json!([{ "container": "web", "memory_limit": limit }]);
        let parameters =
            json!({ "pod_name": "web-1", "namespace": "shop", "resources": resources });
        let parameters: Parameters = serde_json::from_value(parameters).expect("are parameters");
        parameters.decide(found, &PlanInput::example())
    }

    #[test]
    fn a_resize_is_one_patch_of_the_pod_as_it_was_read() {
        let plan = decide(&pod("", "Running"), "2Gi").expect("is planned");
        let (effect, did, _) = plan.expect_change();
        let Mutation::Resize { patch, manager, .. } = &effect.mutation else {
            panic!("{effect:?}")
        };
        assert_eq!(*manager, request_manager("r1@d1"));
        assert_eq!(
            json!(patch),
            json!([
                { "op": "test", "path": "/metadata/uid", "value": "u1" },
                { "op": "test", "path": "/metadata/labels", "value": null },
                { "op": "test", "path": "/metadata/generation", "value": 3 },
                { "op": "test", "path": "/spec/containers/0/name", "value": "web" },
                { "op": "test", "path": "/spec/containers/0/resources/limits/memory", "value": "1Gi" },
                { "op": "add", "path": "/spec/containers/0/resources/limits/memory", "value": "2Gi" },
            ])
        );
        assert_eq!(
            did,
            "Pod 'web-1': memory limit of 'web' to 2Gi set at 2026-01-31T12:00:00.987Z."
        );
        assert_eq!(plan.resources.len(), 1);
        let CompletionSpec::Known(Completion::Resized { amounts, .. }) = plan.completion else {
            panic!("is awaited")
        };
        assert_eq!((amounts.len(), amounts[0].value.to_string()), (1, "2Gi".to_owned()));
    }

    #[test]
    fn the_same_request_is_not_applied_again() {
        let manager = request_manager("r1@d1");
        let managed = format!(", managedFields: [{{manager: '{manager}', subresource: resize}}]");
        let plan = decide(&pod(&managed, "Running"), "2Gi").expect("is planned");
        assert!(matches!(plan.decision, Decision::AlreadyApplied(..)), "{:?}", plan.decision);
    }

    #[test]
    fn an_amount_that_is_set_changes_nothing() {
        let plan = decide(&pod("", "Running"), "1024Mi").expect("is planned");
        assert!(matches!(plan.decision, Decision::NoOp(_)), "{:?}", plan.decision);
    }

    #[test]
    fn a_pod_that_has_finished_or_mirrors_a_static_one_is_refused() {
        let mirror = ", annotations: {kubernetes.io/config.mirror: x}";
        for found in [pod("", "Succeeded"), pod("", "Failed"), pod(mirror, "Running")] {
            assert_eq!(decide(&found, "2Gi").expect_err("is refused").code, Code::NoEffect);
        }
    }

    #[test]
    fn the_controller_that_keeps_its_template_is_warned_of() {
        let owned = ", ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: web-5d, uid: u9, controller: \
                     true}]";
        let plan = decide(&pod(owned, "Running"), "2Gi").expect("is planned");
        assert!(plan.warnings.concat().contains("ReplicaSet 'web-5d' keeps its template"));
    }
}
