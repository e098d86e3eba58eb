//! The patch that restarts the pods of a template, as `kubectl rollout restart` does it.
//!
//! kubectl stamps the pod template with the time in whole seconds, so its second restart within one
//! second is an empty patch. The request's id beside it makes each of our restarts a change of its
//! own, and a retry can see that the restart was already made.

use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::{Value, json};

use crate::{
    contract::response::Change,
    k8s::{REQUEST_ID_ANNOTATION, workload::Workload},
};

/// The annotation that kubectl writes (`polymorphichelpers/objectrestarter.go`).
pub(crate) const RESTARTED_AT_ANNOTATION: &str = "kubectl.kubernetes.io/restartedAt";

/// The strategic merge patch: two template annotations.
pub(crate) fn patch(at: DateTime<Utc>, request_id: &str) -> Value {
    json!({
        "spec": { "template": { "metadata": { "annotations": {
            RESTARTED_AT_ANNOTATION: stamp(at),
            REQUEST_ID_ANNOTATION: request_id,
        }}}},
    })
}

/// What the patch changes. Without a workload the values before are unknown.
pub(crate) fn changes(
    before: Option<&Workload>,
    at: DateTime<Utc>,
    request_id: &str,
) -> Vec<Change> {
    let change = |key: &str, to: String| Change {
        path: format!("/spec/template/metadata/annotations/{}", key.replace('/', "~1")),
        from: before.and_then(|it| it.template_annotation(key)).map_or(Value::Null, Value::from),
        to: Value::from(to),
    };
    vec![
        change(RESTARTED_AT_ANNOTATION, stamp(at)),
        change(REQUEST_ID_ANNOTATION, request_id.to_owned()),
    ]
}

fn stamp(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Secs, true)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::Deployment;

    use super::*;

    fn noon() -> DateTime<Utc> {
        "2026-01-31T12:00:00.987Z".parse().expect("is a time")
    }

    #[test]
    fn the_patch_annotates_the_template_with_time_and_request() {
        assert_eq!(
            patch(noon(), "r1"),
            json!({
                "spec": { "template": { "metadata": { "annotations": {
                    "kubectl.kubernetes.io/restartedAt": "2026-01-31T12:00:00Z",
                    "action-executor.dev/request-id": "r1",
                }}}},
            })
        );
    }

    #[test]
    fn two_restarts_within_a_second_differ() {
        assert_ne!(patch(noon(), "r1"), patch(noon(), "r2"));
    }

    #[test]
    fn a_restart_shows_the_values_before_and_after() {
        let before: Deployment = serde_yaml_ng::from_str(
            "spec:
               selector: {}
               template:
                 metadata:
                   annotations: {kubectl.kubernetes.io/restartedAt: '2025-12-01T08:00:00Z'}",
        )
        .expect("is a Deployment");
        let changes = changes(Some(&before.into()), noon(), "r1");
        assert_eq!(changes[0].from, "2025-12-01T08:00:00Z");
        assert_eq!(changes[0].to, "2026-01-31T12:00:00Z");
        assert_eq!(
            changes[1].path,
            "/spec/template/metadata/annotations/action-executor.dev~1request-id"
        );
        assert_eq!(changes[1].from, Value::Null);
    }
}
