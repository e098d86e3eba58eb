//! Calls to the API server.

pub mod client;
pub mod completion;
pub mod connect;
#[cfg(feature = "lambda")]
pub mod eks;
pub mod error;
pub mod jobs;
pub mod mutation;
pub mod preflight;
pub mod retry;
pub mod warnings;
