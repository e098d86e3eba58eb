//! One subcommand per file: from its arguments to what it prints and its exit status.

use serde_json::Value;

use crate::{cli::OutputFormat, contract::error::ActionError, manifests::yaml};

pub mod action;
mod cluster;
pub mod complete;
pub mod diagnose;
pub mod doctor;
mod env;
pub mod explain;
pub mod healthcheck;
pub mod healthcheck_tls;
pub mod history;
pub mod job;
pub mod mcp;
pub mod policy;
pub mod reference;
pub mod run;
pub mod schema;
pub mod serve;
mod terminal;
pub mod verify_receipt;

/// A document in the requested format; text is YAML.
fn document(value: &Value, output: OutputFormat) -> Result<String, ActionError> {
    Ok(match output {
        OutputFormat::Text => yaml(std::slice::from_ref(value))?.trim_end().to_owned(),
        OutputFormat::Json => value.to_string(),
        OutputFormat::Pretty => format!("{value:#}"),
    })
}
