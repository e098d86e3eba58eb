//! The reply to a request: an answer or a problem, with the statuses that go with it. It knows no transport.

use serde::Serialize;
use serde_json::Value;

use crate::{
    contract::{
        error::ActionError,
        response::{ActionResponse, Outcome},
    },
    ledger::record::is_final,
};

/// Most replies are not longer.
const INITIAL_CAPACITY: usize = 1024;

/// An answer or a problem.
#[derive(Clone, Debug)]
pub enum Reply {
    /// The action has an answer.
    Done(Box<ActionResponse>),
    /// The action was not done, or it is not known whether it was.
    Problem(ActionError),
}

/// How a reply looks to callers that read a status alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Statuses {
    http: u16,
    exit: u8,
}

impl Reply {
    /// The HTTP status.
    pub(crate) fn http_status(&self) -> u16 {
        match self {
            Reply::Done(response) => statuses(response).http,
            Reply::Problem(error) => error.code.http_status(),
        }
    }

    /// The exit status (sysexits).
    #[must_use]
    pub fn exit_status(&self) -> u8 {
        match self {
            Reply::Done(response) => statuses(response).exit,
            Reply::Problem(error) => error.code.exit_status(),
        }
    }

    /// Whether resending the same request may help. A pending approval is not resent: only a person can
    /// end it.
    pub fn retryable(&self) -> bool {
        match self {
            Reply::Done(_) => self.http_status() == 503,
            Reply::Problem(error) => error.code.retryable(),
        }
    }

    /// Seconds to wait before a retry.
    pub(crate) fn retry_after_seconds(&self) -> Option<u64> {
        match self {
            Reply::Done(_) => None,
            Reply::Problem(error) => error.retry_after_seconds(),
        }
    }

    /// The outcome, or the problem's code.
    pub fn name(&self) -> String {
        match self {
            Reply::Done(response) => response.outcome.name().to_owned(),
            Reply::Problem(error) => error.code.name(),
        }
    }

    /// One line of JSON, without the line's end. A problem is a problem document (RFC 9457).
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        match self {
            Reply::Done(response) => json(response),
            Reply::Problem(error) => json(error),
        }
    }

    /// The same as a JSON value.
    pub(crate) fn to_value(&self) -> Value {
        let value = match self {
            Reply::Done(response) => serde_json::to_value(response),
            Reply::Problem(error) => serde_json::to_value(error),
        };
        value.unwrap_or_default()
    }
}

impl From<ActionError> for Reply {
    fn from(error: ActionError) -> Self {
        Reply::Problem(error)
    }
}

impl From<ActionResponse> for Reply {
    fn from(response: ActionResponse) -> Self {
        Reply::Done(Box::new(response))
    }
}

/// A failed effect is no success to a caller that reads the status alone, and a retry does not help it. An
/// interrupted wait may be retried.
fn statuses(response: &ActionResponse) -> Statuses {
    let (http, exit) = match response.outcome {
        Outcome::Failed if !is_final(response) => (503, 75),
        Outcome::Failed => (422, 69),
        Outcome::PendingApproval => (202, 75),
        Outcome::Applied | Outcome::Unchanged | Outcome::Simulated => (200, 0),
    };
    Statuses { http, exit }
}

/// A plain struct as JSON. Strings, numbers and times always serialize.
pub(crate) fn json(value: &impl Serialize) -> Vec<u8> {
    let mut text = Vec::with_capacity(INITIAL_CAPACITY);
    match serde_json::to_writer(&mut text, value) {
        Ok(()) => text,
        Err(_) => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::{
        error::Code,
        response::{Rollout, RolloutState},
    };

    #[test]
    fn each_outcome_has_its_statuses() {
        let failed = |state| ActionResponse {
            rollout: Some(Rollout { state, message: String::new(), problems: Vec::new() }),
            ..ActionResponse::example(Outcome::Failed)
        };
        let example = ActionResponse::example;
        for (response, http, exit, retryable) in [
            (example(Outcome::Applied), 200, 0, false),
            (example(Outcome::Unchanged), 200, 0, false),
            (example(Outcome::Simulated), 200, 0, false),
            (example(Outcome::PendingApproval), 202, 75, false),
            (failed(RolloutState::Failed), 422, 69, false),
            (failed(RolloutState::TimedOut), 422, 69, false),
            (failed(RolloutState::Interrupted), 503, 75, true),
        ] {
            let reply = Reply::from(response);
            assert_eq!((reply.http_status(), reply.exit_status()), (http, exit), "{reply:?}");
            assert_eq!(reply.retryable(), retryable, "{reply:?}");
        }
    }

    #[test]
    fn a_problem_replies_with_the_statuses_of_its_code() {
        let reply = Reply::from(ActionError::new(Code::RateLimited, "too soon"));
        assert_eq!((reply.http_status(), reply.retryable()), (429, true));
        assert_eq!(reply.name(), "rate_limited");
        assert_eq!(reply.to_value()["detail"], "too soon");
    }
}
