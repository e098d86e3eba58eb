//! The actions that set one boolean field: cordon and uncordon a node, pause and resume a Deployment's rollout, suspend
//! and resume a CronJob, or what Flux reconciles. Each is one patch, and refuses what every patch refuses.

use json_patch::PatchOperation;
use k8s_openapi::api::{apps::v1::Deployment, batch::v1::CronJob, core::v1::Node};
use kube::{api::ApiResource, core::ObjectMeta};
use serde_json::Value;

use crate::{
    actions::{CompletionSpec, Decision, Plan, PlanInput, Preview},
    contract::{
        error::ActionError,
        response::{Change, Target, rfc3339_millis},
    },
    k8s::{
        applied_requests::AppliedRequests,
        conditional_patch::{add, remove, test},
        effect::Effect,
        flux::FluxKind,
        gitops,
        integrations::{HELM_RELEASE, KUSTOMIZATION},
    },
};

/// A boolean field below `spec`, and the value to set.
#[derive(Clone, Copy)]
pub(crate) struct Toggle {
    field: &'static Field,
    on: bool,
}

struct Field {
    resource: fn() -> ApiResource,
    name: &'static str,
    /// What stands for false: kubectl removes the field of a node.
    off: Value,
    /// Of an object whose field is true.
    state: &'static str,
    /// Of an object whose field was set to true, and to false.
    participles: [&'static str; 2],
}

static NODE_UNSCHEDULABLE: Field = Field {
    resource: || ApiResource::erase::<Node>(&()),
    name: "unschedulable",
    off: Value::Null,
    state: "cordoned",
    participles: ["cordoned", "uncordoned"],
};

static DEPLOYMENT_PAUSED: Field = Field {
    resource: || ApiResource::erase::<Deployment>(&()),
    name: "paused",
    off: Value::Bool(false),
    state: "paused",
    participles: ["paused", "resumed"],
};

static CRONJOB_SUSPEND: Field = Field {
    resource: || ApiResource::erase::<CronJob>(&()),
    name: "suspend",
    off: Value::Bool(false),
    state: "suspended",
    participles: ["suspended", "resumed"],
};

static KUSTOMIZATION_SUSPEND: Field = Field {
    resource: || KUSTOMIZATION.resource(),
    name: "suspend",
    // As `flux resume` does.
    off: Value::Null,
    state: "suspended",
    participles: ["suspended", "resumed"],
};

static HELM_RELEASE_SUSPEND: Field = Field {
    resource: || HELM_RELEASE.resource(),
    name: "suspend",
    off: Value::Null,
    state: "suspended",
    participles: ["suspended", "resumed"],
};

pub(crate) const CORDON: Toggle = Toggle { field: &NODE_UNSCHEDULABLE, on: true };
pub(crate) const UNCORDON: Toggle = Toggle { field: &NODE_UNSCHEDULABLE, on: false };
pub(crate) const PAUSE_ROLLOUT: Toggle = Toggle { field: &DEPLOYMENT_PAUSED, on: true };
pub(crate) const RESUME_ROLLOUT: Toggle = Toggle { field: &DEPLOYMENT_PAUSED, on: false };
pub(crate) const SUSPEND_CRONJOB: Toggle = Toggle { field: &CRONJOB_SUSPEND, on: true };
pub(crate) const RESUME_CRONJOB: Toggle = Toggle { field: &CRONJOB_SUSPEND, on: false };

impl Toggle {
    /// Suspends an object that Flux reconciles, or resumes it.
    pub(crate) fn of_flux(kind: FluxKind, on: bool) -> Self {
        let field = match kind {
            FluxKind::Kustomization => &KUSTOMIZATION_SUSPEND,
            FluxKind::HelmRelease => &HELM_RELEASE_SUSPEND,
        };
        Toggle { field, on }
    }

    pub(crate) fn target(self, namespace: &str, name: &str) -> Target {
        let ApiResource { api_version, kind, .. } = (self.field.resource)();
        Target::named(&api_version, &kind, namespace, name)
    }

    pub(crate) fn preview(self, target: &Target, input: &PlanInput) -> Preview {
        let mark = AppliedRequests::default().change(&input.mark);
        Preview { result: self.would(target), changes: vec![self.change(), mark] }
    }

    /// From the object's metadata and the field's current value to the plan, without warnings.
    pub(crate) fn decide(
        self,
        target: Target,
        metadata: &ObjectMeta,
        is_on: bool,
        completion: CompletionSpec,
        input: &PlanInput,
    ) -> Result<Plan, ActionError> {
        let object = format!("{} '{}'", target.kind, target.name);
        let did = format!("{object} {} at {}.", self.participle(), rfc3339_millis(input.at));
        if input.has_changed(metadata)? {
            return Ok(Plan::already_applied(target, metadata, did, completion));
        }
        input.check_found(&target, metadata)?;
        if is_on == self.on {
            let state = self.field.state;
            let decision = Decision::NoOp(match is_on {
                true => format!("{object} is {state} already."),
                false => format!("{object} is not {state}."),
            });
            return Ok(Plan::new(target, metadata, decision, completion));
        }
        let effect = self.effect(metadata, is_on, input);
        let decision = Decision::apply(effect, did, self.would(&target));
        let mut plan = Plan::new(target, metadata, decision, completion);
        plan.changes = self.changes(metadata, is_on, input);
        let field = format!("spec.{}", self.field.name);
        plan.warnings.extend(gitops::undo_warnings(metadata, &field));
        Ok(plan)
    }

    /// The patch, which adds this request's id to the object even where the field has the value already.
    pub(crate) fn effect(self, metadata: &ObjectMeta, is_on: bool, input: &PlanInput) -> Effect {
        let change = self.operations(metadata, is_on);
        let precondition = input.precondition.as_ref();
        Effect::patch((self.field.resource)(), metadata, &input.mark, precondition, change)
    }

    /// Sets the field. An object without a generation (a node) must still have the value that was read, which the
    /// API server leaves out if it is false.
    pub(crate) fn operations(self, metadata: &ObjectMeta, is_on: bool) -> Vec<PatchOperation> {
        let path = ["spec", self.field.name];
        let unchanged = metadata.generation.is_none();
        let unchanged = unchanged.then(|| test(&path, is_on.then_some(true).into()));
        let set = match self.value(self.on) {
            Value::Null if !is_on => None,
            Value::Null => Some(remove(&path)),
            value => Some(add(&path, value)),
        };
        unchanged.into_iter().chain(set).collect()
    }

    pub(crate) fn changes(
        self,
        metadata: &ObjectMeta,
        is_on: bool,
        input: &PlanInput,
    ) -> Vec<Change> {
        let mark = AppliedRequests::from_metadata(metadata).change(&input.mark);
        let field = (is_on != self.on).then(|| self.change());
        field.into_iter().chain([mark]).collect()
    }

    fn change(self) -> Change {
        let path = format!("/spec/{}", self.field.name);
        Change { path, from: self.value(!self.on), to: self.value(self.on) }
    }

    fn value(self, on: bool) -> Value {
        if on { Value::Bool(true) } else { self.field.off.clone() }
    }

    fn participle(self) -> &'static str {
        self.field.participles[usize::from(!self.on)]
    }

    fn would(self, target: &Target) -> String {
        format!("Simulated: {} '{}' would be {}.", target.kind, target.name, self.participle())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::k8s::completion::Completion;

    fn decide(toggle: Toggle, is_on: bool, requests: &str) -> Plan {
        let metadata: ObjectMeta = serde_yaml_ng::from_str(&format!(
            "{{name: x, uid: u1, resourceVersion: '7', annotations: \
             {{action-executor.dev/requests: '{requests}'}}}}"
        ))
        .expect("is metadata");
        let completion = CompletionSpec::Known(Completion::Immediate(String::new()));
        let target = toggle.target("", "x");
        let plan = toggle.decide(target, &metadata, is_on, completion, &PlanInput::example());
        plan.expect("is planned")
    }

    #[test]
    fn a_toggle_is_one_patch_of_the_object_as_it_was_read() {
        let (no, yes, gone) = (json!(false), json!(true), Value::Null);
        for (toggle, kind, path, from, to, participle) in [
            (CORDON, "Node", "/spec/unschedulable", &gone, &yes, "cordoned"),
            (UNCORDON, "Node", "/spec/unschedulable", &yes, &gone, "uncordoned"),
            (PAUSE_ROLLOUT, "Deployment", "/spec/paused", &no, &yes, "paused"),
            (RESUME_ROLLOUT, "Deployment", "/spec/paused", &yes, &no, "resumed"),
            (SUSPEND_CRONJOB, "CronJob", "/spec/suspend", &no, &yes, "suspended"),
            (RESUME_CRONJOB, "CronJob", "/spec/suspend", &yes, &no, "resumed"),
        ] {
            let plan = decide(toggle, !toggle.on, "");
            let (effect, did, would) = plan.expect_change();
            let operations = effect.operations();
            let change = match to {
                Value::Null => json!({ "op": "remove", "path": path }),
                to => json!({ "op": "add", "path": path, "value": to }),
            };
            assert_eq!(operations.last(), Some(&change));
            // The object has no generation, so the field itself must be as it was read.
            let read = if *from == yes { &yes } else { &gone };
            assert!(operations.contains(&json!({ "op": "test", "path": path, "value": read })));
            assert_eq!(did, format!("{kind} 'x' {participle} at 2026-01-31T12:00:00.987Z."));
            assert_eq!(would, format!("Simulated: {kind} 'x' would be {participle}."));
            assert_eq!((&plan.changes[0].from, &plan.changes[0].to), (from, to));
        }
    }

    #[test]
    fn a_generation_stands_for_the_field() {
        let metadata: ObjectMeta =
            serde_yaml_ng::from_str("{name: x, uid: u1, generation: 3}").expect("is metadata");
        let change = json!([{ "op": "add", "path": "/spec/paused", "value": true }]);
        assert_eq!(json!(PAUSE_ROLLOUT.operations(&metadata, false)), change);
        // A node that is cordoned already is recorded as cordoned by this request.
        let node: ObjectMeta = serde_yaml_ng::from_str("{name: x, uid: u1}").expect("is metadata");
        let kept = json!([
            { "op": "test", "path": "/spec/unschedulable", "value": true },
            { "op": "add", "path": "/spec/unschedulable", "value": true },
        ]);
        assert_eq!(json!(CORDON.operations(&node, true)), kept);
    }

    #[test]
    fn an_object_with_the_requested_value_is_left_unchanged() {
        for (toggle, result) in [
            (CORDON, "Node 'x' is cordoned already."),
            (UNCORDON, "Node 'x' is not cordoned."),
            (PAUSE_ROLLOUT, "Deployment 'x' is paused already."),
            (RESUME_ROLLOUT, "Deployment 'x' is not paused."),
            (SUSPEND_CRONJOB, "CronJob 'x' is suspended already."),
            (RESUME_CRONJOB, "CronJob 'x' is not suspended."),
        ] {
            let plan = decide(toggle, toggle.on, "");
            assert!(matches!(plan.decision, Decision::NoOp(sentence) if sentence == result));
            assert!(plan.changes.is_empty());
        }
    }

    #[test]
    fn a_request_is_not_applied_twice_whatever_later_requests_did() {
        for (is_on, requests) in [(true, "1:r1@d1"), (false, "1:r1@d1 2:r2@d2")] {
            let plan = decide(PAUSE_ROLLOUT, is_on, requests);
            assert!(matches!(plan.decision, Decision::AlreadyApplied(..)));
        }
    }

    #[test]
    fn another_request_with_the_same_id_is_refused() {
        let metadata: ObjectMeta = serde_yaml_ng::from_str(
            "{name: x, uid: u1, annotations: {action-executor.dev/requests: '1:r1@d9'}}",
        )
        .expect("is metadata");
        let completion = CompletionSpec::Known(Completion::Immediate(String::new()));
        let (target, input) = (CORDON.target("", "x"), PlanInput::example());
        let error = CORDON.decide(target, &metadata, false, completion, &input);
        assert_eq!(error.expect_err("is refused").code, crate::contract::error::Code::IdReused);
    }
}
