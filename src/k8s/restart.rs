//! The patch that restarts the pods of a template, as `kubectl rollout restart` does it.
//!
//! kubectl stamps the pod template with the time in whole seconds, so its second restart within one
//! second is an empty patch. The request's id beside it makes each of our restarts a change of its
//! own, and lets whoever retries see that the restart was already made.

use chrono::{DateTime, SecondsFormat, Utc};
use k8s_openapi::api::apps::v1::Deployment;
use serde_json::{Value, json};

use super::REQUEST_ID_ANNOTATION;
use crate::response::Change;

/// The annotation that kubectl writes (`polymorphichelpers/objectrestarter.go`).
pub const RESTARTED_AT_ANNOTATION: &str = "kubectl.kubernetes.io/restartedAt";

/// Where the request's id stands in the patched object (RFC 6901).
pub const MARKER_POINTER: &str =
    "/spec/template/metadata/annotations/action-executor.dev~1request-id";

/// The strategic merge patch: two template annotations, bound to the object that was read. With
/// `uid` and `resourceVersion` in it the API server answers 409 if the object is another one or has
/// changed, so the patch can take effect at most once however often it is sent.
#[must_use]
pub fn patch(uid: &str, resource_version: &str, at: DateTime<Utc>, request_id: &str) -> Value {
    json!({
        "metadata": { "uid": uid, "resourceVersion": resource_version },
        "spec": { "template": { "metadata": { "annotations": {
            RESTARTED_AT_ANNOTATION: stamp(at),
            REQUEST_ID_ANNOTATION: request_id,
        }}}},
    })
}

/// What the patch changes in this Deployment.
#[must_use]
pub fn changes(before: Option<&Deployment>, at: DateTime<Utc>, request_id: &str) -> Vec<Change> {
    let change = |key: &str, to: String| Change {
        path: format!("/spec/template/metadata/annotations/{}", key.replace('/', "~1")),
        from: before.and_then(|it| template_annotation(it, key)).map_or(Value::Null, Value::from),
        to: Value::from(to),
    };
    vec![
        change(RESTARTED_AT_ANNOTATION, stamp(at)),
        change(REQUEST_ID_ANNOTATION, request_id.to_owned()),
    ]
}

/// An annotation of the Deployment's pod template.
#[must_use]
pub fn template_annotation<'a>(deployment: &'a Deployment, key: &str) -> Option<&'a str> {
    let metadata = deployment.spec.as_ref()?.template.metadata.as_ref()?;
    metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

fn stamp(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Secs, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noon() -> DateTime<Utc> {
        "2026-01-31T12:00:00.987Z".parse().expect("is a time")
    }

    #[test]
    fn stamps_the_template_and_binds_itself_to_the_object() {
        assert_eq!(
            patch("u1", "42", noon(), "r1"),
            json!({
                "metadata": { "uid": "u1", "resourceVersion": "42" },
                "spec": { "template": { "metadata": { "annotations": {
                    "kubectl.kubernetes.io/restartedAt": "2026-01-31T12:00:00Z",
                    "action-executor.dev/request-id": "r1",
                }}}},
            })
        );
    }

    #[test]
    fn the_marker_is_where_its_pointer_says() {
        let patch = patch("u1", "42", noon(), "r1");
        assert_eq!(patch.pointer(MARKER_POINTER), Some(&Value::from("r1")));
    }

    #[test]
    fn two_restarts_within_a_second_differ() {
        assert_ne!(patch("u", "1", noon(), "r1"), patch("u", "1", noon(), "r2"));
    }

    #[test]
    fn tells_the_values_before_and_after() {
        let before: Deployment = serde_yaml_ng::from_str(
            "spec:
               selector: {}
               template:
                 metadata:
                   annotations: {kubectl.kubernetes.io/restartedAt: '2025-12-01T08:00:00Z'}",
        )
        .expect("is a Deployment");
        let changes = changes(Some(&before), noon(), "r1");
        assert_eq!(changes[0].from, "2025-12-01T08:00:00Z");
        assert_eq!(changes[0].to, "2026-01-31T12:00:00Z");
        assert_eq!(changes[1].path, MARKER_POINTER);
        assert_eq!(changes[1].from, Value::Null);
    }
}
