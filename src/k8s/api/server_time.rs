//! The API server's time, by the `Date` header of its responses (RFC 9110 section 6.6.1).
//!
//! Limits that several processes share are kept by one clock, the API server's: a wrong clock of one process must
//! not change what all of them may do. Between responses this process counts on by its monotonic clock.

use std::sync::{Arc, Mutex, PoisonError};

use chrono::{DateTime, TimeDelta, Utc};
use http::{HeaderMap, header::DATE};
use tokio::time::Instant;

/// The longest time that a response is in transit.
const MAX_DELAY: TimeDelta = TimeDelta::seconds(60);

/// The time of the latest response. Cheap to clone; all clones are one clock.
#[derive(Clone, Debug, Default)]
pub(crate) struct ServerTime(Arc<Mutex<Option<Noted>>>);

#[derive(Clone, Copy, Debug)]
struct Noted {
    at: Instant,
    date: DateTime<Utc>,
}

impl ServerTime {
    /// Notes the time of a response. It is up to a second late, since `Date` has whole seconds.
    pub(crate) fn note(&self, headers: &HeaderMap) {
        let date = headers.get(DATE).and_then(|value| value.to_str().ok());
        let Some(date) = date.and_then(|it| DateTime::parse_from_rfc2822(it).ok()) else { return };
        let (date, known) = (date.to_utc(), self.now());
        let mut noted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // A response that was in transit for long is late, and time does not go back. A clock that was set may go back.
        if noted.is_none() || date >= known || known - date > MAX_DELAY {
            *noted = Some(Noted { at: Instant::now(), date });
        }
    }

    /// The API server's time; our own before any response.
    pub(crate) fn now(&self) -> DateTime<Utc> {
        let noted = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Noted { at, date }) = noted else { return Utc::now() };
        date + TimeDelta::from_std(at.elapsed()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::HeaderValue;
    use tokio::time::advance;

    use super::*;

    fn headers(date: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(DATE, HeaderValue::from_static(date))])
    }

    #[tokio::test(start_paused = true)]
    async fn time_goes_on_from_the_latest_response() {
        let time = ServerTime::default();
        assert!((time.now() - Utc::now()).abs() < TimeDelta::seconds(5));
        time.note(&headers("Sun, 06 Nov 1994 08:49:37 GMT"));
        advance(Duration::from_secs(3)).await;
        assert_eq!(time.now().to_rfc3339(), "1994-11-06T08:49:40+00:00");
        time.clone().note(&headers("Sun, 06 Nov 1994 08:49:41 GMT"));
        time.note(&headers("no date"));
        assert_eq!(time.now().to_rfc3339(), "1994-11-06T08:49:41+00:00");
        time.note(&headers("Sun, 06 Nov 1994 08:49:31 GMT"));
        assert_eq!(time.now().to_rfc3339(), "1994-11-06T08:49:41+00:00");
        time.note(&headers("Sun, 06 Nov 1994 08:40:00 GMT"));
        assert_eq!(time.now().to_rfc3339(), "1994-11-06T08:40:00+00:00");
    }
}
