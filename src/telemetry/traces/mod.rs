//! Traces: what belongs to one request, across the edge, the handler and the calls to the API server.
//!
//! The spans are those of `tracing`, there for the logs in any case. With the feature `otel`, and a
//! collector named in OpenTelemetry's own variables, they are also sent there; without it, what is here
//! does nothing. Either way a caller's `traceparent` (W3C Trace Context) is understood as one text.

use http::HeaderMap;
use tracing::Span;

#[cfg(feature = "otel")]
mod collector;

#[cfg(feature = "otel")]
pub use crate::telemetry::traces::collector::Exporter;

/// Nowhere to send traces to: the program was built without the feature `otel`.
#[cfg(not(feature = "otel"))]
pub struct Exporter;

/// What turns spans into traces; none: nothing is sent.
pub type Layer =
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

/// Makes a span that was just made the child of the one that these headers name, if they do, and notes
/// the trace in its field `trace_id`.
pub fn extract(span: &Span, headers: &HeaderMap) {
    #[cfg(feature = "otel")]
    collector::extract(span, headers);
    #[cfg(not(feature = "otel"))]
    let _ = (span, headers);
}

/// Names a span in these headers, so that whoever gets them can go on from there. Where nothing is
/// traced, what the headers name already stays.
pub fn inject(span: &Span, headers: &mut HeaderMap) {
    #[cfg(feature = "otel")]
    collector::inject(span, headers);
    #[cfg(not(feature = "otel"))]
    let _ = (span, headers);
}
