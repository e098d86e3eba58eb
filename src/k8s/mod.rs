//! What we know of Kubernetes.
//!
//! Two kinds of file live here, and they do not mix. The pure ones turn objects into verdicts or
//! intentions into patches ([`restart`], [`rollout`], [`workload`], [`pods`], [`disruption`], [`nodes`],
//! [`drain`], [`marks`], [`retry`]) and are tested from YAML.
//! The ones that call ([`connect`], [`cluster`], [`effect`], [`completion`], [`jobs`]) decide nothing about actions: they know
//! deadlines, retries and how to find out what became of a write whose answer was lost.

pub mod cluster;
pub mod completion;
pub mod connect;
pub mod disruption;
pub mod drain;
pub mod effect;
#[cfg(feature = "lambda")]
pub mod eks;
pub mod fault;
pub mod jobs;
pub mod marks;
pub mod nodes;
pub mod pods;
pub mod restart;
pub mod retry;
pub mod rollout;
pub mod workload;

/// The name under which the cluster records our changes (`managedFields`).
pub const FIELD_MANAGER: &str = "action-executor";

/// The annotation that a change carries, so that whoever looks later knows which request made it.
pub const REQUEST_ID_ANNOTATION: &str = "action-executor.dev/request-id";
