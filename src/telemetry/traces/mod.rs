//! Traces: the spans of a request, from its connection to its calls to the API server.
//!
//! The spans are those of `tracing`, which the logs use too. With the feature `otel`, and a collector in
//! OpenTelemetry's own variables, they are also sent to it; without the feature this module does nothing.

use http::HeaderMap;
use tracing::Span;

#[cfg(feature = "otel")]
mod collector;

#[cfg(feature = "otel")]
pub use crate::telemetry::traces::collector::Exporter;

/// Sends nothing: the program was built without the feature `otel`.
#[cfg(not(feature = "otel"))]
pub struct Exporter;

/// Turns spans into traces.
pub(crate) type Layer =
    Box<dyn tracing_subscriber::Layer<tracing_subscriber::Registry> + Send + Sync + 'static>;

#[cfg(not(feature = "otel"))]
impl Exporter {
    /// No exporter.
    ///
    /// # Errors
    /// Never.
    pub fn from_env() -> Result<(Self, Option<Layer>), crate::contract::error::ActionError> {
        Ok((Exporter, None))
    }
}

/// Makes a new span the child of the one in these headers (W3C Trace Context), if there is one, and records the
/// trace in its field `trace_id`.
pub(crate) fn extract(span: &Span, headers: &HeaderMap) {
    #[cfg(feature = "otel")]
    collector::extract(span, headers);
    #[cfg(not(feature = "otel"))]
    let _ = (span, headers);
}

/// Writes a span into these headers, so that their receiver continues its trace. A span that is not traced
/// leaves the headers as they are.
pub(crate) fn inject(span: &Span, headers: &mut HeaderMap) {
    #[cfg(feature = "otel")]
    collector::inject(span, headers);
    #[cfg(not(feature = "otel"))]
    let _ = (span, headers);
}
