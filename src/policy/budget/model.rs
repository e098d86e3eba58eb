//! An exhaustive model of the budget: all histories of a few requests that share one quota, in coarse time.
//!
//! Each request charges, makes its effect and adds its time, or crashes between any two steps. An entry is judged by
//! [`Usage::check`] and removed by [`Usage::expired`]; the model has the time, the order of the calls and the list. An
//! effect arrives within [`EFFECT_WINDOW`] after its entry, as the program sees to unless the network holds the write
//! for longer.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use stateright::{Checker, Model as _, Property};

use super::usage::{BudgetLimits, EFFECT_WINDOW, Quota, Usage, UsageEntry};
use crate::contract::response::Target;

/// One step of time.
const TICK: i64 = 10;
const WINDOW: i64 = 60;
const REQUESTS: u8 = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Stage {
    Idle,
    /// Allowed by an entry of this time: the effect follows.
    Allowed(u8),
    Refused,
    /// Its effect was made then, and is not recorded.
    Made(u8),
    Ended,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct ModelState {
    now: u8,
    stages: [Stage; REQUESTS as usize],
    /// The time of each entry, and whether it is that of its effect.
    entries: BTreeMap<u8, (u8, bool)>,
    effects: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Action {
    Wait,
    Charge(u8),
    Effect(u8),
    RecordEffect(u8),
    Remove(u8),
    Crash(u8),
}

struct Model {
    quota: usize,
    ticks: u8,
}

impl Model {
    fn budget_limits(&self) -> BudgetLimits {
        let within = std::time::Duration::from_secs(WINDOW as u64);
        let cluster = Some(Quota { actions: self.quota, within });
        BudgetLimits { cluster, ..BudgetLimits::default() }
    }
}

fn at(tick: u8) -> DateTime<Utc> {
    DateTime::UNIX_EPOCH + TimeDelta::seconds(i64::from(tick) * TICK)
}

fn entry(request: u8, (tick, is_made): (u8, bool)) -> UsageEntry {
    let target = Target::named("apps/v1", "Deployment", "shop", &request.to_string());
    let entry = UsageEntry::new(&request.to_string(), &target, at(tick));
    if is_made { entry.after_effect(at(tick)) } else { entry }
}

fn key(request: u8) -> String {
    format!("usage.action-executor.dev/{request}")
}

fn usage(state: &ModelState) -> Usage {
    let value =
        |request: &u8, it: &(u8, bool)| (key(*request), entry(*request, *it).annotation().1);
    Usage::parse(&state.entries.iter().map(|(request, it)| value(request, it)).collect())
}

impl stateright::Model for Model {
    type State = ModelState;
    type Action = Action;

    fn init_states(&self) -> Vec<ModelState> {
        let stages = [Stage::Idle; REQUESTS as usize];
        vec![ModelState { now: 0, stages, entries: BTreeMap::new(), effects: Vec::new() }]
    }

    fn actions(&self, state: &ModelState, actions: &mut Vec<Action>) {
        if state.now < self.ticks {
            actions.push(Action::Wait);
        }
        // Of the requests that have not begun, the first one begins.
        let next = state.stages.iter().position(|it| *it == Stage::Idle);
        actions.extend(next.map(|next| Action::Charge(next as u8)));
        for (request, stage) in (0..).zip(&state.stages) {
            match stage {
                Stage::Idle | Stage::Ended => {}
                Stage::Allowed(charged) => {
                    let is_in_time = at(state.now) - at(*charged)
                        < TimeDelta::from_std(EFFECT_WINDOW).expect("is short");
                    if is_in_time {
                        actions.push(Action::Effect(request));
                    }
                    actions.push(Action::Crash(request));
                }
                Stage::Refused => actions.extend([Action::Remove(request), Action::Crash(request)]),
                Stage::Made(_) => {
                    actions.extend([Action::RecordEffect(request), Action::Crash(request)])
                }
            }
        }
    }

    fn next_state(&self, last: &ModelState, action: Action) -> Option<ModelState> {
        let mut state = last.clone();
        match action {
            Action::Wait => state.now += 1,
            Action::Charge(request) => {
                // As the Lease was read before, without what counts no more.
                let expired = usage(&state).expired(&self.budget_limits(), at(state.now));
                state.entries.retain(|request, _| !expired.contains(&key(*request)));
                let new = (state.now, false);
                state.entries.insert(request, new);
                let allowed = usage(&state).check(&[entry(request, new)], &self.budget_limits());
                state.stages[usize::from(request)] = match allowed {
                    Ok(()) => Stage::Allowed(state.now),
                    Err(_) => Stage::Refused,
                };
            }
            Action::Effect(request) => {
                state.effects.push(state.now);
                state.stages[usize::from(request)] = Stage::Made(state.now);
            }
            Action::RecordEffect(request) => {
                let Stage::Made(tick) = state.stages[usize::from(request)] else { return None };
                state.entries.insert(request, (tick, true));
                state.stages[usize::from(request)] = Stage::Ended;
            }
            Action::Remove(request) => {
                state.entries.remove(&request);
                state.stages[usize::from(request)] = Stage::Ended;
            }
            Action::Crash(request) => state.stages[usize::from(request)] = Stage::Ended,
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(
                "no window has more effects than the quota",
                |model: &Model, state: &ModelState| {
                    let is_far = |few: &[u8]| i64::from(few[model.quota] - few[0]) * TICK >= WINDOW;
                    state.effects.windows(model.quota + 1).all(is_far)
                },
            ),
            Property::sometimes("a request is refused", |_, state: &ModelState| {
                state.stages.contains(&Stage::Refused)
            }),
            Property::sometimes(
                "more effects than the quota, in more time",
                |model: &Model, state: &ModelState| state.effects.len() > model.quota,
            ),
        ]
    }
}

#[test]
fn no_window_has_more_effects_than_the_quota_in_any_history() {
    let more = u8::from(std::env::var("MODEL").is_ok_and(|it| it == "large")) * 4;
    for quota in [1, 2] {
        let model = Model { quota, ticks: 10 + more };
        let checker = model.checker().threads(2).spawn_bfs().join();
        println!("budget of {quota}: {} states", checker.unique_state_count());
        checker.assert_properties();
    }
}
