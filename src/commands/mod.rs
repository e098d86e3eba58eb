//! One subcommand per file.

pub mod env;
pub mod healthcheck;
pub mod healthcheck_tls;
pub mod history;
pub mod job;
pub mod policy;
pub mod run;
pub mod schema;
pub mod serve;
