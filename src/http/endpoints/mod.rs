//! One endpoint per file.

pub mod actions;
pub mod cloudevents;
pub mod history;
pub mod operation;
pub mod readiness;
pub mod respond_async;
