//! What we know of Kubernetes.
//!
//! Two kinds of file live here, and they do not mix. Most are pure: they turn objects into verdicts or
//! intentions into patches, and are tested from YAML. The others call ([`connect`], [`cluster`],
//! [`effect`], [`completion`], [`jobs`], [`surroundings`]) and decide nothing about actions: they know
//! deadlines, retries and how to find out what became of a write whose answer was lost.

pub mod advice;
pub mod autoscaling;
pub mod cluster;
pub mod completion;
pub mod connect;
pub mod disruption;
pub mod drain;
pub mod effect;
#[cfg(feature = "lambda")]
pub mod eks;
pub mod fault;
pub mod gitops;
pub mod jobs;
pub mod marks;
pub mod nodes;
pub mod pods;
pub mod restart;
pub mod retry;
pub mod revisions;
pub mod rollout;
pub mod surroundings;
pub(crate) mod warnings;
pub mod workload;

/// The name under which the cluster records our changes (`managedFields`).
pub const FIELD_MANAGER: &str = "action-executor";

/// The annotation that a change carries, so that whoever looks later knows which request made it.
pub const REQUEST_ID_ANNOTATION: &str = "action-executor.dev/request-id";
