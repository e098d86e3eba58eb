//! The keys of callers from outside the cluster, as a file of their hashes; or of the names in their
//! certificates.
//!
//! A key is random and long (`openssl rand -hex 32`), so its SHA-256 gives nothing away and needs no salt
//! and no slow function. Whether a key is known takes the same time whichever it is.

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, de::Error};
use subtle::ConstantTimeEq;

use crate::{
    auth::{AccessRequest, Verb, forbidden},
    config::reload::ConfigFile,
    contract::{digest::sha256, error::ActionError, names::AuditText},
    policy::{ActionName, Pattern, Version},
};

/// The callers' keys.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Keys {
    /// The version of this format.
    pub version: Version,
    /// One for each caller.
    #[serde(deserialize_with = "exactly_one_credential")]
    pub keys: Vec<KeyEntry>,
}

/// One key or certificate, and what its holder may ask for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("oneOf" = [{ "required": ["sha256"] }, { "required": ["certificate"] }]))]
pub struct KeyEntry {
    /// Who holds it; stands in the audit as the requester.
    pub name: AuditText,
    /// The key's SHA-256, in hexadecimal.
    #[serde(default, deserialize_with = "not_null", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Digest")]
    pub sha256: Option<Digest>,
    /// In place of a key: the common name of the certificate that its holder has from the clients'
    /// authority.
    #[serde(default, deserialize_with = "not_null", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "AuditText")]
    pub certificate: Option<AuditText>,
    /// Actions by name; `*` for all.
    #[serde(default = "any_action")]
    pub actions: Vec<ActionName>,
    /// The namespaces of targets, with `*` for any characters.
    #[serde(default = "any_namespace")]
    pub namespaces: Vec<Pattern>,
    /// Nothing but simulation.
    #[serde(default)]
    pub simulate_only: bool,
}

/// A SHA-256 in hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(extend("pattern" = "^[0-9a-f]{64}$"))]
pub struct Digest(String);

/// What is there is not null.
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
    const KIND: &'static str = "keys' file";
    const HINT: &'static str = "`action-executor schema keys` prints what can be in it";
}

impl TryFrom<String> for Digest {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let hexadecimal = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if text.len() == 64 && text.bytes().all(hexadecimal) {
            return Ok(Digest(text));
        }
        Err("must be a SHA-256 as 64 hexadecimal digits in lower case, not the key itself; \
             `printf %s KEY | sha256sum` prints it"
            .to_owned())
    }
}

impl Keys {
    /// The entry of this key.
    #[must_use]
    pub fn find(&self, key: &str) -> Option<KeyEntry> {
        let digest = sha256(key.as_bytes());
        let mut found = None;
        // All are compared, and each to its end.
        for entry in &self.keys {
            let Some(known) = &entry.sha256 else { continue };
            if bool::from(known.0.as_bytes().ct_eq(digest.as_bytes())) {
                found = found.or(Some(entry));
            }
        }
        found.cloned()
    }

    /// The entry of the holder of a certificate with this common name.
    #[must_use]
    pub fn of_certificate(&self, name: &str) -> Option<KeyEntry> {
        let named = |entry: &&KeyEntry| entry.certificate.as_deref() == Some(name);
        self.keys.iter().find(named).cloned()
    }
}

impl KeyEntry {
    /// Whether the holder may ask for this.
    ///
    /// # Errors
    /// [`Code::CallerForbidden`](crate::contract::error::Code::CallerForbidden) naming the field that stands
    /// against it.
    pub fn check(&self, wish: &AccessRequest) -> Result<(), ActionError> {
        // What is wished of any action must be allowed for all of them.
        let action = |name: &ActionName| match wish.kind {
            Some(kind) => name.matches(kind),
            None => *name == ActionName::any(),
        };
        let field = if !self.actions.iter().any(action) {
            "actions"
        } else if !self.namespaces.iter().any(|pattern| pattern.matches(wish.namespace)) {
            "namespaces"
        } else if self.simulate_only && wish.verb == Verb::Execute {
            "simulate_only"
        } else {
            return Ok(());
        };
        let hint =
            format!("`{field}` of the key '{}' in the keys' file says what it may", self.name);
        Err(forbidden(&self.name, wish).with_hint(hint))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{actions::ActionKind, contract::error::Code};

    fn keys(text: &str) -> Result<Keys, ActionError> {
        Keys::parse(text, "keys.yaml")
    }

    fn one(more: &str) -> KeyEntry {
        let text = format!("keys: [{{name: pager, sha256: {}{more}}}]", sha256(b"secret"));
        keys(&text).expect("are keys").find("secret").expect("is known")
    }

    fn wish(namespace: &str, simulate: bool) -> AccessRequest<'_> {
        let verb = if simulate { Verb::Simulate } else { Verb::Execute };
        AccessRequest { verb, kind: Some(ActionKind::RestartK8s), namespace }
    }

    #[test]
    fn a_key_is_known_by_its_hash_alone() {
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
    fn a_certificate_is_known_by_its_name_and_is_no_key() {
        let file =
            keys("keys: [{name: pager, certificate: pager.example.com, namespaces: [shop]}]");
        let known = file.expect("are keys");
        let entry = known.of_certificate("pager.example.com").expect("is known");
        assert!(entry.check(&wish("shop", false)).is_ok());
        assert!(entry.check(&wish("bank", false)).is_err());
        assert!(
            known.of_certificate("pager").is_none() && known.find("pager.example.com").is_none()
        );
        let both = format!("keys: [{{name: jo, certificate: jo, sha256: {}}}]", sha256(b"secret"));
        let error = keys(&both).expect_err("is both");
        assert!(error.detail.contains("either sha256 or certificate"), "{}", error.detail);
    }

    #[test]
    fn a_key_may_be_narrowed_to_actions_namespaces_and_simulation() {
        let check =
            |more: &str, wish: &AccessRequest| one(more).check(wish).map_err(|error| error.code);
        assert_eq!(check("", &wish("shop", false)), Ok(()));
        let refused = Err(Code::CallerForbidden);
        assert_eq!(check(", actions: [restart_pod]", &wish("shop", true)), refused);
        assert_eq!(check(", namespaces: [shop-*]", &wish("shop", true)), refused);
        assert_eq!(check(", namespaces: [shop-*]", &wish("shop-a", false)), Ok(()));
        assert_eq!(check(", simulate_only: true", &wish("shop", false)), refused);
        assert_eq!(check(", simulate_only: true", &wish("shop", true)), Ok(()));
    }

    #[test]
    fn a_list_of_all_actions_is_for_those_who_may_ask_for_all_of_them() {
        let list = |namespace| AccessRequest { verb: Verb::List, kind: None, namespace };
        assert!(one(", simulate_only: true").check(&list("")).is_ok());
        assert!(one(", actions: [restart_pod]").check(&list("shop")).is_err());
        assert!(one(", namespaces: [shop]").check(&list("shop")).is_ok());
        assert!(one(", namespaces: [shop]").check(&list("")).is_err());
    }

    #[test]
    fn what_is_no_keys_file_is_refused_without_repeating_it() {
        for wrong in [
            "keys: [{name: pager, sha256: hunter2}]",
            "keys: [{name: pager, key: hunter2}]",
            "keys: [{name: pager}]",
            "keys: [{name: pager, sha256: null}]",
            "keys: [{name: pager, certificate: hunter2, sha256: null}]",
            "keys: [{name: pager, certificate: ''}]",
            "keys: {hunter2: 1}",
            "version: 2",
            "[hunter2]",
        ] {
            let error = keys(wrong).expect_err(wrong);
            assert_eq!(error.code, Code::Configuration);
            assert!(!error.detail.contains("hunter2"), "{}", error.detail);
        }
    }
}
