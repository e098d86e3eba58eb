//! The claim of a transaction: opening it, finding another attempt's record, asking for approval, taking
//! over. It makes no change to the target.

use chrono::TimeDelta;
use tokio::time::Instant;

use super::{Approval, NextStep, Planned, Transaction};
use crate::{
    actions::{CompletionSpec, Decision, Plan, PlanInput, SelectedTarget},
    contract::{
        counted::counted,
        error::{ActionError, Code},
        response::{ActionResponse, Outcome, PendingApproval, rfc3339_millis},
    },
    executor::{apply, check_replay_window, failpoint::Failpoint, response_to},
    k8s::{
        completion::Completion,
        effect::{Applied, Effect},
        evidence::Evidence,
    },
    ledger::{
        ClaimState, Ledger,
        record::{Intent, Record, RecordState},
    },
    policy::approval,
};

/// What became of the effect of an earlier attempt.
pub(super) enum EarlierEffect {
    /// It was made.
    Made(Applied),
    /// It was not made so far, and may still come.
    MayCome(Box<Effect>),
    /// There is none, or none that can be made any more.
    None,
}

impl EarlierEffect {
    /// What follows from the evidence of the effect.
    ///
    /// # Errors
    /// [`Code::OutcomeUnknown`] if that cannot be found out any more.
    pub(super) fn of(effect: &Effect, evidence: Evidence) -> Result<Self, ActionError> {
        match evidence {
            Evidence::Made(applied) => Ok(EarlierEffect::Made(applied)),
            Evidence::NeverMade => Ok(EarlierEffect::None),
            Evidence::NotYet => Ok(EarlierEffect::MayCome(Box::new(effect.clone()))),
            Evidence::Gone => Err(apply::gone(effect)),
            Evidence::Unknowable => Err(apply::unknown(
                effect,
                "the attempt that sent it did not record an answer, and the object was changed or replaced since",
            )),
        }
    }
}

impl Transaction<'_> {
    /// Finds the request's record. An id that this program made is new.
    pub(super) async fn find_record(&self, input: &PlanInput) -> Result<ClaimState, ActionError> {
        match self.request.id {
            Some(_) => self.ledger.find(input.deadline).await,
            None => Ok(ClaimState::Free),
        }
    }

    /// Claims what can be done and has no record yet, and charges it to the budget at the same time. What cannot
    /// be done now may have been done before, so its record counts too.
    pub(super) async fn claim(
        &self,
        planned: Result<Planned, ActionError>,
        found: Result<ClaimState, ActionError>,
        input: &PlanInput,
    ) -> Result<(ClaimState, Result<Planned, ActionError>), ActionError> {
        let mut planned = match (planned, found) {
            (Err(refusal), Err(error)) => return Err(most_relevant(refusal, error)),
            (_, Err(error)) if error.code == Code::IdReused => return Err(error),
            // A record that could not be read cannot be created either, which explains why.
            (Ok(planned), Ok(ClaimState::Free) | Err(_)) => planned,
            (planned, Ok(found)) => return Ok((found, planned)),
        };
        // By the API server's clock, which is known by now: ours may be wrong.
        let own = || self.request.made_at();
        let made_at = self.selected_by.map_or_else(own, |selected_by| selected_by.made_at);
        let window = self.context.replay_window();
        check_replay_window(made_at, self.cluster.now(), window)?;
        let record = self.initial_record(&planned, input);
        self.context.observer().claiming();
        let open = async {
            let opened = self.ledger.open(&record, input.deadline).await;
            Failpoint::AfterClaim.pass();
            opened
        };
        // What waits for approval is charged once it is approved.
        let charge = planned.charge.as_mut().filter(|_| !planned.requires_approval);
        let Some(charge) = charge else { return Ok((open.await?, Ok(planned))) };
        let (opened, charged) = tokio::join!(open, self.reserve(charge, input));
        if !matches!(opened, Ok(ClaimState::Ours(_))) && charged.is_ok() {
            self.refund(&charge.entries, input).await;
        }
        match opened? {
            ClaimState::Ours(record) => {
                charge.result = Some(charged);
                Ok((ClaimState::Ours(record), Ok(planned)))
            }
            // Another attempt was faster. What it has recorded may need another charge.
            found => Ok((found, Ok(planned))),
        }
    }

    /// The first record of a request: a claim, or a request for approval.
    fn initial_record(&self, planned: &Planned, input: &PlanInput) -> Record {
        let intent = self.intent(&planned.plan, input);
        if planned.requires_approval {
            return self.ledger.approval_request(intent, self.cluster.now() + self.approval_time());
        }
        let claim = self.ledger.claim(intent, input.deadline);
        let Some(Approval { nonce, by, .. }) = &planned.approval else { return claim };
        let (approval_nonce, approved_by) = (Some(nonce.clone()), Some(by.clone()));
        Record { approval_nonce, approved_by, ..claim }
    }

    /// What a plan is about to do, and the answer if it succeeds.
    fn intent(&self, plan: &Plan, input: &PlanInput) -> Intent {
        let begun;
        let (effect, outcome, result) = match &plan.decision {
            Decision::Apply { effect, did, .. } => {
                (Some((**effect).clone()), Outcome::Applied, did)
            }
            // An attempt that takes it over plans again, for the same objects.
            Decision::DeleteEach(deletions, _) => {
                begun = format!("The deletion of {} began.", counted(deletions.len(), "object"));
                (None, Outcome::Applied, &begun)
            }
            Decision::AlreadyApplied(_, result) | Decision::EachTarget(result) => {
                (None, Outcome::Applied, result)
            }
            Decision::NoOp(result) => (None, Outcome::Unchanged, result),
        };
        let answer = self.response(plan, input, outcome, result.clone());
        let Plan { completion, decision_etag, rollback_target, .. } = plan.clone();
        Intent { effect, completion, answer, decision_etag, rollback_target, taken_over: false }
    }

    pub(super) fn response(
        &self,
        plan: &Plan,
        input: &PlanInput,
        outcome: Outcome,
        result: String,
    ) -> ActionResponse {
        let mut response = response_to(self.request, input, outcome, result);
        response.target = plan.target.clone();
        response.changes = plan.changes.clone();
        response.warnings.extend(plan.warnings.iter().cloned());
        response
    }

    /// Replaces a record that is free to be taken over.
    pub(super) async fn take(
        &self,
        found: Record,
        planned: Planned,
        input: &PlanInput,
    ) -> Result<NextStep, ActionError> {
        let mut ours = self.initial_record(&planned, input);
        ours.intent.taken_over = planned.earlier.is_some() || planned.deletions_may_come;
        self.context.observer().claiming();
        let taken = self.ledger.take(&found, ours, input.deadline).await?;
        Ok(match taken {
            None => NextStep::Again,
            Some(record) if planned.requires_approval => {
                NextStep::AskApproval(Box::new(record), Box::new(planned.plan))
            }
            Some(record) => NextStep::Act(Box::new(record), Box::new(planned), input.clone()),
        })
    }

    /// Checks for a person's approval of this very plan. An expired request for approval is replaced.
    pub(super) async fn check_approval(
        &self,
        found: Record,
        planned: Planned,
        input: &PlanInput,
    ) -> Result<NextStep, ActionError> {
        if self.cluster.now() >= found.expires_at || !planned.requires_approval {
            return self.take(found, planned, input).await;
        }
        match self.find_approval(&found, &planned.plan, input).await? {
            Some(approval) => self.take(found, planned.approved(approval), input).await,
            None => Ok(NextStep::AskApproval(Box::new(found), Box::new(planned.plan))),
        }
    }

    /// A person's approval of this very plan, which this record asked for.
    async fn find_approval(
        &self,
        record: &Record,
        plan: &Plan,
        input: &PlanInput,
    ) -> Result<Option<Approval>, ActionError> {
        let Some(nonce) = record.approval_nonce.clone() else { return Ok(None) };
        let digest = approval::digest(&self.ledger.request, &nonce, plan);
        let approver = self.find_approver(&digest, input.deadline).await?;
        Ok(approver.map(|by| Approval { nonce, digest, by }))
    }

    /// The person who has approved this digest, not too long ago, as the approval names them.
    async fn find_approver(
        &self,
        digest: &str,
        deadline: Instant,
    ) -> Result<Option<String>, ActionError> {
        let Ledger { request, .. } = &self.ledger;
        let found = approval::find(self.own_cluster, request.namespace(), digest, deadline).await?;
        let Some(approval::Approved { by, at }) = found else { return Ok(None) };
        // Not by the record's own time: more accounts may write Events than may approve.
        let is_valid = at.is_some_and(|at| self.cluster.now() < at + self.approval_time());
        if is_valid {
            tracing::info!(id = &*request.id, digest, by, "approved");
            self.approver.get_or_init(|| by.clone());
        }
        Ok(is_valid.then_some(by))
    }

    /// Whether a person has approved what is planned for each of these targets. If that cannot be found out, a target
    /// that needs an approval is refused.
    pub(super) async fn are_approved(&self, record: &Record, targets: &[SelectedTarget]) -> bool {
        let Some(nonce) = &record.approval_nonce else { return false };
        let digest = approval::digest_of_targets(&self.ledger.request, nonce, targets);
        let deadline = Instant::now() + self.context.deadline();
        let approver = self.find_approver(&digest, deadline).await;
        let approver = approver.unwrap_or_else(|error| {
            tracing::warn!(%error, digest, "the approval could not be read");
            None
        });
        approver.is_some()
    }

    /// How long a request for approval, and an approval, are valid.
    fn approval_time(&self) -> TimeDelta {
        TimeDelta::seconds(self.policy.approval.valid_seconds.get() as i64)
    }

    /// The answer while a person has not decided.
    pub(super) fn pending_approval(
        &self,
        record: &Record,
        plan: &Plan,
        input: &PlanInput,
    ) -> ActionResponse {
        let nonce = record.approval_nonce.as_deref().unwrap_or_default();
        let digest = approval::digest(&self.ledger.request, nonce, plan);
        let action = self.request.action.kind().name();
        let what = match plan.previews.as_slice() {
            [] => plan.target.to_string(),
            targets => {
                let names: Vec<_> = targets.iter().map(|it| it.target.name.as_str()).collect();
                format!("{} in namespace '{}'", names.join(", "), plan.target.namespace)
            }
        };
        let result = format!("{action} of {what} waits for a person's approval.");
        let mut response = self.response(plan, input, Outcome::PendingApproval, result);
        response.targets.clone_from(&plan.previews);
        let cluster = self.context.listed_name();
        response.approval = Some(PendingApproval {
            command: approval::command(cluster, self.ledger.request.namespace(), &digest),
            expires_at: rfc3339_millis(record.expires_at),
            digest,
        });
        response
    }

    /// Finds out what became of a claim that expired or is in doubt, and resumes from there.
    pub(super) async fn resume_abandoned(
        &self,
        record: Record,
        input: &PlanInput,
    ) -> Result<NextStep, ActionError> {
        if let EarlierEffect::Made(applied) = self.find_earlier_effect(&record, input).await? {
            return Ok(NextStep::Conclude(Box::new(record), applied));
        }
        // Plan as the first attempt did: for the same time and object, so that the answer does not depend
        // on which attempt gives it.
        let intended = &record.intent.answer;
        let (at, uid) = (intended.started_at, intended.target.uid.clone());
        let decision_etag = record.intent.decision_etag.clone();
        let input = PlanInput { at, uid, decision_etag, ..input.clone() };
        let planned = self.plan(&input).await;
        // Again, after the plan: the other attempt may be slow, and the plan refused because of its effect.
        let earlier = match self.find_earlier_effect(&record, &input).await? {
            EarlierEffect::Made(applied) => {
                return Ok(NextStep::Conclude(Box::new(record), applied));
            }
            EarlierEffect::MayCome(effect) => Some(*effect),
            EarlierEffect::None => None,
        };
        let deletions_may_come = is_of_deletions(&record);
        let planned = planned
            .map_err(|refusal| refusal_after(earlier.as_ref(), deletions_may_come, refusal))?;
        let planned = Planned { earlier, deletions_may_come, ..planned };
        let planned = if planned.requires_approval {
            match self.find_approval(&record, &planned.plan, &input).await? {
                Some(approval) => planned.approved(approval),
                None => planned,
            }
        } else {
            planned
        };
        check_approved(planned.earlier.as_ref(), !planned.requires_approval)?;
        if planned.requires_approval && deletions_may_come {
            let refusal = ActionError::new(Code::Conflict, "what is left has no approval");
            return Err(refusal_after(None, true, refusal));
        }
        self.take(record, planned, &input).await
    }

    /// What became of the effect of this record's attempt.
    ///
    /// # Errors
    /// [`Code::OutcomeUnknown`] if that cannot be found out any more, which is recorded.
    async fn find_earlier_effect(
        &self,
        record: &Record,
        input: &PlanInput,
    ) -> Result<EarlierEffect, ActionError> {
        let Some(effect) = &record.intent.effect else { return Ok(EarlierEffect::None) };
        let evidence = self.cluster.find_evidence(effect, input.deadline).await?;
        let earlier = EarlierEffect::of(effect, evidence);
        if earlier.is_err() && record.state != RecordState::InDoubt {
            let mut record = record.clone();
            record.mark_in_doubt();
            self.write(&mut record, input.deadline).await;
        }
        earlier
    }
}

/// Checks that the plan of an abandoned claim may be carried out, or its approval be asked for anew. Where approval is
/// needed, only that of this very plan counts, whatever the record says.
///
/// # Errors
/// [`Code::OutcomeUnknown`] if it has no approval and the earlier effect may still come.
pub(super) fn check_approved(
    earlier: Option<&Effect>,
    is_approved: bool,
) -> Result<(), ActionError> {
    match earlier {
        Some(effect) if !is_approved => Err(apply::unknown(
            effect,
            "the attempt that sent it did not record an answer, and the current plan has no approval",
        )),
        _ => Ok(()),
    }
}

/// Whether the record is of a plan of several deletions, which an attempt without an answer may have sent.
fn is_of_deletions(record: &Record) -> bool {
    let Intent { effect, completion, .. } = &record.intent;
    effect.is_none() && matches!(completion, CompletionSpec::Known(Completion::PodsGone { .. }))
}

/// The error of an attempt that was refused while the effect of an earlier one, or its deletions, may still come.
pub(super) fn refusal_after(
    earlier: Option<&Effect>,
    deletions_may_come: bool,
    refusal: ActionError,
) -> ActionError {
    match earlier {
        Some(effect) => apply::unknown_after(effect, apply::NO_RECORDED_ANSWER, &refusal),
        None if deletions_may_come && refusal.code != Code::OutcomeUnknown => {
            let detail = format!(
                "deletions that an earlier attempt sent may still be made; this attempt then failed: {}",
                refusal.detail
            );
            ActionError::new(Code::OutcomeUnknown, detail).with_hint(
                "resend the same request with the same id later: it deletes no other objects",
            )
        }
        None => refusal,
    }
}

/// The error to return if neither a plan could be made nor the record be read.
fn most_relevant(refusal: ActionError, error: ActionError) -> ActionError {
    // Where the policy denies everything, the executor may lack the permission to read.
    let may_not_read = error.code == Code::Forbidden && refusal.code == Code::PolicyDenied;
    if is_of_this_request(refusal.code) && !may_not_read { error } else { refusal }
}

/// Whether a refusal is about this request, and not a failure to reach the cluster: only then is there a
/// reason, and a chance, to read the request's record.
fn is_of_this_request(code: Code) -> bool {
    !code.retryable() || matches!(code, Code::RateLimited | Code::Stopped | Code::DisruptionBudget)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_of_the_request_is_distinguished_from_an_outage() {
        for (code, expected) in [
            (Code::PolicyDenied, true),
            (Code::TargetNotFound, true),
            (Code::PreconditionFailed, true),
            (Code::RateLimited, true),
            (Code::Stopped, true),
            (Code::DisruptionBudget, true),
            (Code::Conflict, false),
            (Code::ClusterUnavailable, false),
            (Code::ClusterUnreachable, false),
            (Code::ShuttingDown, false),
        ] {
            assert_eq!(is_of_this_request(code), expected, "{code}");
        }
    }

    #[test]
    fn a_refusal_after_deletions_that_may_still_come_leaves_the_outcome_unknown() {
        for code in [Code::Stopped, Code::PolicyDenied, Code::RejectedByCluster] {
            let refusal = ActionError::new(code, "why");
            assert_eq!(refusal_after(None, false, refusal.clone()).code, code);
            let unknown = refusal_after(None, true, refusal);
            assert_eq!(unknown.code, Code::OutcomeUnknown);
            assert!(
                unknown.detail.ends_with("this attempt then failed: why"),
                "{}",
                unknown.detail
            );
        }
        let unknown = ActionError::new(Code::OutcomeUnknown, "are gone");
        assert_eq!(refusal_after(None, true, unknown).detail, "are gone");
    }
}
