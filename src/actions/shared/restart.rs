//! What the restarts of a Deployment, a StatefulSet and a DaemonSet have in common: the stamp on the pod
//! template that `kubectl rollout restart` writes, what makes it useless, and what to warn of.

use crate::{
    actions::{CompletionSpec, Decision, Plan, PlanInput, Preview},
    contract::{
        error::{ActionError, Code},
        response::{Change, Target, rfc3339_millis},
    },
    k8s::{
        api::{
            client::Cluster,
            completion::{Completion, RolloutOf, TemplateIdentity},
            mutation::Effect,
        },
        applied_requests::AppliedRequests,
        rbac::PolicyRule,
        restart,
        revisions::History,
        rollout,
        workload::{Workload, WorkloadKind},
    },
};

/// What can be said without a cluster.
pub(crate) fn preview(kind: WorkloadKind, name: &str, asked: &PlanInput) -> Preview {
    let mut changes = restart::changes(None, asked.at, &asked.id);
    changes.push(AppliedRequests::default().change(&asked.id));
    Preview { result: would(kind, name), changes }
}

/// Only to say what the pods' own trouble is when what is waited for does not come.
pub(crate) const PODS: PolicyRule =
    PolicyRule { api_groups: &[""], resources: &["pods"], verbs: &["list"] };

/// What is asked for beside the restart itself.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RestartOptions {
    /// Stamp the template also where no pod would be replaced by itself.
    pub even_if_none_restarts: bool,
    /// Go back to the present revision if the rollout fails.
    pub rollback_on_failure: bool,
}

/// Reads the workload, with its revisions where one of them may be gone back to, and decides.
pub(crate) async fn plan(
    target: Target,
    kind: WorkloadKind,
    wishes: RestartOptions,
    cluster: &Cluster,
    asked: &PlanInput,
) -> Result<Plan, ActionError> {
    let (namespace, name) = (target.namespace.clone(), target.name.clone());
    let (plan, found) = if wishes.rollback_on_failure {
        let history = cluster.history(kind, &namespace, &name, asked.deadline).await?;
        let plan = decide(target, &history.workload, wishes.even_if_none_restarts, asked)?;
        (with_fallback(plan, &history, asked)?, history.workload)
    } else {
        let found = cluster.workload(kind, &namespace, &name, asked.deadline).await?;
        (decide(target, &found, wishes.even_if_none_restarts, asked)?, found)
    };
    Ok(plan.with_preflight_warnings(cluster, &found, asked).await)
}

/// The plan with the revision to go back to. What was made already has its own, and what nobody waits for
/// does not fail.
fn with_fallback(plan: Plan, history: &History, asked: &PlanInput) -> Result<Plan, ActionError> {
    let rolls_out = matches!(plan.completion, CompletionSpec::Rollout(_));
    if !rolls_out || !matches!(plan.decision, Decision::Apply(..)) {
        return Ok(plan);
    }
    let about = |refusal: ActionError| refusal.object_uid(plan.target.uid.as_deref());
    asked.check_decided_on(&plan.target, history).map_err(about)?;
    plan.with_fallback(history)
}

/// From the workload as it was read to what is to be done. `even_if_none_restarts`: also where no pod
/// would be replaced by itself.
pub(crate) fn decide(
    target: Target,
    workload: &Workload,
    even_if_none_restarts: bool,
    asked: &PlanInput,
) -> Result<Plan, ActionError> {
    let (kind, found) = (workload.kind(), workload.metadata());
    let held = rollout::manual_update_reason(workload);
    let completion = match &held {
        Some(why) => CompletionSpec::Known(Completion::Immediate(format!(
            "the template is stamped, and pods are new once somebody deletes the old ones: {why}"
        ))),
        None => {
            let template = TemplateIdentity::RequestId(asked.id.to_string());
            CompletionSpec::Rollout(RolloutOf { kind, template })
        }
    };
    let did = done(kind, &target.name, asked);
    if AppliedRequests::from_metadata(found).contains(&asked.id) {
        return Ok(Plan::already_made(target, found, did, completion));
    }
    asked.check_found(&target, found)?;
    refuse_what_would_not_restart(&target, workload, held, even_if_none_restarts)
        .map_err(|refusal| refusal.object_uid(found.uid.as_deref()))?;
    let patch = restart::patch(asked.at, &asked.id);
    let effect = Effect::patch(kind.resource(), found, &asked.id, patch);
    let todo = Decision::Apply(Box::new(effect), did, would(kind, &target.name));
    let mut plan = Plan::new(target, found, todo, completion);
    plan.changes = changes(workload, asked);
    Ok(plan)
}

/// What the restart changes, and the mark that every change leaves.
fn changes(workload: &Workload, asked: &PlanInput) -> Vec<Change> {
    let mut changes = restart::changes(Some(workload), asked.at, &asked.id);
    changes.push(AppliedRequests::from_metadata(workload.metadata()).change(&asked.id));
    changes
}

fn done(kind: WorkloadKind, name: &str, asked: &PlanInput) -> String {
    format!("{} '{name}' restarted at {}.", kind.name(), rfc3339_millis(asked.at))
}

fn would(kind: WorkloadKind, name: &str) -> String {
    format!("Simulated: {} '{name}' would be restarted.", kind.name())
}

/// kubectl refuses a paused Deployment too: the patch would be stored and no pod restarted. It does not
/// notice that `OnDelete`, or a partition above all pods, has the same effect.
fn refuse_what_would_not_restart(
    target: &Target,
    workload: &Workload,
    held: Option<String>,
    even_if_none_restarts: bool,
) -> Result<(), ActionError> {
    let Target { kind, namespace, name, .. } = target;
    if workload.is_paused() {
        return Err(ActionError::new(
            Code::TargetPaused,
            format!("{kind} '{name}' in namespace '{namespace}' is paused; no pod would restart"),
        )
        .with_hint(format!(
            "`kubectl -n {namespace} rollout resume deployment/{name}` resumes it"
        )));
    }
    match held {
        Some(why) if !even_if_none_restarts => Err(ActionError::new(
            Code::NoEffect,
            format!("no pod of {kind} '{name}' in namespace '{namespace}' would restart: {why}"),
        )
        .with_hint(
            "delete its pods one by one with restart_pod, or set parameters.accept_on_delete to \
             stamp the template all the same",
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, StatefulSet};

    use super::*;
    use crate::{
        contract::precondition::Precondition,
        k8s::api::mutation::{Applied, Mutation},
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

    fn decide_on(workload: &Workload, asked: &PlanInput) -> Result<Plan, ActionError> {
        decide(workload.kind().target("shop", "web"), workload, false, asked)
    }

    fn decide_on_deployment(spec: &str, asked: &PlanInput) -> Result<Plan, ActionError> {
        decide_on(&deployment(spec, "{}"), asked)
    }

    #[test]
    fn plans_one_patch_bound_to_the_object() {
        let plan =
            decide_on_deployment(", replicas: 2", &PlanInput::example()).expect("is planned");
        let Decision::Apply(effect, did, would) = plan.decision else {
            panic!("{:?}", plan.decision)
        };
        let Mutation::Patch { body, .. } = effect.mutation else { panic!("is no patch") };
        assert_eq!(body["metadata"]["uid"], "u1");
        assert_eq!(body["metadata"]["resourceVersion"], "7");
        assert_eq!(did, "Deployment 'web' restarted at 2026-01-31T12:00:00.987Z.");
        assert_eq!(would, "Simulated: Deployment 'web' would be restarted.");
    }

    #[test]
    fn refuses_a_paused_deployment() {
        let paused = ", replicas: 2, paused: true";
        let error = decide_on_deployment(paused, &PlanInput::example()).expect_err("refused");
        assert_eq!(error.code, Code::TargetPaused);
        assert!(error.hint.expect("has one").contains("rollout resume deployment/web"));
    }

    #[test]
    fn does_not_repeat_what_the_same_request_did() {
        let mark = "{action-executor.dev/requests: '4:r0 5:r1 6:r2'}";
        let marked = deployment(", replicas: 2", mark);
        let plan = decide_on(&marked, &PlanInput::example()).expect("is planned");
        assert!(matches!(
            plan.decision,
            Decision::AlreadyApplied(Applied { generation: Some(3), .. }, _)
        ));
    }

    #[test]
    fn refuses_another_object_than_the_request_means() {
        let wanting = |uid: Option<&str>, version: Option<&str>| {
            let opaque = |text: &str| text.to_owned().try_into().expect("is opaque");
            let precondition =
                Precondition { uid: uid.map(opaque), resource_version: version.map(opaque) };
            let asked = PlanInput { precondition: Some(precondition), ..PlanInput::example() };
            decide_on_deployment(", replicas: 2", &asked)
        };
        let error = wanting(Some("u2"), None).expect_err("is refused");
        assert_eq!(error.code, Code::PreconditionFailed);
        assert_eq!(error.field.as_deref(), Some("precondition.uid"));
        let error = wanting(Some("u1"), Some("6")).expect_err("is refused");
        assert_eq!(error.field.as_deref(), Some("precondition.resource_version"));
        assert!(wanting(Some("u1"), Some("7")).is_ok());
    }

    #[test]
    fn refuses_what_would_restart_no_pod_unless_that_is_accepted() {
        let agent: DaemonSet = serde_yaml_ng::from_str(&format!(
            "{}\nspec: {{selector: {{}}, template: {{}}, updateStrategy: {{type: OnDelete}}}}",
            metadata("{}")
        ))
        .expect("is a DaemonSet");
        for (workload, why) in [
            (stateful_set("{type: OnDelete}"), "OnDelete"),
            (stateful_set("{type: RollingUpdate, rollingUpdate: {partition: 3}}"), "holds all 3"),
            (agent.into(), "OnDelete"),
        ] {
            let refusal = decide_on(&workload, &PlanInput::example()).expect_err("is refused");
            assert_eq!(refusal.code, Code::NoEffect);
            assert!(refusal.detail.contains(why), "{}", refusal.detail);
            assert!(refusal.hint.expect("has one").contains("accept_on_delete"));
            let target = workload.kind().target("shop", "web");
            let plan = decide(target, &workload, true, &PlanInput::example()).expect("is planned");
            assert!(matches!(plan.decision, Decision::Apply(..)));
            // There is no rollout to wait for.
            assert!(matches!(plan.completion, CompletionSpec::Known(Completion::Immediate(_))));
        }
    }

    /// A Deployment whose ReplicaSet `web-1` has this template.
    fn history(kept: &str) -> History {
        let replica_set = format!(
            "metadata: {{name: web-1, annotations: {{deployment.kubernetes.io/revision: '5'}}, \
             ownerReferences: [{{apiVersion: apps/v1, kind: Deployment, name: web, uid: u1, controller: \
             true}}]}}\nspec: {{template: {kept}}}"
        );
        let deployment = format!("{}\nspec: {{selector: {{}}, template: {{}}}}", metadata("{}"));
        History::example(WorkloadKind::Deployment, &deployment, &[&replica_set])
    }

    #[test]
    fn knows_the_revision_to_go_back_to_before_it_restarts() {
        let plan = |history: &History, asked: &PlanInput| {
            let plan = decide_on(&history.workload, asked).expect("is planned");
            with_fallback(plan, history, asked)
        };
        let history_of_it = history("{}");
        let planned = plan(&history_of_it, &PlanInput::example()).expect("is planned");
        assert_eq!(planned.fallback.expect("is known").number, 5);
        // The controller has not recorded the present template yet.
        let unknown = history("{spec: {}}");
        let refusal = plan(&unknown, &PlanInput::example()).expect_err("is refused");
        assert_eq!(refusal.code, Code::Conflict);
        assert!(refusal.retry_after_seconds().is_some());
        // Another template than the one that it was decided on is somebody's who came in between.
        let asked =
            PlanInput { decision_etag: Some("of another".to_owned()), ..PlanInput::example() };
        let refusal = plan(&history_of_it, &asked).expect_err("is refused");
        assert_eq!(refusal.code, Code::PreconditionFailed);
    }
}
