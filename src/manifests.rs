//! Kubernetes manifests as text: YAML documents, one after the other, always in the same order.

use serde_json::Value;

use crate::{
    error::{ActionError, Code},
    names::{Namespace, ObjectName},
};

/// The service account that the executor runs as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceAccount {
    /// Its namespace.
    pub namespace: Namespace,
    /// Its name.
    pub name: ObjectName,
}

impl ServiceAccount {
    /// The user name that the API server knows it by.
    #[must_use]
    pub fn user(&self) -> String {
        format!("system:serviceaccount:{}:{}", self.namespace, self.name)
    }
}

impl std::str::FromStr for ServiceAccount {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (namespace, name) = text.split_once(':').ok_or("must be NAMESPACE:NAME")?;
        Ok(ServiceAccount {
            namespace: namespace.to_owned().try_into()?,
            name: name.to_owned().try_into()?,
        })
    }
}

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
