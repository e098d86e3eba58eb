//! What the results of the targets that a selector chose mean: what is refused together, what stops the next target,
//! what a resent request finds settled, and what the answer of the whole is. Decides from facts alone and calls nothing.

use std::time::Duration;

use serde_json::Value;

use crate::{
    actions::{SelectedTarget, shared::selection::Selection},
    contract::{
        counted::counted,
        cut::beginning,
        error::{ActionError, Code},
        names::RequestId,
        response::{
            ActionResponse, ObservationState, Outcome, Rollout, RolloutState, Target,
            TargetOutcome, TargetResult,
        },
    },
};

/// How many refused targets a message names, and how many problems of one target an answer has.
const MAX_NAMED: usize = 5;

/// How long a text of one target is in an answer, in bytes: a record is in annotations, which have 256 KiB in all, and
/// has up to 50 targets.
const MAX_TEXT: usize = 240;

/// Refuses the whole if more targets are refused than may fail.
pub(super) fn refuse_together<T>(
    selection: &Selection<'_>,
    results: &[(SelectedTarget, Result<T, ActionError>)],
) -> Result<(), ActionError> {
    let refused: Vec<_> = results.iter().filter_map(|(_, result)| result.as_ref().err()).collect();
    let Some(&first) = refused.first().filter(|_| refused.len() > selection.max_failures as usize)
    else {
        return Ok(());
    };
    let named = refused.iter().take(MAX_NAMED).map(|error| error.detail.as_str());
    let named: Vec<_> = named.collect();
    let detail = format!(
        "{} of {} {} refused, so nothing was done: {}",
        refused.len(),
        selection.counted(results.len()),
        if refused.len() == 1 { "is" } else { "are" },
        named.join("; ")
    );
    Err(ActionError { detail, refused: None, ..first.clone() })
}

/// The state of a request while its targets are acted on one after the other.
pub(super) struct Progress<'a> {
    /// How many targets there are, and how many request and policy allow.
    pub targets: usize,
    pub max_targets: u64,
    /// How many of them may fail.
    pub max_failures: u32,
    /// The results so far.
    pub results: &'a [TargetResult],
    pub is_policy_readable: bool,
    pub is_shutting_down: bool,
    /// The time that is left for the targets and for the observation of the last one.
    pub left: Duration,
    pub observation: Duration,
    /// How long the slowest target took so far, if the request waits.
    pub slowest: Option<Duration>,
}

impl Progress<'_> {
    /// Why no further target is acted on; none if the next one may be.
    pub(super) fn stop_reason(&self) -> Option<&'static str> {
        let failures = self.results.iter().filter(|it| has_failed(it)).count();
        // More accounts may write records than may choose targets.
        if self.targets as u64 > self.max_targets {
            Some("not attempted: the record names more targets than request and policy allow")
        } else if self.results.iter().any(is_open) {
            Some("not attempted: what became of a target before it is not known yet")
        } else if failures > self.max_failures as usize {
            Some("not attempted: targets before it failed")
        } else if !self.is_policy_readable {
            Some("not attempted: the policy of the cluster cannot be read")
        } else if self.is_shutting_down {
            Some(SHUTTING_DOWN)
        // The observation needs its part of the time.
        } else if self.left <= self.observation {
            Some("not attempted: the timeout was reached")
        // What cannot be complete in time would be taken for a failure, and rolled back.
        } else if self.slowest.is_some_and(|slowest| self.left < slowest) {
            Some("not attempted: a target before it took longer than the time that is left")
        } else {
            None
        }
    }
}

/// Why a target was not attempted at shutdown. The request is resumed by the next attempt.
const SHUTTING_DOWN: &str = "not attempted: the executor was shutting down";

/// Whether an earlier attempt's result of this target stands.
pub(super) fn is_settled(result: &TargetResult, wait: bool) -> bool {
    match result.outcome {
        TargetOutcome::Applied => !wait || result.rollout.is_some(),
        TargetOutcome::Unchanged => true,
        TargetOutcome::Failed => !is_open(result),
        TargetOutcome::Simulated
        | TargetOutcome::PendingApproval
        | TargetOutcome::Refused
        | TargetOutcome::Unknown
        | TargetOutcome::NotAttempted => false,
    }
}

/// Whether the same request again may change this result.
fn is_open(result: &TargetResult) -> bool {
    let is_interrupted = |rollout: &Rollout| matches!(rollout.state, RolloutState::Interrupted);
    let back = result.rolled_back.as_ref().map(|it| &it.rollout);
    let observation = result.observation.as_ref().map(|it| it.state);
    let is_retryable = result
        .code
        .as_deref()
        .is_some_and(|code| Code::ALL.iter().any(|it| it.retryable() && it.name() == code));
    result.outcome == TargetOutcome::Unknown
        || is_retryable
        || (result.outcome == TargetOutcome::NotAttempted && result.result == SHUTTING_DOWN)
        || result.rollout.iter().chain(back).any(is_interrupted)
        || observation == Some(ObservationState::Interrupted)
}

fn has_failed(result: &TargetResult) -> bool {
    use TargetOutcome::{Failed, Refused, Unknown};
    matches!(result.outcome, Failed | Refused | Unknown)
}

pub(super) fn not_attempted(
    selection: &Selection<'_>,
    id: &RequestId,
    target: &SelectedTarget,
    why: &str,
) -> TargetResult {
    bare(selection, id, target, TargetOutcome::NotAttempted, why.to_owned())
}

pub(super) fn bare(
    selection: &Selection<'_>,
    id: &RequestId,
    target: &SelectedTarget,
    outcome: TargetOutcome,
    result: String,
) -> TargetResult {
    let object = selection.kind.target(selection.namespace, &target.name);
    let object = Target { uid: Some(target.uid.clone()), ..object };
    TargetResult::new(object, id.of_target(&target.uid).to_string(), outcome, result)
}

/// The answer to a target's own request, as a part of the whole.
pub(super) fn target_result(
    selection: &Selection<'_>,
    id: &RequestId,
    target: &SelectedTarget,
    result: Result<ActionResponse, ActionError>,
) -> TargetResult {
    match result {
        Ok(response) => {
            let outcome = match response.outcome {
                Outcome::Applied => TargetOutcome::Applied,
                Outcome::Unchanged => TargetOutcome::Unchanged,
                Outcome::Simulated => TargetOutcome::Simulated,
                Outcome::Failed => TargetOutcome::Failed,
                Outcome::PendingApproval => TargetOutcome::PendingApproval,
            };
            bounded(TargetResult {
                target: response.target,
                changes: response.changes,
                warnings: response.warnings,
                rollout: response.rollout,
                observation: response.observation,
                rolled_back: response.rolled_back,
                ..bare(selection, id, target, outcome, response.result)
            })
        }
        Err(error) => {
            let outcome = match error.code {
                Code::OutcomeUnknown => TargetOutcome::Unknown,
                _ => TargetOutcome::Refused,
            };
            bounded(TargetResult {
                code: Some(error.code.name()),
                hint: error.hint.map(String::from),
                ..bare(selection, id, target, outcome, error.detail)
            })
        }
    }
}

/// The same, so short that an answer with all of them can be recorded.
pub(super) fn bounded(mut result: TargetResult) -> TargetResult {
    fn texts(all: &mut Vec<String>) {
        all.truncate(MAX_NAMED);
        all.iter_mut().for_each(shorten);
    }
    fn of_rollout(rollout: &mut Rollout) {
        shorten(&mut rollout.message);
        texts(&mut rollout.problems);
    }
    shorten(&mut result.result);
    result.hint.iter_mut().for_each(shorten);
    texts(&mut result.warnings);
    result.rollout.iter_mut().for_each(of_rollout);
    result.observation.iter_mut().for_each(|it| texts(&mut it.problems));
    result.rolled_back.iter_mut().for_each(|back| of_rollout(&mut back.rollout));
    result.changes.truncate(MAX_NAMED);
    for value in result.changes.iter_mut().flat_map(|change| [&mut change.from, &mut change.to]) {
        match value {
            Value::String(text) => shorten(text),
            other if other.to_string().len() > MAX_TEXT => *other = "...".into(),
            _ => {}
        }
    }
    result
}

fn shorten(text: &mut String) {
    if text.len() > MAX_TEXT {
        *text = format!("{}...", beginning(text, MAX_TEXT));
    }
}

/// Adds the targets' results to the answer of the whole: it succeeded if each target did.
pub(super) fn conclude(
    response: &mut ActionResponse,
    selection: &Selection<'_>,
    results: Vec<TargetResult>,
    waited: bool,
) {
    let all = results.len();
    let good = |it: &&TargetResult| {
        matches!(it.outcome, TargetOutcome::Applied | TargetOutcome::Unchanged)
    };
    let done = results.iter().filter(good).count();
    let of = format!("{done} of {}", selection.counted(all));
    let unchanged = results.iter().all(|it| it.outcome == TargetOutcome::Unchanged);
    let state = if results.iter().any(is_open) {
        RolloutState::Interrupted
    } else if done < all {
        RolloutState::Failed
    } else {
        RolloutState::Complete
    };
    response.outcome = match state {
        RolloutState::Complete if unchanged => Outcome::Unchanged,
        RolloutState::Complete => Outcome::Applied,
        _ => Outcome::Failed,
    };
    let message = match state {
        RolloutState::Interrupted => {
            format!("{of} are done; resend the same request to continue")
        }
        _ => format!("{of} are done"),
    };
    let bad: Vec<_> = results.iter().filter(|it| !good(it)).collect();
    let named = bad.iter().take(MAX_NAMED).map(|it| format!("{}: {}", it.target, it.result));
    let mut problems: Vec<_> = named.collect();
    if bad.len() > MAX_NAMED {
        problems.push(format!("and {} more, in targets", bad.len() - MAX_NAMED));
    }
    let rollout = Rollout { state, message, problems };
    response.result = match state {
        RolloutState::Complete => format!("{} done on {}.", response.kind, selection.counted(all)),
        RolloutState::Interrupted => {
            let problem = rollout.problems.first().map(|it| format!(" ({it})"));
            format!("{}: {}{}.", response.kind, rollout.message, problem.unwrap_or_default())
        }
        _ => format!("{} of {}. {rollout}", response.kind, counted(all, selection.kind.name())),
    };
    response.rollout = (waited || state != RolloutState::Complete).then_some(rollout);
    response.targets = results;
}

/// The error instead of an answer while another attempt acts on one of the targets: its answer is to come.
pub(super) fn in_progress(response: &ActionResponse) -> Option<ActionError> {
    let is_in_progress = |it: &&TargetResult| it.code.as_deref() == Some(&Code::InProgress.name());
    response.targets.iter().find(is_in_progress).map(|it| {
        let detail = format!("another attempt acts on {}", it.target);
        ActionError::new(Code::InProgress, detail)
            .with_hint("resend the same request later to get its answer")
            .with_retry_after(Some(Duration::from_secs(1)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        contract::{
            label_selector::LabelSelector,
            response::{Change, Observation, RolledBack},
        },
        k8s::workload::WorkloadKind,
    };

    fn of(outcome: TargetOutcome) -> TargetResult {
        TargetResult::example("web", outcome)
    }

    fn refused(code: Code) -> TargetResult {
        TargetResult { code: Some(code.name()), ..of(TargetOutcome::Refused) }
    }

    fn rollout(state: RolloutState) -> Rollout {
        Rollout { state, message: "1 of 2 pods are ready".to_owned(), problems: Vec::new() }
    }

    /// Every kind of result that the same request may change when it is resent.
    fn open() -> Vec<TargetResult> {
        let failed = of(TargetOutcome::Failed);
        let interrupted = rollout(RolloutState::Interrupted);
        let rolled_back =
            RolledBack { revision: 1, resource_version: None, rollout: interrupted.clone() };
        let observation = Observation {
            state: ObservationState::Interrupted,
            seconds: 1,
            message: String::new(),
            problems: Vec::new(),
        };
        let shutdown =
            TargetResult { result: SHUTTING_DOWN.to_owned(), ..of(TargetOutcome::NotAttempted) };
        vec![
            of(TargetOutcome::Unknown),
            refused(Code::ClusterUnavailable),
            shutdown,
            TargetResult { rollout: Some(interrupted), ..failed.clone() },
            TargetResult { rolled_back: Some(rolled_back), ..failed.clone() },
            TargetResult { observation: Some(observation), ..failed },
        ]
    }

    fn selection(selector: &LabelSelector) -> Selection<'_> {
        Selection {
            kind: WorkloadKind::Deployment,
            namespace: "shop",
            selector,
            max_targets: 10,
            max_failures: 1,
        }
    }

    fn selector() -> LabelSelector {
        LabelSelector::try_from("app=web".to_owned()).expect("is a selector")
    }

    fn selected(name: &str) -> SelectedTarget {
        SelectedTarget { name: name.to_owned(), uid: format!("{name}-uid"), plan_digest: None }
    }

    /// Nothing stops the third of three targets.
    fn progress(results: &[TargetResult]) -> Progress<'_> {
        Progress {
            targets: 3,
            max_targets: 3,
            max_failures: 1,
            results,
            is_policy_readable: true,
            is_shutting_down: false,
            left: Duration::from_secs(20),
            observation: Duration::from_secs(10),
            slowest: Some(Duration::from_secs(20)),
        }
    }

    #[test]
    fn one_failure_that_is_allowed_does_not_stop_the_next_target() {
        let results = [of(TargetOutcome::Applied), of(TargetOutcome::Failed)];
        assert_eq!(progress(&results).stop_reason(), None);
    }

    #[test]
    fn one_failure_too_many_stops_the_next_target_whatever_failed() {
        let refused = refused(Code::PolicyDenied);
        for results in [[of(TargetOutcome::Failed), refused.clone()], [refused.clone(), refused]] {
            let reason = progress(&results).stop_reason().expect("stops");
            assert!(reason.contains("targets before it failed"), "{reason}");
        }
    }

    #[test]
    fn a_result_that_may_still_change_stops_the_next_target() {
        for result in open() {
            let reason = progress(std::slice::from_ref(&result)).stop_reason();
            assert!(reason.is_some_and(|why| why.contains("not known yet")), "{result:?}");
        }
    }

    #[test]
    fn request_policy_time_and_shutdown_each_stop_the_next_target() {
        let free = || progress(&[]);
        let second = Duration::from_secs(1);
        for (stopped, expected) in [
            (Progress { max_targets: 2, ..free() }, "more targets than request and policy allow"),
            (Progress { is_policy_readable: false, ..free() }, "policy of the cluster"),
            (Progress { is_shutting_down: true, ..free() }, "shutting down"),
            (Progress { left: 10 * second, ..free() }, "the timeout was reached"),
            (Progress { left: 19 * second, ..free() }, "longer than the time that is left"),
        ] {
            let reason = stopped.stop_reason().expect("stops");
            assert!(reason.starts_with("not attempted: ") && reason.contains(expected), "{reason}");
        }
        let does_not_wait = Progress { left: 11 * second, slowest: None, ..free() };
        assert_eq!(does_not_wait.stop_reason(), None);
    }

    #[test]
    fn a_resent_request_keeps_what_is_settled_and_repeats_the_rest() {
        let applied = of(TargetOutcome::Applied);
        let complete = Some(rollout(RolloutState::Complete));
        let waited = TargetResult { rollout: complete, ..applied.clone() };
        assert!(is_settled(&applied, false) && is_settled(&waited, true));
        // It was applied by an attempt that did not wait.
        assert!(!is_settled(&applied, true));
        for outcome in [TargetOutcome::Unchanged, TargetOutcome::Failed] {
            assert!(is_settled(&of(outcome), true), "{outcome:?}");
        }
        let repeated = [TargetOutcome::Simulated, TargetOutcome::PendingApproval];
        let repeated = repeated.into_iter().map(of).chain([refused(Code::PolicyDenied)]);
        for result in open().into_iter().chain(repeated) {
            assert!(!is_settled(&result, true), "{result:?}");
        }
    }

    #[test]
    fn more_refusals_than_may_fail_refuse_the_whole_with_the_first_ones_code() {
        let selector = selector();
        let denied = |name: &str| {
            let detail = format!("{name} is protected");
            (selected(name), Err::<(), _>(ActionError::new(Code::PolicyDenied, detail)))
        };
        let mut results = vec![(selected("api"), Ok(())), denied("web")];
        assert_eq!(refuse_together(&selection(&selector), &results), Ok(()));
        results.push(denied("shop"));
        let refusal = refuse_together(&selection(&selector), &results).expect_err("is refused");
        assert_eq!(refusal.code, Code::PolicyDenied);
        assert_eq!(
            refusal.detail,
            "2 of 3 Deployments in namespace 'shop' matching 'app=web' are refused, so nothing was done: web is \
             protected; shop is protected"
        );
    }

    #[test]
    fn an_error_about_a_target_is_its_result_with_code_and_hint() {
        let (selector, id) = (selector(), RequestId::generate());
        let of = |code| {
            let error = ActionError::new(code, "it is so").with_hint("do this");
            target_result(&selection(&selector), &id, &selected("web"), Err(error))
        };
        let result = of(Code::PolicyDenied);
        assert_eq!(result.outcome, TargetOutcome::Refused);
        assert_eq!((result.result.as_str(), result.hint.as_deref()), ("it is so", Some("do this")));
        assert_eq!(result.code, Some(Code::PolicyDenied.name()));
        assert_eq!(result.target.uid.as_deref(), Some("web-uid"));
        assert_eq!(result.id, id.of_target("web-uid").to_string());
        assert_eq!(of(Code::OutcomeUnknown).outcome, TargetOutcome::Unknown);
    }

    #[test]
    fn the_texts_of_a_result_are_cut_for_the_record() {
        let long = "é".repeat(MAX_TEXT);
        let change = |value: Value| Change { path: "/a".into(), from: Value::Null, to: value };
        let result = bounded(TargetResult {
            result: long.clone(),
            hint: Some(long.clone()),
            warnings: vec![long.clone(); MAX_NAMED + 1],
            rollout: Some(Rollout { message: long.clone(), ..rollout(RolloutState::Failed) }),
            changes: vec![change(long.as_str().into()), change(vec![1; MAX_TEXT].into())],
            ..of(TargetOutcome::Failed)
        });
        let max = MAX_TEXT + "...".len();
        assert!(result.result.ends_with("...") && result.result.len() <= max);
        assert!(result.hint.is_some_and(|hint| hint.len() <= max));
        assert_eq!(result.warnings.len(), MAX_NAMED);
        assert!(result.rollout.is_some_and(|rollout| rollout.message.len() <= max));
        assert!(result.changes[0].to.as_str().is_some_and(|text| text.len() <= max));
        assert_eq!(result.changes[1].to, "...");
    }

    /// The answer about these results, of a request that waited.
    fn concluded(results: Vec<TargetResult>) -> ActionResponse {
        let mut response = ActionResponse::example(Outcome::Applied);
        conclude(&mut response, &selection(&selector()), results, true);
        response
    }

    fn state(of: &ActionResponse) -> RolloutState {
        of.rollout.as_ref().expect("was waited for").state
    }

    #[test]
    fn the_whole_succeeded_if_each_target_did() {
        let (applied, unchanged) = (of(TargetOutcome::Applied), of(TargetOutcome::Unchanged));
        let mixed = concluded(vec![applied.clone(), unchanged.clone()]);
        assert_eq!((mixed.outcome, state(&mixed)), (Outcome::Applied, RolloutState::Complete));
        assert_eq!(
            mixed.result,
            "restart_k8s done on 2 Deployments in namespace 'shop' matching 'app=web'."
        );
        assert_eq!(concluded(vec![unchanged]).outcome, Outcome::Unchanged);
        let failed = concluded(vec![applied, of(TargetOutcome::Failed)]);
        assert_eq!((failed.outcome, state(&failed)), (Outcome::Failed, RolloutState::Failed));
        assert_eq!(failed.targets.len(), 2);
    }

    #[test]
    fn a_result_that_may_still_change_asks_for_the_same_request_again() {
        for result in open() {
            let response = concluded(vec![of(TargetOutcome::Applied), result]);
            assert_eq!(response.outcome, Outcome::Failed);
            assert_eq!(state(&response), RolloutState::Interrupted);
            assert!(response.result.contains("resend the same request"), "{}", response.result);
        }
    }

    #[test]
    fn an_answer_names_some_failed_targets_and_counts_the_others() {
        let response = concluded(vec![of(TargetOutcome::Failed); MAX_NAMED + 2]);
        let problems = response.rollout.expect("has failed").problems;
        assert_eq!(problems.len(), MAX_NAMED + 1);
        assert_eq!(problems[MAX_NAMED], "and 2 more, in targets");
    }

    #[test]
    fn no_answer_is_given_while_another_attempt_acts_on_a_target() {
        let mut response = ActionResponse::example(Outcome::Failed);
        response.targets = vec![of(TargetOutcome::Applied)];
        assert!(in_progress(&response).is_none());
        response.targets.push(refused(Code::InProgress));
        let error = in_progress(&response).expect("is in progress");
        assert_eq!(error.code, Code::InProgress);
        assert!(error.retry_after_seconds().is_some());
    }
}
