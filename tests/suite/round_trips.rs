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
    faults::{ProxyBehavior, proxy_until},
    program::Program,
    scenario::{Scenario, for_each_action},
};

/// In each direction; long enough that calls that are sent at the same time overlap.
const DELAY: Duration = Duration::from_millis(150);

/// Calls that overlap are one round trip.
#[derive(Default)]
struct RoundTrips {
    running: AtomicUsize,
    counted: AtomicUsize,
}

/// How many round trips the kind takes as a simulation, and as a real action. The claim and the charge are one, the
/// change is one, the record is one; the rest are reads.
fn documented(kind: ActionKind) -> Option<[usize; 2]> {
    match kind {
        // The revisions, and the pods that share the pod's budgets, are known once the target is read.
        ActionKind::Rollback | ActionKind::EvictPod => Some([3, 5]),
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
            let trips = Arc::new(RoundTrips::default());
            let (begun, ended) = (trips.clone(), trips.clone());
            let kubeconfig = proxy_until(
                &scenario.namespace,
                move |_| {
                    if begun.running.fetch_add(1, Ordering::SeqCst) == 0 {
                        begun.counted.fetch_add(1, Ordering::SeqCst);
                    }
                    ProxyBehavior::Delay(DELAY)
                },
                move || {
                    ended.running.fetch_sub(1, Ordering::SeqCst);
                },
            )
            .await;
            let mut request = scenario.request("r1");
            request["simulate"] = simulate.into();
            let program = Program::with_kubeconfig(&kubeconfig).under(&policy);
            let run = move || program.input(request.to_string()).run();
            let done = spawn_blocking(run).await.expect("it ran");
            assert_eq!(done.status, 0, "{}: {done:?}", kind.name());
            let counted = trips.counted.load(Ordering::SeqCst);
            assert_eq!(counted, expected, "{} simulate={simulate}", kind.name());
        }
    });
}
