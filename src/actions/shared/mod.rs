//! What several actions have in common. Must not depend on one of them.

pub(crate) mod pod;
pub(crate) mod restart;
pub(crate) mod rollout;
pub(crate) mod toggle;
