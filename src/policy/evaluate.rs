//! May this be done? From a policy and a few facts to an answer, rule by rule.
//!
//! The same function judges before the cluster was asked and after: what is not known yet denies
//! nothing. How often is not for here: that is counted where the counting is shared (see
//! [`crate::policy::budget`]).

use std::collections::BTreeMap;

use serde::Serialize;

use crate::{
    actions::{ActionKind, Plan, request::ActionRequest},
    contract::error::{ActionError, Code},
    policy::{Label, Pattern, Policy},
};

/// What a policy is held against.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The action.
    pub action: ActionKind,
    /// The target's namespace; empty for what is in none.
    pub namespace: &'a str,
    /// The node that is acted upon, if it is one.
    pub node: Option<&'a str>,
    /// Whether nothing will be changed.
    pub simulate: bool,
    /// The target's labels; none before it was read.
    pub labels: Option<&'a BTreeMap<String, String>>,
    /// How many replicas the target would have, if the action changes that.
    pub replicas: Option<u32>,
}

impl<'a> Facts<'a> {
    /// What is known of a request, and of the plan for it once there is one.
    pub(crate) fn of(request: &'a ActionRequest, plan: Option<&'a Plan>) -> Self {
        static NO_LABELS: BTreeMap<String, String> = BTreeMap::new();
        Facts {
            action: request.action.kind(),
            namespace: request.action.namespace(),
            node: request.action.node(),
            simulate: request.simulate,
            labels: plan.map(|plan| plan.found.labels.as_ref().unwrap_or(&NO_LABELS)),
            replicas: plan.and_then(|plan| plan.replicas),
        }
    }
}

/// What one rule says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// Nothing against it.
    Allow,
    /// No.
    Deny,
    /// Not without a person's approval.
    RequireApproval,
    /// It cannot be said before the cluster is asked.
    Unknown,
}

/// One rule and what it says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RuleResult {
    /// The rule: the policy's field.
    pub rule: &'static str,
    /// What it says.
    pub finding: Effect,
    /// Why, in a sentence.
    pub why: String,
}

/// What all rules say, in the order in which they are asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// The rules.
    pub rulings: Vec<RuleResult>,
}

impl Policy {
    /// What this policy says of this.
    #[must_use]
    pub fn judge(&self, facts: &Facts) -> Verdict {
        let mut rulings = vec![self.on_namespace_denied(facts)];
        if !facts.simulate {
            rulings.push(self.on_reading_only());
        }
        if !facts.simulate || self.simulation.limited {
            rulings.push(self.on_action(facts));
            rulings.push(self.on_namespace_allowed(facts));
            rulings.extend(self.on_labels(facts));
            rulings.extend(self.on_replicas(facts));
        }
        if !facts.simulate {
            rulings.push(self.on_approval_of_action(facts));
            rulings.push(self.on_approval_in_namespace(facts));
        }
        Verdict { rulings }
    }

    /// What this policy says of a plan: of its target, and of all else that is acted upon because of it.
    pub(crate) fn judge_plan(
        &self,
        request: &ActionRequest,
        plan: &Plan,
        simulate: bool,
    ) -> Verdict {
        let facts = Facts { simulate, ..Facts::of(request, Some(plan)) };
        let mut verdict = self.judge(&facts);
        for other in &plan.others {
            let facts = Facts {
                namespace: &other.target.namespace,
                node: None,
                labels: Some(&other.labels),
                replicas: None,
                ..facts
            };
            let rulings = self.judge(&facts).rulings.into_iter();
            let against = rulings.filter(|ruling| ruling.finding != Effect::Allow);
            verdict.rulings.extend(against.map(|ruling| RuleResult {
                why: format!("{}: {}", other.target, ruling.why),
                ..ruling
            }));
        }
        verdict
    }

    fn on_namespace_denied(&self, facts: &Facts) -> RuleResult {
        if let Some(node) = facts.node {
            return deny_if(
                "nodes.deny",
                named(&self.nodes.deny, node),
                |pattern| format!("node '{node}' is denied by \"{pattern}\""),
                || format!("node '{node}' is not denied"),
            );
        }
        let namespace = facts.namespace;
        deny_if(
            "namespaces.deny",
            named(&self.namespaces.deny, namespace),
            |pattern| format!("namespace '{namespace}' is denied by \"{pattern}\""),
            || format!("namespace '{namespace}' is not denied"),
        )
    }

    fn on_reading_only(&self) -> RuleResult {
        deny_if(
            "read_only",
            self.read_only.then_some(()),
            |()| "nothing but simulation is allowed".to_owned(),
            || "real actions are allowed".to_owned(),
        )
    }

    fn on_action(&self, facts: &Facts) -> RuleResult {
        let name = facts.action.name();
        let allowed = self.allows(facts.action);
        deny_if(
            "actions.allow",
            (!allowed).then_some(()),
            |()| format!("{name} is not among the allowed actions"),
            || format!("{name} is allowed"),
        )
    }

    fn on_namespace_allowed(&self, facts: &Facts) -> RuleResult {
        if let Some(node) = facts.node {
            return deny_if(
                "nodes.allow",
                named(&self.nodes.allow, node).is_none().then_some(()),
                |()| format!("node '{node}' is not among the allowed ones"),
                || format!("node '{node}' is allowed"),
            );
        }
        let namespace = facts.namespace;
        let allowed = named(&self.namespaces.allow, namespace).is_some();
        deny_if(
            "namespaces.allow",
            (!allowed).then_some(()),
            |()| format!("namespace '{namespace}' is not among the allowed ones"),
            || format!("namespace '{namespace}' is allowed"),
        )
    }

    fn on_labels(&self, facts: &Facts) -> [RuleResult; 2] {
        const PROTECTED: &str = "targets.protected";
        const OPT_IN: &str = "targets.opt_in";
        let Some(labels) = facts.labels else {
            let later = |rule, asked: &[Label]| match asked {
                [] => result_of(rule, Effect::Allow, "no label is asked for".to_owned()),
                _ => result_of(rule, Effect::Unknown, "the target's labels decide".to_owned()),
            };
            return [
                later(PROTECTED, &self.targets.protected),
                later(OPT_IN, &self.targets.opt_in),
            ];
        };
        let protected = self.targets.protected.iter().find(|label| label.is_on(labels));
        let opted_in = self.targets.opt_in.iter().any(|label| label.is_on(labels));
        let missing = !self.targets.opt_in.is_empty() && !opted_in;
        [
            deny_if(
                PROTECTED,
                protected,
                |label| format!("the target has the label {label}"),
                || "the target has no label that protects it".to_owned(),
            ),
            deny_if(
                OPT_IN,
                missing.then_some(()),
                |()| format!("the target has none of the labels {}", list(&self.targets.opt_in)),
                || "the target has the labels that are asked for".to_owned(),
            ),
        ]
    }

    fn on_replicas(&self, facts: &Facts) -> Option<RuleResult> {
        let wanted = facts.replicas?;
        let (min, max) = (self.replicas.min, self.replicas.max);
        Some(deny_if(
            "replicas",
            (!(min..=max).contains(&wanted)).then_some(()),
            |()| format!("{wanted} replicas are not from {min} to {max}"),
            || format!("{wanted} replicas are from {min} to {max}"),
        ))
    }

    fn on_approval_of_action(&self, facts: &Facts) -> RuleResult {
        let name = facts.action.name();
        let needed = self.actions.require_approval.iter().any(|it| it.matches(facts.action));
        require_approval_if("actions.require_approval", needed, name)
    }

    fn on_approval_in_namespace(&self, facts: &Facts) -> RuleResult {
        if let Some(node) = facts.node {
            let needed = named(&self.nodes.require_approval, node).is_some();
            return require_approval_if(
                "nodes.require_approval",
                needed,
                &format!("an action on node '{node}'"),
            );
        }
        let needed = named(&self.namespaces.require_approval, facts.namespace).is_some();
        require_approval_if(
            "namespaces.require_approval",
            needed,
            &format!("an action in '{}'", facts.namespace),
        )
    }
}

impl Verdict {
    /// Nothing, if no rule denies.
    ///
    /// # Errors
    /// [`Code::PolicyDenied`] with the first rule that does.
    pub fn refuse(&self) -> Result<(), ActionError> {
        let denied = self.rulings.iter().find(|ruling| ruling.finding == Effect::Deny);
        let Some(denied) = denied else { return Ok(()) };
        let hint = match denied.rule {
            "read_only" => "send it with \"simulate\": true to see what it would do".to_owned(),
            rule => format!("the policy's {rule} decides; its owner can change it"),
        };
        let detail = format!("not allowed by the policy ({}): {}", denied.rule, denied.why);
        Err(ActionError::new(Code::PolicyDenied, detail).with_hint(hint))
    }

    /// Whether a person has to approve it first.
    #[must_use]
    pub fn requires_approval(&self) -> bool {
        self.rulings.iter().any(|ruling| ruling.finding == Effect::RequireApproval)
    }
}

fn named<'a, P: AsRef<Pattern>>(patterns: &'a [P], name: &str) -> Option<&'a Pattern> {
    patterns.iter().map(AsRef::as_ref).find(|pattern| pattern.matches(name))
}

fn list(labels: &[Label]) -> String {
    labels.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn result_of(rule: &'static str, finding: Effect, why: String) -> RuleResult {
    RuleResult { rule, finding, why }
}

fn deny_if<T>(
    rule: &'static str,
    against: Option<T>,
    why: impl FnOnce(T) -> String,
    why_not: impl FnOnce() -> String,
) -> RuleResult {
    match against {
        Some(against) => result_of(rule, Effect::Deny, why(against)),
        None => result_of(rule, Effect::Allow, why_not()),
    }
}

fn require_approval_if(rule: &'static str, needed: bool, what: &str) -> RuleResult {
    if needed {
        result_of(rule, Effect::RequireApproval, format!("{what} needs a person's approval"))
    } else {
        result_of(rule, Effect::Allow, format!("{what} needs no approval"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::reload::ConfigFile;

    const FACTS: Facts<'static> = Facts {
        action: ActionKind::RestartK8s,
        namespace: "shop",
        node: None,
        simulate: false,
        labels: None,
        replicas: None,
    };

    fn policy(text: &str) -> Policy {
        Policy::parse(text, "p").expect("is a policy")
    }

    /// The rule that denies.
    fn denied(text: &str, facts: Facts) -> Option<&'static str> {
        let verdict = policy(text).judge(&facts);
        let denied = verdict.rulings.iter().find(|it| it.finding == Effect::Deny);
        assert_eq!(verdict.refuse().is_err(), denied.is_some());
        denied.map(|ruling| ruling.rule)
    }

    #[test]
    fn the_shipped_policy_allows_every_action_but_not_in_the_clusters_own_namespaces() {
        for action in ActionKind::ALL {
            assert_eq!(denied("{}", Facts { action, ..FACTS }), None);
            for namespace in ["kube-system", "kube-public", "kube-node-lease"] {
                for simulate in [true, false] {
                    let facts = Facts { action, namespace, simulate, ..FACTS };
                    assert_eq!(denied("{}", facts), Some("namespaces.deny"));
                }
            }
        }
    }

    #[test]
    fn each_rule_denies_each_real_action_and_a_simulation_only_where_that_is_said() {
        let labels = BTreeMap::from([("frozen".to_owned(), "yes".to_owned())]);
        let cases = [
            ("actions.allow", "actions: {allow: []}"),
            ("namespaces.allow", "namespaces: {allow: [bank]}"),
            ("targets.protected", "targets: {protected: [frozen]}"),
            ("targets.opt_in", "targets: {opt_in: [thawed]}"),
            ("replicas", "replicas: {min: 1, max: 5}"),
        ];
        for action in ActionKind::ALL {
            for (rule, text) in cases {
                let facts = Facts { action, labels: Some(&labels), replicas: Some(9), ..FACTS };
                assert_eq!(denied(text, facts), Some(rule));
                let simulated = Facts { simulate: true, ..facts };
                assert_eq!(denied(text, simulated), None, "{rule}");
                let limited = format!("{text}\nsimulation: {{limited: true}}");
                assert_eq!(denied(&limited, simulated), Some(rule));
            }
        }
    }

    #[test]
    fn reading_only_leaves_simulation() {
        for more in ["", "\nsimulation: {limited: true}"] {
            let text = format!("read_only: true{more}");
            assert_eq!(denied(&text, FACTS), Some("read_only"));
            assert_eq!(denied(&text, Facts { simulate: true, ..FACTS }), None);
        }
    }

    #[test]
    fn denial_wins_over_allowance() {
        let text = "namespaces: {allow: [shop], deny: ['s*']}";
        assert_eq!(denied(text, FACTS), Some("namespaces.deny"));
    }

    #[test]
    fn what_is_not_known_yet_denies_nothing() {
        let verdict = policy("targets: {opt_in: [sre]}").judge(&FACTS);
        let later = verdict.rulings.iter().filter(|it| it.finding == Effect::Unknown).count();
        assert_eq!((verdict.refuse(), later), (Ok(()), 2));
    }

    #[test]
    fn approval_is_asked_for_by_action_or_by_namespace_and_never_for_a_simulation() {
        for text in
            ["actions: {require_approval: [restart_k8s]}", "namespaces: {require_approval: ['*']}"]
        {
            assert!(policy(text).judge(&FACTS).requires_approval());
            assert!(!policy(text).judge(&Facts { simulate: true, ..FACTS }).requires_approval());
        }
        assert!(
            !policy("actions: {require_approval: [restart_pod]}").judge(&FACTS).requires_approval()
        );
    }

    #[test]
    fn a_denial_says_which_rule_and_what_to_do() {
        let error = policy("read_only: true").judge(&FACTS).refuse().expect_err("is denied");
        assert_eq!(error.code, Code::PolicyDenied);
        assert!(error.detail.contains("read_only"), "{}", error.detail);
        assert!(error.hint.expect("has one").contains("simulate"));
    }
}
