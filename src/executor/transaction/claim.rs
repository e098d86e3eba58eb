//! The claim of a transaction: opening it, finding another attempt's record, asking for approval, taking
//! over. It makes no change to the target.

use chrono::{TimeDelta, Utc};

use super::{Planned, Step, Transaction};
use crate::{
    actions::{Decision, Plan, PlanInput},
    contract::{
        error::{ActionError, Code},
        response::{ActionResponse, Outcome, PendingApproval, rfc3339_millis},
    },
    executor::{apply, failpoint::Failpoint, response_to},
    k8s::api::mutation::{Applied, Evidence},
    ledger::{
        ClaimState,
        record::{Intent, Record},
    },
    policy::approval,
};

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
        let record = self.initial_record(&planned, input);
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
            let valid = TimeDelta::seconds(self.policy.approval.valid_seconds.get() as i64);
            return self.ledger.approval_request(intent, Utc::now() + valid);
        }
        self.ledger.claim(intent, input.deadline)
    }

    /// What a plan is about to do, and the answer if it succeeds.
    fn intent(&self, plan: &Plan, input: &PlanInput) -> Intent {
        let (effect, outcome, result) = match &plan.decision {
            Decision::Apply(effect, did, _) => (Some((**effect).clone()), Outcome::Applied, did),
            Decision::AlreadyApplied(_, result) => (None, Outcome::Applied, result),
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

    /// Replaces a record that is free to be taken.
    pub(super) async fn take(
        &self,
        found: Record,
        planned: Planned,
        input: &PlanInput,
    ) -> Result<Step, ActionError> {
        let ours = self.initial_record(&planned, input);
        let taken = self.ledger.take(&found, ours, input.deadline).await?;
        Ok(match taken {
            None => Step::Again,
            Some(record) if planned.requires_approval => {
                Step::AskApproval(Box::new(record), Box::new(planned.plan))
            }
            Some(record) => Step::Act(Box::new(record), Box::new(planned), input.clone()),
        })
    }

    /// Looks for a person's approval of this very plan. An expired request for approval is replaced.
    pub(super) async fn check_approval(
        &self,
        found: Record,
        planned: Planned,
        input: &PlanInput,
    ) -> Result<Step, ActionError> {
        if Utc::now() >= found.expires_at || !planned.requires_approval {
            return self.take(found, planned, input).await;
        }
        let digest = approval::digest(&self.ledger.request, &found, &planned.plan);
        let namespace = self.ledger.request.namespace();
        let approved = approval::approver(self.cluster, namespace, &digest, input.deadline).await?;
        let Some(by) = approved else {
            return Ok(Step::AskApproval(Box::new(found), Box::new(planned.plan)));
        };
        tracing::info!(id = &*input.id, digest, by, "approved");
        self.take(found, Planned { requires_approval: false, ..planned }, input).await
    }

    /// The answer while a person has not decided.
    pub(super) fn pending_approval(
        &self,
        record: &Record,
        plan: &Plan,
        input: &PlanInput,
    ) -> ActionResponse {
        let digest = approval::digest(&self.ledger.request, record, plan);
        let action = self.request.action.kind().name();
        let result = format!("{action} of {} waits for a person's approval.", plan.target);
        let mut response = self.response(plan, input, Outcome::PendingApproval, result);
        response.approval = Some(PendingApproval {
            command: approval::command(self.ledger.request.namespace(), &digest),
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
    ) -> Result<Step, ActionError> {
        if let Some(applied) = self.find_evidence(&record, input).await? {
            return Ok(Step::Conclude(Box::new(record), applied));
        }
        // Plan as the first attempt did: for the same time and object, so that the answer does not depend
        // on which attempt gives it. If it needed approval, it had that before it was claimed.
        let intended = &record.intent.answer;
        let (at, uid) = (intended.started_at, intended.target.uid.clone());
        let decision_etag = record.intent.decision_etag.clone();
        let input = PlanInput { at, uid, decision_etag, ..input.clone() };
        let planned = match self.plan(&input).await {
            Ok(planned) => planned,
            // The plan may be refused because the other attempt was slow and has just made the effect.
            Err(refusal) => match self.find_evidence(&record, &input).await? {
                Some(applied) => return Ok(Step::Conclude(Box::new(record), applied)),
                None => return Err(refusal),
            },
        };
        let intent = Intent { taken_over: true, ..self.intent(&planned.plan, &input) };
        let claim = self.ledger.claim(intent, input.deadline);
        let taken = self.ledger.take(&record, claim, input.deadline).await?;
        let act = |record| Step::Act(Box::new(record), Box::new(planned), input);
        Ok(taken.map_or(Step::Again, act))
    }

    /// What the effect of a claim left behind; `None` if it was not made.
    async fn find_evidence(
        &self,
        record: &Record,
        input: &PlanInput,
    ) -> Result<Option<Applied>, ActionError> {
        let Some(effect) = &record.intent.effect else { return Ok(None) };
        match self.cluster.find_evidence(effect, input.deadline).await? {
            Evidence::Made(applied) => Ok(Some(applied)),
            Evidence::NotMade => Ok(None),
            Evidence::Unknowable => Err(apply::unknown(
                effect,
                "the process that sent it ended, and others have changed the object since",
            )),
        }
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
    fn a_refusal_of_the_request_is_told_from_an_outage() {
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
}
