//! The tests that need the built program: against a real API server, over real sockets.
//!
//! `browser`, `cgroup`, `cluster`, `fault_proxy`, `pki`, `program`, `readers` and `scenario` are the tools; every
//! other file has the tests of one part.

mod access;
mod admission;
mod approval;
mod attacks;
mod auth;
mod browser;
mod cgroup;
mod chart;
mod cloudevents;
mod cluster;
mod concurrency;
mod contract;
mod cordon;
mod cronjob;
mod crowds;
mod docs;
mod drain;
mod endurance;
mod evict_pod;
mod exactly_once;
mod fault_matrix;
mod fault_proxy;
mod faults;
mod frozen_server;
mod headers;
mod history;
mod http;
#[cfg(feature = "lambda")]
mod lambda;
mod ledger;
mod limits;
mod links;
mod manifests;
mod mcp;
mod messages;
mod model;
mod node;
mod openapi;
mod origin;
mod parity;
mod pause_rollout;
mod pki;
mod problems;
mod program;
mod properties;
mod readers;
mod respond_async;
mod restart_daemonset;
mod restart_k8s;
mod restart_pod;
mod restart_statefulset;
mod resume_rollout;
mod rollback;
mod rollback_on_failure;
mod round_trips;
mod run;
mod scale;
mod scenario;
#[cfg(feature = "otel")]
mod secrets;
mod set_autoscaler_bounds;
mod set_image;
mod superseded;
mod tls;
#[cfg(feature = "otel")]
mod traces;
mod unseen;
mod waits;
mod warnings;
mod webhook;
mod writers;
