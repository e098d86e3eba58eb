//! How many round trips to the API server an action takes, one after the other: what it costs at a distance.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use action_executor::actions::ActionKind;
use tokio::task::spawn_blocking;

use crate::{
    fault_proxy::{ProxyBehavior, proxy_around},
    program::Program,
    scenario::{Scenario, for_each_action},
};

/// In each direction; long enough that none of the calls that are sent at the same time ends before all have begun.
const DELAY: Duration = Duration::from_millis(400);

/// How many round trips the kind takes as a simulation, and as a real action. The claim and the charge are one, the
/// change is one, the record is one; the rest are reads.
fn documented(kind: ActionKind) -> Option<[usize; 2]> {
    match kind {
        // The revisions, the pods of the same controller and the pod's node are known once the target is read.
        ActionKind::Rollback
        | ActionKind::UndoArgoRollout
        | ActionKind::RestartPod
        | ActionKind::EvictPod
        | ActionKind::DeleteStuckPod => Some([3, 5]),
        // The evictions follow.
        ActionKind::Drain => None,
        _ => Some([2, 4]),
    }
}

#[test]
fn an_action_takes_as_many_round_trips_as_documented() {
    for_each_action(async |kind| {
        let Some(documented) = documented(kind) else { return };
        let scenario = Scenario::new(kind, "trips").await;
        let policy = scenario.namespace.policy("cooldown_seconds: 1");
        for (simulate, expected) in [true, false].into_iter().zip(documented) {
            // A call's place in the row is one more than that of any call that ended before it began.
            let ended = Arc::new(AtomicUsize::new(0));
            let (before, after) = (ended.clone(), ended.clone());
            let kubeconfig = proxy_around(
                &scenario.namespace,
                |_| ProxyBehavior::Delay(DELAY),
                move || before.load(Ordering::SeqCst) + 1,
                move |place| {
                    after.fetch_max(place, Ordering::SeqCst);
                },
            )
            .await;
            let mut request = scenario.request("r1");
            request["simulate"] = simulate.into();
            let program = Program::with_kubeconfig(&kubeconfig).under(&policy);
            let run = move || program.input(request.to_string()).run();
            let done = spawn_blocking(run).await.expect("it ran");
            assert_eq!(done.status, 0, "{}: {done:?}", kind.name());
            let counted = ended.load(Ordering::SeqCst);
            assert_eq!(counted, expected, "{} simulate={simulate}", kind.name());
        }
    });
}
