//! The policy: the limits that a person sets, read from a YAML file.
//!
//! Every field has a default, so an empty policy is the shipped one, which holds when there is no file
//! at all. What is accepted here is checked whole: a name that is no action, a pattern that cannot
//! match, a number out of its bounds are errors that name line and column. [`verdict`] holds a request
//! against a policy, [`admission`] says the same to the API server; how the file is read is no concern of
//! this room ([`crate::config::reload`]). Nothing here asks the cluster or the clock.

use std::{collections::BTreeMap, fmt, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    actions::ActionKind,
    config::reload::ConfigFile,
    contract::{
        json::strict_object,
        names::{Namespace, ObjectName},
    },
    policy::budget::usage::{self, Limits},
};

pub mod approval;
pub mod budget;
pub mod evaluate;

/// What a person allows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// The version of this format.
    pub version: Version,
    /// Nothing but simulation.
    pub read_only: bool,
    /// Which actions.
    #[serde(deserialize_with = "strict_object")]
    pub actions: Actions,
    /// Where.
    #[serde(deserialize_with = "strict_object")]
    pub namespaces: Namespaces,
    /// On which nodes, for the actions on nodes.
    #[serde(deserialize_with = "strict_object")]
    pub nodes: Nodes,
    /// On what.
    #[serde(deserialize_with = "strict_object")]
    pub targets: TargetRules,
    /// How long a target is left alone after an action on it, in seconds; 0 for not at all.
    pub cooldown_seconds: Bounded<0, 86_400, 60>,
    /// How many.
    #[serde(deserialize_with = "strict_object")]
    pub budget: BudgetRules,
    /// What a target may be scaled to.
    #[serde(deserialize_with = "strict_object")]
    pub replicas: ReplicaRules,
    /// How far all this holds for simulations too.
    #[serde(deserialize_with = "strict_object")]
    pub simulation: SimulationRules,
    /// How long an approval can be given and used.
    #[serde(deserialize_with = "strict_object")]
    pub approval: ApprovalRules,
    /// Where budget and kill switch are kept.
    #[serde(deserialize_with = "strict_object")]
    pub state: StateLocation,
}

impl ConfigFile for Policy {
    const KIND: &'static str = "policy";
    const HINT: &'static str = "`action-executor schema policy` prints what can be in it";
}

/// The version of the format; there is one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "u64", into = "u64")]
#[schemars(with = "u64", extend("const" = 1))]
pub struct Version;

/// Which actions may be done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Actions {
    /// Actions by name; `*` for all.
    pub allow: Vec<ActionName>,
    /// Those that a person has to approve first; `*` for all.
    pub require_approval: Vec<ActionName>,
}

/// In which namespaces.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Namespaces {
    /// Names, with `*` for any characters.
    pub allow: Vec<Pattern>,
    /// Those where nothing is done whatever `allow` says, simulations included.
    pub deny: Vec<Pattern>,
    /// Those where a person has to approve first.
    pub require_approval: Vec<Pattern>,
}

/// On which nodes. What is evicted from them has to be allowed by its own namespace and labels too.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Nodes {
    /// Names, with `*` for any characters.
    pub allow: Vec<NodePattern>,
    /// Those that are left alone whatever `allow` says, simulations included.
    pub deny: Vec<NodePattern>,
    /// Those where a person has to approve first.
    pub require_approval: Vec<NodePattern>,
}

/// On which objects.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TargetRules {
    /// Labels, as `key` or `key=value`, of objects that are left alone.
    pub protected: Vec<Label>,
    /// Labels of which an object must have one; none: every object will do.
    pub opt_in: Vec<Label>,
}

/// How many actions in what time; null for no limit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BudgetRules {
    /// In each namespace.
    pub per_namespace: Option<Quota>,
    /// In the cluster.
    pub cluster: Option<Quota>,
}

/// So many in so much time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Quota {
    /// How many actions.
    pub actions: Bounded<1, 1000, 10>,
    /// In how many seconds.
    pub within_seconds: Bounded<1, 86_400, 600>,
}

/// The bounds of a target's replicas.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ReplicaRules {
    /// The least.
    pub min: u32,
    /// The most.
    pub max: u32,
}

/// What limits a simulation, which changes nothing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SimulationRules {
    /// Whether a simulation must keep to `actions`, `namespaces.allow` and `targets` too.
    pub limited: bool,
}

/// How long an approval can be given and used.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ApprovalRules {
    /// Seconds from the request to the end of its approval.
    pub valid_seconds: Bounded<60, 3600, 1800>,
}

/// The Lease that holds the budget and the kill switch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct StateLocation {
    /// Its namespace; null: the pod's, or the kubeconfig context's.
    pub namespace: Option<Namespace>,
    /// Its name.
    pub name: ObjectName,
}

/// A number from `MIN` to `MAX`, and `DEFAULT` if none is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct Bounded<const MIN: u64, const MAX: u64, const DEFAULT: u64>(u64);

/// The name of an action, in its first spelling, or `*`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct ActionName(Option<ActionKind>);

/// A namespace's name with `*` for any characters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String", extend("pattern" = "^[-a-z0-9*]{1,63}$"))]
pub struct Pattern(String);

/// A node's name with `*` for any characters; unlike a namespace's it may have dots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String", extend("pattern" = "^[-.a-z0-9*]{1,253}$"))]
pub struct NodePattern(Pattern);

/// A label by its key, or by key and value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct Label {
    key: String,
    value: Option<String>,
}

impl Policy {
    /// Whether this action may be done at all.
    #[must_use]
    pub fn allows(&self, kind: ActionKind) -> bool {
        self.actions.allow.iter().any(|name| name.matches(kind))
    }

    /// Whether there is anything that a person has to approve.
    #[must_use]
    pub fn requires_approval(&self) -> bool {
        !self.actions.require_approval.is_empty()
            || !self.namespaces.require_approval.is_empty()
            || !self.nodes.require_approval.is_empty()
    }

    /// How often may be acted.
    #[must_use]
    pub fn limits(&self) -> Limits {
        let quota = |allowance: Quota| usage::Quota {
            actions: allowance.actions.get() as usize,
            within: Duration::from_secs(allowance.within_seconds.get()),
        };
        Limits {
            cooldown: Duration::from_secs(self.cooldown_seconds.get()),
            per_namespace: self.budget.per_namespace.map(quota),
            cluster: self.budget.cluster.map(quota),
        }
    }
}

impl TryFrom<u64> for Version {
    type Error = String;

    fn try_from(number: u64) -> Result<Self, String> {
        if number == 1 { Ok(Version) } else { Err("the only version is 1".to_owned()) }
    }
}

impl From<Version> for u64 {
    fn from(_: Version) -> Self {
        1
    }
}

impl<const MIN: u64, const MAX: u64, const DEFAULT: u64> Bounded<MIN, MAX, DEFAULT> {
    /// The number.
    #[must_use]
    pub fn get(self) -> u64 {
        self.0
    }
}

impl<const MIN: u64, const MAX: u64, const DEFAULT: u64> Default for Bounded<MIN, MAX, DEFAULT> {
    fn default() -> Self {
        Bounded(DEFAULT)
    }
}

impl<const MIN: u64, const MAX: u64, const DEFAULT: u64> TryFrom<u64>
    for Bounded<MIN, MAX, DEFAULT>
{
    type Error = String;

    fn try_from(number: u64) -> Result<Self, String> {
        let within = (MIN..=MAX).contains(&number);
        within.then_some(Bounded(number)).ok_or_else(|| format!("must be from {MIN} to {MAX}"))
    }
}

impl<const MIN: u64, const MAX: u64, const DEFAULT: u64> From<Bounded<MIN, MAX, DEFAULT>> for u64 {
    fn from(number: Bounded<MIN, MAX, DEFAULT>) -> Self {
        number.0
    }
}

impl<const MIN: u64, const MAX: u64, const DEFAULT: u64> JsonSchema for Bounded<MIN, MAX, DEFAULT> {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        format!("Number{MIN}To{MAX}").into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "integer", "minimum": MIN, "maximum": MAX })
    }
}

impl ActionName {
    /// Every action.
    #[must_use]
    pub fn any() -> Self {
        ActionName(None)
    }

    /// Whether it is this action's.
    #[must_use]
    pub fn matches(&self, kind: ActionKind) -> bool {
        self.0.is_none_or(|named| named == kind)
    }
}

impl TryFrom<String> for ActionName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if text == "*" {
            return Ok(ActionName::any());
        }
        let known = || ActionKind::ALL.map(ActionKind::name).join(", ");
        let kind = ActionKind::named(&text);
        kind.map(|kind| ActionName(Some(kind)))
            .map_err(|_| format!("is no action; known: {}, or \"*\" for all", known()))
    }
}

impl From<ActionName> for String {
    fn from(name: ActionName) -> Self {
        name.0.map_or("*", ActionKind::name).to_owned()
    }
}

impl Pattern {
    /// Every namespace.
    #[must_use]
    pub fn any() -> Self {
        Pattern("*".to_owned())
    }

    /// Whether this namespace's name is of this form.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        matches(self.0.as_bytes(), name.as_bytes())
    }

    /// The same as a regular expression (RE2) for the whole of a name.
    #[must_use]
    pub fn to_regex(&self) -> String {
        format!("^{}$", self.0.replace('.', "[.]").replace('*', ".*"))
    }
}

/// `*` stands for any characters, none included.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    match (pattern, name) {
        ([], []) => true,
        ([b'*', rest @ ..], _) => (0..=name.len()).any(|skipped| matches(rest, &name[skipped..])),
        ([wanted, pattern @ ..], [found, name @ ..]) => wanted == found && matches(pattern, name),
        _ => false,
    }
}

/// A pattern of at most `longest` characters, these `marks` among them.
fn pattern(text: String, longest: usize, marks: &[u8]) -> Option<Pattern> {
    let allowed =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || marks.contains(&byte);
    // More stars than three match nothing that fewer do not, and take long.
    let stars = text.bytes().filter(|byte| *byte == b'*').count();
    let fits = (1..=longest).contains(&text.len()) && text.bytes().all(allowed) && stars <= 3;
    fits.then_some(Pattern(text))
}

impl TryFrom<String> for Pattern {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        pattern(text, 63, b"-*").ok_or_else(|| {
            "must be a namespace's name, with up to three * for any characters".to_owned()
        })
    }
}

impl TryFrom<String> for NodePattern {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        pattern(text, 253, b"-.*").map(NodePattern).ok_or_else(|| {
            "must be a node's name, with up to three * for any characters".to_owned()
        })
    }
}

impl From<NodePattern> for String {
    fn from(pattern: NodePattern) -> Self {
        pattern.0.0
    }
}

impl AsRef<Pattern> for Pattern {
    fn as_ref(&self) -> &Pattern {
        self
    }
}

impl AsRef<Pattern> for NodePattern {
    fn as_ref(&self) -> &Pattern {
        &self.0
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> Self {
        pattern.0
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Label {
    /// Whether it is among these.
    #[must_use]
    pub fn is_on(&self, labels: &BTreeMap<String, String>) -> bool {
        let found = labels.get(&self.key);
        found.is_some_and(|found| self.value.as_ref().is_none_or(|value| value == found))
    }

    /// Its key, and its value if it asks for one.
    #[must_use]
    pub fn parts(&self) -> (&str, Option<&str>) {
        (&self.key, self.value.as_deref())
    }
}

impl TryFrom<String> for Label {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let (key, value) = match text.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (text.as_str(), None),
        };
        let (prefix, name) = key.split_once('/').unwrap_or(("x", key));
        let of_a_label = |text: &str| {
            let word = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
            text.len() <= 63 && text.bytes().all(word)
        };
        let prefixed = ObjectName::try_from(prefix.to_owned()).is_ok();
        if prefixed && !name.is_empty() && of_a_label(name) && value.is_none_or(of_a_label) {
            return Ok(Label { key: key.to_owned(), value: value.map(str::to_owned) });
        }
        Err("must be a label as key or key=value".to_owned())
    }
}

impl From<Label> for String {
    fn from(label: Label) -> Self {
        label.to_string()
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            Some(value) => write!(f, "{}={value}", self.key),
            None => f.write_str(&self.key),
        }
    }
}

fn patterns(names: &[&str]) -> Vec<Pattern> {
    names.iter().map(|name| Pattern((*name).to_owned())).collect()
}

impl Default for Actions {
    fn default() -> Self {
        Actions { allow: vec![ActionName::any()], require_approval: Vec::new() }
    }
}

impl Default for Namespaces {
    fn default() -> Self {
        Namespaces {
            allow: patterns(&["*"]),
            deny: patterns(&["kube-system", "kube-public", "kube-node-lease"]),
            require_approval: Vec::new(),
        }
    }
}

impl Default for Nodes {
    fn default() -> Self {
        Nodes {
            allow: vec![NodePattern(Pattern::any())],
            deny: Vec::new(),
            require_approval: Vec::new(),
        }
    }
}

impl Default for TargetRules {
    fn default() -> Self {
        let key = "action-executor.dev/protected".to_owned();
        let protected = vec![Label { key, value: Some("true".to_owned()) }];
        TargetRules { protected, opt_in: Vec::new() }
    }
}

impl Default for BudgetRules {
    fn default() -> Self {
        let in_ten_minutes =
            |actions| Some(Quota { actions: Bounded(actions), within_seconds: Bounded(600) });
        BudgetRules { per_namespace: in_ten_minutes(10), cluster: in_ten_minutes(30) }
    }
}

impl Default for ReplicaRules {
    fn default() -> Self {
        ReplicaRules { min: 0, max: 1000 }
    }
}

impl Default for StateLocation {
    fn default() -> Self {
        StateLocation { namespace: None, name: ObjectName::action_executor() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::error::{ActionError, Code};

    fn parse(text: &str) -> Result<Policy, ActionError> {
        Policy::parse(text, "policy.yaml")
    }

    #[track_caller]
    fn refusal(text: &str) -> String {
        let error = parse(text).expect_err("is refused");
        assert_eq!(error.code, Code::Configuration);
        error.detail
    }

    #[test]
    fn an_empty_policy_is_the_shipped_one() {
        assert_eq!(parse("{}"), Ok(Policy::default()));
        assert_eq!(parse("version: 1"), Ok(Policy::default()));
    }

    #[test]
    fn a_policy_is_read_as_it_is_written() {
        let text = "
            read_only: true
            actions: {allow: [restart_deployment], require_approval: ['*']}
            namespaces: {allow: ['shop-*'], deny: [], require_approval: [shop-prod]}
            targets: {protected: [tier=db, frozen], opt_in: [example.org/sre]}
            cooldown_seconds: 0
            budget: {per_namespace: null, cluster: {actions: 3, within_seconds: 60}}
            replicas: {min: 1, max: 9}
            state: {namespace: ops, name: limits}";
        let policy = parse(text).expect("is read");
        let written = serde_json::to_string(&policy).expect("is written");
        assert_eq!(parse(&written), Ok(policy.clone()));
        assert_eq!(policy.limits().cluster.map(|quota| quota.actions), Some(3));
        assert_eq!(policy.limits().per_namespace, None);
        assert!(written.contains("restart_k8s"), "{written}");
    }

    #[test]
    fn an_error_names_line_and_column() {
        let detail = refusal("version: 1\nnamespaces:\n  denied: [a]\n");
        assert!(detail.starts_with("policy policy.yaml:3:"), "{detail}");
        assert!(detail.contains("unknown field `denied`"), "{detail}");
        let detail = refusal("actions:\n  allow:\n    - restart_everything\n");
        assert!(detail.starts_with("policy policy.yaml:3:"), "{detail}");
        assert!(detail.contains("known: restart_k8s, restart_pod"), "{detail}");
        assert!(refusal("budget: {cluster: {actions: 0, within_seconds: 1}}").contains("from 1"));
        assert!(refusal("read_only: true\nread_only: false").contains("2:1"));
        for wrong in [
            "",
            "[]",
            "version: 2",
            "read_only: 'no'",
            "read_only: no",
            "namespaces: {allow: ['Shop']}",
            "namespaces: {allow: ['****']}",
            "targets: {protected: ['a b']}",
            "targets: {protected: ['=x']}",
            "state: {name: ''}",
            "cooldown_seconds: -1",
        ] {
            refusal(wrong);
        }
    }

    #[test]
    fn a_star_stands_for_any_characters() {
        let matches = |pattern: &str, name: &str| Pattern(pattern.to_owned()).matches(name);
        assert!(matches("*", "shop") && matches("shop", "shop") && matches("sh*", "shop"));
        assert!(matches("*-prod", "shop-prod") && matches("s*p-*d", "shop-prod"));
        assert!(!matches("shop", "shop-2") && !matches("*-prod", "prod") && !matches("a*", "b"));
    }

    #[test]
    fn a_label_is_met_by_key_or_by_key_and_value() {
        let labels = BTreeMap::from([("tier".to_owned(), "db".to_owned())]);
        let on = |text: &str| Label::try_from(text.to_owned()).expect("is one").is_on(&labels);
        assert!(on("tier") && on("tier=db"));
        assert!(!on("tier=web") && !on("db") && !on("tier="));
    }
}
