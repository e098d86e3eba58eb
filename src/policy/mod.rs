//! The policy: the limits that a person sets, read from a YAML file.
//!
//! Every field has a default, so an empty policy is the default policy, which also applies without a file.
//! Parsing validates everything: an unknown action, a pattern that cannot match and a number out of bounds are
//! errors with line and column. `evaluate` checks a request against a policy; [`approval`] and [`budget`]
//! keep state in the cluster. The types in this file know neither the cluster nor the clock, and not how the
//! file is read ([`crate::config::reload`]).

use std::{collections::BTreeMap, fmt, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, de::Error};

use crate::{
    actions::ActionKind,
    config::reload::ConfigFile,
    contract::{
        image::is_host,
        json::strict_object,
        names::{Namespace, ObjectName, QualifiedName, is_own_key, is_reserved_key},
        quantity::Quantity,
    },
    k8s::integrations::Integration,
    policy::budget::usage::{self, BudgetLimits},
};

pub mod approval;
pub mod budget;
pub(crate) mod evaluate;

/// What a person allows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// The version of this format.
    pub version: Version,
    /// Whether only simulations are allowed.
    pub read_only: bool,
    /// The allowed actions.
    #[serde(deserialize_with = "strict_object")]
    pub actions: Actions,
    /// The operators whose objects actions may touch; those of another operator are denied even if `actions.allow`
    /// lists them, also to simulations.
    pub integrations: Vec<Integration>,
    /// The allowed namespaces.
    #[serde(deserialize_with = "strict_object")]
    pub namespaces: Namespaces,
    /// The allowed nodes, for actions on nodes.
    #[serde(deserialize_with = "strict_object")]
    pub nodes: Nodes,
    /// The allowed objects, by label.
    #[serde(deserialize_with = "strict_object")]
    pub targets: TargetRules,
    /// Seconds between two actions on one target; 0 for no cooldown.
    pub cooldown_seconds: Bounded<0, 86_400, 60>,
    /// The number of actions in a time.
    #[serde(deserialize_with = "strict_object")]
    pub budget: BudgetRules,
    /// The bounds of a target's replicas.
    #[serde(deserialize_with = "replica_rules")]
    pub replicas: ReplicaRules,
    /// The images that containers may get.
    #[serde(deserialize_with = "strict_object")]
    pub images: ImageRules,
    /// How far the bounds of an autoscaler may be raised.
    #[serde(deserialize_with = "strict_object")]
    pub autoscalers: AutoscalerRules,
    /// How far the requests and limits of containers may be changed.
    #[serde(deserialize_with = "strict_object")]
    pub resources: ResourceRules,
    /// How far volume claims may be expanded.
    #[serde(deserialize_with = "strict_object")]
    pub volumes: VolumeRules,
    /// The labels that may be set and removed.
    #[serde(deserialize_with = "strict_object")]
    pub labels: KeyRules,
    /// The annotations that may be set and removed.
    #[serde(deserialize_with = "strict_object")]
    pub annotations: KeyRules,
    /// The taints of nodes that may be set and removed.
    #[serde(deserialize_with = "strict_object")]
    pub taints: KeyRules,
    /// Which limits apply to simulations.
    #[serde(deserialize_with = "strict_object")]
    pub simulation: SimulationRules,
    /// How long an approval is valid.
    #[serde(deserialize_with = "strict_object")]
    pub approval: ApprovalRules,
    /// The Lease with budget and kill switch.
    #[serde(deserialize_with = "strict_object")]
    pub state: StateLocation,
}

impl ConfigFile for Policy {
    const KIND: &'static str = "policy";
    const HINT: &'static str = "`action-executor schema policy` prints its schema";
    const IS_SECRET: bool = false;
}

/// The version of the format; the only one is 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "u64", into = "u64")]
#[schemars(with = "u64", extend("const" = 1))]
pub struct Version;

/// The allowed actions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Actions {
    /// Actions by name; `*` for all.
    pub allow: Vec<ActionName>,
    /// Actions that a person has to approve first; `*` for all.
    pub require_approval: Vec<ActionName>,
}

/// The allowed namespaces.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Namespaces {
    /// Names, with `*` for any characters.
    pub allow: Vec<Pattern>,
    /// Namespaces that are denied even if `allow` lists them, also to simulations.
    pub deny: Vec<Pattern>,
    /// Namespaces where a person has to approve first.
    pub require_approval: Vec<Pattern>,
}

/// The allowed nodes. Pods that are evicted from them must be allowed by their own namespace and labels too.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Nodes {
    /// Names, with `*` for any characters.
    pub allow: Vec<NodePattern>,
    /// Nodes that are denied even if `allow` lists them, also to simulations.
    pub deny: Vec<NodePattern>,
    /// Nodes where a person has to approve first.
    pub require_approval: Vec<NodePattern>,
}

/// The allowed objects.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TargetRules {
    /// Labels, each `key` or `key=value`, of objects that are denied.
    pub protected: Vec<Label>,
    /// Labels of which an object must have at least one; an empty list allows every object.
    pub opt_in: Vec<Label>,
    /// The most objects that the selector of one request may choose.
    pub max_per_request: Bounded<1, 50, 10>,
}

/// The number of actions in a time; null for no limit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BudgetRules {
    /// Per namespace.
    pub per_namespace: Option<Quota>,
    /// For the whole cluster.
    pub cluster: Option<Quota>,
}

/// A number of actions in a time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Quota {
    /// The number of actions.
    pub actions: Bounded<1, 1000, 10>,
    /// The time, in seconds.
    pub within_seconds: Bounded<1, 86_400, 600>,
}

/// The bounds of a target's replicas.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ReplicaRules {
    /// The minimum.
    pub min: u32,
    /// The maximum.
    pub max: u32,
}

/// Reads the bounds. With a minimum above the maximum, no number of replicas would be allowed.
fn replica_rules<'de, D: Deserializer<'de>>(from: D) -> Result<ReplicaRules, D::Error> {
    let rules: ReplicaRules = strict_object(from)?;
    match rules.min > rules.max {
        true => Err(D::Error::custom("min must not be above max")),
        false => Ok(rules),
    }
}

/// The images that containers may get.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ImageRules {
    /// Repositories, with `*` for any characters after the registry, for example `registry.example.com/shop/*`. An
    /// empty list allows only the repository that the container has now.
    pub allow: Vec<RepositoryPattern>,
}

/// How far the bounds of an autoscaler may be raised.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AutoscalerRules {
    /// The maximum may grow to so many times what it is. Both bounds must be within `replicas` too.
    pub max_factor: Bounded<1, 100, 2>,
}

/// How far the requests and limits of containers may be changed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ResourceRules {
    /// Each may become at most so many times what it is, and at least that part of it.
    pub max_factor: Bounded<1, 100, 2>,
    /// The most CPU of a container; null for no maximum. Without it a container without a request or limit of
    /// CPU cannot get one.
    pub max_cpu: Option<Quantity>,
    /// The most memory of a container; null for no maximum. Without it a container without a request or limit of memory
    /// cannot get one.
    pub max_memory: Option<Quantity>,
}

/// How far volume claims may be expanded.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct VolumeRules {
    /// A PVC may become at most so many times as large as it is.
    pub max_factor: Bounded<1, 100, 2>,
    /// The largest size of a PVC; null for no maximum.
    pub max_size: Option<Quantity>,
}

/// The keys that may be changed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct KeyRules {
    /// Keys, with `*` for any characters, for example `example.com/*`. An empty list allows none. A key of Kubernetes
    /// itself (`kubernetes.io`, `k8s.io` and what is below them) must be listed in full.
    pub allow: Vec<KeyPattern>,
}

/// Which limits apply to simulations.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SimulationRules {
    /// Whether `actions`, `namespaces.allow`, `targets`, `replicas`, `images`, `autoscalers`, `resources`, `volumes`,
    /// `labels`, `annotations` and `taints` apply to simulations too.
    pub limited: bool,
}

/// How long an approval is valid.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ApprovalRules {
    /// Seconds from the request until its approval expires.
    pub valid_seconds: Bounded<60, 3600, 1800>,
}

/// The Lease with the budget and the kill switch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct StateLocation {
    /// The Lease's namespace; null for the pod's, or the kubeconfig context's.
    pub namespace: Option<Namespace>,
    /// The Lease's name.
    pub name: ObjectName,
}

/// A number from `MIN` to `MAX`; `DEFAULT` if it is omitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct Bounded<const MIN: u64, const MAX: u64, const DEFAULT: u64>(u64);

/// The name of an action, or `*`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct ActionName(Option<ActionKind>);

/// A namespace name with `*` for any characters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String", extend("pattern" = "^[-a-z0-9*]{1,63}$"))]
pub struct Pattern(String);

/// A node name with `*` for any characters; unlike a namespace name it may have dots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String", extend("pattern" = "^[-.a-z0-9*]{1,253}$"))]
pub struct NodePattern(Pattern);

/// A repository of images, with its registry, and `*` for any characters after that; `*` alone matches every one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String", extend("pattern" = "^([-.:a-z0-9]{1,128}/[-./_a-z0-9*]{1,255}|[*])$"))]
pub struct RepositoryPattern(Pattern);

/// The key of a label, an annotation or a taint, with `*` for any characters; a key that Kubernetes reserves only in
/// full.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String", extend("pattern" = "^[-._/A-Za-z0-9*]{1,317}$"))]
pub struct KeyPattern(Pattern);

/// A label by its key, or by key and value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct Label {
    key: String,
    value: Option<String>,
}

impl Policy {
    /// Whether this action is allowed at all.
    pub(crate) fn allows(&self, kind: ActionKind) -> bool {
        self.actions.allow.iter().any(|name| name.matches(kind))
    }

    /// Whether the policy names the operator whose objects this action acts on, if it acts on those of one.
    pub(crate) fn integrates(&self, kind: ActionKind) -> bool {
        let integration = kind.descriptor().integration;
        integration.is_none_or(|integration| self.integrations.contains(&integration))
    }

    /// Whether this action is allowed, and can change anything: one that changes keys needs one that is listed, and one
    /// on objects of an operator needs that operator to be named.
    pub(crate) fn permits(&self, kind: ActionKind) -> bool {
        let keys = match kind {
            ActionKind::Label => Some(&self.labels),
            ActionKind::Annotate => Some(&self.annotations),
            ActionKind::Taint | ActionKind::Untaint => Some(&self.taints),
            _ => None,
        };
        self.allows(kind) && self.integrates(kind) && keys.is_none_or(|keys| !keys.allow.is_empty())
    }

    /// Whether this action may be simulated at all.
    pub(crate) fn allows_simulation(&self, kind: ActionKind) -> bool {
        self.integrates(kind) && (!self.simulation.limited || self.permits(kind))
    }

    /// Whether anything requires approval.
    pub(crate) fn requires_approval(&self) -> bool {
        !self.actions.require_approval.is_empty()
            || !self.namespaces.require_approval.is_empty()
            || !self.nodes.require_approval.is_empty()
    }

    /// The limits that the budget enforces.
    pub(crate) fn budget_limits(&self) -> BudgetLimits {
        let quota = |quota: Quota| usage::Quota {
            actions: quota.actions.get() as usize,
            within: Duration::from_secs(quota.within_seconds.get()),
        };
        BudgetLimits {
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
    pub(crate) fn get(self) -> u64 {
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
    /// Matches every action.
    pub(crate) fn any() -> Self {
        ActionName(None)
    }

    /// Whether it matches this action.
    pub(crate) fn matches(&self, kind: ActionKind) -> bool {
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
            .map_err(|_| format!("unknown action; known actions: {}, or \"*\" for all", known()))
    }
}

impl From<ActionName> for String {
    fn from(name: ActionName) -> Self {
        name.0.map_or("*", ActionKind::name).to_owned()
    }
}

impl Pattern {
    /// Matches every name.
    pub(crate) fn any() -> Self {
        Pattern("*".to_owned())
    }

    /// Whether this name matches.
    pub(crate) fn matches(&self, name: &str) -> bool {
        matches(self.0.as_bytes(), name.as_bytes())
    }

    /// The one name that it matches, unless it has a `*`.
    pub(crate) fn name(&self) -> Option<&str> {
        Some(&*self.0).filter(|name| !name.contains('*'))
    }

    /// A name that it matches.
    pub(crate) fn example(&self) -> String {
        self.0.replace('*', "")
    }

    /// The pattern as a regular expression (RE2) for a whole name.
    pub(crate) fn to_regex(&self) -> String {
        format!("^{}$", self.0.replace('.', "[.]").replace('*', ".*"))
    }
}

/// `*` matches any characters, also none.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    match (pattern, name) {
        ([], []) => true,
        ([b'*', rest @ ..], _) => (0..=name.len()).any(|skipped| matches(rest, &name[skipped..])),
        ([expected, pattern @ ..], [found, name @ ..]) => {
            expected == found && matches(pattern, name)
        }
        _ => false,
    }
}

/// A pattern of at most `max_length` characters: lowercase letters, digits and `punctuation`.
fn pattern(text: String, max_length: usize, punctuation: &[u8]) -> Option<Pattern> {
    let is_lowercase = !text.bytes().any(|byte| byte.is_ascii_uppercase());
    is_lowercase.then(|| lettered_pattern(text, max_length, punctuation)).flatten()
}

/// The same, with capital letters too.
fn lettered_pattern(text: String, max_length: usize, punctuation: &[u8]) -> Option<Pattern> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || punctuation.contains(&byte);
    // Matching takes exponential time in the number of stars.
    let stars = text.bytes().filter(|byte| *byte == b'*').count();
    let fits = (1..=max_length).contains(&text.len()) && text.bytes().all(allowed) && stars <= 3;
    fits.then_some(Pattern(text))
}

impl TryFrom<String> for Pattern {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        pattern(text, 63, b"-*").ok_or_else(|| {
            "must be a namespace name, with up to three * for any characters".to_owned()
        })
    }
}

impl TryFrom<String> for NodePattern {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        pattern(text, 253, b"-.*")
            .map(NodePattern)
            .ok_or_else(|| "must be a node name, with up to three * for any characters".to_owned())
    }
}

impl TryFrom<String> for RepositoryPattern {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        // A star in the registry would match registries of others.
        let names_registry =
            text.split_once('/').is_some_and(|(host, _)| !host.contains('*') && is_host(host));
        let pattern = (names_registry || text == "*").then(|| pattern(text, 383, b"-._:/*"));
        pattern.flatten().map(RepositoryPattern).ok_or_else(|| {
            "must be a repository with its registry, for example registry.example.com/shop/*, with up to three * after the \
             registry, or * alone"
                .to_owned()
        })
    }
}

impl KeyPattern {
    /// Whether this key matches. A pattern with `*` matches no key that Kubernetes reserves.
    pub(crate) fn matches(&self, key: &str) -> bool {
        if is_reserved_key(key) { self.0.0 == key } else { self.0.matches(key) }
    }
}

impl TryFrom<String> for KeyPattern {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if is_own_key(&text) {
            return Err("must not be a key of this program, which no action changes".to_owned());
        }
        if is_reserved_key(&text) && text.contains('*') {
            return Err("must name a key that Kubernetes reserves in full, without *".to_owned());
        }
        // A key has one slash at most, and is not longer than prefix, slash and name.
        let is_key = !text.contains('*') && QualifiedName::try_from(text.clone()).is_ok();
        let is_pattern = text.contains('*') && text.matches('/').count() <= 1;
        let pattern = (is_key || is_pattern).then(|| lettered_pattern(text, 317, b"-._/*"));
        pattern.flatten().map(KeyPattern).ok_or_else(|| {
            "must be a key, such as example.com/team, with up to three * for any characters"
                .to_owned()
        })
    }
}

impl From<KeyPattern> for String {
    fn from(pattern: KeyPattern) -> Self {
        pattern.0.0
    }
}

impl From<RepositoryPattern> for String {
    fn from(pattern: RepositoryPattern) -> Self {
        pattern.0.0
    }
}

impl AsRef<Pattern> for RepositoryPattern {
    fn as_ref(&self) -> &Pattern {
        &self.0
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
    /// Whether these labels have it.
    pub(crate) fn is_on(&self, labels: &BTreeMap<String, String>) -> bool {
        let found = labels.get(&self.key);
        found.is_some_and(|found| self.value.as_ref().is_none_or(|value| value == found))
    }

    /// The key, and the value if the label has one.
    pub(crate) fn parts(&self) -> (&str, Option<&str>) {
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
        TargetRules { protected, opt_in: Vec::new(), max_per_request: Bounded::default() }
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
    fn an_empty_policy_is_the_default_policy() {
        assert_eq!(parse("{}"), Ok(Policy::default()));
        assert_eq!(parse("version: 1"), Ok(Policy::default()));
    }

    #[test]
    fn a_policy_is_parsed_as_it_is_written() {
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
        assert_eq!(policy.budget_limits().cluster.map(|quota| quota.actions), Some(3));
        assert_eq!(policy.budget_limits().per_namespace, None);
        assert!(written.contains("restart_k8s"), "{written}");
    }

    #[test]
    fn an_error_names_line_and_column() {
        let detail = refusal("version: 1\nnamespaces:\n  denied: [a]\n");
        assert!(detail.starts_with("policy policy.yaml:3:"), "{detail}");
        assert!(detail.contains("unknown field `denied`"), "{detail}");
        let detail = refusal("actions:\n  allow:\n    - restart_everything\n");
        assert!(detail.starts_with("policy policy.yaml:3:"), "{detail}");
        assert!(detail.contains("known actions: restart_k8s, restart_pod"), "{detail}");
        assert!(refusal("budget: {cluster: {actions: 0, within_seconds: 1}}").contains("from 1"));
        assert!(refusal("read_only: true\nread_only: false").contains("2:1"));
        assert!(refusal("replicas: {min: 3, max: 1}").contains("min must not be above max"));
        assert!(refusal("replicas: {min: 1001}").contains("min must not be above max"));
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
    fn a_repository_names_its_registry() {
        let is_valid = |text: &str| RepositoryPattern::try_from(text.to_owned()).is_ok();
        for text in
            ["*", "registry.example.com/*", "localhost:5000/shop/web", "docker.io/library/*"]
        {
            assert!(is_valid(text), "{text}");
        }
        for text in [
            "",
            "web",
            "registry.example.com*",
            "*/web",
            "*.example.com/web",
            "shop/web",
            "a.io/*/*/*/*",
        ] {
            assert!(!is_valid(text), "{text}");
        }
    }

    #[test]
    fn a_reserved_key_is_listed_in_full_and_one_of_this_program_never() {
        let pattern = |text: &str| KeyPattern::try_from(text.to_owned());
        for (text, key, matches) in [
            ("team", "team", true),
            ("example.com/*", "example.com/Team_1", true),
            ("example.com/*", "example.com.evil.example/team", false),
            ("*", "example.com/team", true),
            ("*", "app.kubernetes.io/name", false),
            ("*/name", "app.kubernetes.io/name", false),
            ("app.kubernetes.io/name", "app.kubernetes.io/name", true),
        ] {
            assert_eq!(pattern(text).expect(text).matches(key), matches, "{text} {key}");
        }
        for text in ["", "a b", "a/b/c", "*/*/*", "kubernetes.io/*", "*.k8s.io/x", "****"] {
            assert!(pattern(text).is_err(), "{text}");
        }
        for text in ["action-executor.dev/protected", "action-executor.dev/*"] {
            assert!(pattern(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_star_matches_any_characters() {
        let matches = |pattern: &str, name: &str| Pattern(pattern.to_owned()).matches(name);
        assert!(matches("*", "shop") && matches("shop", "shop") && matches("sh*", "shop"));
        assert!(matches("*-prod", "shop-prod") && matches("s*p-*d", "shop-prod"));
        assert!(!matches("shop", "shop-2") && !matches("*-prod", "prod") && !matches("a*", "b"));
    }

    #[test]
    fn a_label_matches_by_key_or_by_key_and_value() {
        let labels = BTreeMap::from([("tier".to_owned(), "db".to_owned())]);
        let on = |text: &str| Label::try_from(text.to_owned()).expect("is one").is_on(&labels);
        assert!(on("tier") && on("tier=db"));
        assert!(!on("tier=web") && !on("db") && !on("tier="));
    }
}
