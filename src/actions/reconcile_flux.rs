//! `reconcile_flux`: Flux reconciles a Kustomization or a HelmRelease now, as `flux reconcile` has it do
//! (`cmd/flux/reconcile.go`): an annotation with the time requests it.

use kube::api::DynamicObject;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    actions::{
        BoxFuture, CompletionSpec, Decision, Descriptor, Plan, PlanInput, Plannable, Preview,
        shared::{
            annotations,
            flux::{AWAITED_HELM_RELEASES, AWAITED_KUSTOMIZATIONS},
            restart,
        },
    },
    contract::{
        error::{ActionError, Code},
        names::{Namespace, ObjectName, null_is_default},
        response::{Change, Target, rfc3339_millis},
    },
    k8s::{
        api::client::Cluster,
        applied_requests::AppliedRequests,
        completion::Completion,
        effect::Effect,
        flux::{self, FluxKind, Pass, REQUESTED_AT},
        integrations::Integration,
    },
};

pub(crate) const DESCRIPTOR: Descriptor = Descriptor {
    name: "reconcile_flux",
    aliases: &[],
    description: "Have Flux reconcile a Kustomization or HelmRelease now, with the source as Flux fetched it last: what \
                  the source has is applied and what others changed in the cluster is reverted. Refused while it is \
                  suspended. With wait it is complete once Flux has handled this request and says Ready, and fails \
                  with Flux's reason.",
    takes_time: true,
    when: "the next reconciliation by its interval is too far off",
    when_not: "it is suspended: resume_flux reconciles it at once",
    destructive: true,
    example: r#"{"name":"apps","namespace":"flux-system"}"#,
    rules: &[AWAITED_KUSTOMIZATIONS, AWAITED_HELM_RELEASES, restart::EVENTS],
    cluster_rules: &[],
    integration: Some(Integration::Flux),
};

/// What `reconcile_flux` acts upon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Parameters {
    /// The kind of object.
    #[serde(default, deserialize_with = "null_is_default")]
    #[schemars(with = "Option<FluxKind>")]
    pub kind: FluxKind,
    /// The object.
    pub name: ObjectName,
    /// Its namespace.
    #[serde(default, deserialize_with = "null_is_default")]
    #[schemars(with = "Option<Namespace>")]
    pub namespace: Namespace,
}

impl Plannable for Parameters {
    fn target(&self) -> Target {
        self.kind.custom().target(&self.namespace, &self.name)
    }

    fn namespace(&self) -> &str {
        &self.namespace
    }

    fn preview(&self, input: &PlanInput) -> Preview {
        let mark = AppliedRequests::default().change_beside(&input.mark);
        let path = annotations::path(REQUESTED_AT);
        let change = Change { path, from: Value::Null, to: rfc3339_millis(input.at).into() };
        Preview { result: self.would(), changes: vec![change, mark] }
    }

    fn plan<'a>(&'a self, cluster: &'a Cluster, input: &'a PlanInput) -> BoxFuture<'a, Plan> {
        Box::pin(async move {
            let kind = self.kind.custom();
            let (namespace, deadline) = (&self.namespace, input.deadline);
            let found = cluster.get_custom(kind, namespace, &self.name, deadline).await?;
            self.decide(&found, input)
        })
    }
}

impl Parameters {
    fn described(&self) -> String {
        format!("{} '{}'", self.kind.custom().kind, self.name)
    }

    fn would(&self) -> String {
        format!("Simulated: Flux would be asked to reconcile {}.", self.described())
    }

    fn decide(&self, found: &DynamicObject, input: &PlanInput) -> Result<Plan, ActionError> {
        let (target, metadata) = (self.target(), &found.metadata);
        let at = rfc3339_millis(input.at);
        let did = format!("Flux was asked to reconcile {} at {at}.", self.described());
        if input.has_changed(metadata)? {
            // What the annotation has now is this request, or a later one, whose pass covers this one.
            let requested = flux::requested_at(found).unwrap_or(&at).to_owned();
            let completion = self.completion(found, requested);
            return Ok(Plan::already_applied(target, metadata, did, completion));
        }
        input.check_found(&target, metadata)?;
        if flux::is_suspended(found) {
            let detail = format!("{target} is suspended, so Flux would not reconcile it");
            return Err(ActionError::new(Code::PreconditionFailed, detail)
                .with_hint("resume_flux resumes it, which reconciles it at once")
                .object_uid(metadata.uid.as_deref()));
        }
        let entries = [(REQUESTED_AT, Some(at.clone()))];
        let effect = Effect::metadata_patch(
            self.kind.custom().resource(),
            metadata,
            &input.mark,
            input.precondition.as_ref(),
            annotations::operations(metadata, &entries),
        );
        let decision = Decision::apply(effect, did, self.would());
        let completion = self.completion(found, at);
        let mut plan = Plan::new(target, metadata, decision, completion);
        plan.changes = annotations::changes(metadata, &entries);
        plan.changes.push(AppliedRequests::from_metadata(metadata).change_beside(&input.mark));
        if flux::prunes(found) {
            plan.warnings.push("what its source no longer has is deleted (spec.prune)".to_owned());
        }
        Ok(plan)
    }

    fn completion(&self, found: &DynamicObject, requested: String) -> CompletionSpec {
        CompletionSpec::Known(Completion::Reconciled {
            kind: self.kind,
            namespace: (*self.namespace).to_owned(),
            name: (*self.name).to_owned(),
            uid: found.metadata.uid.clone().unwrap_or_default(),
            pass: Pass::Requested(requested),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn decide_on(metadata: &str, rest: &str) -> Result<Plan, ActionError> {
        let found: DynamicObject = serde_yaml_ng::from_str(&format!(
            "metadata: {{name: apps, namespace: shop, uid: u1, generation: 3{metadata}}}\n{rest}"
        ))
        .expect("is an object");
        let parameters: Parameters =
            serde_json::from_value(json!({ "name": "apps", "namespace": "shop" }))
                .expect("are some");
        parameters.decide(&found, &PlanInput::example())
    }

    fn pass(plan: &Plan) -> &Pass {
        let CompletionSpec::Known(Completion::Reconciled { pass, .. }) = &plan.completion else {
            panic!("{:?}", plan.completion)
        };
        pass
    }

    #[test]
    fn a_reconciliation_is_requested_by_the_time_of_the_request() {
        let at = "2026-01-31T12:00:00.987Z";
        let old = ", annotations: {reconcile.fluxcd.io/requestedAt: t1}";
        let plan = decide_on(old, "spec: {prune: true}").expect("is planned");
        assert_eq!(pass(&plan), &Pass::Requested(at.to_owned()));
        assert!(plan.warnings[0].contains("spec.prune"));
        let effect = plan.expect_change().0;
        let path = "/metadata/annotations/reconcile.fluxcd.io~1requestedAt";
        let operations = effect.operations();
        assert!(operations.contains(&json!({ "op": "test", "path": path, "value": "t1" })));
        assert_eq!(operations.last(), Some(&json!({ "op": "add", "path": path, "value": at })));
    }

    #[test]
    fn a_suspended_object_is_refused_with_what_resumes_it() {
        let refusal = decide_on("", "spec: {suspend: true}").expect_err("is refused");
        assert_eq!(refusal.code, Code::PreconditionFailed);
        assert!(refusal.hint.expect("has one").contains("resume_flux"));
    }

    #[test]
    fn a_request_that_was_made_awaits_what_is_requested_now() {
        let metadata = ", annotations: {action-executor.dev/requests: '0:r1@d1', \
                        reconcile.fluxcd.io/requestedAt: t9}";
        let plan = decide_on(metadata, "spec: {}").expect("is planned");
        assert!(matches!(plan.decision, Decision::AlreadyApplied(..)));
        assert_eq!(pass(&plan), &Pass::Requested("t9".to_owned()));
    }
}
