//! A CloudEvent 1.0 as HTTP carries it, in and out: in binary mode its attributes are `ce-` header fields
//! and its data the body, in structured mode it is a JSON object
//! ([CloudEvents](https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md), its HTTP protocol
//! binding and its JSON event format).
//!
//! The data stays the text that it was sent as, so that it is read as strictly as everywhere else. That is
//! why the SDK for Rust is not used: it reads data into a value, in which a field given twice is one. It
//! also leaves percent-encoding as it is, and brings 45 crates for eight attributes. The SDK for Go is what
//! the tests send with, and what has to understand the answers.
//!
//! Decisions on text alone.

use std::borrow::Cow;

use base64::{Engine, prelude::BASE64_STANDARD};
use chrono::{DateTime, Utc};
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{
    actions::request::checked_text,
    contract::{
        error::{ActionError, Code},
        json::read,
        response::rfc3339_millis,
    },
    http::{
        headers::{
            CE_ID, CE_SOURCE, CE_SPECVERSION, CE_TIME, CE_TRACEPARENT, CE_TRACESTATE, CE_TYPE,
            CONTENT_TYPE, Header, check_content_encoding, check_content_type,
        },
        message::Body,
    },
};

/// The type of an event that asks for an action.
pub(crate) const REQUEST: &str = "dev.action-executor.action.request.v1";

/// The media types of events as a whole (JSON event format, sections 3 and 4).
const STRUCTURED: &str = "application/cloudevents+json";
const BATCH: &str = "application/cloudevents-batch+json";
const ANY_FORMAT: &str = "application/cloudevents";

/// Attributes of the distributed tracing extension, forwarded unchanged.
const TRACES: [&str; 2] = ["traceparent", "tracestate"];

/// The media type of the data of our events. A problem has it too, since the SDK for Go takes no other JSON
/// for JSON; its event's type says what it is.
const DATA_TYPE: &str = "application/json";

/// What has to be encoded in a header value (HTTP protocol binding, section 3.1.3.2), which is all that is
/// not visible ASCII and these.
const ENCODED: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'%');

/// How an event is carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Attributes in the header, data in the body.
    Binary,
    /// All of it in the body.
    Structured,
}

/// An event that asks for an action.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Incoming {
    /// How it came, which is how it is answered.
    pub mode: Mode,
    /// Its id, one of its own among those of its source.
    pub id: String,
    /// Where it is from.
    pub source: String,
    /// When it was made.
    pub time: Option<DateTime<Utc>>,
    /// Its traces, by name.
    pub traces: Vec<(&'static str, String)>,
    /// The request in JSON.
    pub data: Vec<u8>,
}

/// An event that answers.
#[derive(Debug)]
pub(crate) struct Outgoing {
    /// Its type.
    pub kind: &'static str,
    /// Its source.
    pub source: &'static str,
    /// Its id.
    pub id: String,
    /// What it is about.
    pub subject: Option<String>,
    /// When it happened.
    pub time: DateTime<Utc>,
    /// Its data in JSON.
    pub data: Vec<u8>,
    /// The traces of the event that it answers.
    pub traces: Vec<(&'static str, String)>,
}

/// The attributes that are read, whatever carried them.
struct Attributes {
    specversion: String,
    kind: String,
    id: String,
    source: String,
    time: Option<String>,
}

/// An event in the JSON event format. Other attributes and extensions are ignored.
#[derive(Deserialize)]
struct Structured<'a> {
    specversion: String,
    #[serde(rename = "type")]
    kind: String,
    id: String,
    source: String,
    time: Option<String>,
    datacontenttype: Option<String>,
    traceparent: Option<String>,
    tracestate: Option<String>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    data_base64: Option<String>,
}

impl Incoming {
    /// Reads an event.
    ///
    /// # Errors
    /// [`Code::UnsupportedMediaType`] for a batch, another event format or data that is not JSON, else
    /// [`Code::InvalidRequest`] with the attribute at fault.
    pub(crate) fn read(headers: &HeaderMap, body: Vec<u8>) -> Result<Self, ActionError> {
        let media_type = CONTENT_TYPE.read(headers)?;
        check_content_encoding(headers)?;
        let essence = media_type.as_deref().unwrap_or_default().split(';').next();
        match essence.unwrap_or_default().trim().to_ascii_lowercase().as_str() {
            BATCH => Err(ActionError::new(
                Code::UnsupportedMediaType,
                "events are accepted one at a time, not in batches",
            )
            .with_hint(format!("send each event by itself, as {STRUCTURED} or in binary mode"))),
            STRUCTURED => {
                check_content_type(media_type.as_deref())?;
                structured(&body)
            }
            other if other.starts_with(ANY_FORMAT) => {
                Err(ActionError::new(Code::UnsupportedMediaType, "the event's format is not JSON")
                    .with_hint(format!("send {STRUCTURED}, or binary mode")))
            }
            _ => binary(headers, media_type.as_deref(), body),
        }
    }

    fn checked(
        mode: Mode,
        attributes: Attributes,
        traces: Vec<(&'static str, String)>,
        data: Vec<u8>,
    ) -> Result<Self, ActionError> {
        let Attributes { specversion, kind, id, source, time } = attributes;
        let wrong = |name: &str, what: &str| ActionError::invalid_field(mode.place_of(name), what);
        if specversion != "1.0" {
            return Err(wrong("specversion", "must be 1.0"));
        }
        if kind != REQUEST {
            return Err(wrong("type", &format!("must be {REQUEST}")));
        }
        if id.is_empty() {
            return Err(wrong("id", "must not be empty"));
        }
        if source.is_empty() {
            return Err(wrong("source", "must not be empty"));
        }
        let time = time.map(|text| DateTime::parse_from_rfc3339(&text).map(|it| it.to_utc()));
        let time = time.transpose();
        let time = time.map_err(|_| wrong("time", "must be an RFC 3339 time"))?;
        Ok(Incoming { mode, id, source, time, traces, data })
    }
}

impl Mode {
    /// Where an attribute stands.
    fn place_of(self, attribute: &str) -> String {
        match self {
            Mode::Binary => format!("ce-{attribute}"),
            Mode::Structured => attribute.to_owned(),
        }
    }
}

fn structured(body: &[u8]) -> Result<Incoming, ActionError> {
    let event: Structured = read(checked_text(body)?, "")?;
    if let Some(media_type) = &event.datacontenttype {
        check_content_type(Some(media_type))
            .map_err(|error| error.with_field("datacontenttype"))?;
    }
    let data = match (event.data, event.data_base64) {
        (Some(data), None) => data.get().as_bytes().to_vec(),
        (None, Some(text)) => BASE64_STANDARD
            .decode(text)
            .map_err(|_| ActionError::invalid_field("data_base64", "is not base64"))?,
        (None, None) => return Err(ActionError::invalid_field("data", "missing")),
        (Some(_), Some(_)) => {
            return Err(ActionError::invalid_field("data", "cannot be combined with data_base64"));
        }
    };
    let traces = TRACES.into_iter().zip([event.traceparent, event.tracestate]);
    let traces = traces.filter_map(|(name, value)| Some((name, value?))).collect();
    let Structured { specversion, kind, id, source, time, .. } = event;
    let attributes = Attributes { specversion, kind, id, source, time };
    Incoming::checked(Mode::Structured, attributes, traces, data)
}

fn binary(
    headers: &HeaderMap,
    media_type: Option<&str>,
    data: Vec<u8>,
) -> Result<Incoming, ActionError> {
    let Some(specversion) = attribute(headers, &CE_SPECVERSION)? else {
        return Err(ActionError::new(Code::InvalidRequest, "the request is not a CloudEvent")
            .with_hint(format!(
                "send {STRUCTURED}, or ce- header fields; a request as it is goes to \
                 /api/v1/action/execute"
            )));
    };
    check_content_type(media_type)?;
    let needed = |header: &Header| {
        let value = attribute(headers, header)?;
        value.ok_or_else(|| ActionError::invalid_field(header.name, "missing"))
    };
    let attributes = Attributes {
        specversion,
        kind: needed(&CE_TYPE)?,
        id: needed(&CE_ID)?,
        source: needed(&CE_SOURCE)?,
        time: attribute(headers, &CE_TIME)?,
    };
    let traces = TRACES.into_iter().zip([&CE_TRACEPARENT, &CE_TRACESTATE]);
    let traces = traces
        .filter_map(|(name, header)| Some((name, header.read(headers).ok()??.into_owned())))
        .collect();
    Incoming::checked(Mode::Binary, attributes, traces, data)
}

/// An attribute from the header, decoded (HTTP protocol binding, section 3.1.3.2).
fn attribute(headers: &HeaderMap, header: &Header) -> Result<Option<String>, ActionError> {
    let Some(text) = header.read(headers)? else { return Ok(None) };
    let text = unquoted(&text);
    let decoded = percent_decode_str(&text).decode_utf8();
    let decoded = decoded
        .map_err(|_| ActionError::invalid_field(header.name, "is not percent-encoded UTF-8"))?;
    Ok(Some(decoded.into_owned()))
}

/// The text of a quoted string, in which a backslash stands before a character as it is (RFC 9110, section
/// 5.6.4); other text as it is.
fn unquoted(text: &str) -> Cow<'_, str> {
    let Some(quoted) = text.strip_prefix('"').and_then(|it| it.strip_suffix('"')) else {
        return Cow::Borrowed(text);
    };
    let mut characters = quoted.chars();
    let next = || match characters.next()? {
        '\\' => characters.next(),
        other => Some(other),
    };
    Cow::Owned(std::iter::from_fn(next).collect())
}

impl Outgoing {
    /// The event as an answer of this mode.
    ///
    /// # Errors
    /// [`Code::Internal`] if its data is not JSON after all.
    pub(crate) fn response(
        self,
        mode: Mode,
        status: StatusCode,
    ) -> Result<Response<Body>, ActionError> {
        let mut response = match mode {
            Mode::Binary => self.binary(),
            Mode::Structured => self.structured()?,
        };
        *response.status_mut() = status;
        Ok(response)
    }

    fn binary(self) -> Response<Body> {
        let encoded = |value: &str| utf8_percent_encode(value, ENCODED).to_string();
        let mut lines = vec![
            ("specversion", "1.0".to_owned()),
            ("type", self.kind.to_owned()),
            ("source", self.source.to_owned()),
            ("id", encoded(&self.id)),
            ("time", rfc3339_millis(self.time)),
        ];
        lines.extend(self.subject.as_deref().map(|subject| ("subject", encoded(subject))));
        lines.extend(self.traces);
        let mut response = Response::new(Body::Full(self.data.into()));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(DATA_TYPE));
        for (name, value) in lines {
            let name = http::HeaderName::try_from(Mode::Binary.place_of(name));
            // What came in a header can go in one.
            if let (Ok(name), Ok(value)) = (name, HeaderValue::try_from(value)) {
                headers.insert(name, value);
            }
        }
        response
    }

    fn structured(self) -> Result<Response<Body>, ActionError> {
        #[derive(Serialize)]
        struct Event<'a> {
            specversion: &'a str,
            #[serde(rename = "type")]
            kind: &'a str,
            source: &'a str,
            id: &'a str,
            time: String,
            #[serde(skip_serializing_if = "Option::is_none")]
            subject: Option<&'a str>,
            datacontenttype: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            traceparent: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            tracestate: Option<&'a str>,
            data: &'a RawValue,
        }

        let trace =
            |name| self.traces.iter().find(|(it, _)| *it == name).map(|(_, value)| value.as_str());
        let write = || {
            serde_json::to_vec(&Event {
                specversion: "1.0",
                kind: self.kind,
                source: self.source,
                id: &self.id,
                time: rfc3339_millis(self.time),
                subject: self.subject.as_deref(),
                datacontenttype: DATA_TYPE,
                traceparent: trace(TRACES[0]),
                tracestate: trace(TRACES[1]),
                data: serde_json::from_slice(&self.data)?,
            })
        };
        let body = write().map_err(|error| {
            ActionError::new(Code::Internal, format!("the event cannot be read: {error}"))
        })?;
        let mut response = Response::new(Body::Full(body.into()));
        let media_type = HeaderValue::from_static("application/cloudevents+json; charset=utf-8");
        response.headers_mut().insert(header::CONTENT_TYPE, media_type);
        Ok(response)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATA: &str = r#"{"type":"restart_k8s","parameters":{"deployment":"web"}}"#;

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let parsed = |value: &str| value.parse::<HeaderValue>().expect("is a value");
        let lines =
            lines.iter().map(|(name, value)| (http::HeaderName::from_static(name), parsed(value)));
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(name, value);
        }
        headers
    }

    fn structured_event(attributes: &str) -> Result<Incoming, ActionError> {
        let body = format!(r#"{{"specversion":"1.0","id":"7","source":"/pager",{attributes}}}"#);
        Incoming::read(&headers(&[("content-type", STRUCTURED)]), body.into_bytes())
    }

    #[test]
    fn both_modes_carry_the_same() {
        let lines = [
            ("content-type", "application/json"),
            ("ce-specversion", "1.0"),
            ("ce-type", REQUEST),
            ("ce-id", "7"),
            ("ce-source", "/pager"),
            ("ce-time", "2026-01-31T12:00:00Z"),
            ("ce-traceparent", "00-1-2-01"),
            ("ce-other", "passed over"),
        ];
        let binary = Incoming::read(&headers(&lines), DATA.into()).expect("is an event");
        let attributes = format!(
            r#""type":"{REQUEST}","time":"2026-01-31T12:00:00Z","traceparent":"00-1-2-01","other":1,
               "data":{DATA}"#
        );
        let structured = structured_event(&attributes).expect("is an event");
        assert_eq!(binary.mode, Mode::Binary);
        assert_eq!(structured, Incoming { mode: Mode::Structured, ..binary });
        let base64 =
            format!(r#""type":"{REQUEST}","data_base64":"{}""#, BASE64_STANDARD.encode(DATA));
        assert_eq!(structured_event(&base64).expect("is an event").data, DATA.as_bytes());
    }

    #[test]
    fn a_header_value_is_decoded_and_encoded_again() {
        let one = headers(&[("ce-source", "\"/caf%C3%A9%20%25\"")]);
        assert_eq!(attribute(&one, &CE_SOURCE).expect("is one").as_deref(), Some("/café %"));
        for (sent, meant) in [
            (r#""on\ce""#, "once"),
            (r#""a\"b\\c""#, r#"a"b\c"#),
            (r#""\%41""#, "A"),
            (r"on\ce", r"on\ce"),
            (r#""a"#, r#""a"#),
        ] {
            let one = headers(&[("ce-id", sent)]);
            assert_eq!(attribute(&one, &CE_ID).expect(sent).as_deref(), Some(meant), "{sent}");
        }
        assert_eq!(utf8_percent_encode("/café %", ENCODED).to_string(), "/caf%C3%A9%20%25");
        assert!(attribute(&headers(&[("ce-source", "%ff")]), &CE_SOURCE).is_err());
        let twice = headers(&[("ce-source", "/a"), ("ce-source", "/b")]);
        assert!(attribute(&twice, &CE_SOURCE).is_err());
    }

    #[test]
    fn a_wrong_event_is_refused_by_its_attribute() {
        let wrong = |attributes: &str| {
            let error = structured_event(attributes).expect_err(attributes);
            (error.code.http_status(), error.field.unwrap_or_default())
        };
        let kind = format!(r#""type":"{REQUEST}""#);
        for (attributes, status, field) in [
            (format!(r#""type":"other","data":{DATA}"#), 400, "type"),
            (format!(r#""data":{DATA}"#), 400, "type"),
            (kind.clone(), 400, "data"),
            (format!(r#"{kind},"data":{DATA},"data_base64":"e30=""#), 400, "data"),
            (format!(r#"{kind},"data_base64":"?""#), 400, "data_base64"),
            (format!(r#"{kind},"time":"noon","data":{DATA}"#), 400, "time"),
            (format!(r#"{kind},"id":"8","data":{DATA}"#), 400, "id"),
            (format!(r#"{kind},"data":{DATA},"data":{DATA}"#), 400, "data"),
            (
                format!(r#"{kind},"datacontenttype":"text/xml","data":{DATA}"#),
                415,
                "datacontenttype",
            ),
        ] {
            assert_eq!(wrong(&attributes), (status, field.to_owned()), "{attributes}");
        }
        for (media_type, status) in
            [(BATCH, 415), ("application/cloudevents+avro", 415), ("application/json", 400)]
        {
            let error = Incoming::read(&headers(&[("content-type", media_type)]), DATA.into());
            assert_eq!(error.expect_err(media_type).code.http_status(), status, "{media_type}");
        }
    }
}
