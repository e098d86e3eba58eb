//! Metrics, traces and logging. Knows neither HTTP nor actions.

pub mod calls;
pub mod logging;
pub mod metrics;
pub mod traces;
