//! What we know of Kubernetes.
//!
//! Two kinds of file live here, and they do not mix. Most are pure: they turn objects into verdicts or
//! intentions into patches, and are tested from YAML. The others call ([`connect`], [`cluster`],
//! [`effect`], [`completion`], [`jobs`], [`surroundings`]) and decide nothing about actions: they know
//! deadlines, retries and how to find out what became of a write whose answer was lost.

pub mod api;
pub mod applied_requests;
pub mod autoscaling;
pub mod drain_filter;
pub mod gitops;
pub mod nodes;
pub mod pdb;
pub mod pods;
pub mod preflight_warnings;
pub mod rbac;
pub mod restart;
pub mod revisions;
pub mod rollout;
pub mod workload;

/// The name under which the cluster records our changes (`managedFields`).
pub const FIELD_MANAGER: &str = "action-executor";

/// The annotation that a change carries, so that whoever looks later knows which request made it.
pub const REQUEST_ID_ANNOTATION: &str = "action-executor.dev/request-id";
