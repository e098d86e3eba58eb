//! `expand_pvc`: lets a PersistentVolumeClaim request more storage.
//!
//! Only the request is changed; the volume and its file system follow. Whether the StorageClass allows it
//! is decided by the API server (admission plugin PersistentVolumeClaimResize), whose dry run a simulation shows.

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::api::ApiResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    actions::{
        BoxFuture, CompletionSpec, Decision, Descriptor, Plan, PlanInput, Plannable, Preview,
        SizeChange, shared::restart,
    },
    contract::{
        error::{ActionError, Code},
        names::{Namespace, ObjectName, null_is_default},
        quantity::Quantity,
        response::{Change, Target, rfc3339_millis},
    },
    k8s::{
        api::{client::Cluster, preflight},
        applied_requests::AppliedRequests,
        completion::Completion,
        conditional_patch::{add, test},
        effect::Effect,
        gitops, pods, pvc,
        rbac::PolicyRule,
    },
};

pub(crate) const DESCRIPTOR: Descriptor = Descriptor {
    name: "expand_pvc",
    aliases: &[],
    description: "Expand a PersistentVolumeClaim to a size. It cannot be made smaller again. Refused for a size that is \
                  not larger, beyond the policy's factor and maximum, for a PVC without a volume, and where its \
                  StorageClass does not allow it. With wait it is complete once the PVC has the size. Unchanged if \
                  it requests that size already.",
    takes_time: true,
    when: "a volume is nearly full and its data cannot be removed",
    when_not: "the data can be removed, or the volume's use does not grow",
    destructive: false,
    example: r#"{"pvc":"data-db-0","size":"20Gi"}"#,
    rules: &[
        PolicyRule {
            api_groups: &[""],
            resources: &["persistentvolumeclaims"],
            verbs: &["get", "patch", "watch"],
        },
        // Only for the warning about the pods that mount it.
        restart::PODS,
        restart::EVENTS,
    ],
    cluster_rules: &[],
    integration: None,
};

/// Where the size is in a PVC.
const SIZE: [&str; 4] = ["spec", "resources", "requests", "storage"];

/// What `expand_pvc` acts upon, and the desired size.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Parameters {
    /// The PersistentVolumeClaim.
    pub pvc: ObjectName,
    /// Its namespace.
    #[serde(default, deserialize_with = "null_is_default")]
    #[schemars(with = "Option<Namespace>")]
    pub namespace: Namespace,
    /// The new size, for example `20Gi`.
    pub size: Quantity,
}

impl Plannable for Parameters {
    fn target(&self) -> Target {
        Target::named("v1", "PersistentVolumeClaim", &self.namespace, &self.pvc)
    }

    fn namespace(&self) -> &str {
        &self.namespace
    }

    fn check(&self) -> Result<(), ActionError> {
        match self.size.is_whole() {
            true => Ok(()),
            false => Err(ActionError::invalid_field(
                "parameters.size",
                "must be a whole number of bytes",
            )),
        }
    }

    fn preview(&self, input: &PlanInput) -> Preview {
        let mark = AppliedRequests::default().change(&input.mark);
        Preview {
            result: format!(
                "Simulated: PersistentVolumeClaim '{}' would be expanded to {}.",
                self.pvc, self.size
            ),
            changes: vec![self.change(Value::Null), mark],
        }
    }

    fn plan<'a>(&'a self, cluster: &'a Cluster, input: &'a PlanInput) -> BoxFuture<'a, Plan> {
        Box::pin(async move {
            let (namespace, name) = (&self.namespace, &self.pvc);
            let end = preflight::end(input.deadline);
            let (found, pods) = tokio::join!(
                cluster.get::<PersistentVolumeClaim>(namespace, name, input.deadline),
                cluster.list_cached::<Pod>(namespace, end),
            );
            self.decide(&found?, pods, input)
        })
    }
}

impl Parameters {
    fn decide(
        &self,
        found: &PersistentVolumeClaim,
        pods: Result<Vec<Pod>, ActionError>,
        input: &PlanInput,
    ) -> Result<Plan, ActionError> {
        let (target, metadata, size) = (self.target(), &found.metadata, self.size);
        let object = format!("PersistentVolumeClaim '{}'", self.pvc);
        let completion = CompletionSpec::Known(Completion::Expanded {
            namespace: target.namespace.clone(),
            name: target.name.clone(),
            uid: metadata.uid.clone().unwrap_or_default(),
            size,
        });
        if input.has_changed(metadata)? {
            let did = format!("{object} expanded to {size}.");
            return Ok(Plan::already_applied(target, metadata, did, completion));
        }
        input.check_found(&target, metadata)?;
        let with_uid = |refusal: ActionError| refusal.object_uid(metadata.uid.as_deref());
        let now = self.refuse(&target, found).map_err(with_uid)?;
        if now == size {
            let decision = Decision::NoOp(format!("{object} requests {size} already."));
            return Ok(Plan::new(target, metadata, decision, completion));
        }
        let read = pvc::requested_text(found);
        let operations = vec![test(&SIZE, read.clone()), add(&SIZE, size.to_string().into())];
        let resource = ApiResource::erase::<PersistentVolumeClaim>(&());
        let precondition = input.precondition.as_ref();
        let effect = Effect::patch(resource, metadata, &input.mark, precondition, operations);
        let did =
            format!("{object} expanded from {now} to {size} at {}.", rfc3339_millis(input.at));
        let would = format!("Simulated: {object} would be expanded from {now} to {size}.");
        let decision = Decision::apply(effect, did, would);
        let mut plan = Plan::new(target, metadata, decision, completion);
        let mark = AppliedRequests::from_metadata(metadata).change(&input.mark);
        plan.changes = vec![self.change(read), mark];
        plan.size = Some(SizeChange { from: now, to: size });
        plan.warnings = self.warnings_of(found, pods);
        Ok(plan)
    }

    /// Refuses what cannot be expanded; else the size that is requested now.
    fn refuse(
        &self,
        target: &Target,
        found: &PersistentVolumeClaim,
    ) -> Result<Quantity, ActionError> {
        if !pvc::is_bound(found) {
            let detail = format!("{target} has no volume yet");
            return Err(ActionError::new(Code::PreconditionFailed, detail)
                .with_hint("wait until its phase is Bound"));
        }
        let now = pvc::requested(found).unwrap_or_default();
        if self.size < now {
            let size = self.size;
            let detail =
                format!("{target} requests {now}, and a PVC cannot be made smaller: not to {size}");
            return Err(ActionError::new(Code::PreconditionFailed, detail)
                .with_field("parameters.size")
                .with_hint(format!("name a size above {now}")));
        }
        Ok(now)
    }

    fn change(&self, from: Value) -> Change {
        Change { path: format!("/{}", SIZE.join("/")), from, to: self.size.to_string().into() }
    }

    fn warnings_of(
        &self,
        found: &PersistentVolumeClaim,
        pods: Result<Vec<Pod>, ActionError>,
    ) -> Vec<String> {
        let mut warnings = vec!["a PVC cannot be made smaller again".to_owned()];
        match pods {
            Err(error) => warnings.push(preflight::not_checked(&error)),
            Ok(pods) => {
                let mounting = pvc::mounted_by(&self.pvc, &pods);
                let of_set = mounting.iter().find_map(|pod| {
                    pods::controller(pod).filter(|owner| owner.kind == "StatefulSet")
                });
                warnings.extend(of_set.map(|owner| {
                    format!(
                        "StatefulSet '{}' keeps the size in its volumeClaimTemplates: new replicas get the earlier one",
                        owner.name
                    )
                }));
                if mounting.is_empty() {
                    warnings.push(
                        "no pod mounts it: where the driver expands a file system only while it is mounted, that follows \
                         later"
                            .to_owned(),
                    );
                }
            }
        }
        warnings.extend(gitops::undo_warnings(&found.metadata, "the size"));
        warnings
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn claim(metadata: &str, phase: &str) -> PersistentVolumeClaim {
        serde_yaml_ng::from_str(&format!(
            "metadata: {{name: data, namespace: shop, uid: u1, resourceVersion: '7'{metadata}}}\n\
             spec: {{resources: {{requests: {{storage: 10Gi}}}}}}\nstatus: {{phase: {phase}}}"
        ))
        .expect("is a PVC")
    }

    fn decide(found: &PersistentVolumeClaim, size: &str) -> Result<Plan, ActionError> {
        let parameters = json!({ "pvc": "data", "namespace": "shop", "size": size });
        let parameters: Parameters = serde_json::from_value(parameters).expect("are parameters");
        parameters.check()?;
        parameters.decide(found, Ok(Vec::new()), &PlanInput::example())
    }

    #[test]
    fn an_expansion_is_one_patch_that_tests_the_size_that_was_read() {
        let plan = decide(&claim("", "Bound"), "0.5Ti").expect("is planned");
        let (effect, did, _) = plan.expect_change();
        let operations = json!(effect.operations());
        let path = "/spec/resources/requests/storage";
        for expected in [
            json!({ "op": "test", "path": path, "value": "10Gi" }),
            json!({ "op": "add", "path": path, "value": "512Gi" }),
        ] {
            assert!(
                operations.as_array().is_some_and(|all| all.contains(&expected)),
                "{operations}"
            );
        }
        assert!(did.starts_with("PersistentVolumeClaim 'data' expanded from 10Gi to 512Gi at"));
        assert_eq!(plan.size.map(|it| it.from.to_string()), Some("10Gi".to_owned()));
    }

    #[test]
    fn a_smaller_size_a_part_of_a_byte_and_a_claim_without_a_volume_are_refused() {
        for (phase, size, code) in [
            ("Bound", "9Gi", Code::PreconditionFailed),
            ("Bound", "100m", Code::InvalidRequest),
            ("Pending", "20Gi", Code::PreconditionFailed),
            ("Lost", "20Gi", Code::PreconditionFailed),
        ] {
            let error = decide(&claim("", phase), size).expect_err("is refused");
            assert_eq!(error.code, code, "{phase} {size}: {error:?}");
        }
    }

    #[test]
    fn the_same_size_changes_nothing() {
        let plan = decide(&claim("", "Bound"), "10240Mi").expect("is planned");
        assert!(matches!(plan.decision, Decision::NoOp(_)), "{:?}", plan.decision);
    }

    #[test]
    fn the_same_request_is_not_applied_again() {
        let marked = ", annotations: {action-executor.dev/requests: '1:r1@d1'}";
        let plan = decide(&claim(marked, "Bound"), "20Gi").expect("is planned");
        assert!(matches!(plan.decision, Decision::AlreadyApplied(..)), "{:?}", plan.decision);
    }

    #[test]
    fn a_template_with_the_earlier_size_is_warned_of() {
        let pod: Pod = serde_yaml_ng::from_str(
            "metadata: {name: db-0, ownerReferences: [{apiVersion: apps/v1, kind: StatefulSet, name: db, uid: u9, \
             controller: true}]}\n\
             spec: {containers: [], volumes: [{name: d, persistentVolumeClaim: {claimName: data}}]}",
        )
        .expect("is a pod");
        let parameters: Parameters =
            serde_json::from_value(json!({ "pvc": "data", "size": "20Gi" })).expect("are some");
        let warnings = |pods| parameters.warnings_of(&claim("", "Bound"), Ok(pods)).join("; ");
        assert!(warnings(vec![pod]).contains("StatefulSet 'db' keeps the size"));
        assert!(warnings(vec![]).contains("no pod mounts it"));
    }
}
