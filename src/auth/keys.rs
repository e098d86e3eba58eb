//! The keys file: callers from outside the cluster, by the hash of a key or by the name in a certificate, and
//! what each one may do.
//!
//! A key is random and long (`openssl rand -hex 32`), so its SHA-256 reveals nothing and needs no salt and no
//! slow function. The comparison takes the same time for every key.

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, de::Error};
use subtle::ConstantTimeEq;

use crate::{
    actions::ActionKind,
    auth::{AccessRequest, Verb, forbidden},
    config::reload::ConfigFile,
    contract::{digest::sha256, error::ActionError, names::AuditText},
    policy::{ActionName, NodePattern, Pattern, Version},
};

/// The keys file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Keys {
    /// The version of this format.
    pub version: Version,
    /// One for each caller.
    #[serde(deserialize_with = "exactly_one_credential")]
    pub keys: Vec<KeyEntry>,
}

/// One key or certificate, and what its holder may do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("oneOf" = [{ "required": ["sha256"] }, { "required": ["certificate"] }]))]
pub struct KeyEntry {
    /// The holder; the requester in the audit.
    pub name: AuditText,
    /// The key's SHA-256, in hexadecimal.
    #[serde(default, deserialize_with = "not_null", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Digest")]
    pub sha256: Option<Digest>,
    /// Instead of a key: the common name of the holder's client certificate.
    #[serde(default, deserialize_with = "not_null", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "AuditText")]
    pub certificate: Option<AuditText>,
    /// The allowed actions; `*` for all.
    #[serde(default = "any_action")]
    pub actions: Vec<ActionName>,
    /// The allowed namespaces of targets, with `*` for any characters.
    #[serde(default = "any_namespace")]
    pub namespaces: Vec<Pattern>,
    /// The allowed clusters, by their names in the list of clusters, with `*` for any characters; none if it is left
    /// out. Without a list of clusters it has no effect.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub clusters: Vec<NodePattern>,
    /// Allow simulation only.
    #[serde(default)]
    pub simulate_only: bool,
    /// As which user of the cluster the holder acts, where callers are impersonated. Without it the holder cannot act
    /// there.
    #[serde(default, deserialize_with = "not_null", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "ClusterUser")]
    pub impersonate: Option<ClusterUser>,
}

/// A user of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClusterUser {
    /// The user's name.
    pub user: AuditText,
    /// The user's groups; those that the server does not pass on are left out.
    #[serde(default)]
    pub groups: Vec<AuditText>,
}

/// A SHA-256 in hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(extend("pattern" = "^[0-9a-f]{64}$"))]
pub struct Digest(String);

/// An optional field that must not be null.
fn not_null<'de, D, T>(field: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    T::deserialize(field).map(Some)
}

fn exactly_one_credential<'de, D: Deserializer<'de>>(keys: D) -> Result<Vec<KeyEntry>, D::Error> {
    let keys = Vec::<KeyEntry>::deserialize(keys)?;
    match keys.iter().find(|entry| entry.sha256.is_some() == entry.certificate.is_some()) {
        Some(KeyEntry { name, .. }) => {
            Err(Error::custom(format!("{name} must have either sha256 or certificate")))
        }
        None => Ok(keys),
    }
}

fn any_action() -> Vec<ActionName> {
    vec![ActionName::any()]
}

fn any_namespace() -> Vec<Pattern> {
    vec![Pattern::any()]
}

impl ConfigFile for Keys {
    const KIND: &'static str = "keys file";
    const HINT: &'static str = "`action-executor schema keys` prints its format";
    const IS_SECRET: bool = true;
}

impl TryFrom<String> for Digest {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let hexadecimal = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if text.len() == 64 && text.bytes().all(hexadecimal) {
            return Ok(Digest(text));
        }
        Err("must be the SHA-256 of the key as 64 lower-case hexadecimal digits, not the key itself; \
             this prints it: printf %s KEY | sha256sum"
            .to_owned())
    }
}

impl Keys {
    /// The entry of a key.
    #[must_use]
    pub fn find(&self, key: &str) -> Option<KeyEntry> {
        let digest = sha256(key.as_bytes());
        let mut found = None;
        // Every entry is compared, each to its end.
        for entry in &self.keys {
            let Some(known) = &entry.sha256 else { continue };
            if bool::from(known.0.as_bytes().ct_eq(digest.as_bytes())) {
                found = found.or(Some(entry));
            }
        }
        found.cloned()
    }

    /// The entry of a certificate with this common name.
    pub(crate) fn of_certificate(&self, name: &str) -> Option<KeyEntry> {
        let named = |entry: &&KeyEntry| entry.certificate.as_deref() == Some(name);
        self.keys.iter().find(named).cloned()
    }
}

impl KeyEntry {
    /// Whether the entry allows the access on this cluster in one namespace at least; to a node, which is in none.
    pub(crate) fn allows_somewhere(
        &self,
        verb: Verb,
        kind: Option<ActionKind>,
        cluster: Option<&str>,
    ) -> bool {
        let allows =
            |namespace: &str| self.check(&AccessRequest { verb, kind, namespace, cluster }).is_ok();
        match kind {
            Some(kind) if kind.is_on_cluster() => allows(""),
            _ => self.namespaces.iter().any(|pattern| allows(&pattern.example())),
        }
    }

    /// Checks that the entry allows the access.
    ///
    /// # Errors
    /// [`Code::CallerForbidden`](crate::contract::error::Code::CallerForbidden) naming the field that denies it.
    pub(crate) fn check(&self, access: &AccessRequest) -> Result<(), ActionError> {
        // Access to all actions needs an entry for all of them.
        let action = |name: &ActionName| match access.kind {
            Some(kind) => name.matches(kind),
            None => *name == ActionName::any(),
        };
        let field = if !self.actions.iter().any(action) {
            "actions"
        } else if !self.namespaces.iter().any(|pattern| pattern.matches(access.namespace)) {
            "namespaces"
        } else if access
            .cluster
            .is_some_and(|name| !self.clusters.iter().any(|it| it.as_ref().matches(name)))
        {
            "clusters"
        } else if self.simulate_only && access.verb == Verb::Execute {
            "simulate_only"
        } else {
            return Ok(());
        };
        let hint = format!("see `{field}` of key '{}' in the keys file", self.name);
        Err(forbidden(&self.name, access).with_hint(hint))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::error::Code;

    fn keys(text: &str) -> Result<Keys, ActionError> {
        Keys::parse(text, "keys.yaml")
    }

    fn one(more: &str) -> KeyEntry {
        let text = format!("keys: [{{name: pager, sha256: {}{more}}}]", sha256(b"secret"));
        keys(&text).expect("are keys").find("secret").expect("is known")
    }

    fn access(namespace: &str, simulate: bool) -> AccessRequest<'_> {
        let verb = if simulate { Verb::Simulate } else { Verb::Execute };
        AccessRequest { verb, kind: Some(ActionKind::RestartK8s), namespace, cluster: None }
    }

    #[test]
    fn a_key_is_found_by_its_hash_only() {
        let text = format!("version: 1\nkeys: [{{name: pager, sha256: {}}}]", sha256(b"secret"));
        let keys = keys(&text).expect("are keys");
        assert_eq!(
            keys.find("secret").map(|entry| entry.name.to_string()).as_deref(),
            Some("pager")
        );
        assert!(keys.find("Secret").is_none() && keys.find("").is_none());
        assert!(keys.find(&sha256(b"secret")).is_none());
    }

    #[test]
    fn a_certificate_is_found_by_its_name_and_is_no_key() {
        let file =
            keys("keys: [{name: pager, certificate: pager.example.com, namespaces: [shop]}]");
        let known = file.expect("are keys");
        let entry = known.of_certificate("pager.example.com").expect("is known");
        assert!(entry.check(&access("shop", false)).is_ok());
        assert!(entry.check(&access("bank", false)).is_err());
        assert!(
            known.of_certificate("pager").is_none() && known.find("pager.example.com").is_none()
        );
        let both = format!("keys: [{{name: jo, certificate: jo, sha256: {}}}]", sha256(b"secret"));
        let error = keys(&both).expect_err("is both");
        assert!(error.detail.contains("either sha256 or certificate"), "{}", error.detail);
    }

    #[test]
    fn a_key_can_be_limited_to_actions_namespaces_and_simulation() {
        let check = |more: &str, access: &AccessRequest| {
            one(more).check(access).map_err(|error| error.code)
        };
        assert_eq!(check("", &access("shop", false)), Ok(()));
        let refused = Err(Code::CallerForbidden);
        assert_eq!(check(", actions: [restart_pod]", &access("shop", true)), refused);
        assert_eq!(check(", namespaces: [shop-*]", &access("shop", true)), refused);
        assert_eq!(check(", namespaces: [shop-*]", &access("shop-a", false)), Ok(()));
        assert_eq!(check(", simulate_only: true", &access("shop", false)), refused);
        assert_eq!(check(", simulate_only: true", &access("shop", true)), Ok(()));
    }

    #[test]
    fn a_key_acts_on_the_clusters_of_a_list_that_it_names_and_on_no_other() {
        let check = |more: &str, cluster| {
            let access = AccessRequest { cluster, ..access("shop", false) };
            one(more).check(&access).map_err(|error| error.hint.unwrap_or_default())
        };
        for (clusters, allowed) in [
            ("", [false, false]),
            (", clusters: []", [false, false]),
            (", clusters: [blue]", [false, true]),
            (", clusters: [gr*, blue]", [true, true]),
            (", clusters: ['*']", [true, true]),
        ] {
            let found = ["green", "blue"].map(|name| check(clusters, Some(name)).is_ok());
            assert_eq!(found, allowed, "{clusters}");
            // Without a list there is one cluster, and each key may act on it.
            assert_eq!(check(clusters, None), Ok(()), "{clusters}");
        }
        assert!(check("", Some("green")).expect_err("is refused").contains("`clusters`"));
    }

    #[test]
    fn a_key_allows_somewhere_what_it_allows_in_one_of_its_namespaces() {
        let somewhere = |more: &str, verb, kind| one(more).allows_somewhere(verb, Some(kind), None);
        let (restart, drain) = (ActionKind::RestartK8s, ActionKind::Drain);
        assert!(somewhere("", Verb::Execute, restart) && somewhere("", Verb::Execute, drain));
        for namespaces in ["[shop]", "['shop-*', bank]"] {
            let more = format!(", namespaces: {namespaces}");
            assert!(somewhere(&more, Verb::Execute, restart));
            // A node is in no namespace.
            assert!(!somewhere(&more, Verb::Execute, drain));
        }
        assert!(!somewhere(", actions: [drain]", Verb::Simulate, restart));
        assert!(!somewhere(", simulate_only: true", Verb::Execute, restart));
        assert!(somewhere(", simulate_only: true", Verb::Simulate, restart));
        assert!(!somewhere(", namespaces: []", Verb::Simulate, restart));
    }

    #[test]
    fn a_list_of_all_actions_needs_access_to_all_actions() {
        let list =
            |namespace| AccessRequest { verb: Verb::List, kind: None, namespace, cluster: None };
        assert!(one(", simulate_only: true").check(&list("")).is_ok());
        assert!(one(", actions: [restart_pod]").check(&list("shop")).is_err());
        assert!(one(", namespaces: [shop]").check(&list("shop")).is_ok());
        assert!(one(", namespaces: [shop]").check(&list("")).is_err());
    }

    #[test]
    fn an_invalid_keys_file_is_refused_and_its_values_are_not_repeated() {
        for wrong in [
            "keys: [{name: pager, sha256: hunter2}]",
            "keys: [{name: pager, key: hunter2}]",
            "keys: [{name: pager}]",
            "keys: [{name: pager, sha256: null}]",
            "keys: [{name: pager, certificate: hunter2, sha256: null}]",
            "keys: [{name: pager, certificate: ''}]",
            "keys: [{name: pager, certificate: pager, impersonate: hunter2}]",
            "keys: [{name: pager, certificate: pager, impersonate: {user: ''}}]",
            "keys: [{name: pager, certificate: pager, impersonate: null}]",
            "keys: {hunter2: 1}",
            "{hunter2: 1}",
            "version: 2",
            "[hunter2]",
        ] {
            let error = keys(wrong).expect_err(wrong);
            assert_eq!(error.code, Code::Configuration);
            assert!(!error.detail.contains("hunter2"), "{}", error.detail);
        }
    }
}
