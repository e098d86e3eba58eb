//! Calls to the API server. Must not decide anything about an action.

pub mod client;
pub(crate) mod completion;
pub(crate) mod connect;
pub(crate) mod connection;
pub(crate) mod credentials;
pub(crate) mod custom;
pub(crate) mod dialer;
#[cfg(feature = "lambda")]
pub(crate) mod eks;
pub(crate) mod error;
pub(crate) mod exec_plugin;
pub(crate) mod finished_pods;
pub(crate) mod impersonation;
pub(crate) mod kubeconfig;
pub(crate) mod mutation;
pub(crate) mod node_pods;
pub(crate) mod observation;
pub(crate) mod preflight;
pub(crate) mod problems;
pub(crate) mod resource_limits;
pub(crate) mod retry;
pub(crate) mod self_review;
pub(crate) mod server_time;
pub(crate) mod warnings;
pub(crate) mod watch;
pub(crate) mod workloads;
