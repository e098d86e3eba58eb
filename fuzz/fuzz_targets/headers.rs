//! No bytes in a header make what reads them panic, and a client's time is never none or endless.

#![no_main]

use std::time::Duration;

use action_executor::entry::http::negotiation::{
    TIMEOUT_HEADERS, check_accept, check_content_type, client_timeout, header, idempotency_key,
};
use http::{HeaderMap, HeaderValue};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(value) = HeaderValue::from_bytes(bytes) else { return };
    let headers: HeaderMap = TIMEOUT_HEADERS
        .into_iter()
        .map(|name| (http::HeaderName::from_static(name), value.clone()))
        .collect();
    if let Ok(timeout) = client_timeout(&headers) {
        assert!(timeout.is_some_and(|it| it <= Duration::from_secs(86_400)));
    }
    let value = header(&headers, TIMEOUT_HEADERS[0]);
    let _ = check_accept(value.as_deref());
    let _ = check_content_type(value.as_deref());
    let _ = idempotency_key(value.as_deref());
});
