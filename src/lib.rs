//! action-executor: the hand that an SRE agent, a person or an alert has on a Kubernetes cluster.
//!
//! It takes one [`request::ActionRequest`], does it at most once, and answers what happened.
//!
//! # The house
//! - [`request`], [`response`], [`error`], [`names`]: the contract, and nothing else.
//! - [`handler`]: [`handler::handle`], the one function behind every entry point. A real action is a
//!   `transaction`: `execution` makes its effect at most once, `wait` stays until that is complete, `drain`
//!   works off what follows the cordon of a node, and `transaction::fallback` takes a rollout back if it
//!   fails and the request says so; `turns` lets one at a time act on an object.
//! - [`ledger`]: claim, record and replay, in Events; [`failpoint`]: where a crash is tried.
//! - [`inquiry`]: how a request is getting on, told from its record alone.
//! - [`policy`], [`budget`], [`approval`]: the limits that a person set: what may be done, how often, and
//!   what somebody has to approve first.
//! - [`rbac`], [`job`], [`manifests`]: what the cluster is to hold for all this, as data.
//! - [`callers`]: who may ask for what, where strangers can reach the server.
//! - [`document`]: the files that a person keeps, read strictly and followed.
//! - [`context`], [`config`]: what the handler is given, and the settings it comes from.
//! - [`metrics`], [`traces`], [`logging`]: what a server counts, what belongs to one request, what is said.
//! - [`actions`]: one file per action: parameters, facts, decision.
//! - [`k8s`]: what we know of Kubernetes; verdicts and patches, apart from the calls.
//! - [`entry`]: the doors: a single shot from stdin, file or environment, a Job, HTTP, and what an
//!   operator asks.
//!
//! Imports go one way: `entry` to `handler` to `actions`, `policy` and `ledger`, to `k8s`. No entry
//! point knows an action, and no action knows an entry point.

pub mod actions;
pub mod approval;
pub mod budget;
pub mod callers;
pub mod cli;
pub mod config;
pub mod context;
pub mod document;
mod drain;
pub mod entry;
pub mod error;
mod execution;
pub mod failpoint;
pub mod handler;
pub mod inquiry;
pub mod job;
pub mod k8s;
pub mod ledger;
pub mod logging;
pub mod manifests;
pub mod metrics;
pub mod names;
pub mod policy;
pub mod rbac;
pub mod request;
pub mod response;
pub mod schema;
pub mod traces;
mod transaction;
mod turns;
mod wait;
