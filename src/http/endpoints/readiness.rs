//! `GET /readyz`: whether an action could be carried out now, for probes and load balancers.
//!
//! One failure of the cluster is not enough: a server that has been ready stays ready until the cluster has
//! not answered for a while. A wrong policy or key file, and the begin of the shutdown, are reported at once.

use std::time::Duration;

use http::{Response, StatusCode};
use schemars::SchemaGenerator;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::{
    sync::{Mutex, watch},
    task::JoinSet,
    time::{Instant, timeout},
};

use crate::{
    auth::Authenticator,
    config::reload::Reloading,
    contract::error::{ActionError, Code},
    executor::{context::Context, reply::Reply},
    http::{
        dispatch::Service,
        message::{self, Body, full},
        openapi::{Operation, Tag, response},
        routes::HEALTHY,
    },
};

/// How long an answer of the cluster is cached, so that probes do not load it; a failure is checked again
/// sooner.
const CACHE_TTL: Duration = Duration::from_secs(1);
const FAILURE_TTL: Duration = Duration::from_millis(250);

/// Maximum time of a check.
const TIMEOUT: Duration = Duration::from_secs(3);

/// How long, and how often, the cluster must have failed before the server is not ready.
const MIN_FAILURE_TIME: Duration = Duration::from_secs(10);
const MIN_FAILURES: u32 = 3;

/// What is known of the cluster's readiness.
#[derive(Default)]
pub(crate) struct Readiness {
    state: Mutex<State>,
    stopping: Option<watch::Receiver<bool>>,
}

#[derive(Default)]
struct State {
    /// The last result and its time.
    last: Option<(Instant, Result<Vec<ClusterState>, ActionError>)>,
    damping: FlapDamping,
}

/// Whether a cluster of the list answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct ClusterState {
    name: String,
    ready: bool,
}

/// Judges each answer of the cluster by those before it.
#[derive(Debug, Default)]
struct FlapDamping {
    has_been_ready: bool,
    /// Since when it fails, and how often it has.
    failing: Option<(Instant, u32)>,
}

impl FlapDamping {
    fn judge(&mut self, now: Instant, answer: Result<(), ActionError>) -> Result<(), ActionError> {
        let Err(error) = answer else {
            *self = FlapDamping { has_been_ready: true, failing: None };
            return Ok(());
        };
        let (since, failures) = self.failing.map_or((now, 1), |(since, times)| (since, times + 1));
        self.failing = Some((since, failures));
        let lasts = now - since >= MIN_FAILURE_TIME && failures >= MIN_FAILURES;
        if self.has_been_ready && !lasts {
            tracing::warn!(%error, "the cluster is not ready; the server stays ready unless that lasts");
            return Ok(());
        }
        Err(error)
    }
}

/// `GET /readyz`: 200, or 503 with the reason.
pub(crate) async fn get(service: &Service) -> Response<Body> {
    let ready = match service.tls().and_then(Reloading::load_error) {
        Some(fault) => Err(fault),
        None => service.readiness.of(&service.context, &service.callers).await,
    };
    match ready {
        Ok(clusters) if clusters.is_empty() => healthy(),
        Ok(clusters) => message::json(&json!({ "status": "ok", "clusters": clusters })),
        Err(error) => {
            let mut response = Response::from(Reply::from(error));
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            response
        }
    }
}

/// The response of a health check when all is well.
pub(crate) fn healthy() -> Response<Body> {
    full("application/json", HEALTHY)
}

impl Readiness {
    /// The readiness of a process that is ready only until this becomes true.
    pub(crate) fn until(stopping: watch::Receiver<bool>) -> Self {
        Readiness { stopping: Some(stopping), ..Readiness::default() }
    }

    /// Checks that an action could be carried out in this context: on one of its clusters at least. Returns the state of
    /// each cluster of a list.
    ///
    /// # Errors
    /// The reason why it could not.
    async fn of(
        &self,
        context: &Context,
        callers: &Authenticator,
    ) -> Result<Vec<ClusterState>, ActionError> {
        if self.stopping.as_ref().is_some_and(|stopping| *stopping.borrow()) {
            return Err(ActionError::new(Code::ShuttingDown, "the server is shutting down"));
        }
        if let Some(fault) = callers.load_error().or_else(|| context.policy_error()) {
            return Err(fault);
        }
        // Locked during the check, so that probes at the same time share it.
        let mut state = self.state.lock().await;
        if let Some((at, result)) = &state.last
            && at.elapsed() < ttl(state.damping.failing.is_some())
        {
            return result.clone();
        }
        let (clusters, answer) = states(context).await;
        let now = Instant::now();
        let result = state.damping.judge(now, answer).map(|()| clusters);
        state.last = Some((now, result.clone()));
        result
    }
}

/// The state of each cluster of a list, and whether one of them answers; without a list, whether the cluster does.
async fn states(context: &Context) -> (Vec<ClusterState>, Result<(), ActionError>) {
    let late = || ActionError::new(Code::ClusterUnreachable, "the cluster does not answer");
    // At once, so that one that is down does not delay the answer about the others.
    let mut checks = JoinSet::new();
    for (index, context) in context.each_cluster().into_iter().enumerate() {
        checks.spawn(async move {
            let answer = timeout(TIMEOUT, context.cluster_serves()).await;
            (index, context.listed_name().cloned(), answer.unwrap_or_else(|_| Err(late())))
        });
    }
    let mut answers = checks.join_all().await;
    answers.sort_by_key(|(index, ..)| *index);
    let named = answers.iter().filter_map(|(_, name, answer)| {
        Some(ClusterState { name: name.as_deref()?.to_owned(), ready: answer.is_ok() })
    });
    let clusters = named.collect();
    let one = answers.into_iter().map(|(.., answer)| answer).reduce(Result::or);
    (clusters, one.unwrap_or(Ok(())))
}

fn ttl(fails: bool) -> Duration {
    if fails { FAILURE_TTL } else { CACHE_TTL }
}

/// The operation of the health check in the OpenAPI document.
pub(crate) fn health_operation() -> Operation {
    Operation {
        responses: vec![(200, response("It is alive.", healthy_content()))],
        ..Operation::get(
            "/api/v1/healthz",
            "getHealth",
            Tag::Operation,
            "Whether the process is alive",
        )
    }
}

/// The operation in the OpenAPI document.
pub(crate) fn operation(generator: &mut SchemaGenerator) -> Operation {
    let not_ready = json!({ "application/problem+json": {
        "schema": generator.subschema_for::<ActionError>(),
    } });
    let reason = "It could not; the problem is the reason, with its own status in the document.";
    Operation {
        description:
            "The cluster answers, or one of several, the current policy and key files are loaded, and the process is \
                      not shutting down."
                .to_owned(),
        responses: vec![
            (200, response("It could.", ready_content())),
            // Whatever the reason, probes use the status.
            (503, response(reason, not_ready)),
        ],
        ..Operation::get(
            "/readyz",
            "getReadiness",
            Tag::Operation,
            "Whether an action could be carried out now",
        )
    }
}

fn ready_content() -> Value {
    let mut content = healthy_content();
    content["application/json"]["schema"]["properties"]["clusters"] = json!({
        "type": "array", "description": "The state of each cluster, if several are configured by name.",
        "items": {
            "type": "object", "required": ["name", "ready"], "additionalProperties": false,
            "properties": { "name": { "type": "string" }, "ready": { "type": "boolean" } },
        },
    });
    content
}

fn healthy_content() -> Value {
    json!({ "application/json": {
        "schema": {
            "type": "object", "required": ["status"], "additionalProperties": false,
            "properties": { "status": { "const": "ok" } },
        },
        "example": { "status": "ok" },
    } })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Settings;

    fn context() -> Context {
        let (_stop, stopping) = watch::channel(false);
        let settings = Settings::from_vars(std::iter::empty()).expect("are the defaults");
        let policy = Reloading::new(None).expect("is the shipped one");
        Context::new(None, policy, &settings, stopping).expect("is right")
    }

    fn gone() -> Result<(), ActionError> {
        Err(ActionError::new(Code::ClusterUnreachable, "gone"))
    }

    #[tokio::test]
    async fn the_clusters_readiness_is_cached() {
        let (context, callers) = (context(), Authenticator::new(None, None));
        let readiness = Readiness::default();
        assert_eq!(readiness.of(&context, &callers).await, Ok(Vec::new()));
        let failed = gone().map(|()| Vec::new());
        readiness.state.lock().await.last = Some((Instant::now(), failed.clone()));
        assert_eq!(readiness.of(&context, &callers).await, failed);
    }

    #[tokio::test]
    async fn a_server_that_is_shutting_down_is_not_ready() {
        let (context, callers) = (context(), Authenticator::new(None, None));
        let (stop, stopping) = watch::channel(false);
        let readiness = Readiness::until(stopping);
        assert_eq!(readiness.of(&context, &callers).await, Ok(Vec::new()));
        stop.send(true).expect("is heard");
        let refused = readiness.of(&context, &callers).await.expect_err("is not ready");
        assert_eq!(refused.code, Code::ShuttingDown);
    }

    #[tokio::test(start_paused = true)]
    async fn one_failure_is_tolerated_and_lasting_failures_are_not() {
        let mut damping = FlapDamping::default();
        let mut judge = |answer| damping.judge(Instant::now(), answer);
        // A server that has never been ready reports the first failure.
        assert_eq!(judge(gone()), gone());
        assert_eq!(judge(Ok(())), Ok(()));
        assert_eq!(judge(gone()), Ok(()));
        tokio::time::advance(MIN_FAILURE_TIME).await;
        assert_eq!(judge(gone()), Ok(()), "two are not many");
        assert_eq!(judge(gone()), gone());
        assert_eq!(judge(Ok(())), Ok(()), "the first success counts");
        for _ in 0..20 {
            assert_eq!(judge(gone()), Ok(()), "many in a moment are one");
        }
    }
}
