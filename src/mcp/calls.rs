//! One call of a tool that executes or simulates: answered within a limited time, whatever the action waits for.
//!
//! Many clients stop waiting after a minute or less. So a call is answered when its time is up, with the state of the
//! request in the ledger, and the action continues: the wait goes on in the background, and `get_action` reads how it
//! ends. A call that its client gives up before the claim does nothing; after it only the client's wait ends.

use std::time::Duration;

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
        names::{Namespace, RequestId},
        response::ActionResponse,
    },
    executor::{
        context::{Context, stopped},
        incoming::{IncomingRequest, execute_as},
        reply::Reply,
        status::{self, Progress},
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

/// The maximum length of a stage in a notification.
const MAX_STAGE_CHARACTERS: usize = 200;

/// The lines that a client gets before the answer.
pub(crate) struct Progression {
    /// What they refer to.
    pub token: Value,
    /// Where they go; one that does not fit is left out.
    pub lines: mpsc::Sender<String>,
}

/// How a call ended.
pub(crate) enum Ended {
    /// The action ended.
    Done(Box<Reply>),
    /// Its time is up, and the action continues.
    UnderWay(Box<Progress>),
}

/// Carries out a request. With `permit`, which is held by the work, it continues when `wait` is over; without one its
/// own waits end then. Dropping the returned future gives the call up.
pub(crate) async fn execute<P: Send + 'static>(
    context: Context,
    caller: Option<Caller>,
    incoming: IncomingRequest,
    wait: Duration,
    permit: Option<P>,
    progression: Option<Progression>,
) -> Ended {
    let end = Instant::now() + wait;
    let mut work = Work::start(&context, caller, incoming, wait, permit);
    if let Some(result) = work.result_until(end, progression).await {
        return done(result);
    }
    if work.claim().is_none() {
        // What waits only for its turn ends; a call to the cluster is over by now, or nearly.
        work.stop.send_replace(true);
        match timeout(STOP_TIMEOUT, &mut work.task).await {
            Ok(result) => return done(flat(result)),
            Err(_) => work.give_up.send_replace(true),
        };
        let ended = timeout(STOP_TIMEOUT, &mut work.task).await;
        if ended.is_ok() && work.claim().is_none() {
            return done(Err(nothing_done(wait)));
        }
    }
    match work.progress(&context).await {
        Ok(Some(progress)) => Ended::UnderWay(Box::new(progress)),
        Ok(None) => done(Err(unreadable("its record is not in the cluster"))),
        Err(error) => done(Err(unreadable(&error.detail))),
    }
}

fn done(result: Result<ActionResponse, ActionError>) -> Ended {
    Ended::Done(Box::new(result.map_or_else(Reply::from, Reply::from)))
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
type Claim = (Namespace, RequestId);

/// The work on a request, as a task of its own. Dropped before the claim, it ends. The task itself decides that, since
/// nobody else knows whether it is about to make the claim.
struct Work {
    task: JoinHandle<Result<ActionResponse, ActionError>>,
    claim: watch::Receiver<Option<Claim>>,
    stage: watch::Receiver<String>,
    stop: watch::Sender<bool>,
    give_up: watch::Sender<bool>,
}

impl Work {
    fn start<P: Send + 'static>(
        context: &Context,
        caller: Option<Caller>,
        incoming: IncomingRequest,
        wait: Duration,
        permit: Option<P>,
    ) -> Self {
        let (claimed, claim) = watch::channel(None);
        let (staged, stage) = watch::channel(String::new());
        let (stop, mut stopping) = watch::channel(false);
        let context = context.clone().map_observer(|observer| {
            let observer = observer.on_progress(move |stage| {
                staged.send_replace(stage.to_owned());
            });
            observer.on_claimed(move |request| {
                claimed.send_replace(claim_of(request));
            })
        });
        let context = context.with_call_limit(wait.mul_f64(CALLS_PART));
        let context = context.with_waits_until(async move { stopped(&mut stopping).await });
        let context = match &permit {
            Some(_) => context,
            None => context.with_deadline(wait),
        };
        let (give_up, mut given_up) = watch::channel(false);
        let is_claimed = claim.clone();
        let work = async move {
            let _permit = permit;
            let mut work = Box::pin(execute_as(&context, caller.as_ref(), &incoming));
            tokio::select! {
                biased;
                result = &mut work => return result,
                () = stopped(&mut given_up) => {}
            }
            if is_claimed.borrow().is_none() {
                return Err(ActionError::new(Code::ShuttingDown, "given up; nothing was done"));
            }
            work.await
        };
        Work { task: tokio::spawn(work.in_current_span()), claim, stage, stop, give_up }
    }

    fn claim(&self) -> Option<Claim> {
        self.claim.borrow().clone()
    }

    /// The result, if there is one before `end`. Until then the client learns of each stage.
    async fn result_until(
        &mut self,
        end: Instant,
        progression: Option<Progression>,
    ) -> Option<Result<ActionResponse, ActionError>> {
        let mut beat = Instant::now() + HEARTBEAT_INTERVAL;
        let mut step = 0;
        loop {
            tokio::select! {
                biased;
                result = &mut self.task => return Some(flat(result)),
                () = sleep_until(end) => return None,
                Ok(()) = self.stage.changed(), if progression.is_some() => {}
                () = sleep_until(beat), if progression.is_some() => {}
            }
            beat = Instant::now() + HEARTBEAT_INTERVAL;
            step += 1;
            if let Some(Progression { token, lines }) = &progression {
                let stage: String =
                    self.stage.borrow_and_update().chars().take(MAX_STAGE_CHARACTERS).collect();
                let stage = if stage.is_empty() { "in progress" } else { &*stage };
                // A client that does not read loses progress and nothing else.
                let _ = lines.try_send(protocol::progress(token, step, stage));
            }
        }
    }

    async fn progress(&self, context: &Context) -> Result<Option<Progress>, ActionError> {
        let Some((namespace, id)) = self.claim() else { return Ok(None) };
        match status::find(context, &namespace, &id).await? {
            Some(found) => Ok(Some(found.progress(context).await)),
            None => Ok(None),
        }
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        self.give_up.send_replace(true);
    }
}

fn claim_of(request: &RequestMetadata) -> Option<Claim> {
    let namespace = Namespace::try_from(request.namespace().to_owned()).ok()?;
    Some((namespace, request.id.clone()))
}

fn flat(
    result: Result<Result<ActionResponse, ActionError>, tokio::task::JoinError>,
) -> Result<ActionResponse, ActionError> {
    result.unwrap_or_else(|panic| {
        tracing::error!(%panic, "a handler panicked");
        Err(ActionError::new(Code::Internal, "a handler panicked; this is a bug"))
    })
}
