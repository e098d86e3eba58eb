//! What someone who watches a wait sees beside its stage: the replicas and what is wrong with the pods. It is read only
//! for an observer that shows it, and decides nothing.

use std::{convert::Infallible, future::pending, time::Duration};

use tokio::time::{Instant, sleep};

use crate::{
    executor::context::Context,
    k8s::{api::client::Cluster, completion::Completion, replicas::Replicas},
};

/// The pause between reads: often enough for a person, and seldom enough for the API server.
const READ_INTERVAL: Duration = Duration::from_secs(2);

/// What is known of a wait besides its stage.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Details {
    /// How long the wait may still take.
    pub left: Duration,
    /// The workload's replicas, if it waits for a workload.
    pub replicas: Option<Replicas>,
    /// What is wrong with the pods, the worst first.
    pub problems: Vec<String>,
}

/// Reports the details of this wait to the observer until it is dropped.
pub(super) async fn report(
    context: &Context,
    cluster: &Cluster,
    completion: &Completion,
    end: Instant,
) -> Infallible {
    if !context.observer().shows_details() {
        return pending().await;
    }
    loop {
        // What cannot be read is not shown. The wait itself says why nothing can be read.
        let (replicas, problems) = tokio::join!(
            cluster.awaited_replicas(completion, end),
            cluster.completion_problems(completion, end),
        );
        context.observer().details(&Details {
            left: end.saturating_duration_since(Instant::now()),
            replicas: replicas.ok().flatten(),
            problems: problems.unwrap_or_default(),
        });
        sleep(READ_INTERVAL).await;
    }
}
