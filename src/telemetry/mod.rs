//! Metrics, traces and logging.

pub mod calls;
pub mod logging;
pub mod metrics;
pub mod traces;
