//! Calls to the API server. Must not decide anything about an action.

pub mod client;
pub(crate) mod completion;
pub(crate) mod connect;
pub(crate) mod connection;
pub(crate) mod credentials;
pub(crate) mod dialer;
#[cfg(feature = "lambda")]
pub(crate) mod eks;
pub(crate) mod error;
pub(crate) mod exec_plugin;
pub(crate) mod kubeconfig;
pub(crate) mod mutation;
pub(crate) mod preflight;
pub(crate) mod retry;
pub(crate) mod server_time;
pub(crate) mod warnings;
pub(crate) mod watch;
pub(crate) mod workloads;
