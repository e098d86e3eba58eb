//! `promote_argo_rollout`: ends the pause of a Rollout, or completes its update without further pauses, as
//! `kubectl argo rollouts promote` does (`pkg/kubectl-argo-rollouts/cmd/promote/promote.go`).
//!
//! It differs where a retry could do more than the first attempt. The plugin skips the step of a canary that is not
//! paused, and ends the pause of the spec with that of the status; here each request ends one pause. The patch tests
//! the pause that the request was decided on, with its start and its step, so the next pause is never ended by it. The
//! status takes no annotation, so the change is recognised by a field manager of the request.

use kube::api::DynamicObject;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    actions::{
        BoxFuture, Decision, Descriptor, Plan, PlanInput, Plannable, Preview,
        shared::{
            argo_rollout::{
                PATCH_STATUS, READ_AND_PATCH, StatusChange, check_observed, completion, done,
                earlier_plan, newest_version, no_effect, plan_status, read, would,
            },
            restart,
        },
    },
    contract::{
        error::{ActionError, Code},
        names::{Namespace, ObjectName, null_is_default},
        response::{Change, Target},
    },
    k8s::{
        api::{client::Cluster, preflight},
        applied_requests::AppliedRequests,
        argo_rollouts::{ArgoGoal, ArgoRollout},
        conditional_patch::add,
        effect::{Effect, StatusDecision},
        gitops,
        integrations::{Integration, ROLLOUT},
    },
};

pub(crate) const DESCRIPTOR: Descriptor = Descriptor {
    name: "promote_argo_rollout",
    aliases: &[],
    description: "Promote a Rollout (Argo Rollouts): end the pause at the current step of a canary, or before the \
                  switch of a blue-green update. With full it completes the update without its further steps, pauses \
                  and analyses. A pause by spec.paused is ended first, by a request of its own. Refused if it is \
                  neither paused nor to be promoted fully, or is aborted.",
    takes_time: true,
    when: "a Rollout is paused and its new version is good",
    when_not: "its new version is not checked yet; or the update was aborted: use retry_argo_rollout",
    destructive: true,
    example: r#"{"rollout":"web"}"#,
    rules: &[READ_AND_PATCH, PATCH_STATUS, restart::PODS, preflight::AUTOSCALERS],
    cluster_rules: &[],
    integration: Some(Integration::ArgoRollouts),
};

/// What `promote_argo_rollout` acts upon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Parameters {
    /// The Rollout.
    pub rollout: ObjectName,
    /// Its namespace.
    #[serde(default, deserialize_with = "null_is_default")]
    #[schemars(with = "Option<Namespace>")]
    pub namespace: Namespace,
    /// Complete the update without further steps, pauses and analyses.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub full: bool,
}

impl Plannable for Parameters {
    fn target(&self) -> Target {
        ROLLOUT.target(&self.namespace, &self.rollout)
    }

    fn namespace(&self) -> &str {
        &self.namespace
    }

    fn preview(&self, _: &PlanInput) -> Preview {
        let path = |field: &str| format!("/status/{field}");
        let change = match self.full {
            true => Change { path: path("promoteFull"), from: json!(false), to: json!(true) },
            false => Change { path: path("pauseConditions"), from: Value::Null, to: json!([]) },
        };
        let participle = if self.full { "promoted fully" } else { "promoted" };
        Preview { result: would(&self.target(), participle), changes: vec![change] }
    }

    fn plan<'a>(&'a self, cluster: &'a Cluster, input: &'a PlanInput) -> BoxFuture<'a, Plan> {
        Box::pin(async move {
            let found = read(cluster, &self.namespace, &self.rollout, input).await?;
            Ok(found.warn_in(self.decide(&found.object, input)?))
        })
    }
}

impl Parameters {
    fn decide(&self, found: &DynamicObject, input: &PlanInput) -> Result<Plan, ActionError> {
        let (target, metadata) = (&self.target(), &found.metadata);
        let rollout = ArgoRollout::new(found);
        let goal = if self.full { ArgoGoal::Promoted } else { ArgoGoal::Advanced };
        let sentence = format!("Rollout '{}' was promoted.", target.name);
        if let Some(plan) = earlier_plan(target, metadata, &sentence, goal, input)? {
            return Ok(plan);
        }
        let plan = check_observed(target, rollout)
            .and_then(|()| refuse_aborted(target, rollout))
            .and_then(|()| match (rollout.is_paused_by_spec(), self.full) {
                (false, false) => end_pause(target, rollout, input),
                (false, true) => promote_fully(target, rollout, input),
                (true, false) => unpause(target, rollout, input),
                (true, true) => Err(refuse_paused_by_spec(target)),
            });
        plan.map_err(|refusal| refusal.object_uid(metadata.uid.as_deref()))
    }
}

fn refuse_aborted(target: &Target, rollout: ArgoRollout) -> Result<(), ActionError> {
    if !rollout.is_aborted() {
        return Ok(());
    }
    let why = "is aborted: it is at no step from which it could be promoted";
    Err(no_effect(target, why).with_hint("retry_argo_rollout begins the update anew"))
}

fn refuse_paused_by_spec(target: &Target) -> ActionError {
    let detail = format!("{target} is paused by its spec (spec.paused)");
    ActionError::new(Code::TargetPaused, detail)
        .with_hint("promote it without `full` first, which ends this pause")
}

/// Ends the pause at which the controller waits.
fn end_pause(
    target: &Target,
    rollout: ArgoRollout,
    input: &PlanInput,
) -> Result<Plan, ActionError> {
    let fields = [
        "currentPodHash",
        "stableRS",
        "currentStepHash",
        "currentStepIndex",
        "pauseConditions",
        "controllerPause",
        "abort",
    ];
    let decided_on = StatusDecision::on(rollout.metadata, rollout.status(), &fields);
    if rollout.pause_reasons().is_empty() {
        // A later plan of the request says that the pause has ended, and not that there never was one.
        input.check_decision("the state", target, "not paused")?;
        let hint = "wait until it is paused, or promote it with `full`, which skips the steps that are left";
        return Err(no_effect(target, "is not paused: there is nothing to promote").with_hint(hint));
    }
    let mut set = vec![("pauseConditions", json!([]))];
    if let (true, Some((index, steps))) = (rollout.is_inconclusive(), rollout.step()) {
        set.push(("controllerPause", json!(false)));
        set.push(("currentStepIndex", json!((index + 1).min(steps))));
    }
    let participle = format!("promoted{}", rollout.place());
    let change = StatusChange { decided_on, set, participle, goal: ArgoGoal::Advanced };
    let mut plan = plan_status(target, rollout, change, input)?;
    if rollout.is_inconclusive() {
        plan.warnings.push("the analysis of this step is inconclusive, and is skipped".to_owned());
    }
    plan.warnings.extend(switch_warning(rollout));
    Ok(plan)
}

/// Has the controller complete the update.
fn promote_fully(
    target: &Target,
    rollout: ArgoRollout,
    input: &PlanInput,
) -> Result<Plan, ActionError> {
    if rollout.is_fully_promoted() {
        let why = "has no update in progress: its newest version is the stable one";
        return Err(no_effect(target, why));
    }
    if rollout.is_being_promoted() {
        let sentence = format!("Rollout '{}' is being promoted fully already.", target.name);
        let (metadata, version) = (rollout.metadata, newest_version(rollout));
        let completion = completion(metadata, version, ArgoGoal::Promoted);
        return Ok(Plan::new(target.clone(), metadata, Decision::NoOp(sentence), completion));
    }
    let fields = ["currentPodHash", "stableRS", "currentStepHash", "promoteFull", "abort"];
    let change = StatusChange {
        decided_on: StatusDecision::on(rollout.metadata, rollout.status(), &fields),
        set: vec![("promoteFull", json!(true))],
        participle: "promoted fully".to_owned(),
        goal: ArgoGoal::Promoted,
    };
    let mut plan = plan_status(target, rollout, change, input)?;
    let skipped = rollout.step().filter(|(index, all)| index < all).map(|(index, all)| {
        format!("the steps {} to {all}, with their pauses and analyses, are skipped", index + 1)
    });
    plan.warnings.extend(skipped);
    plan.warnings.extend(switch_warning(rollout));
    Ok(plan)
}

/// Ends the pause that someone set in the spec.
fn unpause(target: &Target, rollout: ArgoRollout, input: &PlanInput) -> Result<Plan, ActionError> {
    const ETAG: &str = "paused by its spec";
    input.check_decision("the state", target, ETAG)?;
    let (metadata, precondition) = (rollout.metadata, input.precondition.as_ref());
    let change = vec![add(&["spec", "paused"], json!(false))];
    let effect = Effect::patch(ROLLOUT.resource(), metadata, &input.mark, precondition, change);
    let participle = "unpaused (spec.paused)";
    let (did, would) = (done(target, participle, input), would(target, participle));
    let decision = Decision::apply(effect, did, would);
    let completion = completion(metadata, newest_version(rollout), ArgoGoal::Advanced);
    let mut plan = Plan::new(target.clone(), metadata, decision, completion);
    let path = "/spec/paused".to_owned();
    plan.changes = vec![
        Change { path, from: json!(true), to: json!(false) },
        AppliedRequests::from_metadata(metadata).change(&input.mark),
    ];
    plan.warnings = gitops::undo_warnings(metadata, "spec.paused");
    if !rollout.pause_reasons().is_empty() {
        plan.warnings.push(format!(
            "it stays paused{} by its controller: another request promotes it from there",
            rollout.place()
        ));
    }
    plan.decision_etag = Some(ETAG.to_owned());
    Ok(plan)
}

/// The warning that a blue-green update has no steps.
fn switch_warning(rollout: ArgoRollout) -> Option<String> {
    let service = rollout.active_service().filter(|_| !rollout.is_cut_over())?;
    Some(format!("blue-green: Service '{service}' switches to the new version at once"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        actions::CompletionSpec,
        k8s::{
            argo_rollouts::{ArgoVersion, AwaitedArgoRollout},
            completion::Completion,
            effect::Mutation,
            field_managers::request_manager,
        },
    };

    const PAUSE: &str = "pauseConditions: [{reason: CanaryPauseStep, startTime: '2026-01-31T11:00:00Z'}], controllerPause: true";

    fn rollout(metadata: &str, spec: &str, status: &str) -> DynamicObject {
        serde_yaml_ng::from_str(&format!(
            "metadata: {{name: web, namespace: shop, uid: u1, resourceVersion: '7', generation: 3{metadata}}}\n\
             spec: {{template: {{}}, strategy: {{canary: {{steps: [{{setWeight: 20}}, {{pause: {{}}}}, {{pause: {{}}}}]}}}}\
             {spec}}}\n\
             status: {{observedGeneration: '3', currentPodHash: new, stableRS: old, currentStepIndex: 1, \
             phase: Paused, {status}}}"
        ))
        .expect("is a Rollout")
    }

    fn decide(found: &DynamicObject, full: bool, input: &PlanInput) -> Result<Plan, ActionError> {
        let parameters = json!({ "rollout": "web", "namespace": "shop", "full": full });
        let parameters: Parameters = serde_json::from_value(parameters).expect("are parameters");
        parameters.decide(found, input)
    }

    fn plan(found: &DynamicObject, full: bool) -> Plan {
        decide(found, full, &PlanInput::example()).expect("is planned")
    }

    /// The operations of the patch of the status, and the field manager.
    fn status_patch(plan: &Plan) -> (Vec<Value>, String) {
        let effect = plan.expect_change().0;
        let Mutation::Status { patch, manager, .. } = &effect.mutation else {
            panic!("{effect:?}")
        };
        (patch.iter().map(|it| json!(it)).collect(), manager.clone())
    }

    fn code(found: &DynamicObject, full: bool) -> Code {
        decide(found, full, &PlanInput::example()).expect_err("is refused").code
    }

    #[test]
    fn a_promotion_ends_the_pause_that_it_tests() {
        let plan = plan(&rollout("", "", PAUSE), false);
        let (operations, manager) = status_patch(&plan);
        let start = json!([{ "reason": "CanaryPauseStep", "startTime": "2026-01-31T11:00:00Z" }]);
        let test = |path: &str, value: Value| json!({ "op": "test", "path": path, "value": value });
        for expected in [
            test("/metadata/uid", json!("u1")),
            test("/metadata/generation", json!(3)),
            test("/status/currentPodHash", json!("new")),
            test("/status/currentStepIndex", json!(1)),
            test("/status/pauseConditions", start),
            test("/status/abort", Value::Null),
        ] {
            assert!(operations.contains(&expected), "{expected} in {operations:?}");
        }
        let change = json!({ "op": "add", "path": "/status/pauseConditions", "value": [] });
        assert_eq!(operations.last(), Some(&change));
        assert_eq!(manager, request_manager("r1@d1"));
        let did = plan.expect_change().1;
        assert_eq!(did, "Rollout 'web' promoted at step 2 of 3 at 2026-01-31T12:00:00.987Z.");
        let CompletionSpec::Known(Completion::ArgoRollout(AwaitedArgoRollout {
            version,
            goal,
            ..
        })) = plan.completion
        else {
            panic!("is awaited")
        };
        assert_eq!((version, goal), (ArgoVersion::Hash("new".to_owned()), ArgoGoal::Advanced));
    }

    #[test]
    fn a_later_plan_of_the_request_ends_no_other_pause() {
        let first = plan(&rollout("", "", PAUSE), false);
        let input = PlanInput { decision_etag: first.decision_etag, ..PlanInput::example() };
        assert!(decide(&rollout("", "", PAUSE), false, &input).is_ok());
        let later = PAUSE.replace("11:00:00", "11:30:00");
        let mut of_next_step = rollout("", "", PAUSE);
        of_next_step.data["status"]["currentStepIndex"] = json!(2);
        for found in [
            rollout("", "", &later),
            rollout("", "", "controllerPause: true"),
            rollout("", ", paused: true", PAUSE),
            of_next_step,
        ] {
            let refusal = decide(&found, false, &input).expect_err("is refused");
            assert_eq!(refusal.code, Code::PreconditionFailed, "{}", refusal.detail);
        }
    }

    #[test]
    fn the_same_request_is_not_applied_again() {
        let manager = request_manager("r1@d1");
        let managed = format!(", managedFields: [{{manager: '{manager}', subresource: status}}]");
        // At the next pause already.
        let plan = plan(&rollout(&managed, "", PAUSE), false);
        assert!(matches!(plan.decision, Decision::AlreadyApplied(..)), "{:?}", plan.decision);
    }

    #[test]
    fn a_canary_without_a_verdict_goes_on_to_its_next_step() {
        let run = "canary: {currentStepAnalysisRunStatus: {status: Inconclusive}}";
        let plan = plan(&rollout("", "", &format!("{PAUSE}, {run}")), false);
        let (operations, _) = status_patch(&plan);
        for (field, value) in [("controllerPause", json!(false)), ("currentStepIndex", json!(2))] {
            let path = format!("/status/{field}");
            let change = json!({ "op": "add", "path": path, "value": value });
            assert!(operations.contains(&change), "{operations:?}");
        }
        assert!(plan.warnings.concat().contains("inconclusive"), "{:?}", plan.warnings);
    }

    #[test]
    fn a_full_promotion_skips_what_is_left() {
        let plan = plan(&rollout("", "", PAUSE), true);
        let (operations, _) = status_patch(&plan);
        let change = json!({ "op": "add", "path": "/status/promoteFull", "value": true });
        assert_eq!(operations.last(), Some(&change));
        assert!(plan.warnings[0].starts_with("the steps 2 to 3"), "{:?}", plan.warnings);
        let again = rollout("", "", &format!("{PAUSE}, promoteFull: true"));
        let again = decide(&again, true, &PlanInput::example()).expect("is planned");
        assert!(matches!(again.decision, Decision::NoOp(_)), "{:?}", again.decision);
    }

    #[test]
    fn a_pause_of_the_spec_is_ended_alone() {
        let held = rollout("", ", paused: true", PAUSE);
        let plan = plan(&held, false);
        let effect = plan.expect_change().0;
        let change = json!({ "op": "add", "path": "/spec/paused", "value": false });
        assert_eq!(effect.operations().last(), Some(&change));
        assert!(plan.warnings[0].contains("stays paused at step 2 of 3"), "{:?}", plan.warnings);
        assert_eq!(code(&held, true), Code::TargetPaused);
    }

    #[test]
    fn an_unpaused_aborted_or_unobserved_rollout_is_refused() {
        let mut unseen = rollout("", "", PAUSE);
        unseen.data["status"]["observedGeneration"] = json!("2");
        for (found, full, expected) in [
            (rollout("", "", "controllerPause: false"), false, Code::NoEffect),
            (rollout("", "", "abort: true"), false, Code::NoEffect),
            (rollout("", "", "abort: true"), true, Code::NoEffect),
            (unseen, false, Code::Conflict),
        ] {
            assert_eq!(code(&found, full), expected);
        }
        let mut done = rollout("", "", "controllerPause: false");
        done.data["status"]["stableRS"] = json!("new");
        assert_eq!(code(&done, true), Code::NoEffect);
    }

    #[test]
    fn the_switch_of_a_blue_green_update_is_warned_of() {
        let mut found = rollout("", "", PAUSE);
        found.data["spec"]["strategy"] = json!({ "blueGreen": { "activeService": "web" } });
        found.data["status"]["blueGreen"] = json!({ "activeSelector": "old" });
        let warnings = plan(&found, false).warnings;
        assert!(warnings.concat().contains("Service 'web' switches"), "{warnings:?}");
    }
}
