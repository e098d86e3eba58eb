//! The checked strings of a request: names (RFC 1123), ids, texts for the audit.
//!
//! A value of one of these types is valid: it is checked when it is created. No message repeats a value,
//! which may be a secret in the wrong field.

use std::{fmt, ops::Deref};

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use crate::contract::visible::{first_foreign_letter, first_invisible, visible_part};

/// Maximum number of characters of a text for the audit.
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

/// A line for the audit, as a requester or a reason: 1 to 512 characters, all of which a person can see.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(extend(
    "minLength" = 1,
    "maxLength" = 512,
    "pattern" = r"^[^\u0000-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ue000-\uf8ff\ufeff]+$"
))]
pub struct AuditText(String);

/// A uid or resourceVersion as the cluster gave it: opaque, 1 to 128 visible ASCII characters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(extend("minLength" = 1, "maxLength" = 128, "pattern" = "^[!-~]+$"))]
pub struct Opaque(String);

/// A label selector as of kubectl: 1 to 512 characters of its notation. The API server checks its syntax.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(extend(
    "minLength" = 1,
    "maxLength" = 512,
    "pattern" = r"^[-A-Za-z0-9_./=!(), ]+$"
))]
pub struct LabelSelector(String);

checked_string!(ObjectName, check_subdomain);
checked_string!(Namespace, check_label);
checked_string!(RequestId, check_request_id);
checked_string!(AuditText, check_audit_text);
checked_string!(Opaque, check_opaque);
checked_string!(LabelSelector, check_label_selector);

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

fn check_label_selector(text: &str) -> Result<(), String> {
    check_length(text, 512)?;
    if text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_./=!(), ".contains(&byte)) {
        return Ok(());
    }
    Err("must be a label selector, as app=web,tier!=db".to_owned())
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
    fn opaque_values_are_visible_ascii() {
        accepts::<Opaque>("7b7a9a5e-2d0c-4d51-a7a3-0b1c3e0d1f00");
        for bad in ["", "a b", "é", &"1".repeat(129)] {
            refuses::<Opaque>(bad);
        }
    }
}
