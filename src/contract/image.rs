//! References to container images, by the grammar of the `distribution` project
//! (<https://pkg.go.dev/github.com/distribution/reference>).

use std::{fmt, ops::Deref};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::contract::names::checked_string;

/// The longest reference.
const MAX_CHARACTERS: usize = 512;

/// The registry of a name without one.
const DOCKER_HUB: &str = "docker.io";

/// Names that make `sha256:...` the id of an image on the node, whatever repository that is of.
const ALGORITHMS: [&str; 3] = ["sha256", "sha384", "sha512"];

/// The longest tag.
const MAX_TAG_CHARACTERS: usize = 128;

/// An image by its repository and a tag, a digest, or both: `registry.example.com/shop/web:1.2`. Without a tag or a
/// digest it would mean whatever is newest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(extend(
    "minLength" = 3,
    "maxLength" = 512,
    "pattern" = r"^[a-zA-Z0-9][-a-zA-Z0-9._:/]*(:[A-Za-z0-9_][-A-Za-z0-9._]*|@[a-z0-9+._-]+:[0-9a-f]{32,128})$"
))]
pub struct ImageReference(String);

checked_string!(ImageReference, check);

impl ImageReference {
    /// Whether it names a digest, which is always the same image.
    pub(crate) fn has_digest(&self) -> bool {
        self.0.contains('@')
    }
}

/// The parts of a reference: name, tag, digest.
struct Parts<'a> {
    name: &'a str,
    tag: Option<&'a str>,
    digest: Option<&'a str>,
}

/// Takes a reference apart at its delimiters. A colon before a slash belongs to a port.
fn parts(reference: &str) -> Parts<'_> {
    let (rest, digest) = match reference.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (reference, None),
    };
    match rest.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => Parts { name, tag: Some(tag), digest },
        _ => Parts { name: rest, tag: None, digest },
    }
}

/// The repository of a reference as container runtimes complete it: `nginx:1` is of `docker.io/library/nginx`.
pub(crate) fn repository(reference: &str) -> String {
    let name = parts(reference).name;
    let (host, path) = match name.split_once('/') {
        Some((host, path)) if is_host(host) => (host.to_ascii_lowercase(), path),
        _ => (DOCKER_HUB.to_owned(), name),
    };
    match host.as_str() {
        DOCKER_HUB | "index.docker.io" if !path.contains('/') => {
            format!("{DOCKER_HUB}/library/{path}")
        }
        "index.docker.io" => format!("{DOCKER_HUB}/{path}"),
        _ => format!("{host}/{path}"),
    }
}

/// Whether the first component of a name is the host of a registry.
pub(crate) fn is_host(component: &str) -> bool {
    component.contains(['.', ':']) || component == "localhost"
}

fn check(reference: &str) -> Result<(), String> {
    const HINT: &str = "must be an image reference such as registry.example.com/shop/web:1.2 or \
                        registry.example.com/shop/web@sha256:...";
    let refused = |what: &str| Err(what.to_owned());
    if reference.len() > MAX_CHARACTERS {
        return refused("must have at most 512 characters");
    }
    let Parts { name, tag, digest } = parts(reference);
    let mut components: Vec<_> = name.split('/').collect();
    if components.len() > 1 && is_host(components[0]) {
        let host = components.remove(0);
        let (host, port) = host.split_once(':').unwrap_or((host, "0"));
        let is_port = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
        if !host.split('.').all(is_host_label) || !is_port {
            return refused(HINT);
        }
    }
    let is_valid = components.into_iter().all(is_path_component)
        && tag.is_none_or(is_tag)
        && digest.is_none_or(is_digest);
    match is_valid {
        false => refused(HINT),
        true if ALGORITHMS.contains(&name) => refused("must not be the id of an image on a node"),
        true if tag.is_none() && digest.is_none() => refused("must have a tag or a digest"),
        true => Ok(()),
    }
}

fn is_host_label(label: &str) -> bool {
    let bytes = label.as_bytes();
    bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-')
        && bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
}

/// Lower-case letters and digits, separated by one `.`, one or two `_`, or any number of `-`.
fn is_path_component(component: &str) -> bool {
    let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let is_separator =
        |text: &str| matches!(text, "" | "." | "_" | "__") || text.bytes().all(|byte| byte == b'-');
    component.starts_with(is_word)
        && component.ends_with(is_word)
        && component.split(is_word).all(is_separator)
}

fn is_tag(tag: &str) -> bool {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    tag.starts_with(is_word)
        && tag.len() <= MAX_TAG_CHARACTERS
        && tag.chars().all(|c| is_word(c) || matches!(c, '.' | '-'))
}

fn is_digest(digest: &str) -> bool {
    let Some((algorithm, hex)) = digest.split_once(':') else { return false };
    let expected = match algorithm {
        "sha256" => 64,
        "sha384" => 96,
        "sha512" => 128,
        _ => return false,
    };
    hex.len() == expected && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> Option<String> {
        ImageReference::try_from(text.to_owned()).err()
    }

    #[test]
    fn a_reference_has_a_repository_and_a_tag_or_a_digest() {
        let digest = "a".repeat(64);
        for valid in [
            "nginx:1.29",
            "shop/web:v1_2-rc.1",
            "localhost:5000/web:1",
            "registry.example.com/a__b/c-d.e:Latest",
            &format!("registry.example.com:443/web@sha256:{digest}"),
            &format!("web:1@sha256:{digest}"),
        ] {
            assert_eq!(error(valid), None, "{valid}");
        }
        for invalid in [
            "",
            "nginx:",
            ":1",
            "Nginx:1",
            "shop//web:1",
            "web :1",
            "a..b:1",
            "a___b:1",
            "-a:1",
            "host.example.com:port/web:1",
            "web@sha256:abc",
            "web@md5:d41d8cd98f00b204e9800998ecf8427e",
            "web:1\n",
            &format!("web:{}", "1".repeat(129)),
            &format!("web:{}", "1".repeat(600)),
        ] {
            assert!(error(invalid).is_some(), "{invalid}");
        }
        assert_eq!(error("nginx").as_deref(), Some("must have a tag or a digest"));
        let image_id = format!("sha256:{digest}");
        assert_eq!(error(&image_id).as_deref(), Some("must not be the id of an image on a node"));
    }

    #[test]
    fn a_repository_is_completed_as_runtimes_complete_it() {
        for (reference, expected) in [
            ("nginx", "docker.io/library/nginx"),
            ("nginx:1", "docker.io/library/nginx"),
            ("shop/web:1", "docker.io/shop/web"),
            ("docker.io/nginx:1", "docker.io/library/nginx"),
            ("index.docker.io/shop/web:1", "docker.io/shop/web"),
            ("index.docker.io/nginx", "docker.io/library/nginx"),
            ("Registry.Example.com/web:1", "registry.example.com/web"),
            ("localhost/web:1", "localhost/web"),
            ("localhost:5000/web", "localhost:5000/web"),
            ("registry.example.com/a/b@sha256:00", "registry.example.com/a/b"),
        ] {
            assert_eq!(repository(reference), expected, "{reference}");
        }
    }
}
