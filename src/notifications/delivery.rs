//! One attempt to deliver an event to the sink: a POST, and what follows from its response. It knows neither what an
//! event says nor when it is resent.

use std::{error::Error, time::Duration};

use chrono::{DateTime, Utc};
use http::{
    HeaderMap, Method, Request, StatusCode, Uri,
    header::{CONTENT_TYPE, RETRY_AFTER, USER_AGENT},
};
use tokio::time::timeout;

use crate::{
    config::reload::Reloading,
    notifications::{event::Event, signature::Secrets},
    telemetry::client::HttpClient,
};

/// The media type of an event in the JSON event format.
const MEDIA_TYPE: &str = "application/cloudevents+json; charset=utf-8";

/// Limit on one attempt, with its connection.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);

/// What follows from one attempt.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum AttemptResult {
    Delivered,
    /// The sink does not take it.
    Rejected,
    /// Resend it, after this pause at least.
    Retry(Duration),
}

/// The way to the sink.
pub(super) struct Delivery {
    client: HttpClient,
    url: Uri,
    secrets: Reloading<Secrets>,
}

impl Delivery {
    pub(super) fn new(client: HttpClient, url: Uri, secrets: Reloading<Secrets>) -> Self {
        Delivery { client, url, secrets }
    }

    /// Sends an event once; also returns why, without the URL and the response: either may have a secret.
    pub(super) async fn attempt(&self, event: &Event) -> (AttemptResult, String) {
        let at = Utc::now();
        let request = match self.request(event, at) {
            Ok(request) => request,
            Err(error) => return (AttemptResult::Rejected, error.to_string()),
        };
        match timeout(ATTEMPT_TIMEOUT, self.client.send(request)).await {
            // The body is not read, so its length and its speed do not matter.
            Ok(Ok(reply)) => {
                (result_of(reply.status(), reply.headers(), at), reply.status().to_string())
            }
            Ok(Err(error)) => (AttemptResult::Retry(Duration::ZERO), with_causes(&*error)),
            Err(_) => (AttemptResult::Retry(Duration::ZERO), "no response in time".to_owned()),
        }
    }

    /// The signature has the time of the attempt: receivers refuse old ones.
    fn request(
        &self,
        event: &Event,
        at: DateTime<Utc>,
    ) -> Result<Request<hyper::body::Bytes>, http::Error> {
        let at = at.timestamp();
        Request::builder()
            .method(Method::POST)
            .uri(self.url.clone())
            .header(CONTENT_TYPE, MEDIA_TYPE)
            .header(USER_AGENT, concat!("action-executor/", env!("CARGO_PKG_VERSION")))
            .header("webhook-id", &event.id)
            .header("webhook-timestamp", at)
            .header("webhook-signature", self.secrets.current().sign(&event.id, at, &event.body))
            .body(event.body.clone().into())
    }
}

/// The error and what caused it, in one line.
fn with_causes(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// What follows from a response. A redirect is not followed: the sink is the one that is configured.
fn result_of(status: StatusCode, headers: &HeaderMap, now: DateTime<Utc>) -> AttemptResult {
    match status.as_u16() {
        200..300 => AttemptResult::Delivered,
        408 | 429 | 500.. => AttemptResult::Retry(retry_after(headers, now)),
        _ => AttemptResult::Rejected,
    }
}

/// The pause that the sink asks for, in seconds or until a date (RFC 9110, section 10.2.3).
fn retry_after(headers: &HeaderMap, now: DateTime<Utc>) -> Duration {
    let Some(value) = headers.get(RETRY_AFTER).and_then(|it| it.to_str().ok()) else {
        return Duration::ZERO;
    };
    let seconds = value.trim().parse().ok().map(Duration::from_secs);
    let until = || DateTime::parse_from_rfc2822(value.trim()).ok();
    let pause = seconds.or_else(|| until().and_then(|at| (at.to_utc() - now).to_std().ok()));
    pause.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(status: u16, retry_after: Option<&str>) -> AttemptResult {
        let mut headers = HeaderMap::new();
        if let Some(value) = retry_after {
            headers.insert(RETRY_AFTER, value.parse().expect("is a value"));
        }
        let now = "2026-01-31T12:00:00Z".parse().expect("is a time");
        result_of(StatusCode::from_u16(status).expect("is a status"), &headers, now)
    }

    #[test]
    fn only_what_may_pass_is_sent_again() {
        for status in [200, 202, 204] {
            assert_eq!(of(status, None), AttemptResult::Delivered, "{status}");
        }
        for status in [301, 302, 307, 308, 400, 401, 403, 404, 405, 410, 413, 422] {
            assert_eq!(of(status, Some("1")), AttemptResult::Rejected, "{status}");
        }
        for status in [408, 429, 500, 502, 503, 504] {
            assert_eq!(of(status, None), AttemptResult::Retry(Duration::ZERO), "{status}");
        }
    }

    #[test]
    fn the_sink_may_ask_for_a_pause() {
        for (value, seconds) in [
            ("7", 7),
            ("0", 0),
            ("86400", 86_400),
            ("-1", 0),
            ("soon", 0),
            ("Sat, 31 Jan 2026 12:00:09 GMT", 9),
            ("Sat, 31 Jan 2026 11:00:00 GMT", 0),
            ("99999999999999999999999", 0),
        ] {
            assert_eq!(
                of(503, Some(value)),
                AttemptResult::Retry(Duration::from_secs(seconds)),
                "{value}"
            );
        }
    }
}
