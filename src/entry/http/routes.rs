//! Which path and method is which, and what media types it speaks: decisions on text alone.

use crate::{
    error::{ActionError, Code},
    request::Key,
};

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// Is the process alive?
    Health,
    /// Could an action be done now?
    Ready,
    /// What has been counted?
    Metrics,
    /// Do an action.
    Execute,
}

/// The answer of the two questions about health when all is well, in the original service's words.
pub const HEALTHY: &str = r#"{"status":"ok"}"#;

/// Each path with its method.
const ROUTES: [(&str, Route); 4] = [
    ("/api/v1/healthz", Route::Health),
    ("/readyz", Route::Ready),
    ("/metrics", Route::Metrics),
    ("/api/v1/action/execute", Route::Execute),
];

impl Route {
    /// The route of a request line; a query is no part of it.
    ///
    /// # Errors
    /// [`Code::RouteNotFound`] or [`Code::MethodNotAllowed`].
    pub fn of(method: &str, target: &str) -> Result<Route, ActionError> {
        let path = target.split('?').next().unwrap_or_default();
        let found = ROUTES.iter().find(|(known, _)| *known == path);
        let Some((_, route)) = found else {
            let known: Vec<_> = ROUTES.iter().map(|(path, _)| *path).collect();
            return Err(ActionError::new(Code::RouteNotFound, "nothing is served at this path")
                .with_hint(format!("served: {}", known.join(", "))));
        };
        if route.methods().contains(&method) {
            return Ok(*route);
        }
        let allowed = route.methods().join(", ");
        Err(ActionError::new(Code::MethodNotAllowed, format!("this path takes {allowed}")))
    }

    /// The methods that it takes.
    fn methods(self) -> &'static [&'static str] {
        match self {
            Route::Health | Route::Ready | Route::Metrics => &["GET", "HEAD"],
            Route::Execute => &["POST"],
        }
    }

    /// The path in the words of the metrics: one that is served, or `other`.
    #[must_use]
    pub fn known_path(path: &str) -> &'static str {
        ROUTES.iter().find(|(known, _)| *known == path).map_or("other", |(known, _)| known)
    }

    /// The value of `Allow` for a path, whatever the method.
    #[must_use]
    pub fn allow(target: &str) -> Option<String> {
        let path = target.split('?').next().unwrap_or_default();
        let (_, route) = ROUTES.iter().find(|(known, _)| *known == path)?;
        Some(route.methods().join(", "))
    }
}

/// Whether a body of this media type is JSON.
///
/// A browser can send a body to another site without asking first only if it has no Content-Type or
/// one of three that are not JSON, so nothing else than JSON is taken, and never a guess.
///
/// # Errors
/// [`Code::UnsupportedMediaType`].
pub fn check_content_type(value: Option<&str>) -> Result<(), ActionError> {
    let refused = |what: &str| {
        Err(ActionError::new(Code::UnsupportedMediaType, what)
            .with_hint("send the header Content-Type: application/json"))
    };
    let Some(value) = value else { return refused("the request has no Content-Type") };
    let mut parts = value.split(';').map(|part| part.trim().to_ascii_lowercase());
    let essence = parts.next().unwrap_or_default();
    if essence != "application/json"
        && !(essence.starts_with("application/") && essence.ends_with("+json"))
    {
        return refused("the request's Content-Type is not JSON");
    }
    let charset = parts.find_map(|part| part.strip_prefix("charset=").map(str::to_owned));
    match charset.as_deref().map(|charset| charset.trim_matches('"')) {
        None | Some("utf-8" | "utf8") => Ok(()),
        Some(_) => refused("the request's charset is not UTF-8"),
    }
}

/// Whether the caller takes JSON (RFC 9110, section 12.5.1): no `Accept` takes everything, and of the
/// ranges that match the most specific one decides.
///
/// # Errors
/// [`Code::NotAcceptable`].
pub fn check_accept(value: Option<&str>) -> Result<(), ActionError> {
    let Some(value) = value.filter(|value| !value.trim().is_empty()) else { return Ok(()) };
    let taken = ["application/json", "application/problem+json"].iter().any(|offered| {
        let matching = value.split(',').filter_map(|range| rank(range, offered));
        matching.max_by_key(|(specificity, _)| *specificity).is_some_and(|(_, taken)| taken)
    });
    if taken {
        return Ok(());
    }
    Err(ActionError::new(Code::NotAcceptable, "the caller accepts no JSON")
        .with_hint("send the header Accept: application/json, or none"))
}

/// How specifically a media range matches `offered`, and whether it takes it (`q` above 0).
fn rank(range: &str, offered: &str) -> Option<(u8, bool)> {
    let mut parts = range.split(';').map(|part| part.trim().to_ascii_lowercase());
    let specificity = match parts.next()?.as_str() {
        "*/*" => 0,
        "application/*" => 1,
        essence if essence == offered => 2,
        _ => return None,
    };
    let quality = parts.find_map(|part| part.strip_prefix("q=").map(str::to_owned));
    let taken = quality.is_none_or(|quality| quality.parse::<f32>().is_ok_and(|q| q > 0.0));
    Some((specificity, taken))
}

/// The id in an `Idempotency-Key` header: a string in quotes, as the IETF's draft
/// (draft-ietf-httpapi-idempotency-key-header) has it, or bare, as many clients send it.
///
/// # Errors
/// [`Code::InvalidRequest`] if it is not an id.
pub fn idempotency_key(value: Option<&str>) -> Result<Option<Key>, ActionError> {
    let Some(value) = value.map(str::trim) else { return Ok(None) };
    let quoted = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
    Key::new(quoted.unwrap_or(value), "Idempotency-Key").map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idempotency_key_is_an_id_in_quotes_or_bare() {
        let id = |value| idempotency_key(Some(value)).map(|key| key.map(|key| key.id.to_string()));
        assert_eq!(id("\"alert-7\""), Ok(Some("alert-7".to_owned())));
        assert_eq!(id(" alert-7 "), Ok(Some("alert-7".to_owned())));
        assert_eq!(idempotency_key(None), Ok(None));
        for wrong in ["", "\"\"", "\"a", "a, b", "a b"] {
            let error = id(wrong).expect_err(wrong);
            assert_eq!(error.field.as_deref(), Some("Idempotency-Key"));
        }
    }

    fn route(method: &str, target: &str) -> Result<Route, Code> {
        Route::of(method, target).map_err(|error| error.code)
    }

    #[test]
    fn each_path_takes_its_methods() {
        assert_eq!(route("GET", "/api/v1/healthz"), Ok(Route::Health));
        assert_eq!(route("HEAD", "/readyz"), Ok(Route::Ready));
        assert_eq!(route("POST", "/api/v1/action/execute"), Ok(Route::Execute));
        assert_eq!(route("GET", "/api/v1/action/execute"), Err(Code::MethodNotAllowed));
        assert_eq!(route("POST", "/api/v1/healthz"), Err(Code::MethodNotAllowed));
        assert_eq!(Route::allow("/readyz").as_deref(), Some("GET, HEAD"));
    }

    #[test]
    fn a_query_is_no_part_of_the_path_and_a_slash_is() {
        assert_eq!(route("GET", "/readyz?verbose"), Ok(Route::Ready));
        assert_eq!(route("GET", "/readyz/"), Err(Code::RouteNotFound));
        assert_eq!(route("GET", "/"), Err(Code::RouteNotFound));
        assert_eq!(route("GET", "/api/v1/../readyz"), Err(Code::RouteNotFound));
    }

    #[test]
    fn only_json_is_taken() {
        for good in [
            "application/json",
            "Application/JSON; charset=UTF-8",
            "application/json;charset=\"utf-8\"",
            "application/cloudevents+json",
        ] {
            assert!(check_content_type(Some(good)).is_ok(), "{good}");
        }
        for bad in ["text/plain", "text/json", "application/jsonp", "application/json; charset=x"] {
            assert!(check_content_type(Some(bad)).is_err(), "{bad}");
        }
        assert!(check_content_type(None).is_err());
    }

    #[test]
    fn the_most_specific_range_decides() {
        for good in ["*/*", "application/*", "text/html, */*;q=0.1", "application/problem+json"] {
            assert!(check_accept(Some(good)).is_ok(), "{good}");
        }
        for bad in
            ["text/html", "*/*;q=0", "application/json;q=0, application/problem+json;q=0, */*"]
        {
            assert!(check_accept(Some(bad)).is_err(), "{bad}");
        }
        assert!(check_accept(None).is_ok());
    }
}
