//! What every entry point and every client agrees on: errors, answers, names, strict JSON. Imports nothing of
//! the other modules.

pub mod digest;
pub mod error;
pub mod image;
pub mod json;
pub mod names;
pub mod precondition;
pub mod response;
pub(crate) mod visible;
