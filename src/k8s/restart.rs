//! The patch that restarts the pods of a template, as `kubectl rollout restart` does it.
//!
//! kubectl stamps the pod template with the time in whole seconds, so its second restart within one
//! second is an empty patch. The request's id beside it makes each of our restarts a change of its
//! own, and a retry can see that the restart was already made.

use chrono::{DateTime, SecondsFormat, Utc};
use json_patch::PatchOperation;
use serde_json::Value;

use crate::{
    contract::response::Change,
    k8s::{REQUEST_ID_ANNOTATION, conditional_patch::set_entries, workload::Workload},
};

/// The annotation that kubectl writes (`polymorphichelpers/objectrestarter.go`).
pub(crate) const RESTARTED_AT_ANNOTATION: &str = "kubectl.kubernetes.io/restartedAt";

/// Sets two template annotations.
pub(crate) fn operations(
    workload: &Workload,
    at: DateTime<Utc>,
    request_id: &str,
) -> Vec<PatchOperation> {
    let template = workload.template().and_then(|template| template.metadata.as_ref());
    let annotations = template.and_then(|metadata| metadata.annotations.as_ref());
    let entries =
        [(RESTARTED_AT_ANNOTATION, stamp(at)), (REQUEST_ID_ANNOTATION, request_id.to_owned())];
    set_entries(&["spec", "template", "metadata", "annotations"], annotations, &entries)
}

/// The template after the patch.
pub(crate) fn template_after(template: &Value, at: DateTime<Utc>, request_id: &str) -> Value {
    let mut template = template.clone();
    let annotations = &mut template["metadata"]["annotations"];
    annotations[RESTARTED_AT_ANNOTATION] = stamp(at).into();
    annotations[REQUEST_ID_ANNOTATION] = request_id.into();
    template
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
    use serde_json::json;

    use super::*;

    fn noon() -> DateTime<Utc> {
        "2026-01-31T12:00:00.987Z".parse().expect("is a time")
    }

    fn deployment(template: &str) -> Workload {
        let yaml = format!("spec: {{selector: {{}}, template: {template}}}");
        let deployment: Deployment = serde_yaml_ng::from_str(&yaml).expect("is a Deployment");
        deployment.into()
    }

    #[test]
    fn the_template_is_annotated_with_time_and_request() {
        let path = "/spec/template/metadata/annotations";
        let (at, id) = (
            "kubectl.kubernetes.io~1restartedAt".to_owned(),
            "action-executor.dev~1request-id".to_owned(),
        );
        let annotated = deployment("{metadata: {annotations: {a: b}}}");
        assert_eq!(
            json!(operations(&annotated, noon(), "r1")),
            json!([
                { "op": "add", "path": format!("{path}/{at}"), "value": "2026-01-31T12:00:00Z" },
                { "op": "add", "path": format!("{path}/{id}"), "value": "r1" },
            ])
        );
        assert_eq!(
            json!(operations(&deployment("{metadata: {labels: {a: b}}}"), noon(), "r1")),
            json!([
                { "op": "test", "path": path, "value": null },
                { "op": "add", "path": path, "value": {
                    "kubectl.kubernetes.io/restartedAt": "2026-01-31T12:00:00Z",
                    "action-executor.dev/request-id": "r1",
                }},
            ])
        );
    }

    #[test]
    fn the_template_after_the_patch_is_known_before() {
        let template = json!({ "metadata": { "annotations": { "a": "b" } } });
        let mut object = json!({ "spec": { "template": template } });
        let patch = operations(&deployment(&template.to_string()), noon(), "r1");
        json_patch::patch(&mut object, &json_patch::Patch(patch)).expect("is patched");
        assert_eq!(object["spec"]["template"], template_after(&template, noon(), "r1"));
        let new = template_after(&json!({}), noon(), "r1");
        assert_eq!(new["metadata"]["annotations"]["action-executor.dev/request-id"], "r1");
    }

    #[test]
    fn two_restarts_within_a_second_differ() {
        let deployment = deployment("{}");
        assert_ne!(operations(&deployment, noon(), "r1"), operations(&deployment, noon(), "r2"));
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
