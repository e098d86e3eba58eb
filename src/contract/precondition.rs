//! The precondition of a request: which object, in which version, the target must be.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::contract::names::Opaque;

/// What the target must be for the action to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Precondition {
    /// The target's `metadata.uid`: the object itself, not another one of the same name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<Opaque>,
    /// The target's `metadata.resourceVersion`: the object unchanged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource_version: Option<Opaque>,
}
