//! The contract.

pub mod digest;
pub mod error;
pub mod json;
pub mod names;
pub mod precondition;
pub mod response;
