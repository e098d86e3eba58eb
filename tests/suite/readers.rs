//! Properties of the parsers of untrusted input, for the fuzzer and for `properties`.
#![allow(dead_code, reason = "each fuzz target uses one of them")]

use std::time::Duration;

use action_executor::{
    actions::request::ActionRequest,
    auth::keys::Keys,
    config::reload::ConfigFile,
    http::headers::{HEADERS, check_accept, check_content_type, client_timeout, idempotency_key},
    policy::Policy,
};
use http::{HeaderMap, HeaderName, HeaderValue};

/// An accepted request keeps its meaning when it is written.
pub fn request(bytes: &[u8]) {
    if let Ok(first) = ActionRequest::parse(bytes) {
        let written = serde_json::to_vec(&first).expect("is written");
        assert_eq!(first, ActionRequest::parse(&written).expect("is accepted again"));
    }
}

/// Parsed keys keep their meaning when they are written.
pub fn documents(text: &str) {
    let _ = Policy::parse(text, "tried");
    if let Ok(first) = Keys::parse(text, "tried") {
        let written = serde_json::to_string(&first).expect("is written");
        assert_eq!(first, Keys::parse(&written, "written").expect("is read again"));
    }
}

/// A client's timeout is never zero or unbounded.
pub fn headers(bytes: &[u8]) {
    let Ok(value) = HeaderValue::from_bytes(bytes) else { return };
    let timeouts = ["request-timeout", "x-request-timeout"].map(HeaderName::from_static);
    let headers: HeaderMap = timeouts.into_iter().map(|name| (name, value.clone())).collect();
    if let Ok(timeout) = client_timeout(&headers) {
        assert!(timeout.is_some_and(|it| it <= Duration::from_secs(86_400)));
    }
    for header in &HEADERS {
        let headers =
            [(header.name.parse().expect("is a name"), value.clone())].into_iter().collect();
        let value = header.read(&headers).unwrap_or_default();
        let _ = check_accept(value.as_deref());
        let _ = check_content_type(value.as_deref());
        let _ = idempotency_key(value.as_deref());
    }
}
