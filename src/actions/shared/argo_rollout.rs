//! What the actions on a Rollout of Argo Rollouts have in common: how it is read, how a change of its status is
//! planned, and when one is refused.

use std::time::Duration;

use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use kube::{api::DynamicObject, core::ObjectMeta};
use serde_json::{Value, json};

use crate::{
    actions::{CompletionSpec, Decision, Plan, PlanInput},
    contract::{
        digest::sha256,
        error::{ActionError, Code},
        response::{Change, Target, rfc3339_millis},
    },
    k8s::{
        api::{
            client::Cluster,
            preflight::{end, not_checked},
        },
        argo_rollouts::{ArgoGoal, ArgoRollout, ArgoVersion, AwaitedArgoRollout},
        completion::Completion,
        conditional_patch::add,
        effect::{Effect, StatusDecision},
        field_managers::has_set_status,
        integrations::ROLLOUT,
        preflight_warnings::maximum_warning,
        rbac::PolicyRule,
    },
};

/// To read a Rollout, and to wait for it.
pub(crate) const READ: PolicyRule =
    PolicyRule { api_groups: &["argoproj.io"], resources: &["rollouts"], verbs: &["get", "watch"] };

/// The same, and to change its spec.
pub(crate) const READ_AND_PATCH: PolicyRule = PolicyRule {
    api_groups: &["argoproj.io"],
    resources: &["rollouts"],
    verbs: &["get", "patch", "watch"],
};

/// To change its status.
pub(crate) const PATCH_STATUS: PolicyRule =
    PolicyRule { api_groups: &["argoproj.io"], resources: &["rollouts/status"], verbs: &["patch"] };

/// A Rollout, and the autoscalers of its namespace or why they could not be read.
pub(crate) struct RolloutWithAutoscalers {
    pub object: DynamicObject,
    autoscalers: Result<Vec<HorizontalPodAutoscaler>, ActionError>,
}

/// Reads both.
///
/// # Errors
/// As [`Cluster::get_custom`] says.
pub(crate) async fn read(
    cluster: &Cluster,
    namespace: &str,
    name: &str,
    input: &PlanInput,
) -> Result<RolloutWithAutoscalers, ActionError> {
    let (object, autoscalers) = tokio::join!(
        cluster.get_custom(&ROLLOUT, namespace, name, input.deadline),
        cluster.list_cached(namespace, end(input.deadline)),
    );
    Ok(RolloutWithAutoscalers { object: object?, autoscalers })
}

impl RolloutWithAutoscalers {
    /// The plan with the warning that an autoscaler holds up the new pods, if it makes a change.
    pub(crate) fn warn_in(&self, mut plan: Plan) -> Plan {
        let warning = match &self.autoscalers {
            Ok(autoscalers) => maximum_warning(autoscalers, &plan.target),
            Err(error) => Some(not_checked(error)),
        };
        if plan.is_change() {
            plan.warnings.extend(warning);
        }
        plan
    }
}

/// The plan of a request that has changed this Rollout before, if it has; else it must be the one that is meant.
///
/// # Errors
/// As [`PlanInput::has_changed`] and [`PlanInput::check_found`] say.
pub(crate) fn earlier_plan(
    target: &Target,
    metadata: &ObjectMeta,
    sentence: &str,
    goal: ArgoGoal,
    input: &PlanInput,
) -> Result<Option<Plan>, ActionError> {
    if input.has_changed(metadata)? || has_set_status(metadata, &input.mark) {
        let completion = completion(metadata, ArgoVersion::Unknown, goal);
        let (target, sentence) = (target.clone(), sentence.to_owned());
        return Ok(Some(Plan::already_applied(target, metadata, sentence, completion)));
    }
    input.check_found(target, metadata)?;
    Ok(None)
}

/// When a change of this Rollout is complete.
pub(crate) fn completion(
    metadata: &ObjectMeta,
    version: ArgoVersion,
    goal: ArgoGoal,
) -> CompletionSpec {
    CompletionSpec::Known(Completion::ArgoRollout(AwaitedArgoRollout {
        namespace: metadata.namespace.clone().unwrap_or_default(),
        name: metadata.name.clone().unwrap_or_default(),
        uid: metadata.uid.clone(),
        version,
        goal,
    }))
}

/// The version that the controller regards as the newest one.
pub(crate) fn newest_version(rollout: ArgoRollout) -> ArgoVersion {
    rollout.current_hash().map_or(ArgoVersion::Unknown, |hash| ArgoVersion::Hash(hash.to_owned()))
}

/// Refuses a Rollout whose status is not of its newest spec: what it says of steps and pauses is of an earlier one.
///
/// # Errors
/// [`Code::Conflict`].
pub(crate) fn check_observed(target: &Target, rollout: ArgoRollout) -> Result<(), ActionError> {
    if rollout.is_observed() && rollout.current_hash().is_some() {
        return Ok(());
    }
    let detail = format!("the controller has not observed the newest spec of {target} yet");
    Err(ActionError::new(Code::Conflict, detail).with_retry_after(Some(Duration::from_secs(1))))
}

/// The refusal of a change that would do nothing.
pub(crate) fn no_effect(target: &Target, why: &str) -> ActionError {
    ActionError::new(Code::NoEffect, format!("{target} {why}"))
}

/// A change of the status.
pub(crate) struct StatusChange {
    /// What it rests on. Another plan of the request must rest on the same.
    pub decided_on: StatusDecision,
    /// The fields with their new values.
    pub set: Vec<(&'static str, Value)>,
    /// For example `aborted`, for the sentences.
    pub participle: String,
    pub goal: ArgoGoal,
}

/// The plan of a change of the status, which the controller then acts upon.
///
/// # Errors
/// [`Code::PreconditionFailed`] if an earlier plan of the request rests on something else.
pub(crate) fn plan_status(
    target: &Target,
    rollout: ArgoRollout,
    change: StatusChange,
    input: &PlanInput,
) -> Result<Plan, ActionError> {
    let StatusChange { decided_on, set, participle, goal } = change;
    let etag = sha256(json!([decided_on.fields, decided_on.revision]).to_string().as_bytes());
    input.check_decision("the state", target, &etag)?;
    let (metadata, status) = (rollout.metadata, rollout.status());
    let changes = set.iter().map(|(field, to)| Change {
        path: format!("/status/{field}"),
        from: status[*field].clone(),
        to: to.clone(),
    });
    let changes = changes.collect();
    let operations = set.into_iter().map(|(field, value)| add(&["status", field], value));
    let (resource, precondition) = (ROLLOUT.resource(), input.precondition.as_ref());
    let effect = Effect::status_patch(
        resource,
        metadata,
        &input.mark,
        precondition,
        decided_on,
        operations.collect(),
    );
    let did = done(target, &participle, input);
    let decision = Decision::apply(effect, did, would(target, &participle));
    let completion = completion(metadata, newest_version(rollout), goal);
    let mut plan = Plan::new(target.clone(), metadata, decision, completion);
    plan.changes = changes;
    plan.decision_etag = Some(etag);
    Ok(plan)
}

/// For example `Rollout 'web' aborted at 2026-01-31T12:00:00.000Z.`
pub(crate) fn done(target: &Target, participle: &str, input: &PlanInput) -> String {
    format!("{} '{}' {participle} at {}.", target.kind, target.name, rfc3339_millis(input.at))
}

/// For example `Simulated: Rollout 'web' would be aborted.`
pub(crate) fn would(target: &Target, participle: &str) -> String {
    format!("Simulated: {} '{}' would be {participle}.", target.kind, target.name)
}
