//! `undo_argo_rollout`: returns a Rollout to the pod template of an earlier revision, as `kubectl argo rollouts undo`
//! does (`pkg/kubectl-argo-rollouts/cmd/undo/undo.go`).
//!
//! The revisions are its ReplicaSets. Their templates have the defaults of the API server, which that of a Rollout
//! lacks, so the controller, which compares with defaults, uses the old ReplicaSet again. "The previous revision"
//! depends on the current template: if that changes while the request is running, nothing is done.

use std::num::NonZeroU32;

use k8s_openapi::api::apps::v1::ReplicaSet;
use kube::api::{ApiResource, DynamicObject};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    actions::{
        BoxFuture, Decision, Descriptor, Plan, PlanInput, Plannable, Preview,
        shared::{
            argo_rollout::{
                READ_AND_PATCH, completion, done, earlier_plan, no_effect, read, would,
            },
            restart,
        },
    },
    contract::{
        error::{ActionError, Code},
        names::{Namespace, ObjectName, null_is_default},
        response::Target,
    },
    k8s::{
        api::{client::Cluster, preflight},
        applied_requests::AppliedRequests,
        argo_rollouts::{self, ArgoGoal, ArgoRevision, ArgoRollout, ArgoVersion},
        conditional_patch::add,
        effect::Effect,
        gitops,
        integrations::{Integration, ROLLOUT},
        rbac::PolicyRule,
        revisions::{template_changes, template_digest},
    },
};

pub(crate) const DESCRIPTOR: Descriptor = Descriptor {
    name: "undo_argo_rollout",
    aliases: &[],
    description: "Roll a Rollout (Argo Rollouts) back to its previous revision, or to the one that to_revision names: \
                  its pod template (images, commands, environment) becomes what it was. Back to the stable version, \
                  all steps are skipped; to an older one, they run as for each update. Refused where the template is \
                  that of another workload (workloadRef).",
    takes_time: true,
    when: "the failure of a Rollout began with its latest revision",
    when_not: "an update in progress is only to end: use abort_argo_rollout",
    destructive: true,
    example: r#"{"rollout":"web"}"#,
    rules: &[
        READ_AND_PATCH,
        PolicyRule { api_groups: &["apps"], resources: &["replicasets"], verbs: &["list"] },
        restart::PODS,
        preflight::AUTOSCALERS,
    ],
    cluster_rules: &[],
    integration: Some(Integration::ArgoRollouts),
};

/// What `undo_argo_rollout` acts upon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Parameters {
    /// The Rollout to roll back.
    pub rollout: ObjectName,
    /// Its namespace.
    #[serde(default, deserialize_with = "null_is_default")]
    #[schemars(with = "Option<Namespace>")]
    pub namespace: Namespace,
    /// The number of the revision to return to, as `kubectl argo rollouts get rollout` shows it; by default the
    /// previous one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to_revision: Option<NonZeroU32>,
}

impl Plannable for Parameters {
    fn target(&self) -> Target {
        ROLLOUT.target(&self.namespace, &self.rollout)
    }

    fn namespace(&self) -> &str {
        &self.namespace
    }

    fn preview(&self, input: &PlanInput) -> Preview {
        let to = match self.to_revision {
            Some(number) => format!("revision {number}"),
            None => "its previous revision".to_owned(),
        };
        let changes = vec![AppliedRequests::default().change(&input.mark)];
        Preview { result: would(&self.target(), &format!("rolled back to {to}")), changes }
    }

    fn plan<'a>(&'a self, cluster: &'a Cluster, input: &'a PlanInput) -> BoxFuture<'a, Plan> {
        Box::pin(async move {
            let found = read(cluster, &self.namespace, &self.rollout, input).await?;
            let selector = ArgoRollout::new(&found.object).label_selector();
            let resource = ApiResource::erase::<ReplicaSet>(&());
            let (namespace, deadline) = (&self.namespace, input.deadline);
            let sets = cluster.list_dynamic(&resource, namespace, &selector, deadline).await?;
            Ok(found.warn_in(self.decide(&found.object, &sets, input)?))
        })
    }
}

impl Parameters {
    /// `sets` are the ReplicaSets that its selector finds, with unknown fields.
    fn decide(
        &self,
        found: &DynamicObject,
        sets: &[DynamicObject],
        input: &PlanInput,
    ) -> Result<Plan, ActionError> {
        let (target, metadata) = (&self.target(), &found.metadata);
        let rollout = ArgoRollout::new(found);
        let sentence = format!("Rollout '{}' was rolled back.", target.name);
        if let Some(plan) = earlier_plan(target, metadata, &sentence, ArgoGoal::Advanced, input)? {
            return Ok(plan);
        }
        let with_uid = |refusal: ActionError| refusal.object_uid(metadata.uid.as_deref());
        refuse_foreign_template(target, rollout).map_err(with_uid)?;
        let template = rollout.template();
        let etag = template_digest(&template);
        if self.to_revision.is_none() {
            input.check_decision("the pod template", target, &etag).map_err(with_uid)?;
        }
        let revisions = argo_rollouts::revisions(rollout, sets);
        let revision = self.revision(target, rollout, &revisions).map_err(with_uid)?;
        let number = revision.number;
        if revision.is_current(rollout) {
            let sentence = format!("Rollout '{}' is at revision {number} already.", target.name);
            let version = ArgoVersion::Template(etag);
            let completion = completion(metadata, version, ArgoGoal::Advanced);
            return Ok(Plan::new(target.clone(), metadata, Decision::NoOp(sentence), completion));
        }
        let restore = vec![add(&["spec", "template"], revision.template.clone())];
        let (mark, precondition) = (&input.mark, input.precondition.as_ref());
        let effect = Effect::patch(ROLLOUT.resource(), metadata, mark, precondition, restore);
        let participle = format!("rolled back to revision {number}");
        let (did, would) = (done(target, &participle, input), would(target, &participle));
        let decision = Decision::apply(effect, did, would);
        let version = ArgoVersion::Template(template_digest(&revision.template));
        let completion = completion(metadata, version, ArgoGoal::Advanced);
        let mut plan = Plan::new(target.clone(), metadata, decision, completion);
        plan.changes = template_changes(&template, &revision.template);
        plan.changes.push(AppliedRequests::from_metadata(metadata).change(mark));
        plan.warnings = gitops::undo_warnings(metadata, "spec.template");
        plan.decision_etag = self.to_revision.is_none().then_some(etag);
        Ok(plan)
    }

    fn revision<'a>(
        &self,
        target: &Target,
        rollout: ArgoRollout,
        revisions: &'a [ArgoRevision],
    ) -> Result<&'a ArgoRevision, ActionError> {
        let wanted = self.to_revision.map(|it| i64::from(it.get()));
        let found = revisions.iter().find(|revision| match wanted {
            Some(number) => revision.number == number,
            None => !revision.is_current(rollout),
        });
        found.ok_or_else(|| {
            let detail = match wanted {
                Some(number) => format!("{target} has no revision {number}"),
                None => format!("{target} has no earlier revision"),
            };
            let numbers: Vec<_> = revisions.iter().map(|it| it.number.to_string()).collect();
            let numbers = if numbers.is_empty() { "none".to_owned() } else { numbers.join(", ") };
            ActionError::new(Code::NoRevision, detail)
                .with_hint(format!("existing revisions: {numbers}"))
        })
    }
}

/// Refuses a Rollout whose template is not its own, or whose ReplicaSets do not have it as it was.
fn refuse_foreign_template(target: &Target, rollout: ArgoRollout) -> Result<(), ActionError> {
    if let Some(workload) = rollout.workload_ref() {
        let why = format!("has the pod template of {workload} (spec.workloadRef)");
        return Err(no_effect(target, &why).with_hint("roll that workload back"));
    }
    if rollout.injects_affinity() {
        let why = "has antiAffinity in its strategy: the templates of its ReplicaSets have rules of its controller";
        let hint = "apply the earlier pod template from its source";
        return Err(no_effect(target, why).with_hint(hint));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn rollout(image: &str, spec: &str) -> DynamicObject {
        serde_yaml_ng::from_str(&format!(
            "metadata: {{name: web, namespace: shop, uid: u1, resourceVersion: '7', generation: 3}}\n\
             spec: {{selector: {{matchLabels: {{app: web}}}}, template: {{metadata: {{labels: {{app: web}}}}, \
             spec: {{containers: [{{name: web, image: '{image}'}}]}}}}{spec}}}\n\
             status: {{observedGeneration: '2', currentPodHash: h9}}"
        ))
        .expect("is a Rollout")
    }

    /// A ReplicaSet with the defaults of the API server.
    fn set(number: u32, image: &str, owner: &str) -> DynamicObject {
        serde_yaml_ng::from_str(&format!(
            "metadata: {{name: web-h{number}, labels: {{rollouts-pod-template-hash: h{number}}}, \
             annotations: {{rollout.argoproj.io/revision: '{number}'}}, ownerReferences: [{{apiVersion: \
             argoproj.io/v1alpha1, kind: Rollout, name: web, uid: {owner}, controller: true}}]}}\n\
             spec: {{template: {{metadata: {{labels: {{app: web, rollouts-pod-template-hash: h{number}}}}}, \
             spec: {{dnsPolicy: ClusterFirst, containers: [{{name: web, image: '{image}', ofALaterVersion: 1}}]}}}}}}"
        ))
        .expect("is a ReplicaSet")
    }

    fn decide(
        image: &str,
        spec: &str,
        to: Option<u32>,
        input: &PlanInput,
    ) -> Result<Plan, ActionError> {
        let sets =
            [set(1, "a:1", "u1"), set(3, "a:3", "u1"), set(2, "a:2", "u1"), set(7, "a:7", "u9")];
        let parameters = json!({ "rollout": "web", "namespace": "shop", "to_revision": to });
        let parameters: Parameters = serde_json::from_value(parameters).expect("are parameters");
        parameters.decide(&rollout(image, spec), &sets, input)
    }

    fn restored(image: &str, to: Option<u32>) -> Value {
        let plan = decide(image, "", to, &PlanInput::example()).expect("is planned");
        let effect = plan.expect_change().0;
        effect.operations().last().expect("has one")["value"].clone()
    }

    #[test]
    fn the_template_of_the_revision_is_restored_whole_and_without_its_hash() {
        let template = restored("a:3", None);
        assert_eq!(template["metadata"]["labels"], json!({ "app": "web" }));
        let container = &template["spec"]["containers"][0];
        assert_eq!(
            (&container["image"], &container["ofALaterVersion"]),
            (&json!("a:2"), &json!(1))
        );
        assert_eq!(template["spec"]["dnsPolicy"], "ClusterFirst");
        // Before the controller has made a ReplicaSet of the newest template.
        assert_eq!(restored("a:4", None)["spec"]["containers"][0]["image"], "a:3");
        assert_eq!(restored("a:3", Some(1))["spec"]["containers"][0]["image"], "a:1");
    }

    #[test]
    fn the_current_revision_is_known_without_the_defaults() {
        let plan = decide("a:2", "", Some(2), &PlanInput::example()).expect("is planned");
        assert!(matches!(plan.decision, Decision::NoOp(_)), "{:?}", plan.decision);
    }

    #[test]
    fn another_template_in_a_later_plan_is_another_previous_revision() {
        let first = decide("a:3", "", None, &PlanInput::example()).expect("is planned");
        let input = PlanInput { decision_etag: first.decision_etag, ..PlanInput::example() };
        let refusal = decide("a:2", "", None, &input).expect_err("is refused");
        assert_eq!(refusal.code, Code::PreconditionFailed);
    }

    #[test]
    fn revisions_of_another_rollout_and_foreign_templates_are_refused() {
        let workload = ", workloadRef: {apiVersion: apps/v1, kind: Deployment, name: web}";
        let affinity = ", strategy: {canary: {antiAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {}}}}";
        for (spec, to, code, says) in [
            ("", Some(7), Code::NoRevision, "has no revision 7"),
            (workload, None, Code::NoEffect, "Deployment 'web'"),
            (affinity, None, Code::NoEffect, "antiAffinity"),
        ] {
            let refusal = decide("a:3", spec, to, &PlanInput::example()).expect_err("is refused");
            assert_eq!(refusal.code, code, "{}", refusal.detail);
            assert!(refusal.detail.contains(says), "{}", refusal.detail);
        }
    }
}
