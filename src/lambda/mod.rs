//! The function runtime (AWS Lambda and what implements its runtime API): an invocation to the executor and back.
//!
//! HTTP comes from API Gateway (REST and HTTP), a load balancer or a function URL, and is answered as the
//! server answers it. Everything else is a request by itself, or an event of EventBridge, SQS or SNS that
//! carries one. A permanent result is an answer; a transient one is a function error, or for SQS a failed
//! item, so that the event's source retries, and the ledger ensures that the request acts once.
//!
//! The cluster's client is made at the first request that needs it and kept. Work ends a little before
//! the invocation does, so that there always is an answer.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use lambda_http::{
    Body, Request, RequestExt, Response, lambda_runtime::Diagnostic, request::RequestContext,
    service_fn,
};
use serde_json::json;
use tokio::{
    sync::{Mutex, watch},
    time::Instant,
};

use crate::{
    actions::request::IdempotencyKey,
    auth::{Authenticator, Credentials},
    config::{Settings, clusters::ClusterList},
    contract::error::{ActionError, Code},
    executor::{Restriction, context::Context, handle, incoming::IncomingRequest, reply::Reply},
    http::{
        assets, dispatch,
        dispatch::Service,
        message,
        message::{FullRequest, RequestInfo},
        routes::{Asset, Route},
    },
    lambda::events::{Event, Message},
};

mod events;
mod http;

/// How long before the invocation's end the answer is complete.
const ANSWER_MARGIN: Duration = Duration::from_millis(1500);

/// How long an answer waits until notifications are sent: less than the margin.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a cluster's client is used before its credentials are renewed: tokens for EKS are valid for 15
/// minutes.
const CREDENTIALS_TTL: Duration = Duration::from_secs(600);

/// The variables that the platform sets, without which its runtime cannot start.
const PLATFORM: [&str; 4] = [
    "AWS_LAMBDA_RUNTIME_API",
    "AWS_LAMBDA_FUNCTION_NAME",
    "AWS_LAMBDA_FUNCTION_VERSION",
    "AWS_LAMBDA_FUNCTION_MEMORY_SIZE",
];

/// Serves invocations until the platform ends the process; returns the exit status.
#[must_use]
pub fn run(settings: Result<Settings, ActionError>) -> u8 {
    let missing = PLATFORM.iter().find(|name| std::env::var_os(name).is_none());
    if let Some(name) = missing {
        let error = ActionError::new(Code::Usage, format!("{name} is not set"));
        return exit_with(&error.with_hint(
            "this is the Lambda runtime binary; run `action-executor` everywhere else",
        ));
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            return exit_with(&ActionError::new(
                Code::Internal,
                format!("the runtime cannot start: {error}"),
            ));
        }
    };
    let ended = runtime.block_on(async {
        let function = &Function::new(settings);
        lambda_http::run(service_fn(move |request| function.invoke(request))).await
    });
    match ended {
        Ok(()) => 0,
        Err(error) => exit_with(&ActionError::new(
            Code::Internal,
            format!("the runtime cannot start: {error}"),
        )),
    }
}

fn exit_with(error: &ActionError) -> u8 {
    tracing::error!(code = %error.code, hint = error.hint, "{}", error.detail);
    error.code.exit_status()
}

/// The function between invocations.
struct Function {
    /// A wrong setting is reported to every caller: a runtime that exits is restarted endlessly.
    settings: Result<Settings, ActionError>,
    callers: Result<Arc<Authenticator>, ActionError>,
    /// The list of clusters, if there is one. It stays as it was at the start, whatever is renewed.
    clusters: Result<Option<ClusterList>, ActionError>,
    context: Mutex<Option<(Context, Instant)>>,
}

impl Function {
    fn new(settings: Result<Settings, ActionError>) -> Self {
        let callers = settings.clone().and_then(|settings| Authenticator::from_settings(&settings));
        let callers = callers.map(Arc::new);
        let clusters = settings.clone().and_then(|settings| ClusterList::of(&settings));
        Function { settings, callers, clusters, context: Mutex::default() }
    }

    /// The context, its cluster's credentials fresh.
    async fn context(&self) -> Result<Context, ActionError> {
        let mut kept = self.context.lock().await;
        if let Some((context, made)) = &*kept
            && made.elapsed() < CREDENTIALS_TTL
        {
            return Ok(context.clone());
        }
        let settings = self.settings.as_ref().map_err(Clone::clone)?;
        // A function is not signalled to shut down; its time ends.
        let (_, stopping) = watch::channel(false);
        let clusters = self.clusters.clone()?;
        let context = Context::connect_to(clusters, None, settings, stopping).await?;
        *kept = Some((context.clone(), Instant::now()));
        Ok(context)
    }

    /// Answers an invocation. Between invocations the function is frozen, so notifications are sent before.
    async fn invoke(&self, request: Request) -> Result<Response<Body>, Failure> {
        let answer = self.answer(request).await;
        let reports = self.context.lock().await.as_ref().map(|(it, _)| it.reports().clone());
        if let Some(reports) = reports {
            reports.flush(FLUSH_TIMEOUT).await;
        }
        answer
    }

    async fn answer(&self, request: Request) -> Result<Response<Body>, Failure> {
        let left = time_left(request.lambda_context_ref().map_or(0, |context| context.deadline));
        match request.request_context_ref() {
            Some(RequestContext::PassThrough) | None => {
                let text = match request.into_body() {
                    Body::Text(text) => text.into_bytes(),
                    Body::Binary(bytes) => bytes,
                    _ => Vec::new(),
                };
                let answer = self.event(&text, left).await?;
                Ok(Response::new(Body::from(answer)))
            }
            Some(_) => Ok(self.http(request, left).await),
        }
    }

    /// Answers an event that is not HTTP, in JSON.
    async fn event(&self, text: &[u8], left: Option<Duration>) -> Result<Vec<u8>, Failure> {
        match events::read(text) {
            Event::Single(message) => {
                let answer = self.message(message, left).await;
                if answer.retryable() { Err(Failure(answer)) } else { Ok(answer.to_json()) }
            }
            Event::Sns(messages) => {
                let mut answers = Vec::new();
                for message in messages {
                    let answer = self.message(message, left).await;
                    if answer.retryable() {
                        return Err(Failure(answer));
                    }
                    answers.push(answer.to_value());
                }
                Ok(json!(answers).to_string().into_bytes())
            }
            Event::Sqs(messages) => {
                let end = left.map(|left| Instant::now() + left);
                let mut failures = Vec::new();
                for message in messages {
                    let id = message.id.clone().unwrap_or_default();
                    let left = end.map(|end| end.saturating_duration_since(Instant::now()));
                    if self.message(message, left).await.retryable() {
                        failures.push(json!({ "itemIdentifier": id }));
                    }
                }
                Ok(json!({ "batchItemFailures": failures }).to_string().into_bytes())
            }
        }
    }

    /// Carries out one request; its event's id is its own, if it brings none.
    async fn message(&self, message: Message, left: Option<Duration>) -> Reply {
        let result = async {
            let context = bounded(self.context().await?, left);
            let mut request =
                IncomingRequest { body: message.body, ..IncomingRequest::default() }.request()?;
            if request.id.is_none()
                && let Some(id) = &message.id
            {
                request = request
                    .with_idempotency_key(Some(&IdempotencyKey::new(id, "the event's id")?))?;
            }
            handle(&context, request, Restriction::None).await
        };
        result.await.map_or_else(Reply::from, Reply::from)
    }

    async fn http(&self, request: Request, left: Option<Duration>) -> Response<Body> {
        let response = match http::from_lambda(request) {
            Ok((request, info, credentials)) => {
                self.dispatch(request, info, credentials, left).await
            }
            Err(error) => Err(error),
        };
        http::to_lambda(response.unwrap_or_else(|error| Reply::from(error).into()))
    }

    async fn dispatch(
        &self,
        request: FullRequest,
        info: RequestInfo,
        credentials: Credentials,
        left: Option<Duration>,
    ) -> Result<Response<message::Body>, ActionError> {
        let route = info.path.route(request.method().as_str()).ok();
        if route == Some(Route::Asset(Asset::Actions)) {
            // The list is public, and is there without a cluster that can be used, too.
            let context = self.context().await.ok();
            return Ok(assets::actions_document(context.as_ref()).response(request.headers()));
        }
        if let Some(response) =
            route.and_then(|route| dispatch::answer_static(route, request.headers()))
        {
            return Ok(response);
        }
        let callers = self.callers.as_ref().map_err(Clone::clone)?;
        let settings = self.settings.as_ref().map_err(Clone::clone)?;
        let service = Service::new(self.context().await?, callers.clone(), settings);
        let service = match left {
            Some(left) => service.with_deadline(left),
            None => service,
        };
        let caller = service.authenticate(request.method(), info.path, || credentials).await;
        let caller = match caller {
            Ok(caller) => caller,
            Err(error) => return Ok(service.refused(error, info.path)),
        };
        Ok(service.dispatch(request, RequestInfo { caller, ..info }).await)
    }
}

/// The context, whose work ends with the invocation.
fn bounded(context: Context, left: Option<Duration>) -> Context {
    match left {
        Some(left) => context.with_deadline(left),
        None => context,
    }
}

/// What is left of the invocation, less the margin. Emulators have no deadline, or one long past.
fn time_left(deadline_ms: u64) -> Option<Duration> {
    let deadline = SystemTime::UNIX_EPOCH + Duration::from_millis(deadline_ms);
    let left = deadline.duration_since(SystemTime::now()).ok()?;
    Some(left.saturating_sub(ANSWER_MARGIN))
}

/// What makes the event's source retry.
#[derive(Debug)]
struct Failure(Reply);

impl From<Failure> for Diagnostic {
    fn from(Failure(reply): Failure) -> Self {
        Diagnostic {
            error_type: reply.name(),
            error_message: String::from_utf8_lossy(&reply.to_json()).into_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_list_of_clusters_stays_as_it_was_at_the_start() {
        let directory = std::env::temp_dir().join(format!("clusters-{}", uuid::Uuid::now_v7()));
        std::fs::create_dir(&directory).expect("is created");
        let write = |name: &str, text: &str| {
            let path = directory.join(name);
            std::fs::write(&path, text).expect("is written");
            path
        };
        let kubeconfig = "{current-context: a, clusters: [{name: a, cluster: {server: 'http://127.0.0.1:1'}}], \
                          contexts: [{name: a, context: {cluster: a, user: a}}], users: [{name: a, user: {}}]}";
        write("kubeconfig", kubeconfig);
        let list = |names: [&str; 2]| {
            let entries = names.map(|name| format!("{{name: {name}, kubeconfig: kubeconfig}}"));
            write("clusters.yaml", &format!("clusters: [{}]", entries.join(", ")))
        };
        let path = list(["green", "blue"]);
        let vars = [("ACTION_EXECUTOR_CLUSTERS".into(), path.into_os_string())];
        let function = Function::new(Settings::from_vars(vars.into_iter()));
        for _ in 0..2 {
            let context = function.context().await.expect("is made");
            let names = context.names().expect("are listed").all;
            let names: Vec<_> = names.iter().map(ToString::to_string).collect();
            assert_eq!(names, ["green", "blue"]);
            list(["red", "black"]);
            // The next context is a new one, with fresh credentials.
            *function.context.lock().await = None;
        }
        std::fs::remove_dir_all(&directory).expect("is removed");
    }

    #[test]
    fn an_answer_precedes_the_deadline_and_a_past_one_is_ignored() {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("is after");
        let in_ten = u64::try_from((now + Duration::from_secs(10)).as_millis()).expect("fits");
        let left = time_left(in_ten).expect("is ahead");
        assert!(left < Duration::from_secs(9) && left > Duration::from_secs(7), "{left:?}");
        assert_eq!(time_left(0), None);
    }

    #[test]
    fn a_failure_carries_the_whole_problem() {
        let error = ActionError::new(Code::RateLimited, "too soon");
        let diagnostic = Diagnostic::from(Failure(Reply::from(error)));
        assert_eq!(diagnostic.error_type, "rate_limited");
        assert!(diagnostic.error_message.contains("too soon"));
    }
}
