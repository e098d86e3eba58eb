//! Manifests for the cluster: RBAC, Jobs, admission policies. Data only: makes no calls and reads no files.

use serde_json::Value;

use crate::contract::{
    error::{ActionError, Code},
    names::ServiceAccount,
};

pub mod admission;
pub(crate) mod impersonation;
pub mod job;
pub mod rbac;

/// How the name of each object of this account begins, so that two accounts have objects of their own.
fn name_prefix(account: &ServiceAccount) -> String {
    format!("action-executor.{}.{}", account.namespace, account.name)
}

/// The documents as one YAML stream, in their order.
///
/// # Errors
/// [`Code::Internal`] if one of them cannot be written.
pub(crate) fn yaml(documents: &[Value]) -> Result<String, ActionError> {
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
