//! What every entry point and every client agrees on: errors, answers, names, strict JSON. Imports nothing of
//! the other modules.

pub(crate) mod advice;
pub(crate) mod counted;
pub(crate) mod cut;
pub mod digest;
pub mod error;
pub mod image;
pub mod json;
pub mod label_selector;
pub mod names;
pub mod precondition;
pub mod quantity;
pub mod response;
pub(crate) mod targets;
pub(crate) mod visible;
