//! Sends many effects, a bounded number at a time. What their results mean is for the caller.

use tokio::{task::JoinSet, time::Instant};

use crate::{
    contract::counted::counted,
    k8s::{
        api::{client::Cluster, mutation::ApplyError},
        effect::{Applied, Effect},
        pods,
    },
};

/// How many effects are in progress at once.
const MAX_PARALLEL: usize = 16;

/// The most pods that a message names.
pub(super) const MAX_PODS_PER_MESSAGE: usize = 20;

/// `2 pods would not be evicted: why: shop/a, shop/b`
pub(super) fn warning(mut names: Vec<String>, why: &str) -> String {
    names.sort_unstable();
    let number = counted(names.len(), "pod");
    format!("{number} {why}: {}", pods::join_names(&names, MAX_PODS_PER_MESSAGE))
}

/// How the effects are sent.
#[derive(Clone, Copy)]
pub(super) struct Batch<'a> {
    pub cluster: &'a Cluster,
    pub dry_run: bool,
    pub deadline: Instant,
}

/// Sends each effect once, as long as one `may_begin`, and passes each result on. An effect in progress is never
/// abandoned. Returns those that were not sent.
pub(super) async fn apply_each(
    batch: Batch<'_>,
    effects: Vec<Effect>,
    may_begin: impl Fn() -> bool,
    mut on_result: impl FnMut(Effect, Result<Applied, ApplyError>),
) -> Vec<Effect> {
    let Batch { cluster, dry_run, deadline } = batch;
    let mut in_flight = JoinSet::new();
    let mut effects = effects.into_iter();
    loop {
        while in_flight.len() < MAX_PARALLEL && may_begin() {
            let Some(effect) = effects.next() else { break };
            let cluster = cluster.clone();
            in_flight.spawn(async move {
                let result = cluster.apply(&effect, dry_run, deadline).await;
                (effect, result)
            });
        }
        match in_flight.join_next().await {
            Some(Ok((effect, result))) => on_result(effect, result),
            // A task panicked: the caller finds out what became of its effect.
            Some(Err(_)) => {}
            None => return effects.collect(),
        }
    }
}
