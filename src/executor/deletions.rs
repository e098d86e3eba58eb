//! Carries out a plan that deletes several pods, or has the API server try it.
//!
//! Each deletion is bound to the uid and the version of a finished pod, so it can be resent while its outcome is
//! unknown: at most one has an effect. Between two sends the pods are listed, and the limits are checked again. What is
//! deleted counts as applied only by the API server's response; a pod that is gone without one does not show who
//! deleted it.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::Duration,
};

use k8s_openapi::api::core::v1::Pod;
use tokio::time::{Instant, sleep};

use crate::{
    actions::{AffectedObject, CompletionSpec, Plan, PlanInput},
    contract::{
        counted::counted,
        error::{ActionError, Code},
        response::{Outcome, Rollout, RolloutState, rfc3339_millis},
    },
    executor::{
        apply::{Execution, Recheck},
        batch::{Batch, MAX_PODS_PER_MESSAGE, apply_each, warning},
        failpoint::Failpoint,
    },
    k8s::{
        api::{client::Cluster, mutation::ApplyError, retry},
        completion::Completion,
        effect::{Applied, Effect},
        pod_set::PodSet,
        pods,
    },
};

/// How many deletions are sent until policy and kill switch are checked again.
const MAX_DELETIONS_PER_CHECK: usize = 64;

/// What became of the deletions.
#[derive(Default)]
struct Results {
    /// The uids of the pods whose deletion the API server has confirmed.
    deleted: Vec<String>,
    /// The names of pods that are gone without that, and their uids.
    gone: BTreeMap<String, String>,
    /// The names of pods that were not deleted, with the reasons.
    refused: BTreeMap<String, ActionError>,
    /// The uids of pods for whose deletion there was no answer.
    unanswered: HashSet<String>,
}

/// Deletes each pod of the plan, as long as the limits allow it.
///
/// # Errors
/// Why no pod was deleted, or [`Code::OutcomeUnknown`].
pub(super) async fn delete_each(
    cluster: &Cluster,
    input: &PlanInput,
    plan: Plan,
    deletions: Vec<Effect>,
    recheck: &Recheck<'_>,
) -> Result<Execution, ActionError> {
    let (mut pending, mut results) = (deletions, Results::default());
    let mut backoff = retry::backoff();
    Failpoint::BeforeWrite.pass();
    loop {
        let (mut again, mut wait, mut stopped) = (Vec::new(), Duration::ZERO, None);
        for (number, round) in pending.chunks(MAX_DELETIONS_PER_CHECK).enumerate() {
            if number > 0 && stopped.is_none() {
                stopped = recheck(&plan).await.err();
            }
            let may_begin = || stopped.is_none() && Instant::now() < input.deadline;
            let batch = Batch { cluster, dry_run: false, deadline: input.deadline };
            let left =
                apply_each(batch, round.to_vec(), may_begin, |effect, result| match result {
                    Ok(_) => results.deleted.push(effect.uid),
                    Err(ApplyError::Rejected(error) | ApplyError::TestFailed(error)) => {
                        results.refused.insert(effect.name, error);
                    }
                    Err(ApplyError::Disruption(why)) => {
                        let error = ActionError::new(Code::DisruptionBudget, why);
                        results.refused.insert(effect.name, error);
                    }
                    Err(ApplyError::NotTaken(error, pause)) => {
                        wait = wait.max(pause.unwrap_or_default());
                        again.push((effect, Some(error)));
                    }
                    Err(ApplyError::InDoubt(_)) => {
                        results.unanswered.insert(effect.uid.clone());
                        again.push((effect, None));
                    }
                    Err(ApplyError::Conflict) => again.push((effect, None)),
                });
            let left = left.await;
            again.extend(left.into_iter().map(|effect| (effect, None)));
        }
        if again.is_empty() {
            break;
        }
        let pause = backoff.next().unwrap_or_default().max(wait);
        if stopped.is_some() || Instant::now() + pause >= input.deadline {
            results.give_up(again, stopped);
            break;
        }
        sleep(pause).await;
        pending = match cluster.finished_pods(&plan.target.namespace, input.deadline).await {
            Ok(found) => results.still_there(again, &found, &plan.others),
            // Each deletion is bound, so it can be resent without listing the pods.
            Err(_) => again.into_iter().map(|(effect, _)| effect).collect(),
        };
        if let Err(error) = recheck(&plan).await {
            let left = pending.into_iter().map(|effect| (effect, None)).collect();
            results.give_up(left, Some(error));
            break;
        }
    }
    Failpoint::AfterWrite.pass();
    results.conclude(plan, input)
}

/// Has the API server try each deletion, and returns a warning for each reason why some would be refused.
///
/// # Errors
/// Why all would be.
pub(super) async fn try_each(
    cluster: &Cluster,
    deletions: Vec<Effect>,
    deadline: Instant,
) -> Result<Vec<String>, ActionError> {
    let number = deletions.len();
    let mut by_reason: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut first = None;
    let batch = Batch { cluster, dry_run: true, deadline };
    let may_begin = || Instant::now() < deadline;
    let left = apply_each(batch, deletions, may_begin, |effect, result| {
        let (what, error) = match result {
            // It is gone, or was changed.
            Ok(_) | Err(ApplyError::Conflict | ApplyError::Disruption(_)) => return,
            Err(ApplyError::Rejected(error) | ApplyError::TestFailed(error)) => {
                ("would not be deleted", error)
            }
            Err(ApplyError::NotTaken(error, _)) => ("could not be tried", error),
            Err(ApplyError::InDoubt(error)) => {
                let error = ActionError::new(Code::ClusterUnavailable, error.message());
                ("could not be tried", error)
            }
        };
        let name = &effect.name;
        let why = error.with_its_hint().replace(&format!("\"{name}\""), "\"POD\"");
        let why = why.replace(&format!("/{name}"), "/POD");
        let reason = format!("{what}: {why}");
        by_reason.entry(reason).or_default().push(effect.name);
        first.get_or_insert(error);
    });
    let left = left.await.len();
    let refused: usize = by_reason.values().map(Vec::len).sum();
    if let Some(error) = first.filter(|_| refused == number) {
        return Err(error);
    }
    let mut warnings: Vec<_> =
        by_reason.into_iter().map(|(why, names)| warning(names, &why)).collect();
    if left > 0 {
        warnings.push(format!("the deletions of {} were not tried", counted(left, "pod")));
    }
    Ok(warnings)
}

fn named(names: &[String]) -> String {
    pods::join_names(names, MAX_PODS_PER_MESSAGE)
}

impl Results {
    /// Of these deletions those whose pods are there, finished and not being deleted, bound to them as they are now.
    /// The others are gone. One whose labels are not those that the policy has judged is refused.
    fn still_there(
        &mut self,
        deletions: Vec<(Effect, Option<ActionError>)>,
        found: &[Pod],
        judged: &[AffectedObject],
    ) -> Vec<Effect> {
        let there = found.iter().filter(|pod| !pods::is_terminating(pod));
        let there: HashMap<&str, &Pod> =
            there.filter_map(|pod| Some((pod.metadata.uid.as_deref()?, pod))).collect();
        let mut pending = Vec::new();
        for (effect, _) in deletions {
            match there.get(effect.uid.as_str()) {
                Some(pod) if !judged.contains(&AffectedObject::pod(&pod.metadata)) => {
                    let detail = "its labels changed while the request was running";
                    let error = ActionError::new(Code::Conflict, detail);
                    self.refused.insert(effect.name, error);
                }
                Some(pod) => pending.push(effect.bound_to(&pod.metadata)),
                None => drop(self.gone.insert(effect.name, effect.uid)),
            }
        }
        pending
    }

    /// Records that these deletions are not sent any more.
    fn give_up(
        &mut self,
        deletions: Vec<(Effect, Option<ActionError>)>,
        stopped: Option<ActionError>,
    ) {
        for (effect, error) in deletions {
            let error = match (&stopped, error) {
                (Some(stopped), _) => stopped.clone(),
                (None, Some(error)) => error,
                (None, None) => {
                    let detail = "it kept changing, or there was no answer in time";
                    ActionError::new(Code::Conflict, detail)
                        .with_retry_after(Some(Duration::from_secs(1)))
                }
            };
            self.refused.insert(effect.name, error);
        }
    }

    /// What was done, if the API server has confirmed any deletion.
    fn conclude(self, mut plan: Plan, input: &PlanInput) -> Result<Execution, ActionError> {
        let namespace = plan.target.namespace.clone();
        let all = plan.others.len();
        let unknown = self.unknown(&plan);
        if self.deleted.is_empty() {
            return Err(match (unknown.is_empty(), self.refused.into_values().next()) {
                (true, Some(error)) => error.object_uid(plan.found.uid.as_deref()),
                _ => unknown_error(&namespace, &unknown),
            });
        }
        let number = self.deleted.len();
        let result = format!(
            "{} in namespace '{namespace}' deleted at {}.",
            match number == all {
                true => counted(number, "finished pod"),
                false => format!("{number} of {}", counted(all, "finished pod")),
            },
            rfc3339_millis(input.at),
        );
        let is_whole = number + self.gone.len() == all;
        if !unknown.is_empty() {
            plan.warnings.push(format!(
                "whether this request or another client deleted {} is unknown: {}",
                counted(unknown.len(), "pod"),
                named(&unknown)
            ));
        }
        let uids = self.deleted.iter().chain(self.gone.values()).map(String::as_str);
        let pods: PodSet = uids.collect();
        plan.completion = CompletionSpec::Known(Completion::PodsGone { namespace, pods });
        if is_whole {
            return Ok(Execution::new(plan, Applied::default(), Outcome::Applied, result));
        }
        let failed = Rollout {
            state: RolloutState::Failed,
            message: format!("{} of {all} pods were not deleted", all - number - self.gone.len()),
            problems: self.problems(),
        };
        let done = Execution::new(plan, Applied::default(), Outcome::Failed, result);
        Ok(Execution { failed: Some(failed), ..done })
    }

    /// Why pods were not deleted, one line for each.
    fn problems(&self) -> Vec<String> {
        let refused = self.refused.iter().take(MAX_PODS_PER_MESSAGE);
        refused.map(|(name, error)| format!("pod {name}: {}", error.with_its_hint())).collect()
    }

    /// The names of the pods of which it is unknown whether this request deleted them, or still will.
    fn unknown(&self, plan: &Plan) -> Vec<String> {
        let is_unanswered = |name: &&String| {
            let uid = plan.others.iter().find(|other| other.target.name == **name);
            uid.and_then(|it| it.target.uid.as_ref()).is_some_and(|it| self.unanswered.contains(it))
        };
        let left = self.refused.keys().filter(is_unanswered);
        self.gone.keys().chain(left).cloned().collect()
    }
}

fn unknown_error(namespace: &str, names: &[String]) -> ActionError {
    let detail = format!(
        "the deletion of {} in namespace '{namespace}' was sent, and no answer shows that this request deleted them: {}",
        counted(names.len(), "pod"),
        named(names)
    );
    ActionError::new(Code::OutcomeUnknown, detail).with_hint(format!(
        "check `kubectl -n {namespace} get pods`; then resend the same request with the same id: it deletes no other pods"
    ))
}

#[cfg(test)]
mod tests {
    use kube::core::ObjectMeta;

    use super::*;
    use crate::{
        actions::{AffectedObject, Decision},
        contract::response::Target,
    };

    fn plan(names: &[&str]) -> Plan {
        let target = Target::named("v1", "Namespace", "shop", "shop");
        let done = CompletionSpec::Known(Completion::Immediate(String::new()));
        let decision = Decision::DeleteEach(Vec::new(), String::new());
        let mut plan = Plan::new(target, &ObjectMeta::default(), decision, done);
        let metadata = |name: &&str| ObjectMeta {
            name: Some((*name).to_owned()),
            namespace: Some("shop".to_owned()),
            uid: Some(format!("u-{name}")),
            ..ObjectMeta::default()
        };
        plan.others = names.iter().map(|name| AffectedObject::pod(&metadata(name))).collect();
        plan
    }

    fn deletion(name: &str) -> Effect {
        let metadata = ObjectMeta {
            name: Some(name.to_owned()),
            uid: Some(format!("u-{name}")),
            ..ObjectMeta::default()
        };
        Effect::deletion(kube::api::ApiResource::erase::<Pod>(&()), &metadata, None)
    }

    fn conclude(results: Results, names: &[&str]) -> Result<Execution, ActionError> {
        results.conclude(plan(names), &PlanInput::example())
    }

    fn deleted(names: &[&str]) -> Results {
        let deleted = names.iter().map(|name| format!("u-{name}")).collect();
        Results { deleted, ..Results::default() }
    }

    fn denied() -> ActionError {
        ActionError::new(Code::RejectedByCluster, "denied")
    }

    #[test]
    fn confirmed_deletions_are_applied() {
        let done = conclude(deleted(&["a", "b"]), &["a", "b"]).expect("is done");
        assert_eq!((done.outcome, &done.failed), (Outcome::Applied, &None));
        assert!(done.result.starts_with("2 finished pods in namespace 'shop' deleted at "));
        assert!(done.plan.warnings.is_empty(), "{:?}", done.plan.warnings);
    }

    #[test]
    fn a_pod_that_is_gone_without_an_answer_is_warned_of_and_alone_is_unknown() {
        let gone = |mut results: Results| {
            let left = results.still_there(vec![(deletion("b"), None)], &[], &[]);
            assert!(left.is_empty());
            results
        };
        let done = conclude(gone(deleted(&["a"])), &["a", "b"]).expect("is done");
        assert_eq!((done.outcome, &done.failed), (Outcome::Applied, &None));
        assert!(done.plan.warnings[0].ends_with("1 pod is unknown: b"), "{:?}", done.plan.warnings);
        let error = conclude(gone(deleted(&[])), &["b"]).map(|done| done.result);
        assert_eq!(error.expect_err("is unknown").code, Code::OutcomeUnknown);
    }

    #[test]
    fn a_part_that_was_refused_is_a_failure_and_the_whole_is_a_refusal() {
        let refused = |mut results: Results| {
            results.refused.insert("b".to_owned(), denied());
            results
        };
        let done = conclude(refused(deleted(&["a"])), &["a", "b"]).expect("is done");
        assert_eq!(done.outcome, Outcome::Failed);
        let failed = done.failed.expect("has failed");
        assert_eq!(failed.message, "1 of 2 pods were not deleted");
        assert_eq!(failed.problems, ["pod b: denied"]);
        let error = conclude(refused(deleted(&[])), &["b"]).map(|done| done.result);
        assert_eq!(error.expect_err("is refused").code, Code::RejectedByCluster);
    }

    #[test]
    fn a_deletion_that_may_still_come_is_no_refusal() {
        let mut results = deleted(&[]);
        results.unanswered.insert("u-a".to_owned());
        results.give_up(vec![(deletion("a"), None)], Some(denied()));
        let error = conclude(results, &["a"]).map(|done| done.result).expect_err("is unknown");
        assert_eq!(error.code, Code::OutcomeUnknown);
    }

    #[test]
    fn a_pod_that_is_there_is_deleted_in_its_present_version_and_a_terminating_one_is_gone() {
        let pod = |metadata: &str| -> Pod {
            serde_yaml_ng::from_str(&format!("metadata: {{name: a, uid: u-a, {metadata}}}"))
                .expect("is a pod")
        };
        let mut results = deleted(&[]);
        let found = [pod("resourceVersion: '9'")];
        let judged = [AffectedObject::pod(&found[0].metadata)];
        let left = results.still_there(vec![(deletion("a"), None)], &found, &judged);
        assert_eq!(left, [deletion("a").bound_to(&pod("resourceVersion: '9'").metadata)]);
        let leaving = pod("deletionTimestamp: '2026-01-31T12:00:00Z'");
        assert!(
            results
                .still_there(left.into_iter().map(|it| (it, None)).collect(), &[leaving], &judged)
                .is_empty()
        );
        assert_eq!(results.gone.len(), 1);
        // Somebody protects it, which the policy has not judged.
        let protected = [pod("labels: {action-executor.dev/protected: 'true'}")];
        assert!(results.still_there(vec![(deletion("a"), None)], &protected, &judged).is_empty());
        assert_eq!(results.refused.len(), 1);
    }
}
