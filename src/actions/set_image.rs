//! `set_image`: sets the images of named containers of a workload, as `kubectl set image` does.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    actions::{
        BoxFuture, Decision, Descriptor, ImageChange, Plan, PlanInput, Plannable, Preview,
        shared::{
            containers::{self, Container},
            restart,
            rollout::{
                self, POD_SPEC, REVISIONS, Rollbackable, TemplateChange, WORKLOADS, completion,
                refuse_paused,
            },
        },
    },
    contract::{
        error::ActionError,
        image::ImageReference,
        names::{Namespace, ObjectName, null_is_default},
        response::{Target, rfc3339_millis},
    },
    k8s::{
        api::{client::Cluster, preflight},
        applied_requests::AppliedRequests,
        gitops,
        revisions::{RollbackTarget, template_digest},
        workload::{Workload, WorkloadKind},
    },
};

pub(crate) const DESCRIPTOR: Descriptor = Descriptor {
    name: "set_image",
    aliases: &[],
    description: "Set the images of containers of a Deployment, StatefulSet or DaemonSet, which replaces \
                  its pods. Refused for a repository that the policy does not allow (without a rule: \
                  any but the one in use), and for a paused Deployment. Unchanged if they are set already.",
    takes_time: true,
    when: "a known good image is to run",
    when_not: "an earlier revision is wanted: use rollback; a repository deploys it: change it there",
    destructive: true,
    example: r#"{"name":"web","images":[{"container":"web","image":"registry.example.com/shop/web:1.2"}]}"#,
    rules: &[
        WORKLOADS,
        REVISIONS,
        restart::PODS,
        restart::EVENTS,
        preflight::AUTOSCALERS,
        preflight::PDBS,
        preflight::PVCS,
    ],
    cluster_rules: &[],
    integration: None,
};

/// Where the image is in a container.
const IMAGE: [&str; 1] = ["image"];

/// What `set_image` acts upon.
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
    /// The containers and their images; 1 to 20.
    #[schemars(extend("minItems" = 1, "maxItems" = 20))]
    pub images: Vec<ContainerImage>,
    /// If the awaited rollout fails or times out, return the workload to the revision that it had. Only
    /// with `wait`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rollback_on_failure: bool,
}

/// The image of one container.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ContainerImage {
    /// The container or init container of the pod template.
    pub container: ObjectName,
    /// Its image, by a tag or, better, a digest.
    pub image: ImageReference,
}

impl Plannable for Parameters {
    fn target(&self) -> Target {
        WorkloadKind::from(self.kind).target(&self.namespace, &self.name)
    }

    fn namespace(&self) -> &str {
        &self.namespace
    }

    fn check(&self) -> Result<(), ActionError> {
        containers::check_each_once("images", self.names())
    }

    fn rollback_on_failure(&self) -> bool {
        self.rollback_on_failure
    }

    fn images(&self) -> Vec<&ImageReference> {
        self.images.iter().map(|it| &it.image).collect()
    }

    fn preview(&self, input: &PlanInput) -> Preview {
        Preview {
            result: self.would(),
            changes: vec![AppliedRequests::default().change(&input.mark)],
        }
    }

    fn plan<'a>(&'a self, cluster: &'a Cluster, input: &'a PlanInput) -> BoxFuture<'a, Plan> {
        Box::pin(async move {
            let decide = |found: &Workload, template: &Value, revision: Option<&RollbackTarget>| {
                self.decide(found, template, revision, input)
            };
            let (target, rollback_on_failure) = (&self.target(), self.rollback_on_failure);
            let read = rollout::Read { target, kind: self.kind.into(), rollback_on_failure };
            rollout::plan(read, cluster, input, decide).await
        })
    }
}

impl Parameters {
    /// `template` is the workload's, with unknown fields.
    fn decide(
        &self,
        workload: &Workload,
        template: &Value,
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
        let found_containers =
            containers::find(&target, template, "images", self.names()).map_err(with_uid)?;
        let pairs = self.images.iter().zip(&found_containers);
        let different: Vec<_> =
            pairs.filter(|(wanted, found)| *wanted.image != *image_of(found)).collect();
        if different.is_empty() {
            let sentence = format!("{} set already.", self.what());
            let completion = completion(workload, Some(template_digest(template)));
            return Ok(Plan::new(target, found, Decision::NoOp(sentence), completion));
        }
        refuse_paused(&target, workload).map_err(with_uid)?;
        let pairs = different.iter().map(|(wanted, found)| (found, Value::from(&*wanted.image)));
        let change = TemplateChange {
            operations: pairs.clone().flat_map(|(it, to)| it.set(&POD_SPEC, &IMAGE, &to)).collect(),
            changes: pairs.map(|(it, to)| it.change(&POD_SPEC, &IMAGE, &to)).collect(),
            did,
            would: self.would(),
        };
        let mut plan = change.plan(target, workload, template, rollback_target, input);
        plan.images = different
            .iter()
            .map(|(wanted, found)| ImageChange {
                container: wanted.container.to_string(),
                from: image_of(found).to_owned(),
                to: wanted.image.to_string(),
            })
            .collect();
        plan.warnings = self.warnings_of(workload);
        Ok(plan)
    }

    fn names(&self) -> impl Iterator<Item = &ObjectName> {
        self.images.iter().map(|it| &it.container)
    }

    /// For example `Deployment 'web': image of 'app' to registry.example.com/app:2`, without the verb.
    fn what(&self) -> String {
        let images = self.images.iter();
        let images: Vec<_> =
            images.map(|it| format!("'{}' to {}", it.container, it.image)).collect();
        let kind = WorkloadKind::from(self.kind).name();
        format!("{kind} '{}': image of {}", self.name, images.join(", of "))
    }

    fn would(&self) -> String {
        format!("Simulated: {} would be set.", self.what())
    }

    fn warnings_of(&self, workload: &Workload) -> Vec<String> {
        let tags: Vec<_> = self.images.iter().filter(|it| !it.image.has_digest()).collect();
        let names: Vec<_> = tags.iter().map(|it| &*it.image).collect();
        let by_tag = (!names.is_empty()).then(|| {
            format!(
                "a tag may be moved to another image at any time, unlike a digest: {}",
                names.join(", ")
            )
        });
        let reverted = gitops::undo_warnings(workload.metadata(), "the image");
        by_tag.into_iter().chain(reverted).collect()
    }
}

/// The image that a container has now.
fn image_of<'a>(container: &Container<'a>) -> &'a str {
    container.value["image"].as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::Deployment;
    use serde_json::json;

    use super::*;
    use crate::{actions::CompletionSpec, contract::error::Code};

    const OLD: &str = "registry.example.com/web:1";
    const NEW: &str = "registry.example.com/web:2";

    fn template() -> Value {
        json!({ "spec": {
            "containers": [{ "name": "proxy", "image": "proxy:1" }, { "name": "web", "image": OLD }],
            "initContainers": [{ "name": "init", "image": "init:1", "ofALaterVersion": 1 }],
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

    fn parameters(images: &[(&str, &str)]) -> Parameters {
        let images: Vec<_> = images
            .iter()
            .map(|(container, image)| json!({ "container": container, "image": image }))
            .collect();
        let parameters = json!({ "name": "web", "namespace": "shop", "images": images });
        serde_json::from_value(parameters).expect("are parameters")
    }

    fn decide(workload: &Workload, images: &[(&str, &str)]) -> Result<Plan, ActionError> {
        parameters(images).decide(workload, &template(), None, &PlanInput::example())
    }

    #[test]
    fn the_image_of_each_named_container_is_set_in_one_patch() {
        let images = [("web", NEW), ("init", "init:2")];
        let plan = decide(&deployment("", "{}"), &images).expect("is planned");
        let (effect, did, _) = plan.expect_change();
        let operations = json!(effect.operations());
        for expected in [
            json!({ "op": "test", "path": "/spec/template/spec/containers/1/name", "value": "web" }),
            json!({ "op": "add", "path": "/spec/template/spec/containers/1/image", "value": NEW }),
            json!({ "op": "add", "path": "/spec/template/spec/initContainers/0/image", "value": "init:2" }),
        ] {
            assert!(
                operations.as_array().is_some_and(|all| all.contains(&expected)),
                "{operations}"
            );
        }
        assert_eq!(
            did,
            format!(
                "Deployment 'web': image of 'web' to {NEW}, of 'init' to init:2 set at \
                 2026-01-31T12:00:00.987Z."
            )
        );
        assert_eq!(plan.changes[0].from, OLD);
        assert_eq!(plan.images.len(), 2);
        let CompletionSpec::Rollout(rollout) = &plan.completion else { panic!("is a rollout") };
        let mut after = json!({ "spec": { "template": template() } });
        let is_ours = |it: &Value| it["path"].as_str().is_some_and(|it| it.starts_with("/spec"));
        let ours: Vec<_> = effect.operations().into_iter().filter(is_ours).collect();
        let patch: json_patch::Patch = serde_json::from_value(json!(ours)).expect("is a patch");
        json_patch::patch(&mut after, &patch).expect("is patched");
        assert_eq!(rollout.template, Some(template_digest(&after["spec"]["template"])));
    }

    #[test]
    fn an_image_that_is_set_already_is_left() {
        let plan = decide(&deployment("", "{}"), &[("web", OLD)]).expect("is planned");
        assert!(matches!(plan.decision, Decision::NoOp(_)), "{:?}", plan.decision);
        let one = decide(&deployment("", "{}"), &[("web", NEW), ("proxy", "proxy:1")]);
        assert_eq!(one.expect("is planned").images.len(), 1);
    }

    #[test]
    fn an_unknown_container_is_refused_with_those_that_there_are() {
        let error = decide(&deployment("", "{}"), &[("main", NEW)]).expect_err("is refused");
        assert_eq!(error.code, Code::InvalidRequest);
        assert_eq!(error.field.as_deref(), Some("parameters.images[0].container"));
        assert_eq!(error.hint.as_deref(), Some("its containers are proxy, web, init"));
    }

    #[test]
    fn a_paused_deployment_is_refused() {
        let paused = deployment(", paused: true", "{}");
        let error = decide(&paused, &[("web", NEW)]).expect_err("is refused");
        assert_eq!(error.code, Code::TargetPaused);
    }

    #[test]
    fn a_request_is_not_applied_twice() {
        let marked = deployment("", "{action-executor.dev/requests: '1:r1@d1'}");
        let plan = decide(&marked, &[("web", NEW)]).expect("is planned");
        assert!(matches!(plan.decision, Decision::AlreadyApplied(..)), "{:?}", plan.decision);
    }

    #[test]
    fn a_tag_and_a_tool_that_sets_the_image_again_are_warned_of() {
        let synced = deployment("", "{argocd.argoproj.io/tracking-id: 'shop:a'}");
        let warnings = decide(&synced, &[("web", NEW)]).expect("is planned").warnings.join("; ");
        assert!(
            warnings.contains("a tag may be moved") && warnings.contains("Argo CD"),
            "{warnings}"
        );
        let by_digest = format!("web@sha256:{}", "0a".repeat(32));
        let plan = decide(&deployment("", "{}"), &[("web", &by_digest)]).expect("is planned");
        assert_eq!(plan.warnings, [""; 0]);
    }

    #[test]
    fn a_container_is_named_once() {
        let error = parameters(&[("web", NEW), ("web", OLD)]).check().expect_err("is refused");
        assert_eq!(error.field.as_deref(), Some("parameters.images[1].container"));
        assert!(parameters(&[]).check().is_err());
    }
}
