//! Evaluates a policy for a few facts, rule by rule. These are pure functions.
//!
//! The same function runs before the cluster is read and after: an unknown fact denies nothing. Rates are
//! limited elsewhere, where the count is shared (see [`crate::policy::budget`]).

use std::collections::BTreeMap;

use serde::Serialize;

use crate::{
    actions::{
        ActionKind, AffectedObject, BoundsChange, ChangedKeys, ImageChange, KeysOf, Plan,
        ResourceChange, SizeChange, request::ActionRequest,
    },
    contract::{
        error::{ActionError, Code},
        image,
        names::is_reserved_key,
        quantity::Quantity,
    },
    policy::{Label, Pattern, Policy},
};

/// What a policy is evaluated for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts<'a> {
    pub action: ActionKind,
    /// The target's namespace; empty for a cluster-scoped target.
    pub namespace: &'a str,
    /// The target's name, if it is a node.
    pub node: Option<&'a str>,
    pub simulate: bool,
    /// The target's labels; `None` before it is read.
    pub labels: Option<&'a BTreeMap<String, String>>,
    /// How many targets the request's selector chose, if it has one.
    pub selected: Option<usize>,
    /// The target's replicas after the action, if the action changes them.
    pub replicas: Option<u32>,
    /// The images that the action changes; none before that is known.
    pub images: &'a [ImageChange],
    /// The bounds of an autoscaler before and after the action, if it changes them.
    pub bounds: Option<BoundsChange>,
    /// The requests and limits that the action changes; none before that is known.
    pub resources: &'a [ResourceChange],
    /// The size of a volume claim before and after the action, if it changes it.
    pub size: Option<SizeChange>,
    /// The keys that the request sets or removes.
    pub keys: Option<ChangedKeys<'a>>,
}

/// The rule about operators.
const INTEGRATIONS: &str = "integrations";

impl<'a> Facts<'a> {
    /// The facts of a request, and of its plan once there is one.
    pub(crate) fn of(request: &'a ActionRequest, plan: Option<&'a Plan>) -> Self {
        Facts {
            action: request.action.kind(),
            namespace: request.action.namespace(),
            node: request.action.node(),
            simulate: request.simulate,
            labels: plan.and_then(Plan::labels),
            selected: plan.and_then(Plan::selected),
            replicas: plan.and_then(|plan| plan.replicas),
            images: plan.map(|plan| plan.images.as_slice()).unwrap_or_default(),
            bounds: plan.and_then(|plan| plan.bounds),
            resources: plan.map(|plan| plan.resources.as_slice()).unwrap_or_default(),
            size: plan.and_then(|plan| plan.size),
            keys: request.action.changed_keys(),
        }
    }
}

/// The effect of one rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Effect {
    Allow,
    Deny,
    /// A person has to approve it first.
    RequireApproval,
    /// The rule needs a fact that is not known yet.
    Unknown,
}

/// The result of one rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct RuleResult {
    /// The rule: the policy's field.
    pub rule: &'static str,
    pub effect: Effect,
    /// In a sentence.
    pub reason: String,
}

/// The results of all rules, in the order of evaluation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Evaluation {
    pub results: Vec<RuleResult>,
}

impl Policy {
    /// Evaluates all rules.
    pub(crate) fn judge(&self, facts: &Facts) -> Evaluation {
        let mut results = vec![self.namespace_denied(facts.namespace, facts.node)];
        results.extend(self.integration_named(facts));
        if !facts.simulate {
            results.push(self.read_only_rule());
        }
        if !facts.simulate || self.simulation.limited {
            results.push(self.action_allowed(facts));
            results.push(self.namespace_allowed(facts.namespace, facts.node));
            results.extend(self.label_rules(facts));
            results.extend(self.selected_bound(facts));
            results.extend(self.replica_bounds(facts));
            results.extend(self.images_allowed(facts));
            results.extend(self.autoscaler_bounds(facts));
            results.extend(self.resources_bounded(facts));
            results.extend(self.size_bounded(facts));
            results.extend(self.keys_allowed(facts));
        }
        if !facts.simulate {
            results.push(self.action_approval(facts));
            results.push(self.namespace_approval(facts));
        }
        Evaluation { results }
    }

    /// Evaluates the rules for a diagnosis of what is in a namespace, or of a node: it reads logs, so that it needs a
    /// namespace that is allowed, as a real action does.
    pub(crate) fn judge_diagnosis(&self, namespace: &str, node: Option<&str>) -> Evaluation {
        let results =
            vec![self.namespace_denied(namespace, node), self.namespace_allowed(namespace, node)];
        Evaluation { results }
    }

    /// Evaluates all rules for a plan: for its target, and for each other object that it affects.
    pub(crate) fn judge_plan(
        &self,
        request: &ActionRequest,
        plan: &Plan,
        simulate: bool,
    ) -> Evaluation {
        let facts = Facts { simulate, ..Facts::of(request, Some(plan)) };
        let mut evaluation = self.judge(&facts);
        for other in &plan.others {
            evaluation.results.extend(self.judge_other(request, other, simulate).results);
        }
        evaluation
    }

    /// Evaluates all rules for another object that a request affects, and returns what objects to it.
    pub(crate) fn judge_other(
        &self,
        request: &ActionRequest,
        other: &AffectedObject,
        simulate: bool,
    ) -> Evaluation {
        let facts = Facts {
            simulate,
            namespace: &other.target.namespace,
            node: None,
            labels: Some(&other.labels),
            keys: None,
            ..Facts::of(request, None)
        };
        let results = self.judge(&facts).results.into_iter();
        let objections = results.filter(|result| result.effect != Effect::Allow);
        let results = objections.map(|result| RuleResult {
            reason: format!("{}: {}", other.target, result.reason),
            ..result
        });
        Evaluation { results: results.collect() }
    }

    fn namespace_denied(&self, namespace: &str, node: Option<&str>) -> RuleResult {
        if let Some(node) = node {
            return deny_if(
                "nodes.deny",
                named(&self.nodes.deny, node),
                |pattern| format!("node '{node}' is denied by \"{pattern}\""),
                || format!("node '{node}' is not denied"),
            );
        }
        deny_if(
            "namespaces.deny",
            named(&self.namespaces.deny, namespace),
            |pattern| format!("namespace '{namespace}' is denied by \"{pattern}\""),
            || format!("namespace '{namespace}' is not denied"),
        )
    }

    /// An integration that is off is not even read, so this applies to simulations too.
    fn integration_named(&self, facts: &Facts) -> Option<RuleResult> {
        let integration = facts.action.descriptor().integration?;
        let (action, title) = (facts.action.name(), integration.title());
        Some(deny_if(
            INTEGRATIONS,
            (!self.integrates(facts.action)).then_some(()),
            |()| {
                let named = self.integrations.iter().chain([&integration]);
                let names: Vec<_> = named.map(|it| it.name()).collect();
                format!(
                    "{action} acts on objects of {title}, which is off until the policy has the line `integrations: \
                     [{}]`",
                    names.join(", ")
                )
            },
            || format!("the policy names {title}, on whose objects {action} acts"),
        ))
    }

    fn read_only_rule(&self) -> RuleResult {
        deny_if(
            "read_only",
            self.read_only.then_some(()),
            |()| "only simulations are allowed".to_owned(),
            || "real actions are allowed".to_owned(),
        )
    }

    fn action_allowed(&self, facts: &Facts) -> RuleResult {
        let name = facts.action.name();
        let allowed = self.allows(facts.action);
        deny_if(
            "actions.allow",
            (!allowed).then_some(()),
            |()| format!("{name} is not an allowed action"),
            || format!("{name} is allowed"),
        )
    }

    fn namespace_allowed(&self, namespace: &str, node: Option<&str>) -> RuleResult {
        if let Some(node) = node {
            return deny_if(
                "nodes.allow",
                named(&self.nodes.allow, node).is_none().then_some(()),
                |()| format!("node '{node}' is not allowed"),
                || format!("node '{node}' is allowed"),
            );
        }
        let allowed = named(&self.namespaces.allow, namespace).is_some();
        deny_if(
            "namespaces.allow",
            (!allowed).then_some(()),
            |()| format!("namespace '{namespace}' is not allowed"),
            || format!("namespace '{namespace}' is allowed"),
        )
    }

    fn label_rules(&self, facts: &Facts) -> [RuleResult; 2] {
        const PROTECTED: &str = "targets.protected";
        const OPT_IN: &str = "targets.opt_in";
        let Some(labels) = facts.labels else {
            let unknown = |rule, labels: &[Label]| match labels {
                [] => result_of(rule, Effect::Allow, "the policy names no label".to_owned()),
                _ => result_of(rule, Effect::Unknown, "the target's labels decide".to_owned()),
            };
            return [
                unknown(PROTECTED, &self.targets.protected),
                unknown(OPT_IN, &self.targets.opt_in),
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
                || "the target has no protected label".to_owned(),
            ),
            deny_if(
                OPT_IN,
                missing.then_some(()),
                |()| format!("the target has none of the labels {}", list(&self.targets.opt_in)),
                || "the target has the labels that the policy requires".to_owned(),
            ),
        ]
    }

    fn selected_bound(&self, facts: &Facts) -> Option<RuleResult> {
        let (selected, max) = (facts.selected?, self.targets.max_per_request.get());
        Some(deny_if(
            "targets.max_per_request",
            (selected as u64 > max).then_some(()),
            |()| format!("{selected} targets match, more than {max}"),
            || format!("{selected} targets match, at most {max}"),
        ))
    }

    fn replica_bounds(&self, facts: &Facts) -> Option<RuleResult> {
        let replicas = facts.replicas?;
        let (min, max) = (self.replicas.min, self.replicas.max);
        Some(deny_if(
            "replicas",
            (!(min..=max).contains(&replicas)).then_some(()),
            |()| format!("{replicas} replicas are not from {min} to {max}"),
            || format!("{replicas} replicas are from {min} to {max}"),
        ))
    }

    /// Both bounds are numbers of replicas, and the maximum grows by a limited factor.
    fn autoscaler_bounds(&self, facts: &Facts) -> Option<RuleResult> {
        let BoundsChange { from, to } = facts.bounds?;
        let (min, max) = (i64::from(self.replicas.min), i64::from(self.replicas.max));
        let outside = to.into_iter().find(|bound| !(min..=max).contains(&i64::from(*bound)));
        if let Some(bound) = outside {
            let reason = format!("a bound of {bound} replicas is not from {min} to {max}");
            return Some(result_of("replicas", Effect::Deny, reason));
        }
        let factor = self.autoscalers.max_factor.get();
        let most = u64::try_from(from[1]).unwrap_or(0).saturating_mul(factor);
        let is_too_much = to[1] > from[1] && u64::try_from(to[1]).unwrap_or(0) > most;
        Some(deny_if(
            "autoscalers.max_factor",
            is_too_much.then_some(()),
            |()| format!("a maximum of {} is more than {factor} times {}", to[1], from[1]),
            || format!("a maximum of {} is at most {factor} times {}", to[1], from[1]),
        ))
    }

    /// Without a list, only another image of the same repository is allowed.
    fn images_allowed(&self, facts: &Facts) -> Option<RuleResult> {
        let allow = &self.images.allow;
        let is_allowed = |change: &ImageChange| {
            let repository = image::repository(&change.to);
            match allow.as_slice() {
                [] => repository == image::repository(&change.from),
                patterns => named(patterns, &repository).is_some(),
            }
        };
        let first = facts.images.first()?;
        let denied = facts.images.iter().find(|change| !is_allowed(change));
        Some(deny_if(
            "images.allow",
            denied,
            |ImageChange { container, to, .. }| {
                let repository = image::repository(to);
                match allow.as_slice() {
                    [] => format!(
                        "the image of container '{container}' is of the repository {repository}, not of the one that \
                         it has now, and no other is listed"
                    ),
                    _ => format!(
                        "the image of container '{container}' is of the repository {repository}, which is not listed"
                    ),
                }
            },
            || format!("the repository of container '{}' is allowed", first.container),
        ))
    }

    /// Each request and limit stays below the maximum, and changes by a limited factor. What was not set has no factor,
    /// so only a maximum allows it.
    fn resources_bounded(&self, facts: &Facts) -> Option<RuleResult> {
        let first = facts.resources.first()?;
        let objections =
            facts.resources.iter().filter_map(|change| self.resource_objection(change));
        let within = || {
            let reason =
                format!("the resources of container '{}' are within the bounds", first.container);
            result_of("resources", Effect::Allow, reason)
        };
        Some(
            objections
                .map(|(rule, reason)| result_of(rule, Effect::Deny, reason))
                .next()
                .unwrap_or_else(within),
        )
    }

    fn resource_objection(&self, change: &ResourceChange) -> Option<(&'static str, String)> {
        let ResourceChange { container, field, from, to } = change;
        let what = format!("{} of container '{container}'", field.name());
        let (rule, max) = match field.resource() {
            "cpu" => ("resources.max_cpu", self.resources.max_cpu),
            _ => ("resources.max_memory", self.resources.max_memory),
        };
        if let Some(max) = max.filter(|max| to > max) {
            return Some((rule, format!("the {what} would be {to}, above {max}")));
        }
        let factor = self.resources.max_factor.get();
        // 0 is what is not set.
        match from.filter(|from| *from > Quantity::default()).as_ref() {
            Some(from) if *to > from.times(factor) => Some((
                "resources.max_factor",
                format!("the {what} would be {to}, more than {factor} times {from}"),
            )),
            Some(from) if to.times(factor) < *from => Some((
                "resources.max_factor",
                format!("the {what} would be {to}, and {factor} times that is less than {from}"),
            )),
            None if max.is_none() => Some((
                rule,
                format!("the {what} is not set now, and the policy has no maximum for it"),
            )),
            _ => None,
        }
    }

    /// A PVC stays below the maximum, and grows by a limited factor.
    fn size_bounded(&self, facts: &Facts) -> Option<RuleResult> {
        let SizeChange { from, to } = facts.size?;
        if let Some(max) = self.volumes.max_size.filter(|max| to > *max) {
            let reason = format!("a size of {to} is above {max}");
            return Some(result_of("volumes.max_size", Effect::Deny, reason));
        }
        let factor = self.volumes.max_factor.get();
        Some(deny_if(
            "volumes.max_factor",
            (to > from.times(factor)).then_some(()),
            |()| format!("a size of {to} is more than {factor} times {from}"),
            || format!("a size of {to} is at most {factor} times {from}"),
        ))
    }

    /// Without a list, no key may be changed. A label by which the policy itself decides never is.
    fn keys_allowed(&self, facts: &Facts) -> Option<RuleResult> {
        let keys = facts.keys?;
        let (rule, allow) = match keys.of {
            KeysOf::Labels => ("labels.allow", &self.labels.allow),
            KeysOf::Annotations => ("annotations.allow", &self.annotations.allow),
            KeysOf::Taints => ("taints.allow", &self.taints.allow),
        };
        let noun = keys.of.noun();
        for (rule, labels) in [
            ("targets.protected", &self.targets.protected),
            ("targets.opt_in", &self.targets.opt_in),
        ] {
            let decides = |key: &str| labels.iter().any(|label| label.parts().0 == key);
            let key = keys.iter().find(|key| keys.of == KeysOf::Labels && decides(key));
            if let Some(key) = key {
                let reason =
                    format!("no action changes the label '{key}', by which the policy decides");
                return Some(result_of(rule, Effect::Deny, reason));
            }
        }
        let is_allowed = |key: &str| allow.iter().any(|pattern| pattern.matches(key));
        Some(deny_if(
            rule,
            keys.iter().find(|key| !is_allowed(key)),
            |key| match is_reserved_key(key) {
                true => format!(
                    "the {noun} '{key}' is not listed in {rule}, where a key that Kubernetes reserves must be listed in \
                     full"
                ),
                false => format!("the {noun} '{key}' is not listed in {rule}"),
            },
            || format!("each changed {noun} is listed"),
        ))
    }

    fn action_approval(&self, facts: &Facts) -> RuleResult {
        let name = facts.action.name();
        let needed = self.actions.require_approval.iter().any(|it| it.matches(facts.action));
        require_approval_if("actions.require_approval", needed, name)
    }

    fn namespace_approval(&self, facts: &Facts) -> RuleResult {
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

impl Evaluation {
    /// Refuses if a rule denies.
    ///
    /// # Errors
    /// [`Code::PolicyDenied`] with the first such rule.
    pub(crate) fn refuse(&self) -> Result<(), ActionError> {
        let denied = self.results.iter().find(|result| result.effect == Effect::Deny);
        let Some(denied) = denied else { return Ok(()) };
        let hint = match denied.rule {
            "read_only" => "send it with \"simulate\": true to see what it would do".to_owned(),
            rule => format!("the policy's {rule} decides; its owner can change it"),
        };
        let detail = format!("not allowed by the policy ({}): {}", denied.rule, denied.reason);
        Err(ActionError::new(Code::PolicyDenied, detail).with_hint(hint))
    }

    /// Whether a person has to approve it first.
    pub(crate) fn requires_approval(&self) -> bool {
        self.results.iter().any(|result| result.effect == Effect::RequireApproval)
    }
}

fn named<'a, P: AsRef<Pattern>>(patterns: &'a [P], name: &str) -> Option<&'a Pattern> {
    patterns.iter().map(AsRef::as_ref).find(|pattern| pattern.matches(name))
}

fn list(labels: &[Label]) -> String {
    labels.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn result_of(rule: &'static str, effect: Effect, reason: String) -> RuleResult {
    RuleResult { rule, effect, reason }
}

fn deny_if<T>(
    rule: &'static str,
    objection: Option<T>,
    why: impl FnOnce(T) -> String,
    why_not: impl FnOnce() -> String,
) -> RuleResult {
    match objection {
        Some(objection) => result_of(rule, Effect::Deny, why(objection)),
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
    use crate::{
        config::reload::ConfigFile,
        contract::names::QualifiedName,
        k8s::{integrations::Integration, resources::AmountField},
    };

    const FACTS: Facts<'static> = Facts {
        action: ActionKind::RestartK8s,
        namespace: "shop",
        node: None,
        simulate: false,
        labels: None,
        selected: None,
        replicas: None,
        images: &[],
        bounds: None,
        resources: &[],
        size: None,
        keys: None,
    };

    fn policy(text: &str) -> Policy {
        Policy::parse(text, "p").expect("is a policy")
    }

    /// Every integration, as a line of a policy.
    fn with_integrations(text: &str) -> String {
        let names: Vec<_> = Integration::ALL.into_iter().map(Integration::name).collect();
        format!("integrations: [{}]\n{text}", names.join(", "))
    }

    /// The first rule that denies.
    fn denied(text: &str, facts: Facts) -> Option<&'static str> {
        let evaluation = policy(text).judge(&facts);
        let denied = evaluation.results.iter().find(|it| it.effect == Effect::Deny);
        assert_eq!(evaluation.refuse().is_err(), denied.is_some());
        denied.map(|result| result.rule)
    }

    #[test]
    fn the_default_policy_allows_every_action_on_objects_of_kubernetes_outside_system_namespaces() {
        for action in ActionKind::ALL {
            let expected = action.descriptor().integration.map(|_| "integrations");
            assert_eq!(denied("{}", Facts { action, ..FACTS }), expected);
            assert_eq!(denied(&with_integrations(""), Facts { action, ..FACTS }), None);
            for namespace in ["kube-system", "kube-public", "kube-node-lease"] {
                for simulate in [true, false] {
                    let facts = Facts { action, namespace, simulate, ..FACTS };
                    assert_eq!(denied("{}", facts), Some("namespaces.deny"));
                }
            }
        }
    }

    #[test]
    fn a_request_or_limit_changes_by_the_factor_and_up_to_the_maximum() {
        let amount = |text: &str| Quantity::read(text).expect("is a quantity");
        for (rules, field, from, to, expected) in [
            ("{}", AmountField::MemoryLimit, Some("1Gi"), "2Gi", None),
            ("{}", AmountField::MemoryLimit, Some("1Gi"), "2049Mi", Some("resources.max_factor")),
            ("{}", AmountField::CpuRequest, Some("1"), "500m", None),
            ("{}", AmountField::CpuRequest, Some("1"), "499m", Some("resources.max_factor")),
            ("{}", AmountField::CpuRequest, None, "1m", Some("resources.max_cpu")),
            ("{}", AmountField::MemoryLimit, None, "1Mi", Some("resources.max_memory")),
            ("{max_cpu: '2'}", AmountField::CpuRequest, None, "2", None),
            (
                "{max_cpu: '2'}",
                AmountField::CpuLimit,
                Some("2"),
                "2001m",
                Some("resources.max_cpu"),
            ),
            ("{max_cpu: '2'}", AmountField::MemoryLimit, None, "1Mi", Some("resources.max_memory")),
            ("{max_factor: 10}", AmountField::MemoryRequest, Some("1Gi"), "10Gi", None),
        ] {
            let change = ResourceChange {
                container: "web".to_owned(),
                field,
                from: from.map(amount),
                to: amount(to),
            };
            let facts = Facts { resources: std::slice::from_ref(&change), ..FACTS };
            assert_eq!(
                denied(&format!("resources: {rules}"), facts),
                expected,
                "{rules} {change:?}"
            );
        }
    }

    #[test]
    fn a_claim_grows_by_the_factor_and_up_to_the_maximum() {
        let amount = |text: &str| Quantity::read(text).expect("is a quantity");
        for (rules, to, expected) in [
            ("{}", "20Gi", None),
            ("{}", "20481Mi", Some("volumes.max_factor")),
            ("{max_factor: 10}", "100Gi", None),
            ("{max_factor: 10, max_size: 50Gi}", "50Gi", None),
            ("{max_factor: 10, max_size: 50Gi}", "51Gi", Some("volumes.max_size")),
        ] {
            let size = Some(SizeChange { from: amount("10Gi"), to: amount(to) });
            assert_eq!(
                denied(&format!("volumes: {rules}"), Facts { size, ..FACTS }),
                expected,
                "{to}"
            );
        }
    }

    #[test]
    fn each_rule_denies_real_actions_and_limited_simulations() {
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
                let text = with_integrations(text);
                let facts = Facts { action, labels: Some(&labels), replicas: Some(9), ..FACTS };
                assert_eq!(denied(&text, facts), Some(rule));
                let simulated = Facts { simulate: true, ..facts };
                assert_eq!(denied(&text, simulated), None, "{rule}");
                let limited = format!("{text}\nsimulation: {{limited: true}}");
                assert_eq!(denied(&limited, simulated), Some(rule));
            }
        }
    }

    #[test]
    fn an_image_is_of_an_allowed_repository() {
        let change = |from: &str, to: &str| ImageChange {
            container: "web".to_owned(),
            from: from.to_owned(),
            to: to.to_owned(),
        };
        let listed = "images: {allow: ['registry.example.com/shop/*', docker.io/library/nginx]}";
        let own = "registry.example.com/shop/web:1";
        for (text, from, to, is_allowed) in [
            ("{}", "nginx:1", "docker.io/library/nginx:2", true),
            ("{}", "nginx:1", "docker.io/nginx/nginx:2", false),
            ("{}", own, "registry.example.com:443/shop/web:2", false),
            (listed, "nginx:1", own, true),
            (listed, own, "nginx@sha256:00", true),
            (listed, own, "registry.example.com/shop:2", false),
            (listed, own, "registry.example.com.evil.example/shop/web:2", false),
        ] {
            let images = [change("web:1", "web:2"), change(from, to)];
            let facts = Facts { images: &images[1..], ..FACTS };
            assert_eq!(denied(text, facts).is_none(), is_allowed, "{text} {from} {to}");
            // Each image counts.
            let both = denied(
                "images: {allow: ['registry.example.com/*']}",
                Facts { images: &images, ..FACTS },
            );
            assert_eq!(both, Some("images.allow"));
        }
    }

    #[test]
    fn the_bounds_of_an_autoscaler_are_within_those_of_replicas_and_grow_by_a_factor() {
        let text = "replicas: {min: 2, max: 20}\nautoscalers: {max_factor: 3}";
        for (from, to, expected) in [
            ([2, 4], [2, 12], None),
            ([2, 4], [2, 13], Some("autoscalers.max_factor")),
            ([2, 8], [2, 21], Some("replicas")),
            ([2, 8], [1, 8], Some("replicas")),
            // A maximum that is not raised may be anything.
            ([2, 1], [2, 2], None),
            ([2, 8], [2, 3], None),
        ] {
            let facts = Facts { bounds: Some(BoundsChange { from, to }), ..FACTS };
            assert_eq!(denied(text, facts), expected, "{from:?} {to:?}");
        }
    }

    #[test]
    fn a_key_is_changed_only_if_it_is_listed_and_never_one_by_which_the_policy_decides() {
        let key = |text: &str| QualifiedName::try_from(text.to_owned()).expect("is a key");
        let [team, name] = [key("example.com/team"), key("app.kubernetes.io/name")];
        let listed = "labels: {allow: ['example.com/*']}\nannotations: {allow: ['*', app.kubernetes.io/name]}";
        let decided = "targets: {protected: [example.com/team=x], opt_in: []}";
        for (text, of, changed, expected) in [
            ("{}", KeysOf::Labels, &team, Some("labels.allow")),
            ("{}", KeysOf::Annotations, &team, Some("annotations.allow")),
            ("{}", KeysOf::Taints, &team, Some("taints.allow")),
            ("taints: {allow: [example.com/team]}", KeysOf::Taints, &team, None),
            (listed, KeysOf::Labels, &team, None),
            (listed, KeysOf::Labels, &name, Some("labels.allow")),
            (listed, KeysOf::Annotations, &name, None),
            (&format!("{listed}\n{decided}"), KeysOf::Labels, &team, Some("targets.protected")),
            (&format!("{listed}\n{decided}"), KeysOf::Annotations, &team, None),
        ] {
            let set = BTreeMap::from([(changed.clone(), String::new())]);
            let removed = [changed.clone()];
            for (set, others) in [(Some(&set), [].as_slice()), (None, removed.as_slice())] {
                let keys = Some(ChangedKeys { of, set, others });
                let facts = Facts { keys, ..FACTS };
                assert_eq!(denied(text, facts), expected, "{text} {of:?} {changed}");
                assert_eq!(denied(text, Facts { simulate: true, ..facts }), None);
            }
        }
        let keys = Some(ChangedKeys { of: KeysOf::Labels, set: None, others: &[team] });
        let refusal = policy("{}").judge(&Facts { keys, ..FACTS }).refuse().expect_err("is denied");
        assert!(refusal.detail.contains("'example.com/team' is not listed in labels.allow"));
    }

    #[test]
    fn a_read_only_policy_allows_simulations() {
        for more in ["", "\nsimulation: {limited: true}"] {
            let text = format!("read_only: true{more}");
            assert_eq!(denied(&text, FACTS), Some("read_only"));
            assert_eq!(denied(&text, Facts { simulate: true, ..FACTS }), None);
        }
    }

    #[test]
    fn a_denied_namespace_overrides_an_allowed_one() {
        let text = "namespaces: {allow: [shop], deny: ['s*']}";
        assert_eq!(denied(text, FACTS), Some("namespaces.deny"));
    }

    #[test]
    fn an_unknown_fact_denies_nothing() {
        let evaluation = policy("targets: {opt_in: [sre]}").judge(&FACTS);
        let later = evaluation.results.iter().filter(|it| it.effect == Effect::Unknown).count();
        assert_eq!((evaluation.refuse(), later), (Ok(()), 2));
    }

    #[test]
    fn approval_is_required_by_action_or_namespace_and_never_for_a_simulation() {
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
    fn a_denial_names_the_rule_and_what_to_do() {
        let error = policy("read_only: true").judge(&FACTS).refuse().expect_err("is denied");
        assert_eq!(error.code, Code::PolicyDenied);
        assert!(error.detail.contains("read_only"), "{}", error.detail);
        assert!(error.hint.expect("has one").contains("simulate"));
    }
}
