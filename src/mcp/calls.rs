//! One call of a tool that executes or simulates: answered within a limited time, whatever the action waits for.
//!
//! Many clients stop waiting after a minute or less. So a call is answered when its time is up, with the state of the
//! request in the ledger, and the action continues: the wait continues in the background, and `get_action` reads how it
//! ends. A call that its client abandons before the claim does nothing; after it only the client's wait ends. A client
//! that takes tasks gets one as soon as the request is claimed and takes longer than an effect does.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde_json::Value;
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, sleep_until, timeout},
};
use tracing::Instrument;

use crate::{
    auth::Caller,
    contract::{
        error::{ActionError, Code},
        names::{ClusterName, Namespace, RequestId},
        response::ActionResponse,
    },
    executor::{
        context::{Context, stopped},
        incoming::{IncomingRequest, execute_as, find_as},
        reply::Reply,
        status::{self, Operation},
    },
    ledger::record::RequestMetadata,
    mcp::protocol,
};

/// How often a client that wants progress is sent some, whether there is any or not.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(10);

/// The most of a call's time that its calls to the cluster take, so that it is known by then whether it is claimed.
const CALLS_PART: f64 = 0.8;

/// How long an action that is not claimed may take to end once it is to.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// After how long a call whose client takes tasks is answered by one. An effect without a wait is made by then.
const DIRECT_RESULT_TIMEOUT: Duration = Duration::from_secs(2);

/// The maximum length of a stage in a notification.
const MAX_STAGE_CHARACTERS: usize = 200;

/// The lines that a client gets before the answer.
pub(crate) struct Progression {
    /// What they refer to.
    pub token: Value,
    /// Where they go; one that does not fit is left out.
    pub lines: mpsc::Sender<String>,
}

/// What an action holds until it ends.
pub(crate) enum Hold<B, R> {
    /// It continues when the time of its call is up.
    Background(B),
    /// Its waits end with its call.
    Request(R),
}

/// A call, and how it is to be answered.
pub(crate) struct ToolCall<B, R> {
    pub context: Context,
    pub caller: Option<Caller>,
    pub incoming: IncomingRequest,
    /// After how long it is answered.
    pub wait: Duration,
    /// Whether a task may be the answer.
    pub takes_task: bool,
    pub hold: Hold<B, R>,
    /// Where its own wait is found.
    pub waits: Waits,
    pub progression: Option<Progression>,
}

/// How a call ended.
pub(crate) enum CallResult {
    /// The action ended.
    Done(Box<Reply>),
    /// Its time is up, and the action continues.
    InProgress(Box<Operation>),
    /// The action continues as a task: its record is in the ledger, and the caller may read it.
    Task(Box<Operation>, Box<Context>),
}

/// Carries out a request. Dropping the returned future gives the call up.
pub(crate) async fn execute<B, R>(call: ToolCall<B, R>) -> CallResult
where
    B: Send + 'static,
    R: Send + 'static,
{
    let ToolCall { context, caller, wait, .. } = &call;
    let (context, caller, wait) = (context.clone(), caller.clone(), *wait);
    let end = Instant::now() + wait;
    // Without a permit to continue nobody would record how a task ends.
    let is_background = matches!(call.hold, Hold::Background(_));
    let task_from =
        (call.takes_task && is_background).then(|| Instant::now() + DIRECT_RESULT_TIMEOUT);
    let mut work = Work::start(call);
    if let Some(from) = task_from {
        if let Some(result) = work.result_until(Some(from), end).await {
            return done(result);
        }
        if let Some(found) = work.task(&context, caller.as_ref()).await {
            let (found, context) = found;
            return CallResult::Task(Box::new(found), Box::new(context));
        }
    }
    if let Some(result) = work.result_until(None, end).await {
        return done(result);
    }
    if work.claim().is_none() {
        // What only waits in a queue ends; a call to the cluster is over by now, or nearly.
        for ends in [&work.stop, &work.give_up].map(watch::Sender::clone) {
            ends.send_replace(true);
            if let Ok(result) = timeout(STOP_TIMEOUT, &mut work.task).await {
                return done(flat(result));
            }
        }
    }
    let found = work.find(&context, caller.as_ref()).await;
    // It may have ended meanwhile, and not well.
    if work.task.is_finished() {
        return done(flat((&mut work.task).await));
    }
    match found {
        Ok(Some(found)) => CallResult::InProgress(Box::new(found)),
        Ok(None) => done(Err(unreadable("its record is not in the cluster"))),
        Err(error) => done(Err(unreadable(&error.detail))),
    }
}

fn done(result: Result<ActionResponse, ActionError>) -> CallResult {
    CallResult::Done(Box::new(result.map_or_else(Reply::from, Reply::from)))
}

fn nothing_done(wait: Duration) -> ActionError {
    let detail =
        format!("the cluster did not answer within {} s; nothing was done", wait.as_secs());
    ActionError::new(Code::ClusterUnreachable, detail)
        .with_hint("make the same call with the same id again")
}

fn unreadable(why: &str) -> ActionError {
    let detail = format!("the action continues, and its state could not be read: {why}");
    ActionError::new(Code::OutcomeUnknown, detail)
        .with_hint("make the same call with the same id to get its answer")
}

/// Where the record of a claimed request is.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Claim {
    /// The cluster's name, if there is a cluster.
    cluster: Option<ClusterName>,
    namespace: Namespace,
    id: RequestId,
}

/// The waits of this process with their callers, so that a caller can end its own. They are no record of anything.
#[derive(Clone, Default)]
pub(crate) struct Waits(Arc<Mutex<Vec<Wait>>>);

struct Wait {
    claim: Claim,
    caller: Option<String>,
    /// Ends it.
    stop: watch::Sender<bool>,
}

impl Waits {
    fn add(&self, wait: Wait) {
        let mut all = self.lock();
        all.retain(|it| !it.stop.is_closed());
        all.push(wait);
    }

    /// Ends the caller's own waits for this request, if this process has any.
    pub(crate) fn end(
        &self,
        cluster: Option<&str>,
        namespace: &Namespace,
        id: &RequestId,
        caller: Option<&Caller>,
    ) {
        let caller = caller.map(Caller::name);
        let claimed = (cluster, namespace, id);
        for Wait { claim, caller: of, stop } in &*self.lock() {
            let Claim { cluster, namespace, id } = claim;
            if (cluster.as_deref(), namespace, id) == claimed && of.as_deref() == caller {
                stop.send_replace(true);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Wait>> {
        // Nothing that panics runs under the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The work on a request, as a task of its own. Dropped before it begins to write its claim, it ends. The task itself
/// decides that, since nobody else knows how far it is; a claim that is on its way may be made.
struct Work {
    task: JoinHandle<Result<ActionResponse, ActionError>>,
    claim: watch::Receiver<Option<Claim>>,
    stage: watch::Receiver<String>,
    stop: watch::Sender<bool>,
    give_up: watch::Sender<bool>,
    progression: Option<Progression>,
    /// The number of the last progress notification.
    step: u64,
}

impl Work {
    fn start<B, R>(call: ToolCall<B, R>) -> Self
    where
        B: Send + 'static,
        R: Send + 'static,
    {
        let ToolCall { context, caller, incoming, wait, hold, waits, progression, .. } = call;
        let (claimed, claim) = watch::channel(None);
        let (staged, stage) = watch::channel(String::new());
        let (stop, mut stopping) = watch::channel(false);
        let is_claiming = Arc::new(AtomicBool::new(false));
        let context = context.map_observer(|observer| {
            let (claims, stop) = (is_claiming.clone(), stop.clone());
            let caller = caller.as_ref().map(|caller| caller.name().to_owned());
            let observer = observer.on_progress(move |stage| {
                staged.send_replace(stage.to_owned());
            });
            let observer = observer.on_claiming(move || claims.store(true, Ordering::Relaxed));
            observer.on_claimed(move |request| {
                if let Some(claim) = claim_of(request) {
                    let (caller, stop) = (caller.clone(), stop.clone());
                    waits.add(Wait { claim: claim.clone(), caller, stop });
                    claimed.send_replace(Some(claim));
                }
            })
        });
        let context = context.with_call_limit(wait.mul_f64(CALLS_PART));
        // Nobody continues the wait after the answer, so it ends before, and what came of it is recorded.
        let own_end = matches!(hold, Hold::Request(_)).then(|| wait.mul_f64(CALLS_PART));
        let context = context.with_waits_until(async move {
            match own_end {
                Some(limit) => drop(timeout(limit, stopped(&mut stopping)).await),
                None => stopped(&mut stopping).await,
            }
        });
        let context = match &hold {
            Hold::Background(_) => context,
            Hold::Request(_) => context.with_deadline(wait),
        };
        let (give_up, given_up) = watch::channel(false);
        let work = async move {
            let work = Box::pin(execute_as(&context, caller.as_ref(), &incoming));
            let may_end = || !is_claiming.load(Ordering::Relaxed);
            hold_until_done(work, hold, given_up, may_end)
                .await
                .unwrap_or_else(|| Err(nothing_done(wait)))
        };
        let task = tokio::spawn(work.in_current_span());
        Work { task, claim, stage, stop, give_up, progression, step: 0 }
    }

    fn claim(&self) -> Option<Claim> {
        self.claim.borrow().clone()
    }

    /// The result, if there is one before `end`, or before it is `claimed_from` then and claimed. Until then the client
    /// learns of each stage.
    async fn result_until(
        &mut self,
        claimed_from: Option<Instant>,
        end: Instant,
    ) -> Option<Result<ActionResponse, ActionError>> {
        let mut beat = Instant::now() + HEARTBEAT_INTERVAL;
        let mut claim = self.claim.clone();
        let mut is_claimed = std::pin::pin!(async move {
            sleep_until(claimed_from.unwrap_or(end)).await;
            if claim.wait_for(Option::is_some).await.is_err() {
                std::future::pending::<()>().await;
            }
        });
        loop {
            let wants_progress = self.progression.is_some();
            tokio::select! {
                biased;
                result = &mut self.task => return Some(flat(result)),
                () = sleep_until(end) => return None,
                () = &mut is_claimed => return None,
                Ok(()) = self.stage.changed(), if wants_progress => {}
                () = sleep_until(beat), if wants_progress => {}
            }
            beat = Instant::now() + HEARTBEAT_INTERVAL;
            self.notify();
        }
    }

    fn notify(&mut self) {
        self.step += 1;
        let Some(Progression { token, lines }) = &self.progression else { return };
        let stage: String =
            self.stage.borrow_and_update().chars().take(MAX_STAGE_CHARACTERS).collect();
        let stage = if stage.is_empty() { "in progress" } else { &*stage };
        // A client that does not read loses progress and nothing else.
        let _ = lines.try_send(protocol::progress(token, self.step, stage));
    }

    /// The request as a task, with the context of its cluster: what is claimed continues, and may be read by its
    /// caller.
    async fn task(
        &self,
        context: &Context,
        caller: Option<&Caller>,
    ) -> Option<(Operation, Context)> {
        let Claim { cluster, namespace, id } = self.claim()?;
        let context = context.for_cluster(cluster.as_ref()).ok()?;
        let found = find_as(&context, caller, &namespace, &id).await.ok()?;
        found.is_in_progress().then_some((found, context))
    }

    async fn find(
        &self,
        context: &Context,
        caller: Option<&Caller>,
    ) -> Result<Option<Operation>, ActionError> {
        match self.claim() {
            Some(Claim { cluster, namespace, id }) => {
                let context = context.for_cluster(cluster.as_ref())?.acting_for(caller).await?;
                status::find(&context, &namespace, &id).await
            }
            None => Ok(None),
        }
    }
}

/// The result of work that holds this until it ends; `None` if it is given up while it may end.
async fn hold_until_done<T, H>(
    mut work: impl Future<Output = T> + Unpin,
    hold: H,
    mut given_up: watch::Receiver<bool>,
    may_end: impl Fn() -> bool,
) -> Option<T> {
    let _hold = hold;
    tokio::select! {
        biased;
        result = &mut work => return Some(result),
        () = stopped(&mut given_up) => {}
    }
    if may_end() { None } else { Some(work.await) }
}

impl Drop for Work {
    fn drop(&mut self) {
        self.give_up.send_replace(true);
    }
}

fn claim_of(request: &RequestMetadata) -> Option<Claim> {
    let namespace = Namespace::try_from(request.namespace().to_owned()).ok()?;
    let cluster = request.cluster.clone().and_then(|name| ClusterName::try_from(name).ok());
    Some(Claim { cluster, namespace, id: request.id.clone() })
}

fn flat(
    result: Result<Result<ActionResponse, ActionError>, tokio::task::JoinError>,
) -> Result<ActionResponse, ActionError> {
    result.unwrap_or_else(|panic| {
        tracing::error!(%panic, "a handler panicked");
        Err(ActionError::new(Code::Internal, "a handler panicked; this is a bug"))
    })
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn work_that_is_given_up_ends_unless_it_may_have_a_claim_and_holds_its_permit_until_then()
    {
        for is_claiming in [false, true] {
            let (finish, finished) = oneshot::channel();
            let (give_up, given_up) = watch::channel(false);
            let permit = Arc::new(());
            let held = permit.clone();
            let work = Box::pin(async { finished.await.unwrap_or("dropped") });
            let work = tokio::spawn(hold_until_done(work, held, given_up, move || !is_claiming));
            give_up.send_replace(true);
            drop(give_up);
            tokio::task::yield_now().await;
            assert_eq!(work.is_finished(), !is_claiming);
            assert_eq!(Arc::strong_count(&permit), if is_claiming { 2 } else { 1 });
            let _ = finish.send("done");
            assert_eq!(work.await.expect("ends"), is_claiming.then_some("done"));
            assert_eq!(Arc::strong_count(&permit), 1);
        }
    }

    #[tokio::test]
    async fn a_caller_ends_its_own_waits_for_one_request() {
        let waits = Waits::default();
        let named = |name: &str| Caller::Platform(name.to_owned());
        let namespace = |name: &str| Namespace::try_from(name.to_owned()).expect("is one");
        let id = |id: &str| RequestId::try_from(id.to_owned()).expect("is one");
        let (mut stops, mut ends) = (Vec::new(), Vec::new());
        for (of, request, caller) in [
            ("shop", "a", Some("jo")),
            ("shop", "a", Some("jo")),
            ("shop", "a", Some("mo")),
            ("shop", "a", None),
            ("shop", "b", Some("jo")),
            ("ops", "a", Some("jo")),
        ] {
            let (stop, end) = watch::channel(false);
            let claim = Claim { cluster: None, namespace: namespace(of), id: id(request) };
            let caller = caller.map(str::to_owned);
            waits.add(Wait { claim, caller, stop: stop.clone() });
            stops.push(stop);
            ends.push(end);
        }
        waits.end(Some("blue"), &namespace("shop"), &id("a"), Some(&named("jo")));
        assert!(!ends.iter().any(|end| *end.borrow()), "another cluster");
        waits.end(None, &namespace("shop"), &id("a"), Some(&named("jo")));
        let ended: Vec<_> = ends.iter().map(|end| *end.borrow()).collect();
        assert_eq!(ended, [true, true, false, false, false, false]);
        // A wait that is over is forgotten.
        drop(ends);
        let (stop, _end) = watch::channel(false);
        let claim = Claim { cluster: None, namespace: namespace("shop"), id: id("c") };
        waits.add(Wait { claim, caller: None, stop });
        assert_eq!(waits.lock().len(), 1);
    }
}
