//! What the restarts of a Deployment, a StatefulSet and a DaemonSet have in common: the annotation of the
//! pod template that `kubectl rollout restart` sets, and when it would restart no pod.

use serde_json::Value;

use crate::{
    actions::{
        Decision, Plan, PlanInput, Preview,
        shared::rollout::{self, completion, refuse_paused},
    },
    contract::{
        error::{ActionError, Code},
        response::{Change, Target, rfc3339_millis},
    },
    k8s::{
        api::client::Cluster,
        applied_requests::AppliedRequests,
        effect::Effect,
        gitops,
        rbac::PolicyRule,
        restart,
        revisions::{RollbackTarget, template_digest},
        rollout::manual_update_reason,
        workload::{Workload, WorkloadKind},
    },
};

pub(crate) fn preview(kind: WorkloadKind, name: &str, input: &PlanInput) -> Preview {
    let mut changes = restart::changes(None, input.at, &input.id);
    changes.push(AppliedRequests::default().change(&input.mark));
    Preview { result: would(kind, name), changes }
}

/// Only to report the pods' problems when an awaited effect does not complete, and the pods for which an ordered
/// StatefulSet waits.
pub(crate) const PODS: PolicyRule =
    PolicyRule { api_groups: &[""], resources: &["pods"], verbs: &["list"] };

/// Likewise for Warning Events, which alone say why some controllers create no pod.
pub(crate) const EVENTS: PolicyRule =
    PolicyRule { api_groups: &[""], resources: &["events"], verbs: &["list"] };

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RestartOptions {
    /// Annotate the template even if no pod would be replaced automatically.
    pub accept_no_restart: bool,
    pub rollback_on_failure: bool,
}

/// Reads the workload and decides.
pub(crate) async fn plan(
    target: Target,
    kind: WorkloadKind,
    options: RestartOptions,
    cluster: &Cluster,
    input: &PlanInput,
) -> Result<Plan, ActionError> {
    let RestartOptions { accept_no_restart, rollback_on_failure } = options;
    let decide = |found: &Workload, template: &Value, revision: Option<&RollbackTarget>| {
        decide(target.clone(), found, template, accept_no_restart, revision, input)
    };
    let read = rollout::Read { target: &target, kind, rollback_on_failure };
    rollout::plan(read, cluster, input, decide).await
}

/// `template` is the workload's, with unknown fields.
pub(crate) fn decide(
    target: Target,
    workload: &Workload,
    template: &Value,
    accept_no_restart: bool,
    rollback_target: Option<&RollbackTarget>,
    input: &PlanInput,
) -> Result<Plan, ActionError> {
    let (kind, found) = (workload.kind(), workload.metadata());
    let did = done_sentence(kind, &target.name, input);
    if input.has_changed(found)? {
        let completion = completion(workload, input.template_left(found, template));
        return Ok(Plan::already_applied(target, found, did, completion));
    }
    input.check_found(&target, found)?;
    refuse_paused(&target, workload)
        .and_then(|()| refuse_manual_update(&target, workload, accept_no_restart))
        .map_err(|refusal| refusal.object_uid(found.uid.as_deref()))?;
    let annotate = restart::operations(workload, input.at, &input.id);
    let (mark, precondition) = (input.mark_for(rollback_target), input.precondition.as_ref());
    let effect = Effect::patch(kind.resource(), found, &mark, precondition, annotate);
    let decision = Decision::apply(effect, did, would(kind, &target.name));
    let restarted = restart::template_after(template, input.at, &input.id);
    let completion = completion(workload, Some(template_digest(&restarted)));
    let mut plan = Plan::new(target, found, decision, completion);
    plan.changes = changes(workload, &mark, input);
    plan.warnings = gitops::undo_warnings(found, "the annotations of the pod template");
    Ok(plan)
}

fn changes(workload: &Workload, mark: &str, input: &PlanInput) -> Vec<Change> {
    let mut changes = restart::changes(Some(workload), input.at, &input.id);
    changes.push(AppliedRequests::from_metadata(workload.metadata()).change(mark));
    changes
}

fn done_sentence(kind: WorkloadKind, name: &str, input: &PlanInput) -> String {
    format!("{} '{name}' restarted at {}.", kind.name(), rfc3339_millis(input.at))
}

fn would(kind: WorkloadKind, name: &str) -> String {
    format!("Simulated: {} '{name}' would be restarted.", kind.name())
}

/// kubectl does not notice that with `OnDelete`, or a partition above all pods, no pod restarts.
fn refuse_manual_update(
    target: &Target,
    workload: &Workload,
    accept_no_restart: bool,
) -> Result<(), ActionError> {
    let Target { kind, namespace, name, .. } = target;
    match manual_update_reason(workload) {
        Some(why) if !accept_no_restart => Err(ActionError::new(
            Code::NoEffect,
            format!("no pod of {kind} '{name}' in namespace '{namespace}' would restart: {why}"),
        )
        .with_hint(
            "delete its pods one by one with restart_pod, or set parameters.accept_on_delete to \
             annotate the template anyway",
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, StatefulSet};
    use serde_json::json;

    use super::*;
    use crate::{
        actions::CompletionSpec,
        contract::precondition::Precondition,
        k8s::{completion::Completion, effect::Applied},
    };

    fn metadata(annotations: &str) -> String {
        format!(
            "metadata: {{name: web, namespace: shop, uid: u1, resourceVersion: '7', generation: 3, \
             annotations: {annotations}}}"
        )
    }

    /// A rolled-out Deployment with `spec` and annotations as given.
    fn deployment(spec: &str, annotations: &str) -> Workload {
        let deployment: Deployment = serde_yaml_ng::from_str(&format!(
            "{}\n\
             spec: {{selector: {{}}, template: {{}}{spec}}}\n\
             status: {{observedGeneration: 3, replicas: 2, updatedReplicas: 2, availableReplicas: 2}}",
            metadata(annotations)
        ))
        .expect("is a Deployment");
        deployment.into()
    }

    /// A rolled-out StatefulSet of three pods with this update strategy.
    fn stateful_set(strategy: &str) -> Workload {
        let set: StatefulSet = serde_yaml_ng::from_str(&format!(
            "{}\n\
             spec: {{replicas: 3, selector: {{}}, template: {{}}, updateStrategy: {strategy}}}\n\
             status: {{observedGeneration: 3, replicas: 3, readyReplicas: 3, updatedReplicas: 3}}",
            metadata("{}")
        ))
        .expect("is a StatefulSet");
        set.into()
    }

    fn decide_on(workload: &Workload, input: &PlanInput) -> Result<Plan, ActionError> {
        decide(workload.kind().target("shop", "web"), workload, &json!({}), false, None, input)
    }

    fn decide_on_deployment(spec: &str, input: &PlanInput) -> Result<Plan, ActionError> {
        decide_on(&deployment(spec, "{}"), input)
    }

    #[test]
    fn a_restart_is_one_patch_of_the_object_as_it_was_read() {
        let plan =
            decide_on_deployment(", replicas: 2", &PlanInput::example()).expect("is planned");
        let (effect, did, would) = plan.expect_change();
        let operations = serde_json::to_string(&effect.operations()).expect("is written");
        assert!(operations.contains(r#"{"op":"test","path":"/metadata/uid","value":"u1"}"#));
        assert!(operations.contains(r#"{"op":"test","path":"/metadata/generation","value":3}"#));
        assert!(operations.contains("kubectl.kubernetes.io/restartedAt"), "{operations}");
        assert_eq!(did, "Deployment 'web' restarted at 2026-01-31T12:00:00.987Z.");
        assert_eq!(would, "Simulated: Deployment 'web' would be restarted.");
    }

    #[test]
    fn a_paused_deployment_is_refused() {
        let paused = ", replicas: 2, paused: true";
        let error = decide_on_deployment(paused, &PlanInput::example()).expect_err("refused");
        assert_eq!(error.code, Code::TargetPaused);
        assert!(error.hint.expect("has one").contains("rollout resume deployment/web"));
    }

    #[test]
    fn a_request_is_not_applied_twice() {
        let mark = "{action-executor.dev/requests: '4:r0@d0 5:r1@d1 6:r2@d2'}";
        let marked = deployment(", replicas: 2", mark);
        let plan = decide_on(&marked, &PlanInput::example()).expect("is planned");
        assert!(matches!(
            plan.decision,
            Decision::AlreadyApplied(Applied { generation: Some(3), .. }, _)
        ));
    }

    #[test]
    fn an_object_that_does_not_match_the_precondition_is_refused() {
        let wanting = |uid: Option<&str>, version: Option<&str>| {
            let opaque = |text: &str| text.to_owned().try_into().expect("is opaque");
            let precondition =
                Precondition { uid: uid.map(opaque), resource_version: version.map(opaque) };
            let input = PlanInput { precondition: Some(precondition), ..PlanInput::example() };
            decide_on_deployment(", replicas: 2", &input)
        };
        let error = wanting(Some("u2"), None).expect_err("is refused");
        assert_eq!(error.code, Code::PreconditionFailed);
        assert_eq!(error.field.as_deref(), Some("precondition.uid"));
        let error = wanting(Some("u1"), Some("6")).expect_err("is refused");
        assert_eq!(error.field.as_deref(), Some("precondition.resource_version"));
        assert!(wanting(Some("u1"), Some("7")).is_ok());
    }

    #[test]
    fn a_workload_that_would_restart_no_pod_is_refused_unless_accepted() {
        let agent: DaemonSet = serde_yaml_ng::from_str(&format!(
            "{}\nspec: {{selector: {{}}, template: {{}}, updateStrategy: {{type: OnDelete}}}}",
            metadata("{}")
        ))
        .expect("is a DaemonSet");
        for (workload, why) in [
            (stateful_set("{type: OnDelete}"), "OnDelete"),
            (stateful_set("{type: RollingUpdate, rollingUpdate: {partition: 3}}"), "covers all 3"),
            (agent.into(), "OnDelete"),
        ] {
            let refusal = decide_on(&workload, &PlanInput::example()).expect_err("is refused");
            assert_eq!(refusal.code, Code::NoEffect);
            assert!(refusal.detail.contains(why), "{}", refusal.detail);
            assert!(refusal.hint.expect("has one").contains("accept_on_delete"));
            let target = workload.kind().target("shop", "web");
            let plan = decide(target, &workload, &json!({}), true, None, &PlanInput::example());
            let plan = plan.expect("is planned");
            assert!(matches!(plan.decision, Decision::Apply { .. }));
            // There is no rollout to wait for.
            assert!(matches!(plan.completion, CompletionSpec::Known(Completion::Immediate(_))));
        }
    }
}
