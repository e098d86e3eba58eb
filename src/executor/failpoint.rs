//! Failpoints for tests: steps at which the process aborts, as in a crash, or panics, as with a bug. They work
//! only in debug builds, and only if `ACTION_EXECUTOR_FAILPOINT` or `ACTION_EXECUTOR_PANICPOINT` names the step.

/// The steps of a real action between which a crash matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failpoint {
    /// The plan is made; nothing is written.
    BeforeClaim,
    /// The request is claimed.
    AfterClaim,
    /// The budget is charged, at the same time as the claim.
    AfterCharge,
    /// The request is claimed and charged; the effect is next.
    BeforeWrite,
    /// The effect is applied.
    AfterWrite,
    /// The wait for completion is over, if the request waits; the record is next.
    BeforeRecord,
    /// The answer is recorded.
    AfterRecord,
    /// The answer is next.
    BeforeAnswer,
    /// The receipt is written, if receipts are written; the note of it in the record is next.
    AfterReceipt,
    /// The awaited rollout failed, and the rollback is recorded; the rollback is next.
    BeforeRollback,
    /// The rollback is applied; the wait for it is next.
    AfterRollback,
}

impl Failpoint {
    /// The failpoints of every action, in order.
    pub const ALL: [Failpoint; 8] = [
        Failpoint::BeforeClaim,
        Failpoint::AfterClaim,
        Failpoint::AfterCharge,
        Failpoint::BeforeWrite,
        Failpoint::AfterWrite,
        Failpoint::BeforeRecord,
        Failpoint::AfterRecord,
        Failpoint::BeforeAnswer,
    ];

    /// The failpoints of a rollback.
    pub const ROLLBACK: [Failpoint; 2] = [Failpoint::BeforeRollback, Failpoint::AfterRollback];

    /// The name, as in the environment variable.
    #[must_use]
    pub fn name(self) -> String {
        format!("{self:?}")
    }

    /// Aborts or panics if the environment names this failpoint.
    pub(crate) fn pass(self) {
        #[cfg(debug_assertions)]
        {
            let is_in = |name| std::env::var_os(name).is_some_and(|it| *it == *self.name());
            if is_in("ACTION_EXECUTOR_FAILPOINT") {
                std::process::abort();
            }
            assert!(!is_in("ACTION_EXECUTOR_PANICPOINT"), "asked to panic");
        }
    }
}
