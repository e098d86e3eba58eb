//! Objects that others write while the program acts on them, at a distance from the API server.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use action_executor::actions::ActionKind;
use serde_json::json;
use tokio::{
    task::{block_in_place, spawn_blocking},
    time::sleep,
};

use crate::{
    fault_proxy::{ProxyBehavior, proxy},
    program::Program,
    scenario::{Scenario, for_each_action},
};

/// How often a controller writes the target.
const WRITE_INTERVAL: Duration = Duration::from_millis(16);

/// In each direction.
const DELAY: Duration = Duration::from_millis(25);

/// The most time that an action may take between such writes: one that waits for a pause never ends.
const LIMIT: Duration = Duration::from_secs(5);

/// Writes the target until `done`, as controllers and kubelets do: each write changes its resourceVersion, and
/// nothing that an action is decided on.
async fn write_until(done: Arc<AtomicBool>, scenario: &Scenario) -> usize {
    let mut writes = 0;
    while !done.load(Ordering::Relaxed) {
        scenario.write_status(&writes.to_string()).await;
        writes += 1;
        sleep(WRITE_INTERVAL).await;
    }
    writes
}

#[test]
fn a_status_writer_starves_no_action() {
    for_each_action(async |kind| {
        let scenario = Scenario::new(kind, "written").await;
        let kubeconfig = proxy(&scenario.namespace, |_| ProxyBehavior::Delay(DELAY)).await;
        let policy = scenario.namespace.policy("cooldown_seconds: 1");
        let request = scenario.request("r1").to_string();
        let done = Arc::new(AtomicBool::new(false));
        let running = spawn_blocking({
            let done = done.clone();
            move || {
                let began = std::time::Instant::now();
                let finished =
                    Program::with_kubeconfig(&kubeconfig).under(&policy).input(request).run();
                done.store(true, Ordering::Relaxed);
                (finished, began.elapsed())
            }
        });
        let writes = write_until(done, &scenario).await;
        let (finished, elapsed) = running.await.expect("it ran");
        assert_eq!(finished.status, 0, "{}: {finished:?}", kind.name());
        assert_eq!(finished.answer()["outcome"], "applied", "{}", kind.name());
        assert!(elapsed < LIMIT, "{}: {elapsed:?}", kind.name());
        assert!(writes > 5, "{}: {writes} writes", kind.name());
        assert_eq!(scenario.effects().await, 1, "{}", kind.name());
    });
}

/// The actions whose change is bound to the target's labels: they patch the target itself.
const PATCHING: [ActionKind; 15] = [
    ActionKind::RestartK8s,
    ActionKind::RestartStatefulset,
    ActionKind::RestartDaemonset,
    ActionKind::PauseRollout,
    ActionKind::ResumeRollout,
    ActionKind::SuspendCronjob,
    ActionKind::ResumeCronjob,
    ActionKind::Rollback,
    ActionKind::PromoteArgoRollout,
    ActionKind::UndoArgoRollout,
    ActionKind::Cordon,
    ActionKind::Uncordon,
    ActionKind::ResumeFlux,
    ActionKind::SyncArgoCd,
    ActionKind::PauseKeda,
];

#[test]
fn a_target_that_becomes_protected_right_before_the_change_is_not_changed() {
    for_each_action(async |kind| {
        if !PATCHING.contains(&kind) {
            return;
        }
        let scenario = Arc::new(Scenario::new(kind, "labelled").await);
        let policy =
            scenario.namespace.policy("cooldown_seconds: 0\ntargets: {protected: [guarded=yes]}");
        let (labelling, handle) = (scenario.clone(), tokio::runtime::Handle::current());
        let kubeconfig = proxy(&scenario.namespace, move |call| {
            if call.is_effect() {
                let label = labelling.label(json!({ "guarded": "yes" }));
                block_in_place(|| handle.block_on(label));
            }
            ProxyBehavior::Forward
        })
        .await;
        let request = scenario.request("r1").to_string();
        let running = spawn_blocking(move || {
            Program::with_kubeconfig(&kubeconfig).under(&policy).input(request).run()
        });
        let finished = running.await.expect("it ran");
        assert_eq!(finished.answer()["code"], "policy_denied", "{}: {finished:?}", kind.name());
        assert_eq!(scenario.effects().await, 0, "{}", kind.name());
    });
}
