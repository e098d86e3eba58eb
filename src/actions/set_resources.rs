//! `set_resources`: sets the requests and limits of named containers of a workload, as `kubectl set resources` does.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    actions::{
        BoxFuture, Decision, Descriptor, Plan, PlanInput, Plannable, Preview,
        shared::{
            amounts::{self, AmountChange, ContainerAmounts},
            restart,
            rollout::{
                self, POD_SPEC, REVISIONS, Rollbackable, TemplateChange, WORKLOADS, completion,
                refuse_paused,
            },
        },
    },
    contract::{
        error::ActionError,
        names::{Namespace, ObjectName, null_is_default},
        response::{Target, rfc3339_millis},
    },
    k8s::{
        api::{client::Cluster, preflight, resource_limits},
        applied_requests::AppliedRequests,
        gitops,
        resources::ResourceLimits,
        revisions::{RollbackTarget, template_digest},
        workload::{Workload, WorkloadKind},
    },
};

pub(crate) const DESCRIPTOR: Descriptor = Descriptor {
    name: "set_resources",
    aliases: &[],
    description: "Set CPU and memory requests and limits of containers of a Deployment, StatefulSet or DaemonSet, \
                  which replaces its pods. Refused beyond the policy's factor and maximum, for a request above its \
                  limit, and for a paused Deployment. Warns of quotas, LimitRanges, VerticalPodAutoscalers and nodes \
                  that would keep the new pods away. Unchanged if they are set already.",
    takes_time: true,
    when: "containers are killed for memory (OOMKilled) or slowed down by their CPU limit",
    when_not: "more pods would help: use scale; a repository deploys it: change it there",
    destructive: true,
    example: r#"{"name":"web","resources":[{"container":"web","memory_limit":"1Gi"}]}"#,
    rules: &[
        WORKLOADS,
        REVISIONS,
        restart::PODS,
        restart::EVENTS,
        preflight::AUTOSCALERS,
        preflight::PDBS,
        preflight::PVCS,
        resource_limits::QUOTAS,
        resource_limits::VERTICAL_AUTOSCALERS,
    ],
    cluster_rules: &[],
    integration: None,
};

/// What `set_resources` acts upon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Parameters {
    /// The kind of workload.
    #[serde(default, deserialize_with = "null_is_default")]
    #[schemars(with = "Option<Rollbackable>")]
    pub kind: Rollbackable,
    /// The workload.
    pub name: ObjectName,
    /// Its namespace.
    #[serde(default, deserialize_with = "null_is_default")]
    #[schemars(with = "Option<Namespace>")]
    pub namespace: Namespace,
    /// The containers and their requests and limits; 1 to 20.
    #[schemars(extend("minItems" = 1, "maxItems" = 20))]
    pub resources: Vec<ContainerAmounts>,
    /// If the awaited rollout fails or times out, return the workload to the revision that it had. Only
    /// with `wait`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rollback_on_failure: bool,
}

impl Plannable for Parameters {
    fn target(&self) -> Target {
        WorkloadKind::from(self.kind).target(&self.namespace, &self.name)
    }

    fn namespace(&self) -> &str {
        &self.namespace
    }

    fn check(&self) -> Result<(), ActionError> {
        amounts::check(&self.resources)
    }

    fn rollback_on_failure(&self) -> bool {
        self.rollback_on_failure
    }

    fn preview(&self, input: &PlanInput) -> Preview {
        Preview {
            result: self.would(),
            changes: vec![AppliedRequests::default().change(&input.mark)],
        }
    }

    fn plan<'a>(&'a self, cluster: &'a Cluster, input: &'a PlanInput) -> BoxFuture<'a, Plan> {
        Box::pin(async move {
            let limits = ResourceLimits::of(cluster, &self.namespace, input.deadline);
            let decide = |found: &Workload,
                          template: &Value,
                          revision: Option<&RollbackTarget>,
                          limits: ResourceLimits| {
                self.decide(found, template, &limits, revision, input)
            };
            let (target, rollback_on_failure) = (&self.target(), self.rollback_on_failure);
            let read = rollout::Read { target, kind: self.kind.into(), rollback_on_failure };
            rollout::plan_beside(read, limits, cluster, input, decide).await
        })
    }
}

impl Parameters {
    /// `template` is the workload's, with unknown fields.
    fn decide(
        &self,
        workload: &Workload,
        template: &Value,
        limits: &ResourceLimits,
        rollback_target: Option<&RollbackTarget>,
        input: &PlanInput,
    ) -> Result<Plan, ActionError> {
        let (target, found) = (self.target(), workload.metadata());
        let did = format!("{} set at {}.", self.what(), rfc3339_millis(input.at));
        if input.has_changed(found)? {
            let completion = completion(workload, input.template_left(found, template));
            return Ok(Plan::already_applied(target, found, did, completion));
        }
        input.check_found(&target, found)?;
        let with_uid = |refusal: ActionError| refusal.object_uid(found.uid.as_deref());
        let changes = amounts::changes(&target, template, &self.resources).map_err(with_uid)?;
        if changes.is_empty() {
            let sentence = format!("{} set already.", self.what());
            let completion = completion(workload, Some(template_digest(template)));
            return Ok(Plan::new(target, found, Decision::NoOp(sentence), completion));
        }
        refuse_paused(&target, workload).map_err(with_uid)?;
        let operations = amounts::operations(&changes, &POD_SPEC);
        let after = rollout::template_after(template, &operations);
        let change = TemplateChange {
            operations,
            changes: changes.iter().map(|it| it.change(&POD_SPEC)).collect(),
            did,
            would: self.would(),
        };
        let mut plan = change.plan(target, workload, template, rollback_target, input);
        plan.resources = changes.iter().map(AmountChange::resource_change).collect();
        plan.warnings = limits.warnings(workload, &plan.target, template, &after);
        plan.warnings.extend(gitops::undo_warnings(found, "the resources"));
        Ok(plan)
    }

    /// For example `Deployment 'web': memory limit of 'app' to 1Gi`, without the verb.
    fn what(&self) -> String {
        let kind = WorkloadKind::from(self.kind).name();
        format!("{kind} '{}': {}", self.name, amounts::describe(&self.resources))
    }

    fn would(&self) -> String {
        format!("Simulated: {} would be set.", self.what())
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::Deployment;
    use serde_json::json;

    use super::*;
    use crate::{
        actions::CompletionSpec,
        contract::error::Code,
        k8s::{conditional_patch, resources::AmountField},
    };

    fn template() -> Value {
        json!({ "spec": {
            "containers": [
                { "name": "proxy", "ofALaterVersion": 1 },
                { "name": "web", "resources": {
                    "requests": { "cpu": "500m" }, "limits": { "cpu": "1", "memory": "1Gi" },
                }},
            ],
        }})
    }

    fn deployment(spec: &str, annotations: &str) -> Workload {
        let deployment: Deployment = serde_yaml_ng::from_str(&format!(
            "metadata: {{name: web, namespace: shop, uid: u1, resourceVersion: '7', generation: 3, \
             annotations: {annotations}}}\n\
             spec: {{replicas: 1, selector: {{}}, template: {{}}{spec}}}\n\
             status: {{observedGeneration: 3, replicas: 1, updatedReplicas: 1, availableReplicas: 1}}"
        ))
        .expect("is a Deployment");
        deployment.into()
    }

    fn decide(workload: &Workload, resources: Value) -> Result<Plan, ActionError> {
        let parameters = json!({ "name": "web", "namespace": "shop", "resources": resources });
        let parameters: Parameters = serde_json::from_value(parameters).expect("are parameters");
        parameters.check()?;
        let limits = ResourceLimits::default();
        parameters.decide(workload, &template(), &limits, None, &PlanInput::example())
    }

    fn refusal(resources: Value) -> ActionError {
        decide(&deployment("", "{}"), resources).expect_err("is refused")
    }

    #[test]
    fn each_amount_that_differs_is_set_in_one_patch_as_the_api_server_stores_it() {
        let resources = json!([
            { "container": "web", "cpu_request": "1000m", "cpu_limit": "1", "memory_limit": "1.5Gi" },
            { "container": "proxy", "memory_request": "64Mi", "cpu_request": "0.1" },
        ]);
        let plan = decide(&deployment("", "{}"), resources).expect("is planned");
        let (effect, did, _) = plan.expect_change();
        let is_ours = |it: &Value| it["path"].as_str().is_some_and(|it| it.starts_with("/spec"));
        let ours: Vec<_> = effect.operations().into_iter().filter(is_ours).collect();
        let spec = "/spec/template/spec/containers";
        assert_eq!(
            json!(ours),
            json!([
                { "op": "test", "path": format!("{spec}/1/name"), "value": "web" },
                { "op": "test", "path": format!("{spec}/1/resources/requests/cpu"), "value": "500m" },
                { "op": "add", "path": format!("{spec}/1/resources/requests/cpu"), "value": "1" },
                { "op": "test", "path": format!("{spec}/1/resources/limits/memory"), "value": "1Gi" },
                { "op": "add", "path": format!("{spec}/1/resources/limits/memory"), "value": "1536Mi" },
                { "op": "test", "path": format!("{spec}/0/name"), "value": "proxy" },
                { "op": "test", "path": format!("{spec}/0/resources"), "value": null },
                { "op": "add", "path": format!("{spec}/0/resources"), "value": {} },
                { "op": "add", "path": format!("{spec}/0/resources/requests"), "value": {} },
                { "op": "add", "path": format!("{spec}/0/resources/requests/cpu"), "value": "100m" },
                { "op": "add", "path": format!("{spec}/0/resources/requests/memory"), "value": "64Mi" },
            ])
        );
        assert!(did.starts_with("Deployment 'web': cpu request of 'web' to 1, cpu limit"), "{did}");
        let patch: json_patch::Patch = serde_json::from_value(json!(ours)).expect("is a patch");
        let after = conditional_patch::after(json!({ "spec": { "template": template() } }), &patch);
        let CompletionSpec::Rollout(rollout) = plan.completion else { panic!("is a rollout") };
        assert_eq!(rollout.template, Some(template_digest(&after["spec"]["template"])));
        let changes: Vec<_> = plan.changes.iter().map(|it| (&it.from, &it.to)).take(2).collect();
        assert_eq!(changes[0], (&json!("500m"), &json!("1")));
        assert_eq!(changes[1], (&json!("1Gi"), &json!("1536Mi")));
        // The policy judges a request that is not set by the limit.
        let judged: Vec<_> =
            plan.resources.iter().map(|it| (it.field, it.from.is_some())).collect();
        assert_eq!(judged[0], (AmountField::CpuRequest, true));
        assert_eq!(judged[3], (AmountField::MemoryRequest, false));
    }

    #[test]
    fn a_request_that_is_not_set_is_compared_with_the_limit_and_set_all_the_same() {
        let resources = json!([{ "container": "web", "memory_request": "1Gi" }]);
        let plan = decide(&deployment("", "{}"), resources).expect("is planned");
        assert!(plan.is_change());
        assert_eq!(plan.resources[0].from, Some(plan.resources[0].to));
        assert_eq!(plan.changes[0].from, Value::Null);
    }

    #[test]
    fn an_amount_of_the_same_value_changes_nothing() {
        let resources =
            json!([{ "container": "web", "cpu_limit": "1000m", "memory_limit": "1024Mi" }]);
        let plan = decide(&deployment("", "{}"), resources).expect("is planned");
        let Decision::NoOp(sentence) = plan.decision else { panic!("{:?}", plan.decision) };
        assert_eq!(
            sentence,
            "Deployment 'web': cpu limit of 'web' to 1, memory limit of 'web' to 1Gi set already."
        );
    }

    #[test]
    fn the_same_request_is_not_applied_again() {
        let deployment = deployment("", "{action-executor.dev/requests: '1:r1@d1'}");
        let plan = decide(&deployment, json!([{ "container": "web", "cpu_limit": "2" }]));
        let plan = plan.expect("is planned");
        assert!(matches!(plan.decision, Decision::AlreadyApplied(..)), "{:?}", plan.decision);
    }

    #[test]
    fn a_request_above_its_limit_is_refused_with_both() {
        for (resources, field, detail) in [
            (
                json!([{ "container": "web", "cpu_request": "1500m" }]),
                "parameters.resources[0].cpu_request",
                "the cpu request of container 'web' would be 1500m, above its cpu limit of 1",
            ),
            (
                json!([{ "container": "web", "cpu_limit": "250m" }]),
                "parameters.resources[0].cpu_limit",
                "the cpu request of container 'web' would be 500m, above its cpu limit of 250m",
            ),
        ] {
            let error = refusal(resources);
            assert_eq!((error.code, error.field.as_deref()), (Code::InvalidRequest, Some(field)));
            assert!(error.detail.ends_with(detail), "{}", error.detail);
        }
        let both = json!([{ "container": "web", "cpu_request": "1500m", "cpu_limit": "2" }]);
        assert!(decide(&deployment("", "{}"), both).is_ok());
    }

    #[test]
    fn an_unknown_container_an_empty_entry_and_parts_of_units_are_refused() {
        for (resources, field) in [
            (
                json!([{ "container": "api", "cpu_limit": "1" }]),
                "parameters.resources[0].container",
            ),
            (json!([{ "container": "web" }]), "parameters.resources[0].memory_limit"),
            (
                json!([{ "container": "web", "cpu_limit": "0.0001" }]),
                "parameters.resources[0].cpu_limit",
            ),
            (
                json!([{ "container": "web", "memory_request": "0.5" }]),
                "parameters.resources[0].memory_request",
            ),
        ] {
            let error = refusal(resources);
            assert_eq!((error.code, error.field.as_deref()), (Code::InvalidRequest, Some(field)));
        }
    }

    #[test]
    fn a_paused_deployment_is_refused() {
        let paused = deployment(", paused: true", "{}");
        let error = decide(&paused, json!([{ "container": "web", "cpu_limit": "2" }]));
        assert_eq!(error.expect_err("is refused").code, Code::TargetPaused);
    }
}
