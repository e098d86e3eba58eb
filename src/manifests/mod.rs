//! Kubernetes manifests as text: YAML documents, one after the other, always in the same order.

use serde_json::Value;

use crate::contract::error::{ActionError, Code};

pub mod admission;
pub mod job;
pub mod rbac;

/// The documents as one YAML stream.
///
/// # Errors
/// [`Code::Internal`] if one of them cannot be written, which would be a bug.
pub fn yaml(documents: &[Value]) -> Result<String, ActionError> {
    let mut text = String::new();
    for document in documents {
        let written = serde_saphyr::to_string(document).map_err(|error| {
            ActionError::new(Code::Internal, format!("a manifest cannot be written: {error}"))
        })?;
        text.push_str("---\n");
        text.push_str(written.trim_end());
        text.push('\n');
    }
    Ok(text)
}
