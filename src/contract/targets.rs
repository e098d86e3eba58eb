//! The short form of an answer's list of targets, for where an answer's length is limited. Which limit that is, and
//! what else is shortened, is its user's.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// Leaves of each target the name, the outcome and the code of the error: each has a record of its own. Those to which
/// something has to be done are first. Then leaves out targets from the end until the answer's JSON has at most `max`
/// bytes; how many there are of each outcome, and how many are left out, stands beside them.
pub(crate) fn shorten_targets(answer: &mut Value, max: usize) {
    let Some(Value::Array(targets)) = answer.get_mut("targets") else { return };
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for target in targets.iter_mut() {
        let outcome = target["outcome"].as_str().unwrap_or_default().to_owned();
        *counts.entry(outcome).or_default() += 1;
        *target = short(target);
    }
    targets.sort_by_key(is_done);
    answer["targets_by_outcome"] = json!(counts);
    let mut left_out = 0;
    while answer.to_string().len() > max {
        let targets = answer["targets"].as_array_mut();
        if targets.and_then(Vec::pop).is_none() {
            return;
        }
        left_out += 1;
        answer["targets_left_out"] = left_out.into();
    }
}

fn short(target: &Value) -> Value {
    let mut short = json!({ "name": target["target"]["name"], "outcome": target["outcome"] });
    if target["code"].is_string() {
        short["code"] = target["code"].clone();
    }
    short
}

fn is_done(target: &Value) -> bool {
    matches!(target["outcome"].as_str(), Some("applied" | "unchanged"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn completed_targets_are_left_out_first() {
        let one = |name: &str, outcome: &str| json!({"target": {"name": name}, "outcome": outcome, "result": "Long."});
        let mut refused = one("c", "refused");
        refused["code"] = "protected".into();
        let answer = json!({"targets": [one("a", "applied"), one("b", "unchanged"), refused]});
        let of = |max: usize| {
            let mut answer = answer.clone();
            shorten_targets(&mut answer, max);
            answer
        };
        let whole = of(1000);
        let first = json!({"name": "c", "outcome": "refused", "code": "protected"});
        assert_eq!(whole["targets"][0], first);
        assert_eq!(whole["targets"][1], json!({"name": "a", "outcome": "applied"}));
        assert_eq!(whole["targets_left_out"], Value::Null);
        let part = of(whole.to_string().len() - 1);
        assert_eq!(part["targets"][0], first);
        assert_eq!(part["targets_by_outcome"], json!({"applied": 1, "refused": 1, "unchanged": 1}));
        assert!(part["targets_left_out"].as_u64() >= Some(1), "{part}");
        assert_eq!(of(0)["targets_left_out"], 3);
    }
}
