//! What the changes of a workload's pod template have in common: the workload is read with its revisions if a failed
//! rollout is to be rolled back, and the same warnings apply. Must not depend on one action.

use json_patch::PatchOperation;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    actions::{CompletionSpec, Decision, Plan, PlanInput},
    contract::{
        error::{ActionError, Code},
        response::{Change, Target},
    },
    k8s::{
        api::{client::Cluster, preflight::Preflight},
        applied_requests::AppliedRequests,
        completion::{Completion, RolloutOf},
        conditional_patch::after,
        effect::Effect,
        rbac::PolicyRule,
        revisions::{History, RollbackTarget, template_digest},
        rollout,
        workload::{Workload, WorkloadKind},
    },
};

/// The RBAC rule to change the pod template of a workload that keeps its revisions.
pub(crate) const WORKLOADS: PolicyRule = PolicyRule {
    api_groups: &["apps"],
    resources: &["deployments", "statefulsets", "daemonsets"],
    verbs: &["get", "patch", "watch"],
};

/// The RBAC rule to read their revisions: the one to return to, and with wait the newest one.
pub(crate) const REVISIONS: PolicyRule = PolicyRule {
    api_groups: &["apps"],
    resources: &["replicasets", "controllerrevisions"],
    verbs: &["list"],
};

/// A kind of workload that keeps its revisions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Rollbackable {
    /// Deployment
    #[default]
    Deployment,
    /// StatefulSet
    StatefulSet,
    /// DaemonSet
    DaemonSet,
}

impl From<Rollbackable> for WorkloadKind {
    fn from(kind: Rollbackable) -> Self {
        match kind {
            Rollbackable::Deployment => WorkloadKind::Deployment,
            Rollbackable::StatefulSet => WorkloadKind::StatefulSet,
            Rollbackable::DaemonSet => WorkloadKind::DaemonSet,
        }
    }
}

/// Which workload is read, and for what.
pub(crate) struct Read<'a> {
    pub target: &'a Target,
    pub kind: WorkloadKind,
    pub rollback_on_failure: bool,
}

/// Reads the workload, and plans what `decide` decides from it, its pod template with unknown fields, and the revision
/// to return to.
pub(crate) async fn plan(
    read: Read<'_>,
    cluster: &Cluster,
    input: &PlanInput,
    decide: impl Fn(&Workload, &Value, Option<&RollbackTarget>) -> Result<Plan, ActionError>,
) -> Result<Plan, ActionError> {
    let nothing = std::future::ready(());
    plan_beside(read, nothing, cluster, input, |found, template, revision, ()| {
        decide(found, template, revision)
    })
    .await
}

/// The same with what is read `beside` the workload.
pub(crate) async fn plan_beside<T>(
    read: Read<'_>,
    beside: impl Future<Output = T>,
    cluster: &Cluster,
    input: &PlanInput,
    decide: impl FnOnce(&Workload, &Value, Option<&RollbackTarget>, T) -> Result<Plan, ActionError>,
) -> Result<Plan, ActionError> {
    let Read { target, kind, rollback_on_failure } = read;
    let (namespace, name) = (&target.namespace, &target.name);
    let preflight = Preflight::of(cluster, kind, namespace, input.deadline);
    let (plan, found, preflight) = if rollback_on_failure {
        let history = cluster.history(kind, namespace, name, input.deadline);
        let (history, preflight, beside) = tokio::join!(history, preflight, beside);
        let history = history?;
        let revision = history.rollback_target();
        let plan = decide(&history.workload, history.template(), revision.as_ref(), beside)?;
        (with_rollback_target(plan, &history, input)?, history.workload, preflight)
    } else {
        let found = cluster.workload_and_template(kind, namespace, name, input.deadline);
        let (found, preflight, beside) = tokio::join!(found, preflight, beside);
        let (found, template) = found?;
        (decide(&found, &template, None, beside)?, found, preflight)
    };
    let mut plan = plan.with_preflight_warnings(&preflight, &found, input);
    if plan.is_change() {
        plan.warnings.extend(cluster.order_warning(&found, None, input.deadline).await);
    }
    Ok(plan)
}

/// The plan with the revision to return to. An effect that was applied before has its own, and without a
/// rollout nothing can fail.
fn with_rollback_target(
    plan: Plan,
    history: &History,
    input: &PlanInput,
) -> Result<Plan, ActionError> {
    let rolls_out = matches!(plan.completion, CompletionSpec::Rollout(_));
    if !rolls_out || !plan.is_change() {
        return Ok(plan);
    }
    let with_uid = |refusal: ActionError| refusal.object_uid(plan.target.uid.as_deref());
    input.check_decided_on(&plan.target, history).map_err(with_uid)?;
    plan.with_rollback_target(history)
}

/// Where the spec of the pods is in a workload.
pub(crate) const POD_SPEC: [&str; 3] = ["spec", "template", "spec"];

/// A change of a workload's pod template, and the sentences about it.
pub(crate) struct TemplateChange {
    pub operations: Vec<PatchOperation>,
    pub changes: Vec<Change>,
    pub did: String,
    pub would: String,
}

impl TemplateChange {
    /// The plan that makes it, without warnings.
    pub(crate) fn plan(
        self,
        target: Target,
        workload: &Workload,
        template: &Value,
        rollback_target: Option<&RollbackTarget>,
        input: &PlanInput,
    ) -> Plan {
        let TemplateChange { operations, mut changes, did, would } = self;
        let (found, mark) = (workload.metadata(), input.mark_for(rollback_target));
        let after = template_after(template, &operations);
        let completion = completion(workload, Some(template_digest(&after)));
        let (resource, precondition) = (workload.kind().resource(), input.precondition.as_ref());
        let effect = Effect::patch(resource, found, &mark, precondition, operations);
        changes.push(AppliedRequests::from_metadata(found).change(&mark));
        let decision = Decision::apply(effect, did, would);
        Plan { changes, ..Plan::new(target, found, decision, completion) }
    }
}

/// The template after these operations on the workload.
pub(crate) fn template_after(template: &Value, operations: &[PatchOperation]) -> Value {
    let workload = json!({ "spec": { "template": template } });
    after(workload, operations)["spec"]["template"].take()
}

/// When a change of the pod template is complete; `template` is the digest of the new one. Where no pod is replaced
/// automatically it is complete at once.
pub(crate) fn completion(workload: &Workload, template: Option<String>) -> CompletionSpec {
    match rollout::manual_update_reason(workload) {
        Some(why) => CompletionSpec::Known(Completion::Immediate(format!(
            "the template is changed; a pod gets it once the old one is deleted: {why}"
        ))),
        None => CompletionSpec::Rollout(RolloutOf { kind: workload.kind(), template }),
    }
}

/// Refuses a paused Deployment: its template would be stored, and no pod replaced.
///
/// # Errors
/// [`Code::TargetPaused`].
pub(crate) fn refuse_paused(target: &Target, workload: &Workload) -> Result<(), ActionError> {
    if !workload.is_paused() {
        return Ok(());
    }
    let Target { kind, namespace, name, .. } = target;
    let detail =
        format!("{kind} '{name}' in namespace '{namespace}' is paused; no pod would be replaced");
    Err(ActionError::new(Code::TargetPaused, detail)
        .with_hint(format!("`kubectl -n {namespace} rollout resume deployment/{name}` resumes it")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A Deployment whose ReplicaSet `web-1` has this template.
    fn history(kept: &str) -> History {
        let replica_set = format!(
            "metadata: {{name: web-1, annotations: {{deployment.kubernetes.io/revision: '5'}}, \
             ownerReferences: [{{apiVersion: apps/v1, kind: Deployment, name: web, uid: u1, controller: \
             true}}]}}\nspec: {{template: {kept}}}"
        );
        let deployment = "metadata: {name: web, namespace: shop, uid: u1, resourceVersion: '7', generation: 3}\n\
                          spec: {selector: {}, template: {}}";
        History::example(WorkloadKind::Deployment, deployment, &[&replica_set])
    }

    #[test]
    fn the_revision_to_return_to_is_recorded_before_the_change() {
        let plan = |history: &History, input: &PlanInput| {
            let (target, found) =
                (WorkloadKind::Deployment.target("shop", "web"), history.workload.metadata());
            let effect =
                Effect::patch(WorkloadKind::Deployment.resource(), found, "m", None, vec![]);
            let decision = Decision::apply(effect, String::new(), String::new());
            let plan = Plan::new(target, found, decision, completion(&history.workload, None));
            with_rollback_target(plan, history, input)
        };
        let history_of_it = history("{}");
        let planned = plan(&history_of_it, &PlanInput::example()).expect("is planned");
        assert_eq!(planned.rollback_target.expect("is known").number, 5);
        // The controller has not recorded the current template yet.
        let unknown = history("{spec: {}}");
        let refusal = plan(&unknown, &PlanInput::example()).expect_err("is refused");
        assert_eq!(refusal.code, Code::Conflict);
        assert!(refusal.retry_after_seconds().is_some());
        // The template changed since the first plan.
        let input =
            PlanInput { decision_etag: Some("of another".to_owned()), ..PlanInput::example() };
        let refusal = plan(&history_of_it, &input).expect_err("is refused");
        assert_eq!(refusal.code, Code::PreconditionFailed);
    }
}
