//! `GET /.well-known/oauth-protected-resource`: whose tokens `/mcp` takes, for clients that get one by OAuth (RFC
//! 9728).
//!
//! It is served where an issuer is configured. It decides nothing: a token is reviewed by the API server for the
//! audience, which is the resource, and RBAC authorizes its user as everywhere.

use http::{HeaderValue, Response};
use serde_json::json;

use crate::{
    config::ProtectedResource,
    contract::error::{ActionError, Code},
    http::{
        dispatch::Service,
        message::{Body, json},
    },
};

/// The document for the resource at the path `/mcp`; the same is at the path without `/mcp`.
pub(crate) const METADATA_PATH: &str = "/.well-known/oauth-protected-resource/mcp";

/// The document.
///
/// # Errors
/// [`Code::RouteNotFound`] where no issuer is configured: clients then know their credentials.
pub(crate) fn get(service: &Service) -> Result<Response<Body>, ActionError> {
    let ProtectedResource { resource, issuer } = service.resource.as_ref().ok_or_else(|| {
        ActionError::new(Code::RouteNotFound, "no OAuth issuer is configured")
            .with_hint("send a key or a token of the cluster as a bearer token")
    })?;
    Ok(json(&json!({
        "resource": resource,
        "authorization_servers": [issuer],
        "bearer_methods_supported": ["header"],
        "resource_name": "action-executor",
    })))
}

/// The challenge for a client without valid credentials (RFC 9728, section 5.1).
pub(crate) fn challenge(resource: &ProtectedResource) -> Option<HeaderValue> {
    let origin = resource.resource.strip_suffix("/mcp")?;
    let challenge =
        format!("Bearer realm=\"action-executor\", resource_metadata=\"{origin}{METADATA_PATH}\"");
    HeaderValue::try_from(challenge).ok()
}
