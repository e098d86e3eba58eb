//! One endpoint per file.

pub mod actions;
pub mod cloudevents;
pub mod diagnosis;
pub mod execute;
pub mod history;
pub mod mcp;
pub mod metrics;
pub mod operation;
pub mod protected_resource;
pub mod readiness;
pub mod respond_async;
pub mod sse;
