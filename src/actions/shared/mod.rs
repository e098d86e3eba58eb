//! What several actions have in common. Must not depend on one of them.

pub(crate) mod amounts;
pub(crate) mod annotations;
pub(crate) mod applications;
pub(crate) mod argo_rollout;
pub(crate) mod containers;
pub(crate) mod flux;
pub(crate) mod job;
pub(crate) mod keda;
pub(crate) mod metadata;
pub(crate) mod pod;
pub(crate) mod restart;
pub(crate) mod rollout;
pub(crate) mod selection;
pub(crate) mod taint;
pub(crate) mod toggle;
