//! The query of a target, read strictly: a misspelt or repeated parameter is refused, since ignoring it would
//! answer another question.

use std::borrow::Cow;

use schemars::SchemaGenerator;
use serde_json::Value;

use crate::{
    contract::{
        error::ActionError,
        names::{ClusterName, Namespace},
    },
    http::openapi,
};

/// The parameters in their order, decoded (WHATWG URL, application/x-www-form-urlencoded). Each may be given
/// once.
pub(crate) fn parameters(
    text: &str,
) -> impl Iterator<Item = Result<(Cow<'_, str>, Cow<'_, str>), ActionError>> {
    let mut given = Vec::new();
    form_urlencoded::parse(text.as_bytes()).map(move |(name, value)| {
        if given.contains(&name) {
            return Err(ActionError::invalid_field(name, "given more than once"));
        }
        given.push(name.clone());
        Ok((name, value))
    })
}

/// The value of `cluster`.
///
/// # Errors
/// [`Code::InvalidRequest`](crate::contract::error::Code::InvalidRequest) if it cannot be a name.
pub(crate) fn cluster(value: Cow<'_, str>) -> Result<ClusterName, ActionError> {
    let name = ClusterName::try_from(value.into_owned());
    name.map_err(|what| ActionError::invalid_field("cluster", what))
}

/// The parameter `cluster` in the OpenAPI document.
pub(crate) fn cluster_parameter(generator: &mut SchemaGenerator) -> Value {
    openapi::query(
        "cluster",
        "The cluster: one of those that the server is configured for. The default one, if it is left out; where there is \
         only one, it must have this name.",
        generator.subschema_for::<ClusterName>().to_value(),
    )
}

/// The value of `namespace`.
///
/// # Errors
/// [`Code::InvalidRequest`](crate::contract::error::Code::InvalidRequest) if it is not a namespace.
pub(crate) fn namespace(value: Cow<'_, str>) -> Result<Namespace, ActionError> {
    let namespace = Namespace::try_from(value.into_owned());
    namespace.map_err(|what| ActionError::invalid_field("namespace", what))
}
