//! What the header of a request says: its media types, its id, its preferences, its client's timeout.
//! Decisions on text alone.

use std::{borrow::Cow, time::Duration};

use http::HeaderMap;
use tokio::time::Instant;

use crate::{
    actions::request::IdempotencyKey,
    auth::Credentials,
    contract::error::{ActionError, Code},
};

/// How long before its client's time is over a request is answered; at most a tenth of that time.
const ANSWER_MARGIN: Duration = Duration::from_millis(100);

/// A header that is read, and what becomes of a request in which it is not one line of readable text. There is no other
/// way to read a header, so none that changes a meaning is dropped because it cannot be read. Those that the Model
/// Context Protocol adds are read in `endpoints::mcp`, which refuses them with that protocol's errors.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    /// Its name.
    pub name: &'static str,
    /// The requests in which it is read.
    pub at: At,
    /// What a value gets with a byte that is neither visible ASCII, a space nor a tab.
    pub unreadable: FaultHandling,
    /// What a value gets that is empty, or only spaces.
    pub empty: FaultHandling,
    /// What a second line gets.
    pub repeated: FaultHandling,
    /// The longest line, in bytes.
    pub max: usize,
    /// What a longer one gets.
    pub overlong: FaultHandling,
}

/// The requests in which a header is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// All of them.
    Every,
    /// Those that require authentication, if it is on.
    Authenticated,
    /// A request to act.
    Execute,
    /// A request to act, and a CloudEvent.
    Body,
    /// A request to act, and that for the state of one.
    Negotiated,
    /// A CloudEvent in binary mode.
    Event,
    /// A request for a document.
    Document,
    /// A GET that a page of another site causes.
    Navigation,
    /// The question whether events may be delivered.
    Validation,
}

impl At {
    /// For the table in the documentation.
    pub(crate) fn text(self) -> &'static str {
        match self {
            At::Every => "every request",
            At::Authenticated => "requests that require authentication, if it is on",
            At::Execute => "`/api/v1/action/execute`",
            At::Body => "`/api/v1/action/execute`, `/`, `/mcp`",
            At::Negotiated => "`/api/v1/action/execute`, `/api/v1/actions/{id}`, `/mcp`",
            At::Event => "`/`, in binary mode",
            At::Document => "documents and pages",
            At::Navigation => "a GET by a page of another site",
            At::Validation => "OPTIONS of `/`",
        }
    }
}

impl std::fmt::Display for FaultHandling {
    /// For the table in the documentation.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            FaultHandling::Refused(code) => write!(f, "{} `{code}`", code.http_status()),
            FaultHandling::Ignored => f.write_str("ignored"),
            FaultHandling::Joined => f.write_str("one list"),
            FaultHandling::Shortest => f.write_str("the shortest counts"),
        }
    }
}

/// What becomes of a request with such a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultHandling {
    /// It is refused.
    Refused(Code),
    /// It is answered as without the header.
    Ignored,
    /// It is answered: all lines are one list (RFC 9110, section 5.3).
    Joined,
    /// It is answered: the shortest counts.
    Shortest,
}

/// The server that the request is for.
pub(crate) const HOST: Header = single("Host", At::Every, Code::InvalidRequest, 320);
/// The page that makes the request.
pub(crate) const ORIGIN: Header = single("Origin", At::Every, Code::CrossSite, 512);
/// Where a request comes from, as its browser says (Fetch Metadata Request Headers, section 2).
pub(crate) const SEC_FETCH_SITE: Header = fetch_metadata("Sec-Fetch-Site");
/// See [`SEC_FETCH_SITE`].
pub(crate) const SEC_FETCH_MODE: Header =
    Header { at: At::Navigation, ..fetch_metadata("Sec-Fetch-Mode") };
/// See [`SEC_FETCH_SITE`].
pub(crate) const SEC_FETCH_DEST: Header =
    Header { at: At::Navigation, ..fetch_metadata("Sec-Fetch-Dest") };
/// What the request is called in logs, traces and its response.
pub(crate) const REQUEST_ID: Header = harmless("X-Request-Id", At::Every, 128);
/// Who sends the request.
pub(crate) const AUTHORIZATION: Header =
    single("Authorization", At::Authenticated, Code::Unauthenticated, 8192);
/// What the body is.
pub(crate) const CONTENT_TYPE: Header =
    single("Content-Type", At::Body, Code::UnsupportedMediaType, 256);
/// How the body is compressed, which it must not be.
const CONTENT_ENCODING: Header =
    single("Content-Encoding", At::Body, Code::UnsupportedMediaType, 64);
/// What the response may be.
pub(crate) const ACCEPT: Header = list("Accept", At::Negotiated, 2048);
/// The request's id beside its body.
pub(crate) const IDEMPOTENCY_KEY: Header =
    single("Idempotency-Key", At::Execute, Code::InvalidRequest, 130);
/// How the client wants the response (RFC 7240).
pub(crate) const PREFER: Header = list("Prefer", At::Execute, 1024);
/// The documents that the client has.
pub(crate) const IF_NONE_MATCH: Header =
    Header { repeated: FaultHandling::Joined, ..harmless("If-None-Match", At::Document, 2048) };
/// Attributes of a CloudEvent.
pub(crate) const CE_SPECVERSION: Header = attribute("ce-specversion");
/// See [`CE_SPECVERSION`].
pub(crate) const CE_TYPE: Header = attribute("ce-type");
/// See [`CE_SPECVERSION`].
pub(crate) const CE_SOURCE: Header = attribute("ce-source");
/// See [`CE_SPECVERSION`].
pub(crate) const CE_ID: Header = attribute("ce-id");
/// See [`CE_SPECVERSION`].
pub(crate) const CE_TIME: Header = attribute("ce-time");
/// The traces of a CloudEvent, which are only passed on.
pub(crate) const CE_TRACEPARENT: Header = harmless("ce-traceparent", At::Event, 512);
/// See [`CE_TRACEPARENT`].
pub(crate) const CE_TRACESTATE: Header = harmless("ce-tracestate", At::Event, 512);
/// Who wants to deliver events.
pub(crate) const WEBHOOK_REQUEST_ORIGIN: Header =
    single("WebHook-Request-Origin", At::Validation, Code::InvalidRequest, 320);
/// How many events a minute it wants to deliver.
pub(crate) const WEBHOOK_REQUEST_RATE: Header =
    single("WebHook-Request-Rate", At::Validation, Code::InvalidRequest, 10);
/// The headers with which clients bound their waiting, in seconds. No RFC has one; these are in use:
/// `Request-Timeout` of gateways and several SDKs, and its older spelling.
pub(crate) const TIMEOUTS: [Header; 2] = [timeout("Request-Timeout"), timeout("X-Request-Timeout")];

/// Every header that is read, but for the ones that frame a request (`Content-Length`, `Transfer-Encoding`,
/// `Connection`, `Expect`) and those of its trace.
pub static HEADERS: [Header; 24] = [
    HOST,
    ORIGIN,
    SEC_FETCH_SITE,
    SEC_FETCH_MODE,
    SEC_FETCH_DEST,
    REQUEST_ID,
    TIMEOUTS[0],
    TIMEOUTS[1],
    AUTHORIZATION,
    CONTENT_TYPE,
    CONTENT_ENCODING,
    ACCEPT,
    IDEMPOTENCY_KEY,
    PREFER,
    IF_NONE_MATCH,
    CE_SPECVERSION,
    CE_TYPE,
    CE_SOURCE,
    CE_ID,
    CE_TIME,
    CE_TRACEPARENT,
    CE_TRACESTATE,
    WEBHOOK_REQUEST_ORIGIN,
    WEBHOOK_REQUEST_RATE,
];

/// A header in which whatever is wrong gets the same.
const fn uniform(name: &'static str, at: At, handling: FaultHandling, max: usize) -> Header {
    Header {
        name,
        at,
        unreadable: handling,
        empty: handling,
        repeated: handling,
        max,
        overlong: handling,
    }
}

/// A header whose value changes what is done: it is read, or the request is refused.
const fn single(name: &'static str, at: At, code: Code, max: usize) -> Header {
    uniform(name, at, FaultHandling::Refused(code), max)
}

/// A header that is a list; an empty one says nothing.
const fn list(name: &'static str, at: At, max: usize) -> Header {
    let of_one = single(name, at, Code::InvalidRequest, max);
    Header { empty: FaultHandling::Ignored, repeated: FaultHandling::Joined, ..of_one }
}

/// A header that changes nothing that is done.
const fn harmless(name: &'static str, at: At, max: usize) -> Header {
    uniform(name, at, FaultHandling::Ignored, max)
}

const fn fetch_metadata(name: &'static str) -> Header {
    Header { empty: FaultHandling::Ignored, ..single(name, At::Every, Code::CrossSite, 64) }
}

const fn attribute(name: &'static str) -> Header {
    single(name, At::Event, Code::InvalidRequest, 2048)
}

const fn timeout(name: &'static str) -> Header {
    Header {
        repeated: FaultHandling::Shortest,
        ..single(name, At::Every, Code::InvalidRequest, 32)
    }
}

impl Header {
    /// The value, without the spaces around it; none if there is no such header, or if it is ignored.
    ///
    /// # Errors
    /// As the header's table says.
    pub fn read<'a>(&self, headers: &'a HeaderMap) -> Result<Option<Cow<'a, str>>, ActionError> {
        let lines = self.lines(headers).collect::<Result<Vec<_>, _>>()?;
        match (&lines[..], self.repeated) {
            ([], _) => Ok(None),
            ([only], _) => Ok(only.map(Cow::Borrowed)),
            (_, FaultHandling::Refused(code)) => Err(self.refusal(code, "given more than once")),
            (all, FaultHandling::Joined) => {
                let all: Vec<_> = all.iter().copied().flatten().collect();
                Ok((!all.is_empty()).then(|| Cow::Owned(all.join(", "))))
            }
            _ => Ok(None),
        }
    }

    /// Each line's value; none for one that is ignored.
    fn lines<'a>(
        &self,
        headers: &'a HeaderMap,
    ) -> impl Iterator<Item = Result<Option<&'a str>, ActionError>> {
        headers.get_all(self.name).into_iter().map(|value| {
            let Ok(text) = value.to_str() else {
                return self.unless_refused(self.unreadable, "must be ASCII");
            };
            match text.trim_matches([' ', '\t']) {
                "" => self.unless_refused(self.empty, "must not be empty"),
                text if text.len() > self.max => {
                    let what = format!("must have at most {} bytes", self.max);
                    self.unless_refused(self.overlong, &what)
                }
                text => Ok(Some(text)),
            }
        })
    }

    fn unless_refused(
        &self,
        handling: FaultHandling,
        what: &str,
    ) -> Result<Option<&'static str>, ActionError> {
        match handling {
            FaultHandling::Refused(code) => Err(self.refusal(code, what)),
            _ => Ok(None),
        }
    }

    fn refusal(&self, code: Code, what: &str) -> ActionError {
        let name = self.name;
        ActionError::new(code, format!("{name}: {what}")).with_field(name)
    }
}

/// What these headers prove of who sends a request.
pub(crate) fn credentials(headers: &HeaderMap) -> Credentials {
    let authorization = AUTHORIZATION.read(headers).map(|value| value.map(Cow::into_owned));
    Credentials { authorization, ..Credentials::default() }
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
    let mut charsets = parts
        .filter_map(|part| part.strip_prefix("charset=").map(|it| it.trim_matches('"').to_owned()));
    if charsets.all(|charset| matches!(&*charset, "utf-8" | "utf8")) {
        return Ok(());
    }
    refused("the request's charset is not UTF-8")
}

/// Checks that a body is as it was before it was sent (RFC 9110, section 8.4). A compressed one may be far longer
/// than what is counted.
///
/// # Errors
/// [`Code::UnsupportedMediaType`].
pub(crate) fn check_content_encoding(headers: &HeaderMap) -> Result<(), ActionError> {
    match CONTENT_ENCODING.read(headers)?.as_deref() {
        None => Ok(()),
        Some(encoding) if encoding.eq_ignore_ascii_case("identity") => Ok(()),
        Some(_) => Err(CONTENT_ENCODING
            .refusal(Code::UnsupportedMediaType, "a body must not be compressed")
            .with_hint("send the body as it is, without Content-Encoding")),
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
    let Some(value) = value else { return Ok(None) };
    let quoted = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
    IdempotencyKey::new(quoted.unwrap_or(value), "Idempotency-Key").map(Some)
}

/// Maximum timeout of a client, in seconds: a day.
const MAX_TIMEOUT_SECONDS: f64 = 86_400.0;

/// What is read as a number of seconds, for the OpenAPI document.
pub(crate) const TIMEOUT_PATTERN: &str = r"^[0-9]+(\.[0-9]+)?$";

/// How long the client waits for the response, if it says so; the shortest, if it says so more than once.
///
/// # Errors
/// As [`response_deadline`] says.
pub fn client_timeout(headers: &HeaderMap) -> Result<Option<Duration>, ActionError> {
    let mut shortest = None;
    for header in &TIMEOUTS {
        for value in header.lines(headers) {
            let timeout = value?.and_then(seconds).ok_or_else(|| {
                ActionError::invalid_field(
                    header.name,
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
        let wait = |value| respond_async(Some(value)).map(|it| it.as_secs());
        assert_eq!(respond_async(None), None);
        assert_eq!(wait("respond-async"), Some(0));
        assert_eq!(wait("Respond-Async, wait=5"), Some(5));
        assert_eq!(wait("wait=\"7\" ; a=b, return=minimal, respond-async"), Some(7));
        assert_eq!(wait("respond-async, wait=2, wait=9"), Some(2));
        assert_eq!(wait("respond-async, wait=soon"), Some(0));
        assert_eq!(wait("wait=5"), None);
        assert_eq!(wait("respond-asynchronously"), None);
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
            let named = Err(Some("X-Request-Timeout".to_owned()));
            assert_eq!(timeout(&[("x-request-timeout", wrong)]), named, "{wrong:?}");
        }
    }

    fn lines(name: &str, values: &[&[u8]]) -> HeaderMap {
        let name = http::HeaderName::try_from(name).expect("is a name");
        let value = |bytes: &&[u8]| http::HeaderValue::from_bytes(bytes).expect("is a value");
        values.iter().map(|bytes| (name.clone(), value(bytes))).collect()
    }

    #[test]
    fn a_header_is_read_as_its_table_says() {
        for header in &HEADERS {
            let long = "x".repeat(header.max + 1);
            for (values, handling) in [
                (&["st\u{f6}rung".as_bytes()][..], header.unreadable),
                (&[b"a\xff"], header.unreadable),
                (&["a\u{a0}".as_bytes()], header.unreadable),
                (&[b""], header.empty),
                (&[b" \t "], header.empty),
                (&[long.as_bytes()], header.overlong),
                (&[b"a", b"a"], header.repeated),
            ] {
                let headers = lines(header.name, values);
                let read = header.read(&headers).map(|value| value.map(Cow::into_owned));
                let joined = (handling == FaultHandling::Joined).then(|| "a, a".to_owned());
                match handling {
                    FaultHandling::Refused(code) => {
                        assert_eq!(read.expect_err(header.name).code, code, "{header:?}");
                    }
                    _ => assert_eq!(read, Ok(joined), "{header:?}"),
                }
            }
            // One unreadable line of two is not passed over, unless nothing depends on it.
            let two = lines(header.name, &[b"a", b"\xff"]);
            match header.unreadable {
                FaultHandling::Refused(code) => {
                    assert_eq!(header.read(&two).expect_err(header.name).code, code);
                }
                _ => assert!(header.read(&two).is_ok(), "{header:?}"),
            }
            let one = lines(header.name, &[b" a "]);
            assert_eq!(header.read(&one), Ok(Some(Cow::Borrowed("a"))));
            assert_eq!(header.read(&HeaderMap::new()), Ok(None));
        }
    }

    #[test]
    fn an_idempotency_key_is_an_id_in_quotes_or_bare() {
        let id = |value| idempotency_key(Some(value)).map(|key| key.map(|key| key.id.to_string()));
        assert_eq!(id("\"alert-7\""), Ok(Some("alert-7".to_owned())));
        assert_eq!(id("alert-7"), Ok(Some("alert-7".to_owned())));
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
        for bad in [
            "text/plain",
            "text/json",
            "application/jsonp",
            "application/json; charset=x",
            "application/json; charset=utf-8; charset=utf-16",
        ] {
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
