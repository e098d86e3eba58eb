//! Places where the process may be made to die, as a crash would, to see what its next try makes of
//! it, or where a handler may be made to panic, as a bug would. Only in debug builds, and only when
//! `ACTION_EXECUTOR_FAILPOINT` or `ACTION_EXECUTOR_PANICPOINT` names the place; in a release there is
//! nothing here.

/// The steps of a real action between which a crash matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failpoint {
    /// It was decided what to do; nothing is written.
    BeforeClaim,
    /// The request is claimed.
    AfterClaim,
    /// The budget is charged; the effect is next.
    BeforeWrite,
    /// The effect is made.
    AfterWrite,
    /// The effect is complete, if that was asked for; the record is next.
    BeforeRecord,
    /// The answer is recorded.
    AfterRecord,
    /// The answer is about to be given.
    BeforeAnswer,
    /// The awaited rollout has failed, and the record says that it is about to be taken back.
    BeforeRollback,
    /// It is taken back; the wait for that is next.
    AfterRollback,
}

impl Failpoint {
    /// Those of every action, in the order in which they are passed.
    pub const ALL: [Failpoint; 7] = [
        Failpoint::BeforeClaim,
        Failpoint::AfterClaim,
        Failpoint::BeforeWrite,
        Failpoint::AfterWrite,
        Failpoint::BeforeRecord,
        Failpoint::AfterRecord,
        Failpoint::BeforeAnswer,
    ];

    /// Those of an action that has failed and is taken back.
    pub const ROLLBACK: [Failpoint; 2] = [Failpoint::BeforeRollback, Failpoint::AfterRollback];

    /// The name by which the environment calls it.
    #[must_use]
    pub fn name(self) -> String {
        format!("{self:?}")
    }

    /// Dies or panics here if that was asked for.
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
