//! Makes the effect of a plan, at most once.
//!
//! The order of things: plan from facts that were just read; make the effect, or have the server try
//! it. When the object changed in between, plan anew. When the answer to a write is lost, ask the
//! cluster whether the write took effect; only if it cannot be asked the outcome is unknown. A write
//! that is under way is never abandoned, whoever asks us to stop.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use crate::{
    actions::{Asked, Plan, Todo},
    context::{Context, stopped},
    error::{ActionError, Code},
    k8s::{
        cluster::Cluster,
        effect::{Effect, Made, NotMade},
        fault::Fault,
        retry,
    },
    request::ActionRequest,
    response::Outcome,
};

/// Time kept past the deadline to find out what became of a write.
const AFTERTHOUGHT: Duration = Duration::from_millis(800);

/// What was done, with the plan that led to it.
pub(crate) struct Done {
    /// The plan.
    pub plan: Plan,
    /// What the effect left behind.
    pub made: Made,
    /// How it ended.
    pub outcome: Outcome,
    /// The sentence about it.
    pub result: String,
    /// Whether an earlier try of the same request had made it.
    pub replayed: bool,
}

/// A write that was sent and whose answer was lost.
struct InDoubt {
    plan: Plan,
    effect: Effect,
    did: String,
    fault: Fault,
}

/// Plans and makes the effect, or with `simulate` has the API server try it.
///
/// # Errors
/// Why it was not done, or [`Code::OutcomeUnknown`].
pub(crate) async fn execute(
    context: &Context,
    cluster: &Cluster,
    request: &ActionRequest,
    asked: &Asked,
) -> Result<Done, ActionError> {
    let mut pauses = retry::pauses();
    let mut in_doubt: Option<InDoubt> = None;
    loop {
        let plan = match plan_unless_stopped(context, cluster, request, asked).await {
            Ok(plan) => plan,
            Err(error) => return settle(cluster, in_doubt, error).await,
        };
        let (effect, did, would) = match plan.todo.clone() {
            Todo::Make(effect, did, would) => (*effect, did, would),
            Todo::AlreadyMade(made, result) => {
                let replayed = in_doubt.is_none();
                return Ok(Done { replayed, ..Done::now(plan, made, Outcome::Applied, result) });
            }
            Todo::Nothing(result) => {
                let made = Made::unchanged(plan.target.resource_version.clone());
                return Ok(Done::now(plan, made, Outcome::Unchanged, result));
            }
        };
        match cluster.make(&effect, request.simulate, asked.deadline).await {
            Ok(made) if request.simulate => {
                return Ok(Done::now(plan, made, Outcome::Simulated, would));
            }
            Ok(made) => return Ok(Done::now(plan, made, Outcome::Applied, did)),
            Err(NotMade::Refused(error)) => return settle(cluster, in_doubt, error).await,
            Err(NotMade::InDoubt(fault)) => {
                let sent = InDoubt { plan, effect, did, fault };
                match sent.look(cluster, asked.deadline.max(Instant::now())).await {
                    Found::Made(made) => return Ok(sent.made(made)),
                    Found::NotMade => in_doubt = Some(sent),
                    Found::Unknown => return Err(sent.unknown()),
                }
            }
            Err(NotMade::Stale) => {}
        }
        let pause = pauses.next().unwrap_or_default();
        if Instant::now() + pause >= asked.deadline {
            return settle(cluster, in_doubt, kept_changing(request)).await;
        }
        sleep(pause).await;
    }
}

/// Reading can be given up at any time; nothing was done yet.
async fn plan_unless_stopped(
    context: &Context,
    cluster: &Cluster,
    request: &ActionRequest,
    asked: &Asked,
) -> Result<Plan, ActionError> {
    let mut stopping = context.stopping();
    tokio::select! {
        biased;
        () = stopped(&mut stopping) => Err(ActionError::new(
            Code::ShuttingDown,
            "told to stop before anything was done",
        )),
        plan = request.action.plannable().plan(cluster, asked) => plan,
    }
}

/// An error stands as it is unless a write is in doubt: then the cluster is asked once more.
async fn settle(
    cluster: &Cluster,
    in_doubt: Option<InDoubt>,
    error: ActionError,
) -> Result<Done, ActionError> {
    let Some(sent) = in_doubt else { return Err(error) };
    match sent.look(cluster, Instant::now()).await {
        Found::Made(made) => Ok(sent.made(made)),
        Found::NotMade => Err(error),
        Found::Unknown => Err(sent.unknown()),
    }
}

fn kept_changing(request: &ActionRequest) -> ActionError {
    ActionError::new(
        Code::Conflict,
        format!("{} changed under every attempt; nothing was done", request.action.target()),
    )
    .with_retry_after(Some(Duration::from_secs(1)))
}

/// What the cluster says of a write in doubt.
enum Found {
    Made(Made),
    NotMade,
    Unknown,
}

impl InDoubt {
    async fn look(&self, cluster: &Cluster, deadline: Instant) -> Found {
        let until = deadline + AFTERTHOUGHT;
        match timeout_at(until, cluster.recognise(&self.effect, until)).await {
            Ok(Ok(Some(made))) => Found::Made(made),
            Ok(Ok(None)) => Found::NotMade,
            Ok(Err(_)) | Err(_) => Found::Unknown,
        }
    }

    fn made(self, made: Made) -> Done {
        Done::now(self.plan, made, Outcome::Applied, self.did)
    }

    fn unknown(&self) -> ActionError {
        let Effect { resource, namespace, name, uid, .. } = &self.effect;
        ActionError::new(
            Code::OutcomeUnknown,
            format!(
                "the change to {} was sent and its answer was lost ({:?}); it may or may not have \
                 been made",
                self.plan.target, self.fault
            ),
        )
        .with_hint(format!(
            "look at `kubectl -n {namespace} get {} {name} -o yaml` (it had uid {uid}); the same \
             request with the same id is safe to send again",
            resource.plural
        ))
    }
}

impl Done {
    fn now(plan: Plan, made: Made, outcome: Outcome, result: String) -> Self {
        Done { plan, made, outcome, result, replayed: false }
    }
}
