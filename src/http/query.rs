//! The query of a target, read strictly: a misspelt or repeated parameter is refused, since ignoring it would
//! answer another question.

use std::borrow::Cow;

use crate::contract::{error::ActionError, names::Namespace};

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

/// The value of `namespace`.
///
/// # Errors
/// [`Code::InvalidRequest`](crate::contract::error::Code::InvalidRequest) if it is not a namespace.
pub(crate) fn namespace(value: Cow<'_, str>) -> Result<Namespace, ActionError> {
    let namespace = Namespace::try_from(value.into_owned());
    namespace.map_err(|what| ActionError::invalid_field("namespace", what))
}
