//! What the header of a request says: its media types, its id, its preferences, its client's timeout.
//! Decisions on text alone.

use std::{borrow::Cow, time::Duration};

use http::{HeaderMap, HeaderName, header::AsHeaderName};
use tokio::time::Instant;

use crate::{
    actions::request::IdempotencyKey,
    contract::error::{ActionError, Code},
};

/// The request's id beside its body.
pub(crate) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// How the client wants the response (RFC 7240).
pub(crate) const PREFER: HeaderName = HeaderName::from_static("prefer");

/// How long before its client's time is over a request is answered; at most a tenth of that time.
const ANSWER_MARGIN: Duration = Duration::from_millis(100);

/// All values of a header as one, as RFC 9110 (section 5.3) joins them; a value that is not
/// ASCII is ignored.
#[must_use]
pub fn header(headers: &HeaderMap, name: impl AsHeaderName) -> Option<Cow<'_, str>> {
    let mut values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    let first = values.next()?;
    let joined = |all: Cow<'_, str>, next| Cow::Owned(format!("{all}, {next}"));
    Some(values.fold(Cow::Borrowed(first), joined))
}

/// Checks that a body of this media type is JSON.
///
/// A browser can send a body to another site without asking first only if it has no Content-Type or
/// one of three that are not JSON, so nothing but JSON is accepted, and it is never guessed.
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

/// Checks that the client accepts JSON (RFC 9110, section 12.5.1): no `Accept` accepts everything, and of the
/// ranges that match the most specific one decides.
///
/// # Errors
/// [`Code::NotAcceptable`].
pub fn check_accept(value: Option<&str>) -> Result<(), ActionError> {
    let Some(value) = value.filter(|value| !value.trim().is_empty()) else { return Ok(()) };
    let taken = ["application/json", "application/problem+json"].iter().any(|offered| {
        let matching = value.split(',').filter_map(|range| match_range(range, offered));
        matching.max_by_key(|(specificity, _)| *specificity).is_some_and(|(_, taken)| taken)
    });
    if taken {
        return Ok(());
    }
    Err(ActionError::new(Code::NotAcceptable, "the client accepts no JSON")
        .with_hint("send the header Accept: application/json, or none"))
}

/// Whether the client asks for server-sent events: by name, since a range that matches them too does not ask
/// for a response without end.
pub(crate) fn accepts_event_stream(accept: Option<&str>) -> bool {
    let ranges = accept.unwrap_or_default().split(',');
    ranges.filter_map(|range| match_range(range, "text/event-stream")).any(|it| it == (2, true))
}

/// How long the client waits before the response may be asynchronous, if it prefers that
/// (`Prefer: respond-async, wait=5`; RFC 7240, sections 4.1 and 4.3). Of a preference that is given more than
/// once the first counts, and one that cannot be read is ignored.
pub(crate) fn respond_async(prefer: Option<&str>) -> Option<Duration> {
    let preferences = || {
        let all = prefer.unwrap_or_default().split(',');
        all.map(|it| it.split(';').next().unwrap_or_default()).map(|it| {
            let (name, value) = it.split_once('=').unwrap_or((it, ""));
            (name.trim(), value.trim().trim_matches('"'))
        })
    };
    let first = |wanted: &str| preferences().find(|(name, _)| name.eq_ignore_ascii_case(wanted));
    first("respond-async")?;
    let seconds = first("wait").and_then(|(_, value)| value.parse::<u32>().ok());
    Some(Duration::from_secs(seconds.unwrap_or_default().into()))
}

/// How specifically a media range matches `offered`, and whether it accepts it (`q` above 0).
fn match_range(range: &str, offered: &str) -> Option<(u8, bool)> {
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
pub fn idempotency_key(value: Option<&str>) -> Result<Option<IdempotencyKey>, ActionError> {
    let Some(value) = value.map(str::trim) else { return Ok(None) };
    let quoted = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
    IdempotencyKey::new(quoted.unwrap_or(value), "Idempotency-Key").map(Some)
}

/// The headers with which clients bound their waiting, in seconds. No RFC has one; these are in use:
/// `Request-Timeout` of gateways and several SDKs, and its older spelling.
pub static TIMEOUT_HEADERS: [HeaderName; 2] =
    [HeaderName::from_static("request-timeout"), HeaderName::from_static("x-request-timeout")];

/// Maximum timeout of a client, in seconds: a day.
const MAX_TIMEOUT_SECONDS: f64 = 86_400.0;

/// How long the client waits for the response, if it says so; the shortest, if it says so twice.
///
/// # Errors
/// As [`response_deadline`] says.
pub fn client_timeout(headers: &HeaderMap) -> Result<Option<Duration>, ActionError> {
    let mut shortest = None;
    for name in &TIMEOUT_HEADERS {
        for value in headers.get_all(name) {
            let timeout = value.to_str().ok().and_then(seconds).ok_or_else(|| {
                ActionError::invalid_field(
                    name.as_str(),
                    "must be a number of seconds greater than 0",
                )
                .with_hint("send it as 30 or 2.5, at most 86400, or not at all")
            })?;
            shortest = Some(shortest.map_or(timeout, |other: Duration| other.min(timeout)));
        }
    }
    Ok(shortest)
}

/// When the response must be sent, if the client waits for a limited time: a little before that ends.
///
/// # Errors
/// [`Code::InvalidRequest`] naming the header whose value must be a number of seconds greater than 0.
pub fn response_deadline(headers: &HeaderMap) -> Result<Option<Instant>, ActionError> {
    let timeout = client_timeout(headers)?;
    Ok(timeout.map(|timeout| Instant::now() + timeout - ANSWER_MARGIN.min(timeout / 10)))
}

/// From `30` or `2.5`: digits, and a fraction or not.
fn seconds(text: &str) -> Option<Duration> {
    let text = text.trim();
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|it| it.is_ascii_digit());
    let number = text.parse::<f64>().ok().filter(|_| digits(whole) && digits(fraction))?;
    (number > 0.0 && number <= MAX_TIMEOUT_SECONDS).then(|| Duration::from_secs_f64(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_asynchronous_response_is_a_preference_with_or_without_a_wait() {
        let patience = |value| respond_async(Some(value)).map(|it| it.as_secs());
        assert_eq!(respond_async(None), None);
        assert_eq!(patience("respond-async"), Some(0));
        assert_eq!(patience("Respond-Async, wait=5"), Some(5));
        assert_eq!(patience("wait=\"7\" ; a=b, return=minimal, respond-async"), Some(7));
        assert_eq!(patience("respond-async, wait=2, wait=9"), Some(2));
        assert_eq!(patience("respond-async, wait=soon"), Some(0));
        assert_eq!(patience("wait=5"), None);
        assert_eq!(patience("respond-asynchronously"), None);
    }

    #[test]
    fn events_are_asked_for_by_name() {
        assert!(accepts_event_stream(Some("text/event-stream")));
        assert!(accepts_event_stream(Some(
            "application/json;q=0.5, Text/Event-Stream;charset=utf-8"
        )));
        for other in [None, Some("*/*"), Some("text/event-stream;q=0"), Some("application/json")] {
            assert!(!accepts_event_stream(other), "{other:?}");
        }
    }

    #[test]
    fn a_clients_timeout_is_in_seconds_and_the_shortest_counts() {
        let timeout = |lines: &[(&'static str, &'static str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in lines {
                headers.append(*name, http::HeaderValue::from_static(value));
            }
            client_timeout(&headers).map_err(|error| error.field)
        };
        assert_eq!(timeout(&[]), Ok(None));
        assert_eq!(timeout(&[("request-timeout", "30")]), Ok(Some(Duration::from_secs(30))));
        assert_eq!(
            timeout(&[("request-timeout", "30"), ("x-request-timeout", " 2.5 ")]),
            Ok(Some(Duration::from_millis(2500)))
        );
        for wrong in ["", "0", "0.0", "-1", "+1", "1e3", "inf", "NaN", "1.", ".5", "5s", "86401"] {
            let named = Err(Some("x-request-timeout".to_owned()));
            assert_eq!(timeout(&[("x-request-timeout", wrong)]), named, "{wrong:?}");
        }
    }

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
