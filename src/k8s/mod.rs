//! What this program knows of Kubernetes. Must not depend on an action or an entry point.
//!
//! The files of this directory are pure: they turn objects into decisions, and intentions into patches; their
//! tests read objects from YAML. The calls are in [`api`], with their deadlines and retries.

pub mod api;
pub mod applied_requests;
pub(crate) mod argo_cd;
pub(crate) mod argo_rollouts;
pub(crate) mod autoscaling;
pub(crate) mod cleanup_filter;
pub(crate) mod completion;
pub(crate) mod conditional_patch;
pub(crate) mod conditions;
pub(crate) mod drain_filter;
pub(crate) mod effect;
pub(crate) mod events;
pub(crate) mod evidence;
pub(crate) mod field_managers;
pub(crate) mod flux;
pub(crate) mod gitops;
pub mod integrations;
pub(crate) mod jobs;
pub(crate) mod keda;
pub(crate) mod mask;
pub(crate) mod nodes;
pub(crate) mod observation;
pub(crate) mod pdb;
pub(crate) mod pod_set;
pub(crate) mod pods;
pub(crate) mod preflight_warnings;
pub(crate) mod problems;
pub(crate) mod pvc;
pub mod rbac;
pub(crate) mod replacement;
pub(crate) mod replicas;
pub(crate) mod resources;
pub(crate) mod restart;
pub(crate) mod revisions;
pub(crate) mod rollout;
pub(crate) mod taints;
pub mod workload;

/// The field manager of our changes (`managedFields`).
pub(crate) const FIELD_MANAGER: &str = "action-executor";

/// The prefix of this program's own annotations.
pub(crate) const OWN_PREFIX: &str = "action-executor.dev/";

/// The annotation with the id of the request that made a change.
pub(crate) const REQUEST_ID_ANNOTATION: &str = "action-executor.dev/request-id";
