//! Every kind of fault at every call of every action: at most one effect, and no untrue answer.
//!
//! A sample always runs, in which each kind of fault occurs at random calls. The long forms are a larger sample, with
//! this number of faults per action, and every fault at every call:
//!
//!     FAULT_ROUNDS=100 cargo test --all-features --test suite fault_matrix -- --nocapture
//!     FAULT_ROUNDS=all cargo test --all-features --test suite fault_matrix -- --nocapture
//!
//! `FAULT_ACTION` and `FAULT_KIND` restrict it to one action and one kind of fault; `LEDGER_SEED` repeats a sample.

use std::{
    collections::BTreeMap,
    env, fmt,
    path::Path,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use action_executor::{actions::ActionKind, contract::error::Code};
use k8s_openapi::api::coordination::v1::Lease;
use serde_json::Value;
use tokio::{task::spawn_blocking, time::sleep};

use crate::{
    cluster::Namespace,
    fault_proxy::{Held, Proxy, ProxyBehavior, faults},
    ledger::Random,
    program::{Finished, Program},
    scenario::{Scenario, for_each_action, is_deletion},
};

/// The deadline of an attempt: what a call without an answer costs.
const DEADLINE_SECONDS: &str = "2";

/// How long a request is resent until its answer is final. A claim of a failed attempt expires earlier.
const FINAL_TIMEOUT: Duration = Duration::from_secs(30);

/// The pause before a request is resent.
const RESEND_INTERVAL: Duration = Duration::from_millis(200);

/// The number of faults per action in the short form. Together the actions have each kind of fault several times.
const SAMPLE: usize = 6;

/// A cooldown and a budget, both wide enough for one request.
const LIMITS: &str =
    "cooldown_seconds: 1\nbudget: {per_namespace: {actions: 5, within_seconds: 60}}";

/// One fault.
#[derive(Clone, Debug)]
struct Case {
    action: ActionKind,
    /// The name of the fault, as in [`faults`].
    fault: &'static str,
    /// The index of the call.
    index: usize,
    /// Whether no call after it reaches the API server.
    is_cut_off: bool,
    /// Whether a call that is delivered late is delivered after the retry, and not before.
    lands_last: bool,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} at call {}", self.action.name(), self.fault, self.index)?;
        f.write_str(if self.is_cut_off { ", and no later one arrives" } else { "" })?;
        f.write_str(if self.lands_last { ", after the retry" } else { "" })
    }
}

/// The calls of a simulation and of a real action.
struct Calls {
    /// The number of calls of a simulation.
    simulation: usize,
    /// The number of calls of a real action.
    real: usize,
    /// The indices of those that are effects.
    effects: Vec<usize>,
}

async fn count_calls(kind: ActionKind) -> Calls {
    let scenario = Scenario::with_successor(kind, "counted").await;
    let policy = scenario.namespace.policy(LIMITS);
    let count = async |simulate: bool| {
        let proxy = Proxy::start(&scenario.namespace, |_| ProxyBehavior::Forward).await;
        let mut request = scenario.request("r1");
        request["simulate"] = simulate.into();
        let done = send(&proxy.kubeconfig, &policy, &request).await;
        assert_eq!(done.status, 0, "{}: {done:?}", kind.name());
        proxy
    };
    let (simulation, real) = (count(true).await, count(false).await);
    let effects = real.forwarded().into_iter().filter(|call| call.is_effect);
    Calls {
        simulation: simulation.calls(),
        real: real.calls(),
        effects: effects.map(|call| call.index).collect(),
    }
}

async fn send(kubeconfig: &Path, policy: &Path, request: &Value) -> Finished {
    let program = Program::with_kubeconfig(kubeconfig)
        .under(policy)
        .env("ACTION_EXECUTOR_DEADLINE_SECONDS", DEADLINE_SECONDS)
        .input(request.to_string());
    spawn_blocking(|| program.run()).await.expect("it ran")
}

/// The cases of an action: a sample, or all of them.
fn cases(action: ActionKind, calls: &Calls) -> Vec<Case> {
    let only = env::var("FAULT_KIND").ok();
    let names: Vec<_> = faults(&Held::default())
        .into_iter()
        .map(|(name, _)| name)
        .filter(|name| only.as_ref().is_none_or(|only| only == name))
        .collect();
    let rounds = env::var("FAULT_ROUNDS").unwrap_or_default();
    if rounds == "all" {
        let mut all = Vec::new();
        for index in 0..calls.real {
            for fault in &names {
                for is_cut_off in [false, true] {
                    let lands_last: &[bool] =
                        if is_late(fault) { &[false, true] } else { &[false] };
                    all.extend(lands_last.iter().map(|lands_last| Case {
                        action,
                        fault,
                        index,
                        is_cut_off,
                        lands_last: *lands_last,
                    }));
                }
            }
        }
        return all;
    }
    let mut random = Random::new(&format!("fault_matrix {}", action.name()));
    // The actions take turns at the kinds.
    let number = ActionKind::ALL.iter().position(|kind| *kind == action).expect("is one of them");
    let mut turns = names.iter().cycle().skip(number * SAMPLE % names.len());
    let mut case = || {
        let fault = turns.next().expect("they never end");
        let lands_last = is_late(fault) && random.below(2) == 0;
        // A fault at an effect matters most.
        let index = match random.below(2) == 0 {
            true => calls.effects[random.below(calls.effects.len() as u64) as usize],
            false => random.below(calls.real as u64) as usize,
        };
        Case { action, fault, index, is_cut_off: random.below(3) == 0, lands_last }
    };
    (0..rounds.parse().unwrap_or(SAMPLE)).map(|_| case()).collect()
}

/// Whether the fault delivers a call later.
fn is_late(fault: &str) -> bool {
    ["hold", "repeat_later"].contains(&fault)
}

#[test]
fn no_fault_at_any_call_causes_a_second_effect_or_an_untrue_answer() {
    let violations = Mutex::new(Vec::new());
    for_each_action(async |kind| {
        if env::var("FAULT_ACTION").is_ok_and(|only| only != kind.name()) {
            return;
        }
        let calls = count_calls(kind).await;
        for case in cases(kind, &calls) {
            let found = violations_of(&case, &calls).await;
            let found = found.into_iter().map(|it| format!("{case}: {it}"));
            let found: Vec<_> = found.inspect(|it| println!("{it}")).collect();
            violations.lock().unwrap_or_else(PoisonError::into_inner).extend(found);
        }
    });
    let violations = violations.into_inner().unwrap_or_else(PoisonError::into_inner);
    assert!(violations.is_empty(), "{} violations:\n{}", violations.len(), violations.join("\n"));
}

/// A proxy with this fault.
async fn faulty(namespace: &Namespace, case: &Case, index: usize, held: &Held) -> Proxy {
    let fault = faults(held).into_iter().find(|(name, _)| *name == case.fault);
    let (_, fault) = fault.expect("is one of them");
    let is_cut_off = case.is_cut_off;
    Proxy::start(namespace, move |call| match call.index {
        at if at == index => fault.clone(),
        at if at > index && is_cut_off => ProxyBehavior::DropRequest,
        _ => ProxyBehavior::Forward,
    })
    .await
}

/// What is wrong with the effects and the answers of a simulation and of a request with this fault.
async fn violations_of(case: &Case, calls: &Calls) -> Vec<String> {
    let scenario = Scenario::with_successor(case.action, "fault").await;
    let policy = scenario.namespace.policy(LIMITS);
    let mut violations = Violations::default();

    let held = Held::default();
    let index = case.index % calls.simulation;
    let proxy = faulty(&scenario.namespace, case, index, &held).await;
    let mut request = scenario.request("simulation");
    request["simulate"] = true.into();
    let simulated = send(&proxy.kubeconfig, &policy, &request).await;
    held.release().await;
    violations.check_form(&simulated);
    let changed = scenario.effects_so_far().await;
    if changed != 0 {
        violations.add("a simulation changed the object", &simulated);
        return violations.0;
    }

    let held = Held::default();
    let proxy = faulty(&scenario.namespace, case, case.index, &held).await;
    let request = scenario.request("r1");
    let first = send(&proxy.kubeconfig, &policy, &request).await;
    violations.check(&first, scenario.effects_so_far().await);
    if !case.lands_last {
        land(&held, &first, &scenario, &mut violations).await;
    }

    let honest = Proxy::start(&scenario.namespace, |_| ProxyBehavior::Forward).await;
    let mut last = resend(&honest.kubeconfig, &policy, &request, &mut violations).await;
    if case.lands_last {
        violations.check(&last, scenario.effects_so_far().await);
        land(&held, &last, &scenario, &mut violations).await;
        last = resend(&honest.kubeconfig, &policy, &request, &mut violations).await;
    }
    let effects = scenario.effects_so_far().await;
    violations.check(&last, effects);
    // Without its record.
    let is_forgotten = is_deletion(case.action) && Answer::of(&last) == Answer::Open;
    let is_known = Answer::of(&last) == Answer::Applied || is_forgotten;
    if Answer::of(&first) == Answer::Applied && !is_known {
        violations.add("it was applied before", &last);
    }
    if effects > 1 {
        violations.add(&format!("{effects} effects"), &last);
    }
    let mut accepted = BTreeMap::<String, usize>::new();
    for call in proxy.accepted_effects().into_iter().chain(honest.accepted_effects()) {
        *accepted.entry(call).or_default() += 1;
    }
    if accepted.values().any(|number| *number > 1) {
        violations.add(&format!("the API server accepted {accepted:?}"), &last);
    }
    let charged = charged(&scenario.namespace).await;
    if charged < effects {
        violations.add(&format!("{charged} charged for {effects} effects"), &last);
    }
    if !violations.0.is_empty() {
        violations.add("the first answer", &first);
    }
    violations.0
}

/// Delivers the held calls after this answer, and waits for the successor of a deleted pod.
async fn land(held: &Held, answer: &Finished, scenario: &Scenario, violations: &mut Violations) {
    let before = scenario.effects_so_far().await;
    held.release().await;
    let after = scenario.effects_so_far().await;
    let excludes_it = matches!(Answer::of(answer), Answer::DefiniteError | Answer::Unchanged);
    if after > before && excludes_it {
        violations.add("the effect came after an answer that excludes it", answer);
    }
    // A pod that is removed by force has none here.
    if is_pod(scenario.kind) && scenario.kind != ActionKind::DeleteStuckPod && after > 0 {
        scenario.successor().await;
    }
}

fn is_pod(kind: ActionKind) -> bool {
    matches!(kind, ActionKind::RestartPod | ActionKind::EvictPod | ActionKind::DeleteStuckPod)
}

/// Resends the request until its answer is final.
async fn resend(
    kubeconfig: &Path,
    policy: &Path,
    request: &Value,
    violations: &mut Violations,
) -> Finished {
    let began = Instant::now();
    loop {
        let done = send(kubeconfig, policy, request).await;
        // Exit status 75 asks for a retry.
        if done.status != 75 {
            return done;
        }
        if began.elapsed() > FINAL_TIMEOUT {
            violations.add("the answer never becomes final", &done);
            return done;
        }
        sleep(RESEND_INTERVAL).await;
    }
}

/// How many entries the budget's Lease has.
pub async fn charged(namespace: &Namespace) -> i64 {
    let lease = namespace.api::<Lease>().get_opt("action-executor").await.expect("is read");
    let annotations = lease.and_then(|lease| lease.metadata.annotations).unwrap_or_default();
    annotations.keys().filter(|key| key.starts_with("usage.action-executor.dev/")).count() as i64
}

/// What an answer says about the effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Applied,
    Unchanged,
    /// An error or another outcome that says that nothing was done.
    DefiniteError,
    /// The effect may have been made, or may still be.
    Open,
}

impl Answer {
    fn of(done: &Finished) -> Self {
        let answer: Value = serde_json::from_str(&done.stdout).unwrap_or_default();
        match (answer["outcome"].as_str(), answer["code"].as_str()) {
            (Some("applied" | "failed"), _) => Answer::Applied,
            (Some("unchanged"), _) => Answer::Unchanged,
            (_, Some("outcome_unknown" | "in_progress")) => Answer::Open,
            _ => Answer::DefiniteError,
        }
    }
}

#[derive(Default)]
struct Violations(Vec<String>);

impl Violations {
    fn add(&mut self, what: &str, done: &Finished) {
        let answer: Value = serde_json::from_str(&done.stdout).unwrap_or_default();
        let text = |field: &str| answer[field].as_str().unwrap_or_default().to_owned();
        let kind = text("outcome") + &text("code");
        let sentence = text("result") + &text("detail");
        self.0.push(format!("{what}: {} {kind}: {sentence}", done.status));
    }

    /// The answer must agree with the number of effects so far.
    fn check(&mut self, done: &Finished, effects: i64) {
        self.check_form(done);
        match Answer::of(done) {
            Answer::Applied if effects == 0 => self.add("applied, but nothing was done", done),
            Answer::Unchanged if effects > 0 => self.add("unchanged, but it was done", done),
            Answer::DefiniteError if effects > 0 => self.add("an error, but it was done", done),
            _ => {}
        }
    }

    /// The program must not have panicked, and the exit status must be the documented one.
    fn check_form(&mut self, done: &Finished) {
        let answer: Value = serde_json::from_str(&done.stdout).unwrap_or_default();
        let expected = match (answer["outcome"].as_str(), answer["code"].as_str()) {
            (Some("applied" | "unchanged" | "simulated"), _) => 0,
            (Some("failed"), _) => 69,
            (_, Some(code)) => {
                let code = Code::ALL.into_iter().find(|it| it.to_string() == code);
                code.map_or(-1, |code| i32::from(code.exit_status()))
            }
            _ => -1,
        };
        if done.status != expected || expected == 70 || done.stderr.contains("panicked") {
            self.add(&format!("a wrong end ({})", done.stderr.trim()), done);
        }
    }
}
