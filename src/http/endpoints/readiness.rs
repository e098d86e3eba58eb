//! `GET /readyz`: whether an action could be carried out now, for probes and load balancers.
//!
//! One failure of the cluster is not enough: a server that has been ready stays ready until the cluster has
//! not answered for a while. A wrong policy or key file, and the start of the shutdown, are reported at once.
//!
//! Where several clusters are listed, one is enough that answers and whose policy is in use, so that a fault of one
//! leaves the others. Where no caller can have a key, the one that reviews their tokens or certificates has to answer
//! too.

use std::{sync::Arc, time::Duration};

use http::{Response, StatusCode};
use schemars::{JsonSchema, SchemaGenerator};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::{
    sync::{Mutex, watch},
    task::JoinSet,
    time::{Instant, timeout_at},
};

use crate::{
    auth::Authenticator,
    config::reload::Reloading,
    contract::error::{ActionError, Code},
    executor::{
        context::Context,
        reply::{self, Reply},
    },
    http::{
        dispatch::Service,
        message::{self, Body, full},
        openapi::{Operation, Tag, response},
        routes::HEALTHY,
    },
    k8s::api::client::Cluster,
};

/// How long an answer of the cluster is cached, so that probes do not load it; a failure is checked again
/// sooner.
const CACHE_TTL: Duration = Duration::from_secs(1);
const FAILURE_TTL: Duration = Duration::from_millis(250);

/// Maximum time of a check.
const TIMEOUT: Duration = Duration::from_secs(3);

/// How long the other clusters may take once it is known that the server is ready. Probes often wait for a second.
const OTHERS_TIMEOUT: Duration = Duration::from_millis(300);

/// How long, and how often, the cluster must have failed before the server is not ready.
const FAILURE_TIMEOUT: Duration = Duration::from_secs(10);
const MIN_FAILURES: u32 = 3;

/// What is known of the cluster's readiness.
#[derive(Default)]
pub(crate) struct Readiness {
    state: Mutex<ReadinessCache>,
    stopping: Option<watch::Receiver<bool>>,
}

#[derive(Default)]
struct ReadinessCache {
    /// The last check and its time.
    last: Option<(Instant, Checked)>,
    damping: FlapDamping,
}

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Checked {
    /// By each cluster.
    answers: Vec<ClusterCheck>,
    /// Whether an action could not be carried out.
    fault: Option<ActionError>,
}

/// What a cluster answered.
#[derive(Clone, Debug, PartialEq, Eq)]
struct ClusterCheck {
    /// Its name in the list, if there is a list.
    name: Option<Arc<str>>,
    /// Whether it reviews callers that need it.
    reviews: bool,
    fault: Option<ActionError>,
}

/// What a probe gets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct ReadinessReport {
    /// The state of each cluster of a list, as far as it was asked for.
    clusters: Vec<ClusterState>,
    /// Why no action could be carried out.
    fault: Option<ActionError>,
}

impl ReadinessReport {
    /// No action could be carried out, whatever the clusters answer.
    fn unready(fault: ActionError) -> Self {
        ReadinessReport { clusters: Vec::new(), fault: Some(fault) }
    }
}

/// Whether actions could be carried out on a cluster of the list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct ClusterState {
    name: Arc<str>,
    ready: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<String>,
}

/// Judges each answer of the cluster by those before it.
#[derive(Debug, Default)]
struct FlapDamping {
    has_been_ready: bool,
    /// Since when it fails, and how often it has.
    failing: Option<(Instant, u32)>,
}

impl FlapDamping {
    fn judge(&mut self, now: Instant, fault: Option<ActionError>) -> Option<ActionError> {
        let Some(error) = fault else {
            *self = FlapDamping { has_been_ready: true, failing: None };
            return None;
        };
        let (since, failures) = self.failing.map_or((now, 1), |(since, times)| (since, times + 1));
        self.failing = Some((since, failures));
        let lasts = now - since >= FAILURE_TIMEOUT && failures >= MIN_FAILURES;
        if self.has_been_ready && !lasts {
            tracing::warn!(%error, "the cluster is not ready; the server stays ready unless that lasts");
            return None;
        }
        Some(error)
    }
}

/// `GET /readyz`: 200, or 503 with the reason; both with the state of each cluster of a list.
pub(crate) async fn get(service: &Service) -> Response<Body> {
    let verdict = match service.tls().and_then(Reloading::load_error) {
        Some(fault) => ReadinessReport::unready(fault),
        None => service.readiness.of(&service.context, &service.callers).await,
    };
    response_to(verdict)
}

fn response_to(report: ReadinessReport) -> Response<Body> {
    match report {
        ReadinessReport { clusters, fault: None } if clusters.is_empty() => healthy(),
        ReadinessReport { clusters, fault: None } => {
            message::json(&json!({ "status": "ok", "clusters": clusters }))
        }
        ReadinessReport { clusters, fault: Some(error) } => {
            let reply = Reply::from(error);
            let mut problem = reply.to_value();
            if !clusters.is_empty() {
                problem["clusters"] = json!(clusters);
            }
            let mut response = Response::from(reply);
            *response.body_mut() = Body::Full(reply::json(&problem).into());
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

    /// Whether an action could be carried out in this context for these callers: on one of its clusters at least.
    async fn of(&self, context: &Context, callers: &Authenticator) -> ReadinessReport {
        if self.stopping.as_ref().is_some_and(|stopping| *stopping.borrow()) {
            let detail = "the server is shutting down";
            return ReadinessReport::unready(ActionError::new(Code::ShuttingDown, detail));
        }
        if let Some(fault) = callers.load_error() {
            return ReadinessReport::unready(fault);
        }
        let clusters = context.each_cluster();
        let policies: Vec<_> = clusters.iter().map(Context::policy_error).collect();
        // Where no policy is in use, no answer of a cluster matters.
        let Checked { answers, fault } = match policies.iter().all(Option::is_some) {
            true => Checked {
                answers: unasked(context, None),
                fault: policies.first().cloned().flatten(),
            },
            false => self.checked(context, callers, &policies).await,
        };
        ReadinessReport { clusters: states(&answers, &policies), fault }
    }

    /// The last check, or a new one where that is too old.
    async fn checked(
        &self,
        context: &Context,
        callers: &Authenticator,
        policies: &[Option<ActionError>],
    ) -> Checked {
        // Locked during the check, so that probes at the same time share it.
        let mut state = self.state.lock().await;
        if let Some((at, checked)) = &state.last
            && at.elapsed() < ttl(state.damping.failing.is_some())
        {
            return checked.clone();
        }
        let answers = answers(context, callers.needs_reviewer(), policies).await;
        let now = Instant::now();
        let fault = state.damping.judge(now, fault(&answers, policies));
        let checked = Checked { answers, fault };
        state.last = Some((now, checked.clone()));
        checked
    }
}

/// What each cluster answers, in the order of the list.
async fn answers(
    context: &Context,
    callers_need_reviewer: bool,
    policies: &[Option<ActionError>],
) -> Vec<ClusterCheck> {
    let reviewer = context.reviewer().and_then(Cluster::listed_name);
    let answers = unasked(context, reviewer.filter(|_| callers_need_reviewer));
    // At once, so that one that is down does not delay the answer about the others.
    let mut checks = JoinSet::new();
    for (index, context) in context.each_cluster().into_iter().enumerate() {
        checks.spawn(async move { (index, context.cluster_serves().await.err()) });
    }
    gathered(checks, answers, policies).await
}

/// The answer of each cluster as long as it has none.
fn unasked(context: &Context, reviewer: Option<&str>) -> Vec<ClusterCheck> {
    let late = || ActionError::new(Code::ClusterUnreachable, "the cluster does not answer");
    let answer = |context: &Context| {
        let name = context.shared_listed_name().cloned();
        let reviews = name.is_some() && name.as_deref() == reviewer;
        ClusterCheck { name, reviews, fault: Some(late()) }
    };
    context.each_cluster().iter().map(answer).collect()
}

/// These answers with those that come in time: once the server is known to be ready, the rest is not waited for longer
/// than [`OTHERS_TIMEOUT`].
async fn gathered(
    mut checks: JoinSet<(usize, Option<ActionError>)>,
    mut answers: Vec<ClusterCheck>,
    policies: &[Option<ActionError>],
) -> Vec<ClusterCheck> {
    let mut end = Instant::now() + TIMEOUT;
    while let Ok(Some(checked)) = timeout_at(end, checks.join_next()).await {
        // A check that panicked has no answer.
        let Ok((index, found)) = checked else { continue };
        answers[index].fault = found;
        if fault(&answers, policies).is_none() {
            end = end.min(Instant::now() + OTHERS_TIMEOUT);
        }
    }
    answers
}

/// Why no action could be carried out, given the answers and why the policy of each cluster is not in use: the cluster
/// that reviews callers does not answer, or there is none that answers and whose policy is in use.
fn fault(answers: &[ClusterCheck], policies: &[Option<ActionError>]) -> Option<ActionError> {
    for ClusterCheck { name, reviews, fault } in answers {
        if let (true, Some(name), Some(error)) = (reviews, name, fault) {
            let detail = format!("cluster {name}, which reviews callers: {}", error.detail);
            return Some(ActionError { detail, ..error.clone() });
        }
    }
    let each = answers.iter().zip(policies);
    let faults = each.map(|(answer, policy)| policy.as_ref().or(answer.fault.as_ref()));
    faults.collect::<Option<Vec<_>>>()?.first().map(|fault| (*fault).clone())
}

/// The state of each cluster of a list.
fn states(answers: &[ClusterCheck], policies: &[Option<ActionError>]) -> Vec<ClusterState> {
    let each = answers.iter().zip(policies);
    let state = |(answer, policy): (&ClusterCheck, &Option<ActionError>)| {
        let fault = policy.as_ref().or(answer.fault.as_ref());
        let code = fault.map(|error| error.code.name());
        Some(ClusterState { name: answer.name.clone()?, ready: code.is_none(), code })
    };
    each.filter_map(state).collect()
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
    let mut problem = ActionError::json_schema(generator).to_value();
    problem["properties"]["clusters"] = clusters_schema();
    let not_ready = json!({ "application/problem+json": { "schema": problem } });
    let reason = "It could not; the problem is the reason, with its own status in the document.";
    Operation {
        description:
            "The cluster answers, the current policy and key files are loaded, and the process is not shutting down. \
             Of several clusters, one that answers and whose policy is loaded is enough, and the one that reviews callers \
             has to answer if all of them have tokens or certificates."
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
    content["application/json"]["schema"]["properties"]["clusters"] = clusters_schema();
    content
}

fn clusters_schema() -> Value {
    json!({
        "type": "array", "description": "The state of each cluster, if several are configured by name.",
        "items": {
            "type": "object", "required": ["name", "ready"], "additionalProperties": false,
            "properties": {
                "name": { "type": "string" },
                "ready": { "type": "boolean" },
                "code": { "type": "string", "description": "Why it is not ready, as an error code." },
            },
        },
    })
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
    use http_body_util::BodyExt;

    use super::*;
    use crate::config::Settings;

    fn context() -> Context {
        let (_stop, stopping) = watch::channel(false);
        let settings = Settings::from_vars(std::iter::empty()).expect("are the defaults");
        let policy = Reloading::new(None).expect("is the shipped one");
        Context::new(None, policy, &settings, stopping).expect("is right")
    }

    fn gone() -> Option<ActionError> {
        Some(ActionError::new(Code::ClusterUnreachable, "gone"))
    }

    fn late() -> Option<ActionError> {
        Some(ActionError::new(Code::ClusterUnreachable, "the cluster does not answer"))
    }

    fn invalid() -> Option<ActionError> {
        Some(ActionError::new(Code::Configuration, "not read"))
    }

    fn answer(name: &str, reviews: bool, fault: Option<ActionError>) -> ClusterCheck {
        ClusterCheck { name: Some(Arc::from(name)), reviews, fault }
    }

    #[test]
    fn one_cluster_that_answers_and_has_its_policy_is_enough() {
        for (faults, policies, expected) in [
            ([None, None], [None, None], None),
            ([None, gone()], [None, None], None),
            ([None, None], [invalid(), None], None),
            ([gone(), gone()], [None, None], Some(Code::ClusterUnreachable)),
            ([gone(), None], [None, invalid()], Some(Code::ClusterUnreachable)),
            ([None, gone()], [invalid(), None], Some(Code::Configuration)),
        ] {
            let [green, blue] = faults;
            let answers = [answer("green", false, green), answer("blue", false, blue)];
            let found = fault(&answers, &policies);
            assert_eq!(found.map(|error| error.code), expected, "{answers:?} {policies:?}");
        }
        assert_eq!(fault(&[], &[]), None);
    }

    #[test]
    fn the_cluster_that_reviews_callers_has_to_answer_and_its_policy_matters_to_itself_alone() {
        let answers = |green| [answer("green", true, green), answer("blue", false, None)];
        let found = fault(&answers(gone()), &[None, None]).expect("is at fault");
        assert_eq!(found.detail, "cluster green, which reviews callers: gone");
        assert_eq!(fault(&answers(None), &[None, None]), None);
        assert_eq!(fault(&answers(None), &[invalid(), None]), None);
    }

    #[test]
    fn the_state_of_each_cluster_says_why_it_is_not_ready() {
        let answers =
            [answer("a", false, gone()), answer("b", false, None), answer("c", false, None)];
        let states = json!(states(&answers, &[None, invalid(), None]));
        assert_eq!(
            states,
            json!([
                { "name": "a", "ready": false, "code": "cluster_unreachable" },
                { "name": "b", "ready": false, "code": "configuration" },
                { "name": "c", "ready": true },
            ])
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_cluster_that_hangs_does_not_delay_what_the_others_decide() {
        let in_time = |millis: u64, fault: Option<ActionError>| async move {
            tokio::time::sleep(Duration::from_millis(millis)).await;
            fault
        };
        let hangs = u64::from(u32::MAX);
        for (reviews, checks, expected, millis) in [
            // One is ready: 300 ms for the others.
            (false, [(10, None), (200, gone()), (hangs, None)], [None, gone(), late()], 310),
            (false, [(10, None), (200, None), (300, None)], [None, None, None], 300),
            // The first that answers is not ready.
            (false, [(hangs, None), (10, gone()), (900, None)], [late(), gone(), None], 1200),
            // The reviewer has to answer first.
            (true, [(800, None), (10, None), (hangs, None)], [None, None, late()], 1100),
            (true, [(hangs, None), (10, None), (20, None)], [late(), None, None], 3000),
        ] {
            let mut running = JoinSet::new();
            for (index, (millis, fault)) in checks.into_iter().enumerate() {
                running.spawn(async move { (index, in_time(millis, fault).await) });
            }
            let unasked = ["a", "b", "c"].map(|name| answer(name, reviews && name == "a", late()));
            let began = Instant::now();
            let answers = gathered(running, unasked.into(), &[None, None, None]).await;
            let faults: Vec<_> = answers.into_iter().map(|answer| answer.fault).collect();
            assert_eq!(faults, expected);
            assert_eq!(began.elapsed().as_millis(), millis, "{expected:?}");
        }
    }

    #[tokio::test]
    async fn a_refusal_lists_the_clusters_of_a_list() {
        let body = async |clusters: Vec<ClusterState>| {
            let response = response_to(ReadinessReport { clusters, fault: gone() });
            assert_eq!(response.status(), 503);
            assert_eq!(response.headers()["content-type"], "application/problem+json");
            let body = response.into_body().collect().await.expect("is read").to_bytes();
            serde_json::from_slice::<Value>(&body).expect("is JSON")
        };
        let listed = body(states(&[answer("a", false, gone())], &[None])).await;
        assert_eq!(listed["code"], "cluster_unreachable");
        let state = json!({ "name": "a", "ready": false, "code": "cluster_unreachable" });
        assert_eq!(listed["clusters"], json!([state]));
        assert_eq!(body(Vec::new()).await.get("clusters"), None);
    }

    #[tokio::test]
    async fn the_clusters_readiness_is_cached() {
        let (context, callers) = (context(), Authenticator::new(None, None));
        let readiness = Readiness::default();
        assert_eq!(readiness.of(&context, &callers).await, ReadinessReport::default());
        let failed = Checked { fault: gone(), ..Checked::default() };
        readiness.state.lock().await.last = Some((Instant::now(), failed));
        assert_eq!(readiness.of(&context, &callers).await.fault, gone());
    }

    #[tokio::test]
    async fn a_server_that_is_shutting_down_is_not_ready() {
        let (context, callers) = (context(), Authenticator::new(None, None));
        let (stop, stopping) = watch::channel(false);
        let readiness = Readiness::until(stopping);
        assert_eq!(readiness.of(&context, &callers).await, ReadinessReport::default());
        stop.send(true).expect("is received");
        let refused = readiness.of(&context, &callers).await.fault.expect("is not ready");
        assert_eq!(refused.code, Code::ShuttingDown);
    }

    #[tokio::test(start_paused = true)]
    async fn one_failure_is_tolerated_and_lasting_failures_are_not() {
        let mut damping = FlapDamping::default();
        let mut judge = |answer| damping.judge(Instant::now(), answer);
        // A server that has never been ready reports the first failure.
        assert_eq!(judge(gone()), gone());
        assert_eq!(judge(None), None);
        assert_eq!(judge(gone()), None);
        tokio::time::advance(FAILURE_TIMEOUT).await;
        assert_eq!(judge(gone()), None, "two are not many");
        assert_eq!(judge(gone()), gone());
        assert_eq!(judge(None), None, "the first success counts");
        for _ in 0..20 {
            assert_eq!(judge(gone()), None, "many in a moment are one");
        }
    }
}
