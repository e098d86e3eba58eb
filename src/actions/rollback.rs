//! `rollback`: rolls a workload back to an earlier revision, as `kubectl rollout undo` does.
//!
//! The restored template is exactly the old one: nothing is added to it, so that a Deployment uses its old
//! ReplicaSet again. "The previous revision" depends on the current template: if that changes while the
//! request is running, nothing is done.

use std::num::NonZeroU32;

use k8s_openapi::api::core::v1::Pod;
use kube::core::ObjectMeta;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    actions::{
        BoxFuture, CompletionSpec, Decision, Descriptor, Plan, PlanInput, Plannable, Preview,
        ignored,
        shared::{
            restart,
            rollout::{REVISIONS, Rollbackable, WORKLOADS, completion, refuse_paused},
        },
    },
    contract::{
        error::{ActionError, Code},
        names::{Namespace, ObjectName, null_is_default},
        response::{Target, rfc3339_millis},
    },
    k8s::{
        api::{
            client::Cluster,
            preflight::{self, Preflight},
        },
        applied_requests::AppliedRequests,
        effect::Effect,
        gitops,
        revisions::{History, LAST_APPLIED_ANNOTATION, Revision, RevisionSelector},
        rollout,
        workload::WorkloadKind,
    },
};

pub(crate) const DESCRIPTOR: Descriptor = Descriptor {
    name: "rollback",
    aliases: &[],
    description: "Roll a Deployment, StatefulSet or DaemonSet back to its previous revision, or to the \
                  one that to_revision names: its pod template (images, commands, environment) becomes \
                  what it was, and its pods are replaced. Replicas stay as they are. After a restart the \
                  previous revision differs only by that restart; skip_restarts selects the last one that \
                  differs in more. Refused for a paused Deployment.",
    takes_time: true,
    when: "the failure began with the latest revision",
    when_not: "a restart with the same image is enough, or the earlier revision cannot read newer data",
    destructive: true,
    example: r#"{"name":"web"}"#,
    rules: &[
        WORKLOADS,
        REVISIONS,
        // To name the pods that a StatefulSet would wait for, and the problems of the new pods when an
        // awaited rollout does not complete.
        restart::PODS,
        restart::EVENTS,
        preflight::AUTOSCALERS,
        preflight::PDBS,
        preflight::PVCS,
    ],
    cluster_rules: &[],
    integration: None,
};

/// What `rollback` acts upon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Parameters {
    /// The kind of workload.
    #[serde(default, deserialize_with = "null_is_default")]
    #[schemars(with = "Option<Rollbackable>")]
    pub kind: Rollbackable,
    /// The workload to roll back.
    pub name: ObjectName,
    /// Its namespace.
    #[serde(default, deserialize_with = "null_is_default")]
    #[schemars(with = "Option<Namespace>")]
    pub namespace: Namespace,
    /// The number of the revision to return to, as `kubectl rollout history` lists it; by default the
    /// previous one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to_revision: Option<NonZeroU32>,
    /// Regard as the previous revision the last one that differs in more than a restart.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub skip_restarts: bool,
    /// If the awaited rollout fails or times out, return the workload to the revision that it had. Only
    /// with `wait`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rollback_on_failure: bool,
}

impl Plannable for Parameters {
    fn target(&self) -> Target {
        WorkloadKind::from(self.kind).target(&self.namespace, &self.name)
    }

    fn namespace(&self) -> &str {
        &self.namespace
    }

    fn warnings(&self) -> Vec<String> {
        let both = self.skip_restarts && self.to_revision.is_some();
        let ignored = both.then(|| ignored("skip_restarts", "a rollback with to_revision"));
        ignored.into_iter().collect()
    }

    fn rollback_on_failure(&self) -> bool {
        self.rollback_on_failure
    }

    fn preview(&self, input: &PlanInput) -> Preview {
        let to = match self.to_revision {
            Some(number) => format!("revision {number}"),
            None => "its previous revision".to_owned(),
        };
        let kind = WorkloadKind::from(self.kind).name();
        Preview {
            result: format!("Simulated: {kind} '{}' would be rolled back to {to}.", self.name),
            changes: vec![AppliedRequests::default().change(&input.mark)],
        }
    }

    fn plan<'a>(&'a self, cluster: &'a Cluster, input: &'a PlanInput) -> BoxFuture<'a, Plan> {
        Box::pin(async move {
            let (kind, namespace) = (self.kind.into(), &self.namespace);
            let (history, preflight) = tokio::join!(
                cluster.history(kind, namespace, &self.name, input.deadline),
                Preflight::of(cluster, kind, namespace, input.deadline),
            );
            let mut history = history?;
            let pods = if history.workload.keeps_order() {
                let selector = history.workload.label_selector();
                cluster.list::<Pod>(namespace, &selector, input.deadline).await?
            } else {
                Vec::new()
            };
            let mut plan = self.decide(&history, &pods, input)?;
            while let Some(same) = self.unchanging_revision(cluster, &plan, &history, input).await {
                history.note_same(&same);
                plan = self.decide(&history, &pods, input)?;
            }
            Ok(plan.with_preflight_warnings(&preflight, &history.workload, input))
        })
    }
}

impl Parameters {
    /// The name of the revision that the plan restores, if the API server says that it is the current one: it adds
    /// the defaults that a ControllerRevision of an earlier Kubernetes lacks. ReplicaSets have them.
    async fn unchanging_revision(
        &self,
        cluster: &Cluster,
        plan: &Plan,
        history: &History,
        input: &PlanInput,
    ) -> Option<String> {
        let (Decision::Apply { effect, .. }, false) =
            (&plan.decision, history.workload.kind() == WorkloadKind::Deployment)
        else {
            return None;
        };
        // If it fails, the real one says why.
        let tried = cluster.apply(effect, true, input.deadline).await.ok()?;
        let is_unchanged = tried.generation.is_some() && tried.generation == plan.found.generation;
        is_unchanged.then(|| self.target_revision(history).ok()).flatten().map(|it| it.name.clone())
    }

    fn decide(
        &self,
        history: &History,
        pods: &[Pod],
        input: &PlanInput,
    ) -> Result<Plan, ActionError> {
        let (target, workload) = (self.target(), &history.workload);
        let (kind, found) = (workload.kind(), workload.metadata());
        if input.has_changed(found)? {
            let sentence = format!("{} '{}' was rolled back.", kind.name(), self.name);
            let completion = completion(workload, input.template_left(found, history.template()));
            return Ok(Plan::already_applied(target, found, sentence, completion));
        }
        input.check_found(&target, found)?;
        let with_uid = |refusal: ActionError| refusal.object_uid(found.uid.as_deref());
        refuse_paused(&target, workload).map_err(with_uid)?;
        if self.to_revision.is_none() || self.rollback_on_failure {
            input.check_decided_on(&target, history).map_err(with_uid)?;
        }
        let revision = self.target_revision(history).map_err(with_uid)?;
        let (name, number) = (&self.name, revision.number);
        if history.is_at(revision) {
            let sentence = format!("{} '{name}' is at revision {number} already.", kind.name());
            // Its template may be written in another form than the current one.
            let completion = completion(workload, Some(history.digest()));
            return Ok(Plan::new(target, found, Decision::NoOp(sentence), completion));
        }
        let completion = completion(workload, Some(revision.digest()));
        let (precondition, restore) =
            (input.precondition.as_ref(), history.operations_to(revision));
        let rolls_out = matches!(completion, CompletionSpec::Rollout(_));
        let returns = self.rollback_on_failure && rolls_out;
        let mark = input.mark_for(history.rollback_target().filter(|_| returns).as_ref());
        let effect = Effect::patch(kind.resource(), found, &mark, precondition, restore);
        let to = format!("rolled back to revision {number}");
        let did = format!("{} '{name}' {to} at {}.", kind.name(), rfc3339_millis(input.at));
        let would = format!("Simulated: {} '{name}' would be {to}.", kind.name());
        let decision = Decision::apply(effect, did, would);
        let mut plan = Plan::new(target, found, decision, completion);
        plan.changes = history.changes_to(revision);
        plan.changes.push(AppliedRequests::from_metadata(found).change(&mark));
        plan.warnings = self.warnings_of(history, revision, pods);
        // The previous revision may be another one in a later plan; a number is always the same one.
        plan.decision_etag = self.to_revision.is_none().then(|| history.digest());
        if returns {
            plan = plan.with_rollback_target(history)?;
        }
        Ok(plan)
    }

    fn target_revision<'a>(&self, history: &'a History) -> Result<&'a Revision, ActionError> {
        let wanted = match self.to_revision {
            Some(number) => RevisionSelector::Number(number.get().into()),
            None if self.skip_restarts => RevisionSelector::PreviousThatDiffers,
            None => RevisionSelector::Previous,
        };
        history.find(wanted).ok_or_else(|| {
            let (target, kind) = (self.target(), WorkloadKind::from(self.kind));
            let detail = match wanted {
                RevisionSelector::Number(number) => format!("{target} has no revision {number}"),
                RevisionSelector::Previous => format!("{target} has no earlier revision"),
                RevisionSelector::PreviousThatDiffers => {
                    format!("{target} has no revision that differs in more than a restart")
                }
            };
            let detail = match history.workload.revision_history_limit() {
                Some(0) => format!("{detail}: its revisionHistoryLimit is 0, so none is kept"),
                _ => detail,
            };
            let numbers: Vec<_> = history.numbers().iter().map(i64::to_string).collect();
            ActionError::new(Code::NoRevision, detail).with_hint(format!(
                "existing revisions: {}; `kubectl -n {} rollout history {}/{}` lists them",
                if numbers.is_empty() { "none".to_owned() } else { numbers.join(", ") },
                self.namespace,
                kind.for_kubectl(),
                self.name
            ))
        })
    }

    fn warnings_of(&self, history: &History, revision: &Revision, pods: &[Pod]) -> Vec<String> {
        let (workload, number) = (&history.workload, revision.number);
        let mut warnings = Vec::new();
        if self.to_revision.is_none() && history.differs_by_restarts_alone(revision) {
            let really = match history.find(RevisionSelector::PreviousThatDiffers) {
                Some(other) => format!(
                    "revision {} is the last that differs in more (parameters.skip_restarts)",
                    other.number
                ),
                None => "none differs in more".to_owned(),
            };
            warnings.push(format!(
                "revision {number} differs from the current one only by a restart; {really}"
            ));
        }
        if let Some(why) = rollout::manual_update_reason(workload) {
            warnings.push(format!(
                "no pod is replaced automatically: {why}; a pod gets revision {number} once it is deleted"
            ));
        }
        warnings.extend(gitops::undo_warnings(workload.metadata(), "the pod template"));
        warnings.extend(applied_by_kubectl_warning(workload.metadata()));
        let stuck = history.stuck(revision, pods);
        if !stuck.is_empty() {
            warnings.push(rollout::stuck_pods_warning(&stuck));
        }
        warnings
    }
}

/// As kubectl 1.37 warns (`pkg/cmd/rollout/rollout_undo.go`).
fn applied_by_kubectl_warning(metadata: &ObjectMeta) -> Option<String> {
    metadata.annotations.as_ref()?.get(LAST_APPLIED_ANNOTATION)?;
    Some(format!(
        "it was managed with `kubectl apply`, and the rollback does not change the annotation \
         {LAST_APPLIED_ANNOTATION}: the next `kubectl apply` may undo the rollback or have other unexpected effects; \
         consider to apply the earlier configuration instead"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::k8s::{completion::Completion, effect::Applied};

    const OWNED: &str = "ownerReferences: [{apiVersion: apps/v1, kind: X, name: web, uid: u1, \
                         controller: true}]";

    fn template(image: &str, annotations: &str) -> String {
        format!(
            "{{metadata: {{labels: {{app: web}}{annotations}}}, \
             spec: {{containers: [{{name: app, image: 'app:{image}'}}]}}}}"
        )
    }

    /// A Deployment with `spec` and metadata as given, which was `app:1` and is `app:2`.
    fn deployment(spec: &str, metadata: &str) -> History {
        let kept = |number: &str| {
            format!(
                "metadata: {{name: web-{number}, {OWNED}, annotations: \
                 {{deployment.kubernetes.io/revision: '{number}'}}}}\nspec: {{template: {}}}",
                template(number, "")
            )
        };
        History::example(
            WorkloadKind::Deployment,
            &format!(
                "metadata: {{name: web, namespace: shop, uid: u1, resourceVersion: '7', generation: 3, \
                 {metadata}}}\nspec: {{selector: {{}}, template: {}{spec}}}",
                template("2", "")
            ),
            &[&kept("1"), &kept("2")],
        )
    }

    /// A StatefulSet that was `app:1` and is `app:2`.
    fn stateful_set(spec: &str) -> History {
        let kept = |number: &str| {
            format!(
                "metadata: {{name: web-{number}, {OWNED}}}\nrevision: {number}\n\
                 data: {{spec: {{template: {}}}}}",
                template(number, ", creationTimestamp: null")
            )
        };
        History::example(
            WorkloadKind::StatefulSet,
            &format!(
                "metadata: {{name: web, namespace: shop, uid: u1, resourceVersion: '7', generation: 3}}\n\
                 spec: {{replicas: 3, selector: {{}}, serviceName: web, template: {}{spec}}}",
                template("2", "")
            ),
            &[&kept("1"), &kept("2")],
        )
    }

    fn parameters(more: &str) -> Parameters {
        serde_yaml_ng::from_str(&format!("{{name: web, namespace: shop{more}}}"))
            .expect("are parameters")
    }

    fn plan(more: &str, history: &History) -> Result<Plan, ActionError> {
        parameters(more).decide(history, &[], &PlanInput::example())
    }

    #[test]
    fn a_rollback_is_one_patch_bound_to_the_object() {
        let plan = plan("", &deployment("", "")).expect("is planned");
        let (effect, did, would) = plan.expect_change();
        let operations = effect.operations();
        let restored = operations.last().expect("is an operation");
        assert_eq!((&restored["op"], &restored["path"]), (&"add".into(), &"/spec/template".into()));
        assert_eq!(restored["value"]["spec"]["containers"][0]["image"], "app:1");
        let generation = serde_json::json!({
            "op": "test", "path": "/metadata/generation", "value": 3,
        });
        assert!(operations.contains(&generation), "{operations:?}");
        assert_eq!(did, "Deployment 'web' rolled back to revision 1 at 2026-01-31T12:00:00.987Z.");
        assert_eq!(would, "Simulated: Deployment 'web' would be rolled back to revision 1.");
        assert!(plan.warnings.is_empty(), "{:?}", plan.warnings);
        let CompletionSpec::Rollout(rollout) = plan.completion else { panic!("is waited for") };
        let history = deployment("", "");
        let first = history.find(RevisionSelector::Number(1)).expect("is there");
        assert_eq!(rollout.template, Some(first.digest()));
    }

    #[test]
    fn a_workload_that_is_at_the_revision_is_left() {
        let plan = plan(", to_revision: 2", &deployment("", "")).expect("is planned");
        assert!(
            matches!(plan.decision, Decision::NoOp(what) if what.contains("at revision 2 already"))
        );
    }

    #[test]
    fn a_missing_revision_is_refused_with_the_existing_ones() {
        let refusal = plan(", to_revision: 7", &deployment("", "")).expect_err("is refused");
        assert_eq!(refusal.code, Code::NoRevision);
        assert!(refusal.detail.contains("no revision 7"), "{}", refusal.detail);
        let hint = refusal.hint.expect("has one");
        assert!(
            hint.contains("existing revisions: 2, 1") && hint.contains("history deployment/web"),
            "{hint}"
        );
    }

    #[test]
    fn a_paused_deployment_is_refused() {
        let refusal = plan("", &deployment(", paused: true", "")).expect_err("is refused");
        assert_eq!(refusal.code, Code::TargetPaused);
    }

    #[test]
    fn a_request_is_not_applied_twice() {
        let marked =
            deployment("", "annotations: {action-executor.dev/requests: '4:r0@d0 5:r1@d1'}");
        let plan = plan("", &marked).expect("is planned");
        assert!(matches!(
            plan.decision,
            Decision::AlreadyApplied(Applied { generation: Some(3), .. }, _)
        ));
    }

    #[test]
    fn the_previous_revision_depends_on_the_template_of_the_first_plan() {
        let history = deployment("", "");
        let decision_etag = plan("", &history).expect("is planned").decision_etag;
        let again = |decision_etag: &str, more: &str| {
            let decision_etag = Some(decision_etag.to_owned());
            parameters(more).decide(
                &history,
                &[],
                &PlanInput { decision_etag, ..PlanInput::example() },
            )
        };
        assert!(again(&decision_etag.expect("is known"), "").is_ok());
        let refusal = again("of another", "").expect_err("is refused");
        assert_eq!(refusal.code, Code::PreconditionFailed);
        // A number is always the same revision.
        assert!(again("of another", ", to_revision: 1").is_ok());
    }

    #[test]
    fn the_current_revision_is_recorded_with_rollback_on_failure() {
        let history = deployment("", "");
        let rollback_target =
            |more: &str| plan(more, &history).expect("is planned").rollback_target;
        assert_eq!(rollback_target(""), None);
        let present = rollback_target(", rollback_on_failure: true").expect("is known");
        assert_eq!((present.revision.as_str(), present.number), ("web-2", 2));
        // Then even a plan with a number depends on the current template.
        let more = ", to_revision: 1, rollback_on_failure: true";
        let input =
            PlanInput { decision_etag: Some("of another".to_owned()), ..PlanInput::example() };
        let refusal = parameters(more).decide(&history, &[], &input).expect_err("is refused");
        assert_eq!(refusal.code, Code::PreconditionFailed);
    }

    #[test]
    fn a_rollback_that_is_reverted_or_replaces_no_pod_is_warned_of() {
        let warnings = |more: &str, history: &History| {
            plan(more, history).expect("is planned").warnings.join("; ")
        };
        let argo = deployment("", "labels: {argocd.argoproj.io/instance: shop}");
        assert!(warnings("", &argo).contains("Argo CD (application 'shop') will revert it"));
        let more = ", kind: StatefulSet";
        let held = stateful_set(", updateStrategy: {type: OnDelete}");
        assert!(warnings(more, &held).contains("no pod is replaced automatically"));
        let plan = plan(more, &held).expect("is planned");
        assert!(matches!(plan.completion, CompletionSpec::Known(Completion::Immediate(_))));
    }

    #[test]
    fn the_pods_that_a_stateful_set_would_wait_for_are_warned_of() {
        let pod = |name: &str, ready: &str, hash: &str| -> Pod {
            serde_yaml_ng::from_str(&format!(
                "metadata: {{name: {name}, {OWNED}, labels: {{controller-revision-hash: {hash}}}}}\n\
                 status: {{conditions: [{{type: Ready, status: '{ready}'}}]}}"
            ))
            .expect("is a pod")
        };
        let pods = [
            pod("web-0", "True", "web-1"),
            pod("web-1", "False", "web-1"),
            pod("web-2", "False", "web-2"),
        ];
        let warnings = |spec: &str| {
            let parameters = parameters(", kind: StatefulSet");
            let plan = parameters.decide(&stateful_set(spec), &pods, &PlanInput::example());
            plan.expect("is planned").warnings.join("; ")
        };
        assert!(warnings("").starts_with("pod web-2 is not ready"), "{}", warnings(""));
        assert_eq!(warnings(", podManagementPolicy: Parallel"), "");
    }

    #[test]
    fn a_previous_revision_that_differs_by_a_restart_only_is_warned_of() {
        let kept = |number: &str, template: &str| {
            format!(
                "metadata: {{name: web-{number}, {OWNED}, annotations: \
                 {{deployment.kubernetes.io/revision: '{number}'}}}}\nspec: {{template: {template}}}"
            )
        };
        let restarted = template("2", ", annotations: {kubectl.kubernetes.io/restartedAt: now}");
        let history = History::example(
            WorkloadKind::Deployment,
            &format!(
                "metadata: {{name: web, uid: u1}}\nspec: {{selector: {{}}, template: {restarted}}}"
            ),
            &[
                &kept("1", &template("1", "")),
                &kept("2", &template("2", "")),
                &kept("3", &restarted),
            ],
        );
        let planned = plan("", &history).expect("is planned");
        assert!(planned.warnings[0].contains("revision 1 is the last that differs in more"));
        let planned = plan(", skip_restarts: true", &history).expect("is planned");
        let did = planned.expect_change().1;
        assert!(did.contains("to revision 1") && planned.warnings.is_empty(), "{did}");
    }
}
