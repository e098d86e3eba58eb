//! Metrics, traces, logging, and the HTTP client for their receivers. Knows neither the HTTP server nor actions.

pub mod calls;
pub(crate) mod client;
pub(crate) mod deliveries;
pub mod logging;
pub mod metrics;
pub mod traces;
