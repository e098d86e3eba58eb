//! The checked strings of a request: names (RFC 1123), ids, texts for the audit trail.
//!
//! A value of one of these types is valid: it is checked when it is created. No message repeats a value,
//! which may be a secret in the wrong field.

use std::{fmt, ops::Deref};

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use crate::contract::{
    digest::sha256,
    visible::{first_foreign_letter, first_invisible, visible_part},
};

/// How much of an id the ids of its parts begin with, so that they fit.
const MAX_WHOLE_ID: usize = 111;

/// Maximum number of characters of a text for the audit trail.
const MAX_AUDIT_TEXT: usize = 512;

/// Implements a checked string.
macro_rules! checked_string {
    ($name:ident, $check:path) => {
        impl TryFrom<String> for $name {
            type Error = String;

            fn try_from(text: String) -> Result<Self, String> {
                $check(&text).map(|()| $name(text))
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl Deref for $name {
            type Target = str;

            fn deref(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

pub(crate) use checked_string;

/// The name of a Deployment, a pod or another object: an RFC 1123 subdomain of at most 253
/// characters ([Kubernetes: Object Names](https://kubernetes.io/docs/concepts/overview/working-with-objects/names/)).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(extend(
    "minLength" = 1,
    "maxLength" = 253,
    "pattern" = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
))]
pub struct ObjectName(String);

/// The name of a namespace: an RFC 1123 label of at most 63 characters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(extend(
    "minLength" = 1,
    "maxLength" = 63,
    "pattern" = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
))]
pub struct Namespace(String);

/// A request's idempotency key: 1 to 128 of `A-Z a-z 0-9 . _ : -`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(extend("minLength" = 1, "maxLength" = 128, "pattern" = "^[A-Za-z0-9._:-]+$"))]
pub struct RequestId(String);

/// A line for the audit trail, such as a requester or a reason: 1 to 512 characters, all of which a person can see.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(extend(
    "minLength" = 1,
    "maxLength" = 512,
    "pattern" = r"^[^\u0000-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ue000-\uf8ff\ufeff]+$"
))]
pub struct AuditText(String);

/// The name of a cluster as a request says it: one line of 1 to 512 visible characters. What is configured decides
/// whether there is such a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(extend(
    "minLength" = 1,
    "maxLength" = 512,
    "pattern" = r"^[^\u0000-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ue000-\uf8ff\ufeff]+$"
))]
pub struct ClusterName(String);

/// A uid or resourceVersion as the cluster gave it: opaque, 1 to 128 visible ASCII characters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(extend("minLength" = 1, "maxLength" = 128, "pattern" = "^[!-~]+$"))]
pub struct Opaque(String);

/// The reason in a pod's status, for example `Evicted`: 1 to 128 letters and digits, the first one a letter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(extend("minLength" = 1, "maxLength" = 128, "pattern" = "^[A-Za-z][A-Za-z0-9]*$"))]
pub struct PodReason(String);

/// The key of a label, an annotation or a taint: a name of at most 63 characters, after a prefix and a slash if it has
/// one ([Kubernetes: Labels](https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/)).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(extend(
    "minLength" = 1,
    "maxLength" = 317,
    "pattern" = r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$"
))]
pub struct QualifiedName(String);

/// The value of a label or of a taint; it may be empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(extend(
    "maxLength" = 63,
    "pattern" = r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$"
))]
pub struct LabelValue(String);

checked_string!(ObjectName, check_subdomain);
checked_string!(Namespace, check_label);
checked_string!(RequestId, check_request_id);
checked_string!(AuditText, check_audit_text);
checked_string!(ClusterName, check_audit_text);
checked_string!(Opaque, check_opaque);
checked_string!(PodReason, check_pod_reason);
checked_string!(QualifiedName, check_qualified_name);
checked_string!(LabelValue, check_label_value);

/// The prefix of the keys by which this program knows objects.
const OWN_PREFIX: &str = "action-executor.dev";

/// The prefixes of the keys that Kubernetes defines, and on which its controllers act.
const RESERVED_PREFIXES: [&str; 2] = ["kubernetes.io", "k8s.io"];

/// Whether this program acts on the key.
pub(crate) fn is_own_key(key: &str) -> bool {
    has_prefix_of(key, OWN_PREFIX)
}

/// Whether Kubernetes reserves the key's prefix
/// (<https://kubernetes.io/docs/reference/labels-annotations-taints/>).
pub(crate) fn is_reserved_key(key: &str) -> bool {
    RESERVED_PREFIXES.iter().any(|domain| has_prefix_of(key, domain))
}

/// Whether the key's prefix is this domain, or below it.
fn has_prefix_of(key: &str, domain: &str) -> bool {
    let rest = key.split_once('/').and_then(|(prefix, _)| prefix.strip_suffix(domain));
    rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

impl Default for Namespace {
    fn default() -> Self {
        Namespace("default".to_owned())
    }
}

impl ObjectName {
    /// The name of the executor's own objects.
    pub(crate) fn action_executor() -> Self {
        ObjectName("action-executor".to_owned())
    }
}

impl AuditText {
    /// The text without what a person cannot see, cut at its maximum length; none if nothing is left.
    pub(crate) fn visible_part(text: &str) -> Option<Self> {
        let visible = visible_part(text, MAX_AUDIT_TEXT).trim().to_owned();
        (!visible.is_empty()).then_some(AuditText(visible))
    }
}

impl RequestId {
    /// An id for a request without one: a UUIDv7, so that ids sort by time.
    pub(crate) fn generate() -> Self {
        RequestId(uuid::Uuid::now_v7().to_string())
    }

    /// The id of the request for one target, of the request with this id that chose several by a selector: the same one
    /// for the same object.
    pub(crate) fn of_target(&self, uid: &str) -> Self {
        let digest = sha256(format!("{}\n{uid}", self.0).as_bytes());
        let (whole, part) = (self.0.get(..MAX_WHOLE_ID).unwrap_or(&self.0), &digest[..16]);
        RequestId(format!("{whole}:{part}"))
    }
}

/// Reads null as absent: clients of the original service send it.
pub(crate) fn null_is_default<'de, D, T>(from: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Option::<T>::deserialize(from).map(Option::unwrap_or_default)
}

fn check_length(text: &str, max: usize) -> Result<(), String> {
    match text.chars().count() {
        0 => Err("must not be empty".to_owned()),
        length if length > max => {
            Err(format!("must have at most {max} characters, but has {length}"))
        }
        _ => Ok(()),
    }
}

fn is_label(text: &str) -> bool {
    let alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    bytes.iter().all(|byte| alphanumeric(byte) || *byte == b'-')
        && bytes.first().is_some_and(alphanumeric)
        && bytes.last().is_some_and(alphanumeric)
}

fn check_label(text: &str) -> Result<(), String> {
    check_length(text, 63)?;
    if is_label(text) {
        return Ok(());
    }
    Err("must be a Kubernetes label name (RFC 1123): lower-case letters, digits and '-', \
         starting and ending with a letter or digit"
        .to_owned())
}

fn check_subdomain(text: &str) -> Result<(), String> {
    check_length(text, 253)?;
    if text.split('.').all(is_label) {
        return Ok(());
    }
    Err("must be a Kubernetes object name (RFC 1123): lower-case letters, digits, '-' and '.', \
         starting and ending with a letter or digit"
        .to_owned())
}

fn check_request_id(text: &str) -> Result<(), String> {
    check_length(text, 128)?;
    if text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._:-".contains(&byte)) {
        return Ok(());
    }
    Err("must contain only letters, digits, '.', '_', ':' and '-'".to_owned())
}

fn check_audit_text(text: &str) -> Result<(), String> {
    check_length(text, MAX_AUDIT_TEXT)?;
    if text.trim().len() < text.len() {
        return Err("must not begin or end with white space".to_owned());
    }
    let at = |position: usize| position + 1;
    if let Some(at) = first_invisible(text).map(at) {
        return Err(format!(
            "must be one line of text that a person can see, but character {at} is not visible"
        ));
    }
    match first_foreign_letter(text).map(at) {
        None => Ok(()),
        Some(at) => Err(format!(
            "must not mix letters of scripts that look alike in a word, but character {at} does"
        )),
    }
}

fn check_pod_reason(text: &str) -> Result<(), String> {
    let is_valid = (1..=128).contains(&text.len())
        && text.starts_with(|letter: char| letter.is_ascii_alphabetic())
        && text.chars().all(|letter| letter.is_ascii_alphanumeric());
    if is_valid {
        return Ok(());
    }
    Err("must be 1 to 128 letters and digits, the first one a letter".to_owned())
}

/// A name with dots, underscores and capital letters between its first and its last character.
fn is_qualified_part(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() <= 63
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte))
        && bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
}

fn check_qualified_name(text: &str) -> Result<(), String> {
    let (prefix, name) = text.split_once('/').unwrap_or(("x", text));
    if check_subdomain(prefix).is_ok() && is_qualified_part(name) {
        return Ok(());
    }
    Err("must be the key of a label, an annotation or a taint, such as example.com/team: at most 63 letters, digits, '-', '_' \
         and '.', starting and ending with a letter or digit, after a domain and a slash if it has them"
        .to_owned())
}

fn check_label_value(text: &str) -> Result<(), String> {
    if text.is_empty() || is_qualified_part(text) {
        return Ok(());
    }
    Err("must have at most 63 letters, digits, '-', '_' and '.', starting and ending with a letter or digit".to_owned())
}

fn check_opaque(text: &str) -> Result<(), String> {
    check_length(text, 128)?;
    if text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Ok(());
    }
    Err("must contain only visible ASCII characters".to_owned())
}

/// The service account that the executor runs as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceAccount {
    /// Its namespace.
    pub namespace: Namespace,
    /// Its name.
    pub name: ObjectName,
}

impl ServiceAccount {
    /// The user name that the API server knows it by.
    pub(crate) fn user(&self) -> String {
        format!("system:serviceaccount:{}:{}", self.namespace, self.name)
    }
}

impl std::str::FromStr for ServiceAccount {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (namespace, name) = text.split_once(':').ok_or("must be NAMESPACE:NAME")?;
        Ok(ServiceAccount {
            namespace: namespace.to_owned().try_into()?,
            name: name.to_owned().try_into()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepts<T: TryFrom<String, Error = String>>(text: &str) {
        if let Err(why) = T::try_from(text.to_owned()) {
            panic!("{text:?} was refused: {why}");
        }
    }

    fn refuses<T: TryFrom<String, Error = String>>(text: &str) {
        assert!(T::try_from(text.to_owned()).is_err(), "{text:?} was accepted");
    }

    #[test]
    fn object_names_are_rfc_1123_subdomains() {
        for good in ["web", "web-1", "a.b-c.d", "0", &"a".repeat(253)] {
            accepts::<ObjectName>(good);
        }
        for bad in [
            "",
            "Web",
            "-web",
            "web-",
            "a..b",
            ".a",
            "a.",
            "a_b",
            "a/b",
            "--server=x",
            "wéb",
            "a\n",
        ] {
            refuses::<ObjectName>(bad);
        }
        refuses::<ObjectName>(&"a".repeat(254));
    }

    #[test]
    fn namespaces_are_rfc_1123_labels() {
        accepts::<Namespace>("kube-system");
        accepts::<Namespace>(&"a".repeat(63));
        for bad in ["", "a.b", "A", &"a".repeat(64)] {
            refuses::<Namespace>(bad);
        }
    }

    #[test]
    fn request_ids_keep_to_their_alphabet() {
        accepts::<RequestId>("alert:2026-11-24T10.00_x");
        accepts::<RequestId>(&RequestId::generate());
        for bad in ["", "a b", "a/b", "ä", &"x".repeat(129)] {
            refuses::<RequestId>(bad);
        }
    }

    #[test]
    fn generated_ids_are_uuids_of_version_7_sorted_by_time() {
        let before = uuid::Uuid::now_v7();
        let mut ids: Vec<String> = Vec::new();
        for _ in 0..300 {
            std::thread::sleep(std::time::Duration::from_micros(1));
            ids.push(RequestId::generate().to_string());
        }
        for id in &ids {
            let id = uuid::Uuid::try_parse(id).expect("is a UUID");
            assert_eq!((id.get_version_num(), id.get_variant()), (7, uuid::Variant::RFC4122));
            let milliseconds = |id: &uuid::Uuid| id.get_timestamp().map(|it| it.to_unix().0);
            assert!(milliseconds(&id) >= milliseconds(&before));
        }
        assert!(ids.is_sorted(), "{ids:?}");
        let random: std::collections::HashSet<_> = ids.iter().map(|id| &id[19..]).collect();
        assert_eq!(random.len(), ids.len());
    }

    #[test]
    fn audit_texts_are_one_printable_line() {
        accepts::<AuditText>("pager 4711: p99 über 2 s → restart");
        for good in [
            "\u{26a0}\u{fe0f} disk full",
            "\u{1f468}\u{200d}\u{1f680}",
            "5\u{a0}h",
            "管理者",
            "नमस्ते",
            "\u{639}\u{644}\u{6cc}\u{200c}\u{631}\u{636}\u{627}",
        ] {
            accepts::<AuditText>(good);
        }
        let too_long = "x".repeat(513);
        let alike = ["   ", "admin ", "\u{a0}admin", "admin\u{3000}", "\u{430}dmin"];
        for bad in ["", "a\nb", "a\0", "\u{1b}[2J", &too_long].iter().chain(&alike) {
            refuses::<AuditText>(bad);
        }
        // The name of an authenticated caller is never lost.
        assert_eq!(AuditText::visible_part(" \u{430}dmin ").as_deref(), Some("\u{430}dmin"));
        let invisible = "\u{ad}\u{34f}\u{61c}\u{115f}\u{180e}\u{200b}\u{200c}\u{200d}\u{200e}\u{2028}\u{202e}\u{2060}\u{2066}\
                         \u{2800}\u{3164}\u{e000}\u{fe0f}\u{feff}\u{fff9}\u{ffff}\u{e0041}\u{f0000}\u{10fffd}";
        for c in invisible.chars() {
            for text in [format!("ad{c}min"), format!("{c}admin"), format!("admin{c}")] {
                refuses::<AuditText>(&text);
                assert_eq!(AuditText::visible_part(&text).as_deref(), Some("admin"), "{c:?}");
            }
        }
    }

    #[test]
    fn keys_and_values_are_as_kubernetes_accepts_them() {
        for good in ["team", "example.com/Team_1.a", "a", &format!("{}/x", "a".repeat(253))] {
            accepts::<QualifiedName>(good);
        }
        let (name, prefix) = ("a".repeat(64), format!("{}/x", "a".repeat(254)));
        for bad in
            ["", "-a", "a-", "a b", "Example.com/a", "/a", "a/", "a/b/c", "a=b", &name, &prefix]
        {
            refuses::<QualifiedName>(bad);
        }
        for good in ["", "Shop-1.a_b", &"a".repeat(63)] {
            accepts::<LabelValue>(good);
        }
        for bad in ["-a", "a b", "a/b", "ä", &"a".repeat(64)] {
            refuses::<LabelValue>(bad);
        }
    }

    #[test]
    fn the_owner_of_a_key_is_known_by_its_prefix() {
        for (key, reserved, own) in [
            ("app", false, false),
            ("example.com/kubernetes.io", false, false),
            ("kubernetes.io/hostname", true, false),
            ("app.kubernetes.io/name", true, false),
            ("node-role.kubernetes.io/control-plane", true, false),
            ("sigs.k8s.io/x", true, false),
            ("notkubernetes.io/x", false, false),
            ("action-executor.dev/protected", false, true),
            ("x.action-executor.dev/y", false, true),
        ] {
            assert_eq!((is_reserved_key(key), is_own_key(key)), (reserved, own), "{key}");
        }
    }

    #[test]
    fn opaque_values_are_visible_ascii() {
        accepts::<Opaque>("7b7a9a5e-2d0c-4d51-a7a3-0b1c3e0d1f00");
        for bad in ["", "a b", "é", &"1".repeat(129)] {
            refuses::<Opaque>(bad);
        }
    }
}
