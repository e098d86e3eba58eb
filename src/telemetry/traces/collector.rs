//! Export of traces to an OpenTelemetry collector: OTLP over HTTP, in batches, from a thread of its own.
//!
//! OpenTelemetry's own variables configure it (`OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_EXPORTER_OTLP_HEADERS`,
//! `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_TRACES_SAMPLER`, `OTEL_SDK_DISABLED`). A collector
//! that is slow or unreachable delays no request: its spans are dropped, and that is logged once.

use std::{
    fmt,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use async_trait::async_trait;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Limited};
use hyper::body::Bytes;
use opentelemetry::{
    KeyValue,
    propagation::TextMapPropagator,
    trace::{TraceContextExt, TracerProvider},
};
use opentelemetry_http::{HeaderExtractor, HeaderInjector, HttpClient, HttpError};
use opentelemetry_otlp::{SpanExporter, WithHttpConfig};
use opentelemetry_sdk::{Resource, propagation::TraceContextPropagator, trace::SdkTracerProvider};
use tokio::{runtime::Runtime, time::timeout};
use tracing::{Level, Metadata, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::{Layer as _, filter::filter_fn};

use crate::{
    contract::error::{ActionError, Code},
    telemetry::{client, traces::Layer},
};

/// The variables of which one must have the URL of a collector.
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"];

/// Maximum length of a response that is read.
const MAX_RESPONSE_BYTES: usize = 64 * 1024;

/// Limit on one batch.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// Limit on the last batch when the program exits.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// Exports spans; on drop, the remaining ones.
pub struct Exporter(Option<SdkTracerProvider>);

impl Exporter {
    /// The exporter and its layer, if a collector is configured.
    ///
    /// # Errors
    /// [`Code::Configuration`] if the variables are not valid.
    pub fn from_env() -> Result<(Self, Option<Layer>), ActionError> {
        if !is_wanted() {
            return Ok((Exporter(None), None));
        }
        // The crate's error may repeat the value of a variable, and headers are secrets.
        let wrong = |_| {
            ActionError::new(
                Code::Configuration,
                "the variables OTEL_EXPORTER_OTLP_... are not valid",
            )
            .with_hint(
                "set OTEL_EXPORTER_OTLP_ENDPOINT to the collector's URL, for example http://HOST:4318",
            )
        };
        let exporter =
            SpanExporter::builder().with_http().with_http_client(OtlpClient::new()?).build();
        let provider = SdkTracerProvider::builder()
            .with_resource(resource())
            .with_batch_exporter(exporter.map_err(wrong)?)
            .build();
        let layer = tracing_opentelemetry::layer()
            .with_tracer(provider.tracer("action-executor"))
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_tracked_inactivity(false)
            .with_filter(filter_fn(is_traced));
        Ok((Exporter(Some(provider)), Some(layer.boxed())))
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        if let Some(provider) = &self.0 {
            // A collector that does not answer is logged already.
            let _ = provider.shutdown_with_timeout(FLUSH_TIMEOUT);
        }
    }
}

fn is_wanted() -> bool {
    let value = |name: &str| std::env::var(name).unwrap_or_default();
    let named = ENDPOINTS.iter().any(|name| !value(name).is_empty());
    named
        && !value("OTEL_SDK_DISABLED").eq_ignore_ascii_case("true")
        && !value("OTEL_TRACES_EXPORTER").eq_ignore_ascii_case("none")
}

/// The service name of the variables, or the program's.
fn resource() -> Resource {
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    let resource = Resource::builder().with_attribute(version);
    match std::env::var_os("OTEL_SERVICE_NAME").filter(|name| !name.is_empty()) {
        Some(_) => resource.build(),
        None => resource.with_service_name("action-executor").build(),
    }
}

/// The program's own spans, and those of the Kubernetes client for its calls.
fn is_traced(metadata: &Metadata<'_>) -> bool {
    let traced = |name| metadata.target().starts_with(name) && *metadata.level() <= Level::DEBUG;
    metadata.is_span() && (traced("action_executor") || traced("kube_client"))
}

pub(crate) fn extract(span: &Span, headers: &HeaderMap) {
    let named = TraceContextPropagator::new().extract(&HeaderExtractor(headers));
    if named.span().span_context().is_valid() {
        // A span that is not traced has no parent either.
        let _ = span.set_parent(named);
    }
    let context = span.context();
    let traced = context.span().span_context().clone();
    if traced.is_valid() {
        span.record("trace_id", traced.trace_id().to_string());
    }
}

pub(crate) fn inject(span: &Span, headers: &mut HeaderMap) {
    let context = span.context();
    if context.span().span_context().is_valid() {
        TraceContextPropagator::new().inject_context(&context, &mut HeaderInjector(headers));
    }
}

/// The exporter's HTTP client, with a runtime: the exporter's thread has none.
struct OtlpClient {
    runtime: Runtime,
    client: client::HttpClient,
    /// Whether the last batch was lost.
    failing: AtomicBool,
}

impl OtlpClient {
    fn new() -> Result<Self, ActionError> {
        let fault = |error: std::io::Error| {
            ActionError::new(Code::Internal, format!("the exporter of traces: {error}"))
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        Ok(OtlpClient {
            runtime: runtime.map_err(fault)?,
            client: client::HttpClient::new().map_err(fault)?,
            failing: AtomicBool::new(false),
        })
    }

    async fn exchange(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (head, body) = self.client.send(request).await?.into_parts();
        let body = Limited::new(body, MAX_RESPONSE_BYTES).collect().await?.to_bytes();
        Ok(Response::from_parts(head, body))
    }

    /// Logs when batches start to be lost, and when they no longer are.
    fn note(&self, result: &Result<Response<Bytes>, HttpError>) {
        let lost = match result {
            Ok(response) if response.status().is_success() => None,
            Ok(response) => Some(response.status().to_string()),
            Err(error) => Some(error.to_string()),
        };
        match (lost, self.failing.load(Ordering::Relaxed)) {
            (Some(why), false) => {
                tracing::warn!(why, "traces dropped: the collector does not accept them")
            }
            (None, true) => tracing::info!("the collector accepts traces again"),
            _ => return,
        }
        self.failing.fetch_xor(true, Ordering::Relaxed);
    }
}

#[async_trait]
impl HttpClient for OtlpClient {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let result = self.runtime.block_on(async {
            let sent = timeout(EXPORT_TIMEOUT, self.exchange(request)).await;
            sent.unwrap_or_else(|_| Err("the collector did not answer in time".into()))
        });
        self.note(&result);
        result
    }
}

impl fmt::Debug for OtlpClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OtlpClient")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invalid_traceparent_is_ignored_and_stays() {
        let span = tracing::info_span!("test");
        let mut headers = HeaderMap::new();
        headers.insert("traceparent", "00-xyz".parse().expect("is a value"));
        extract(&span, &headers);
        inject(&span, &mut headers);
        assert_eq!(headers["traceparent"], "00-xyz");
    }
}
