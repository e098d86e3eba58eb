//! A request as an entry point received it, and its way to [`handle`]: parse, authorize. The entry point has
//! authenticated the caller before. It knows no transport.

use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::{task::JoinSet, time::Instant};

use crate::{
    actions::request::{ActionRequest, IdempotencyKey},
    auth::{AccessRequest, Caller, Verb, token_review::ObjectAccess},
    contract::{
        error::{ActionError, Code},
        names::{AuditText, Namespace, RequestId},
        response::ActionResponse,
    },
    diagnosis::{self, DiagnosisScope, facts::Unread, parts::Part, report::Report, target::Target},
    executor::{
        Restriction,
        context::Context,
        handle,
        status::{self, Operation},
    },
    k8s::api::client::Cluster,
    ledger::history::{self, Filter, Page, no_cluster},
};

/// A request as it was received.
#[derive(Clone, Debug, Default)]
pub(crate) struct IncomingRequest {
    /// The request in JSON.
    pub body: Vec<u8>,
    /// An idempotency key that came beside the body.
    pub key: Option<IdempotencyKey>,
    /// The event that carried the request.
    pub event: Option<EventMetadata>,
    /// The program that sent the request, as it names itself.
    pub client: Option<AuditText>,
}

/// The event that carried a request.
#[derive(Clone, Debug)]
pub(crate) struct EventMetadata {
    /// The idempotency key made from the event's id, for a request without an id.
    pub key: IdempotencyKey,
    /// The event's time.
    pub time: Option<DateTime<Utc>>,
}

impl IncomingRequest {
    /// Parses the request. An event's time bounds its age.
    ///
    /// # Errors
    /// As [`ActionRequest::parse`] and [`ActionRequest::with_idempotency_key`].
    pub(crate) fn request(&self) -> Result<ActionRequest, ActionError> {
        let request =
            ActionRequest { client: self.client.clone(), ..ActionRequest::parse(&self.body)? };
        let request = request.with_idempotency_key(self.key.as_ref())?;
        let event = self.event.as_ref().filter(|_| request.id.is_none());
        let mut request = request.with_idempotency_key(event.map(|event| &event.key))?;
        request.event_time = self.event.as_ref().and_then(|event| event.time);
        Ok(request)
    }
}

/// Executes the request for this caller; `None` if authentication is off.
///
/// # Errors
/// The caller is unauthorized, the request cannot be parsed, or as [`handle`].
pub(crate) async fn execute_as(
    context: &Context,
    caller: Option<&Caller>,
    incoming: &IncomingRequest,
) -> Result<ActionResponse, ActionError> {
    let mut request = incoming.request()?;
    let context = context.for_cluster(request.cluster.as_ref())?;
    if let Some(caller) = caller {
        let (reviewer, cluster) = (context.reviewer(), context.listed_name());
        request = Box::pin(caller.authorize_request(request, reviewer, cluster)).await?;
    }
    let context = context.acting_for(caller).await?;
    handle(&context, request, Restriction::None).await
}

/// Finds the record of a request for this caller; `None` if authentication is off. Only a caller that may read every
/// action in the namespace learns that a request does not exist; for others it looks like one that they may not read.
///
/// # Errors
/// [`Code::RequestNotFound`], [`Code::CallerForbidden`], or why the ledger could not be read.
pub(crate) async fn find_as(
    context: &Context,
    caller: Option<&Caller>,
    namespace: &Namespace,
    id: &RequestId,
) -> Result<Operation, ActionError> {
    let context = &context.for_cluster(None)?;
    let found = status::find(&context.acting_for(caller).await?, namespace, id).await?;
    let Some(caller) = caller else { return found.ok_or_else(|| not_found(namespace)) };
    let cluster = context.listed_name();
    let access = |kind| AccessRequest { verb: Verb::Get, kind, namespace, cluster };
    let kind = found.as_ref().and_then(Operation::kind);
    if let (Some(found), Some(kind)) = (found, kind)
        && caller.authorize(&access(Some(kind)), context.reviewer()).await.is_ok()
    {
        return Ok(found);
    }
    caller.authorize(&access(None), context.reviewer()).await?;
    Err(not_found(namespace))
}

/// The newest entries of the history for this caller, read within `time`; `None` if authentication is off.
///
/// # Errors
/// [`Code::CallerForbidden`], there is no cluster, or why the Events could not be listed.
pub(crate) async fn list_as(
    context: &Context,
    caller: Option<&Caller>,
    filter: &Filter,
    limit: usize,
    time: Duration,
) -> Result<Page, ActionError> {
    let context = &context.for_cluster(None)?;
    if let Some(caller) = caller {
        let namespace = filter.namespace.as_deref().unwrap_or_default();
        let cluster = context.listed_name();
        let access = AccessRequest { verb: Verb::List, kind: None, namespace, cluster };
        caller.authorize(&access, context.reviewer()).await?;
    }
    let cluster = context.cluster().ok_or_else(no_cluster)?;
    history::query(cluster, filter, limit, Instant::now() + time).await
}

/// The diagnosis of a target for this caller, read within `time`; `None` if authentication is off. A user of the
/// cluster gets no part that it may not read itself.
///
/// # Errors
/// [`Code::CallerForbidden`], [`Code::PolicyDenied`], there is no cluster, or why the target could not be read.
pub(crate) async fn diagnose_as(
    context: &Context,
    caller: Option<&Caller>,
    target: &Target,
    time: Duration,
) -> Result<Report, ActionError> {
    let context = &context.for_cluster(None)?;
    let cluster = context.require_cluster("there is nothing to diagnose")?;
    let deadline = Instant::now() + time;
    let acting = context.acting_for(caller).await?;
    let mut refused = Vec::new();
    if let Some(caller) = caller {
        let access = AccessRequest {
            verb: Verb::List,
            kind: None,
            namespace: target.namespace(),
            cluster: context.listed_name(),
        };
        caller.authorize(&access, context.reviewer()).await?;
        let access = ObjectAccess {
            rule: target.kind.rule(),
            namespace: target.namespace(),
            name: &target.name,
        };
        let (get, parts) = tokio::join!(
            caller.authorize_objects(&access, cluster),
            refused_parts(caller, target, cluster),
        );
        get?;
        refused = parts?;
    }
    context.check_policy_in_use()?;
    let policy = context.policy();
    policy.judge_diagnosis(target.namespace(), target.node()).refuse()?;
    let includes = |namespace: &str| policy.judge_diagnosis(namespace, None).refuse().is_ok();
    let scope = DiagnosisScope { refused, includes: &includes };
    let name = context.cluster_name().map(|name| &**name);
    let cluster = acting.target_cluster("there is nothing to diagnose")?;
    diagnosis::diagnose(cluster, name, target, scope, deadline).await
}

/// The parts of the diagnosis that the caller may not read itself.
async fn refused_parts(
    caller: &Caller,
    target: &Target,
    cluster: &Cluster,
) -> Result<Vec<Unread>, ActionError> {
    let mut reviews = JoinSet::new();
    for part in Part::of(target.kind) {
        let (caller, cluster) = (caller.clone(), cluster.clone());
        let (rule, namespace) = (part.rule(), part.namespace(target).to_owned());
        reviews.spawn(async move {
            let access = ObjectAccess { rule, namespace: &namespace, name: "" };
            (*part, caller.authorize_objects(&access, &cluster).await)
        });
    }
    let mut refused = Vec::new();
    while let Some(done) = reviews.join_next().await {
        let (part, result) = done.map_err(|error| {
            ActionError::new(Code::Internal, format!("a review ended early: {error}"))
        })?;
        match result {
            Ok(()) => {}
            Err(error) if error.code == Code::CallerForbidden => {
                refused.push(Unread::new(part, &error));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(refused)
}

fn not_found(namespace: &Namespace) -> ActionError {
    let detail = format!("there is no record of such a request in namespace '{namespace}'");
    ActionError::new(Code::RequestNotFound, detail).with_hint(
        "name the target's namespace, or default for nodes; records last as long as the cluster keeps Events, and \
         simulations have none",
    )
}
