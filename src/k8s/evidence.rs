//! What the cluster shows of an effect that was sent, and whose answer is missing. Pure.
//!
//! A patch is recognised by the request's mark in an annotation, a scaling, a resize and a change of the status by
//! their field manager, which these subresources keep in place of an annotation, a creation by the mark on the new
//! object. A deletion leaves nothing behind: an object that is gone does not show who deleted it.
//!
//! That an effect is not seen does not prove that it was not made, nor that it will not be made:
//!
//! - Another client may have removed the mark with everything else (`kubectl rollout undo`, `kubectl replace`). Our
//!   patch adds one to `metadata.generation`, and so does the removal. A generation that is one ahead, apart from the
//!   requests that the annotation lists, allows for one of them only. Not noticed is a removal of the annotation alone
//!   from a StatefulSet, a DaemonSet or a CronJob, or from an object without a generation: a node, and before Kubernetes
//!   1.37 a HorizontalPodAutoscaler, or whose status is a generation, too: an Application of Argo CD; and a removal of a
//!   change of labels or annotations, which is no generation except of a Deployment.
//! - The write may still be on its way. It can have no effect any more once what it tests has changed permanently: a
//!   generation and the number of the last request only grow, a resourceVersion is never used again.

use kube::{
    api::DynamicObject,
    core::{ObjectMeta, WatchEvent, watch::Bookmark},
};
use serde_json::Value;

use crate::k8s::{
    applied_requests::{AppliedRequests, REQUESTS_ANNOTATION},
    conditional_patch::values_set,
    effect::{Applied, Effect, Mutation},
    field_managers::{is_listed, owns_status, replica_managers, resize_managers},
    revisions::{template_digest, template_in},
    rollout::ExceededDeadline,
};

/// What the cluster shows of an effect whose answer is missing.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Evidence {
    /// It was made.
    Made(Applied),
    /// It was not made, and a write that is on its way will have no effect.
    NeverMade,
    /// It was not made so far. A write that is on its way may still make it.
    NotYet,
    /// The object is gone or being deleted. Who deleted it is unknown.
    Gone,
    /// Unknown: the object was changed too often, or replaced, since.
    Unknowable,
}

impl Evidence {
    /// The evidence on the metadata of the object that has the effect's name now; `None` if there is none.
    pub(crate) fn of(effect: &Effect, found: Option<&ObjectMeta>) -> Self {
        match (&effect.mutation, found) {
            // Its object was being deleted before, so only that it is gone shows anything.
            (Mutation::Delete { resource_version, grace_period_seconds: Some(0) }, found) => {
                match found.filter(|it| is_same_object(effect, it)) {
                    Some(found) => not_made(has_changed(found, resource_version.as_deref())),
                    None => Evidence::Gone,
                }
            }
            (Mutation::Delete { resource_version, .. }, found)
            | (Mutation::Evict { resource_version, .. }, found) => {
                match found.filter(|it| is_alive(effect, it)) {
                    Some(found) => not_made(has_changed(found, resource_version.as_deref())),
                    None => Evidence::Gone,
                }
            }
            // The name is this request's alone: another object means that ours was deleted. None proves nothing,
            // since an object may be deleted as soon as it is made: [`Evidence::of_creation`].
            (Mutation::Create { mark, .. }, Some(found)) if is_marked(found, mark) => {
                // As right after the creation: the new object is not the target.
                Evidence::Made(Applied::default())
            }
            (Mutation::Create { .. }, _) => Evidence::Unknowable,
            (_, Some(found)) if is_same_object(effect, found) => of_change(effect, found),
            // The object of the effect is gone, and its annotations with it.
            _ => Evidence::Unknowable,
        }
    }
}

impl Evidence {
    /// The same evidence with the pod template that the effect left, if the object was not changed since.
    pub(crate) fn with_template_of(self, effect: &Effect, object: &DynamicObject) -> Self {
        // The effect may have been decided again, on a later generation than that of the record.
        let is_last = matches!(&effect.mutation, Mutation::Patch { mark, .. }
            if AppliedRequests::from_metadata(&object.metadata).is_last_change(mark));
        let generation = object.metadata.generation;
        match self {
            Evidence::Made(applied)
                if is_last || (generation.is_some() && applied.generation == generation) =>
            {
                let template = digest_in(&object.data);
                Evidence::Made(Applied { generation, template, ..applied })
            }
            evidence => evidence,
        }
    }

    /// The same evidence, given the object's status: while it is the one that a change of it was decided on, no such
    /// change was made.
    pub(crate) fn with_status_of(self, effect: &Effect, object: &DynamicObject) -> Self {
        match self {
            Evidence::Unknowable if effect.is_decided_on(object) => Evidence::NotYet,
            evidence => evidence,
        }
    }

    /// The evidence of a creation whose object is not there, from what happened to objects of its name since before
    /// it was sent. `absent_at` is the version at which it was not there: the events are complete if they reach it.
    pub(crate) fn of_creation(
        mark: &str,
        events: &[WatchEvent<DynamicObject>],
        absent_at: &str,
    ) -> Self {
        let mut is_complete = false;
        for event in events {
            match event {
                WatchEvent::Added(object)
                | WatchEvent::Modified(object)
                | WatchEvent::Deleted(object)
                    if is_marked(&object.metadata, mark) =>
                {
                    return Evidence::Made(Applied::default());
                }
                WatchEvent::Bookmark(Bookmark { metadata, .. }) => {
                    is_complete |= is_as_new(&metadata.resource_version, absent_at);
                }
                WatchEvent::Error(_) => return Evidence::Unknowable,
                _ => {}
            }
        }
        if is_complete { Evidence::NotYet } else { Evidence::Unknowable }
    }
}

/// Versions of one kind can be compared as numbers (KEP-5504).
fn is_as_new(version: &str, other: &str) -> bool {
    let number = |text: &str| text.parse::<u64>().ok();
    number(version).zip(number(other)).is_some_and(|(version, other)| version >= other)
}

/// The evidence of a patch or a scaling on its own object.
fn of_change(effect: &Effect, found: &ObjectMeta) -> Evidence {
    let steps = effect.generation.zip(found.generation).map(|(then, now)| now - then);
    match &effect.mutation {
        Mutation::Patch { mark, .. } if is_marked(found, mark) => made(effect),
        Mutation::Patch { since, .. } => {
            let requests = AppliedRequests::from_metadata(found);
            // The requests after ours was decided on: each is one step.
            let others = requests.count_above(*since);
            match steps {
                Some(0) => not_made(requests.newest() > *since),
                // Ours and the removal of its mark are two steps.
                Some(steps) if others.is_some_and(|it| (0..=1).contains(&(steps - it))) => {
                    Evidence::NeverMade
                }
                Some(_) => Evidence::Unknowable,
                None if requests.may_have_dropped(*since) => Evidence::Unknowable,
                // All entries after `since` are still in the list: there is none, or the next one is.
                None if requests.newest() == *since => Evidence::NotYet,
                None if requests.has_number(*since + 1) => Evidence::NeverMade,
                None => Evidence::Unknowable,
            }
        }
        Mutation::Scale { manager, before, resource_version, .. } => {
            let now = replica_managers(found);
            if is_listed(&now, manager) {
                return made(effect);
            }
            // Each change of the replicas takes their ownership from the manager before, at another time.
            if now != *before && steps != Some(1) {
                return Evidence::Unknowable;
            }
            not_made(has_changed(found, resource_version.as_deref()))
        }
        Mutation::Resize { manager, before, .. } => {
            let now = resize_managers(found);
            match steps {
                _ if is_listed(&now, manager) => made(effect),
                // Its patch tests the generation, which only grows.
                Some(0) => Evidence::NotYet,
                Some(1) => Evidence::NeverMade,
                Some(_) if now == *before => Evidence::NeverMade,
                None if now == *before => Evidence::NotYet,
                _ => Evidence::Unknowable,
            }
        }
        Mutation::Status { manager, .. } if owns_status(found, manager) => made(effect),
        // The controller, or the next change, may have taken the ownership: [`Evidence::with_status_of`].
        _ => Evidence::Unknowable,
    }
}

/// The object may have been changed since, so its version right after the effect is unknown. The generation is not.
fn made(effect: &Effect) -> Evidence {
    let generation = effect.generation.map(|before| before + 1);
    Evidence::Made(Applied { generation, ..Applied::default() })
}

fn not_made(is_for_good: bool) -> Evidence {
    if is_for_good { Evidence::NeverMade } else { Evidence::NotYet }
}

/// Whether the object has another version than a write requires, if it requires one.
fn has_changed(found: &ObjectMeta, required: Option<&str>) -> bool {
    required.is_some_and(|required| found.resource_version.as_deref() != Some(required))
}

fn is_same_object(effect: &Effect, found: &ObjectMeta) -> bool {
    found.uid.as_deref() == Some(effect.uid.as_str())
}

fn is_alive(effect: &Effect, found: &ObjectMeta) -> bool {
    is_same_object(effect, found) && found.deletion_timestamp.is_none()
}

fn is_marked(found: &ObjectMeta, mark: &str) -> bool {
    AppliedRequests::from_metadata(found).contains(mark)
}

/// What the response to an effect says was done; `None` if it does not show the effect, whatever its status code:
/// then something between us and the API server has answered.
pub(crate) fn confirmed(effect: &Effect, response: &Value) -> Option<Applied> {
    let metadata = &response["metadata"];
    let is_target = metadata["uid"] == effect.uid.as_str();
    let is_success = response["kind"] == "Status" && response["status"] == "Success";
    let has_mark = |mark: &str| {
        serde_json::from_value::<ObjectMeta>(metadata.clone()).is_ok_and(|it| is_marked(&it, mark))
    };
    let is_confirmed = match &effect.mutation {
        Mutation::Patch { mark, .. } => is_target && has_mark(mark),
        // The API server leaves out a number of 0.
        Mutation::Scale { replicas, .. } => {
            is_target && response["spec"]["replicas"].as_i64().unwrap_or(0) == i64::from(*replicas)
        }
        Mutation::Resize { manager, .. } => {
            let metadata = serde_json::from_value::<ObjectMeta>(metadata.clone());
            is_target && metadata.is_ok_and(|it| is_listed(&resize_managers(&it), manager))
        }
        Mutation::Status { manager, .. } => {
            let metadata = serde_json::from_value::<ObjectMeta>(metadata.clone());
            is_target && metadata.is_ok_and(|it| owns_status(&it, manager))
        }
        // A deletion returns the object, or a Status with its uid.
        Mutation::Delete { .. } => {
            is_target || is_success && response["details"]["uid"] == effect.uid.as_str()
        }
        Mutation::Evict { .. } => is_success,
        Mutation::Create { mark, .. } => metadata["name"] == effect.name.as_str() && has_mark(mark),
    };
    is_confirmed.then(|| match effect.mutation {
        // The target is the object that it was created from, which did not change.
        Mutation::Create { .. } => Applied::default(),
        _ => Applied {
            resource_version: metadata["resourceVersion"].as_str().map(str::to_owned),
            generation: metadata["generation"].as_i64(),
            template: digest_in(response),
            exceeded_at: serde_json::from_value(response["status"].clone())
                .ok()
                .and_then(|status| ExceededDeadline::in_status(&status)?.at),
            warnings: altered(&effect.mutation, response),
        },
    })
}

/// What the API server stored in place of a value that a patch set: admission may change it.
fn altered(mutation: &Mutation, response: &Value) -> Vec<String> {
    let (Mutation::Patch { patch, .. }
    | Mutation::Resize { patch, .. }
    | Mutation::Status { patch, .. }) = mutation
    else {
        return Vec::new();
    };
    let mark = format!("/metadata/annotations/{}", REQUESTS_ANNOTATION.replace('/', "~1"));
    let ours = values_set(patch)
        .filter(|(path, value)| *path != mark && !value.is_object() && !value.is_array());
    ours
        .filter_map(|(path, value)| {
            let stored = response.pointer(path);
            // The API server leaves out what is empty.
            let is_left_out = stored.is_none() && matches!(value, Value::Bool(false) | Value::Null);
            (stored != Some(value) && !is_left_out).then(|| {
                let stored = stored.map_or_else(|| "nothing".to_owned(), Value::to_string);
                format!(
                    "the cluster stored {stored} at {path}, and not {value} as this request set it: admission has \
                     changed it"
                )
            })
        })
        .collect()
}

/// The digest of the pod template of this object, if it has one.
fn digest_in(object: &Value) -> Option<String> {
    object.pointer("/spec/template")?;
    Some(template_digest(&template_in(object, "/spec/template")))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::{apps::v1::Deployment, batch::v1::Job, core::v1::Pod};
    use kube::api::ApiResource;
    use serde_json::json;

    use super::*;
    use crate::k8s::{
        conditional_patch::add,
        effect::StatusDecision,
        field_managers::{has_scaled, request_manager},
    };

    fn object(yaml: &str) -> DynamicObject {
        serde_yaml_ng::from_str(yaml).expect("is an object")
    }

    fn evidence(effect: &Effect, yaml: &str) -> Evidence {
        Evidence::of(effect, Some(&object(yaml).metadata))
    }

    fn patch(generation: &str) -> Effect {
        let before = object(&format!(
            "metadata: {{name: web, namespace: shop, uid: u1, resourceVersion: '7', {generation} \
             annotations: {{action-executor.dev/requests: '4:r0@d0'}}}}"
        ));
        let change = vec![add(&["spec", "paused"], json!(true))];
        let resource = ApiResource::erase::<Deployment>(&());
        Effect::patch(resource, &before.metadata, "r1@d1", None, change)
    }

    #[test]
    fn a_value_that_admission_has_changed_is_warned_of() {
        let metadata = serde_yaml_ng::from_str("{name: web, namespace: shop, uid: u1}");
        let change =
            vec![add(&["spec", "maxReplicas"], json!(9)), add(&["spec", "paused"], json!(false))];
        let resource = ApiResource::erase::<Deployment>(&());
        let effect =
            Effect::patch(resource, &metadata.expect("is metadata"), "r1@d1", None, change);
        let applied = |max: i32| {
            let marks = json!({ "action-executor.dev/requests": "1:r1@d1" });
            let metadata = json!({ "uid": "u1", "annotations": marks });
            confirmed(&effect, &json!({ "metadata": metadata, "spec": { "maxReplicas": max } }))
        };
        assert_eq!(applied(9).expect("is confirmed").warnings, [""; 0]);
        let warnings = applied(6).expect("is confirmed").warnings;
        assert!(
            warnings[0].starts_with("the cluster stored 6 at /spec/maxReplicas, and not 9"),
            "{warnings:?}"
        );
    }

    #[test]
    fn a_patch_is_recognised_by_the_mark_on_the_same_object() {
        let left = |uid: &str, generation: i64, requests: &str| {
            let yaml = format!(
                "metadata: {{uid: {uid}, generation: {generation}, annotations: \
                 {{action-executor.dev/requests: '{requests}'}}}}"
            );
            evidence(&patch("generation: 3,"), &yaml)
        };
        assert!(matches!(left("u1", 4, "4:r0@d0 5:r1@d1"), Evidence::Made(_)));
        let Evidence::Made(applied) = left("u1", 9, "5:r1@d1 6:r2@d2") else { panic!("is made") };
        assert_eq!((applied.generation, applied.resource_version), (Some(4), None));
        // Another request with the same id.
        assert_eq!(left("u1", 4, "4:r0@d0 5:r1@d9"), Evidence::NeverMade);
        assert_eq!(left("u1", 3, "4:r0@d0"), Evidence::NotYet);
        assert_eq!(left("u1", 4, "4:r0@d0"), Evidence::NeverMade);
        assert_eq!(left("u1", 4, "4:r0@d0 5:r2@d2"), Evidence::NeverMade);
        // Two other requests, and one more change.
        assert_eq!(left("u1", 5, "5:r2@d2 6:r3@d3"), Evidence::NeverMade);
        assert_eq!(left("u1", 6, "5:r2@d2 6:r3@d3"), Evidence::NeverMade);
        assert_eq!(left("u1", 7, "5:r2@d2 6:r3@d3"), Evidence::Unknowable);
        // One that is dropped may have been ours.
        let full: Vec<_> = (6..14).map(|number| format!("{number}:r{number}@d2")).collect();
        assert_eq!(left("u1", 12, &full.join(" ")), Evidence::Unknowable);
        // Made, and undone together with its mark.
        assert_eq!(left("u1", 5, "4:r0@d0"), Evidence::Unknowable);
        assert_eq!(left("u1", 5, ""), Evidence::Unknowable);
        assert_eq!(left("u2", 4, "5:r1@d1"), Evidence::Unknowable);
        assert_eq!(Evidence::of(&patch("generation: 3,"), None), Evidence::Unknowable);
    }

    #[test]
    fn a_mark_beside_does_not_hide_that_a_lost_change_may_have_been_made_and_undone() {
        // Ours made generation 4; a replacement of the object removed it with its mark; then a label was set.
        let replaced = object("metadata: {uid: u1, generation: 5}").metadata;
        let labelled = AppliedRequests::from_metadata(&replaced).push_beside("r2@d2");
        let yaml = format!(
            "metadata: {{uid: u1, generation: 5, annotations: {{action-executor.dev/requests: '{labelled}'}}}}"
        );
        assert_eq!(evidence(&patch("generation: 3,"), &yaml), Evidence::Unknowable);
    }

    #[test]
    fn a_patch_of_an_object_without_a_generation_is_judged_by_the_numbers_of_the_requests() {
        let left = |requests: &str| {
            let yaml = format!(
                "metadata: {{uid: u1, annotations: {{action-executor.dev/requests: '{requests}'}}}}"
            );
            evidence(&patch(""), &yaml)
        };
        assert!(matches!(left("4:r0@d0 5:r1@d1"), Evidence::Made(_)));
        assert_eq!(left("4:r0@d0"), Evidence::NotYet);
        assert_eq!(left("4:r0@d0 5:r2@d2"), Evidence::NeverMade);
        assert_eq!(left("7:r4@d4"), Evidence::Unknowable);
    }

    #[test]
    fn a_patch_of_metadata_alone_is_judged_by_its_mark_and_not_by_the_generation() {
        let object_of = |generation: i64, requests: &str| {
            object(&format!(
                "metadata: {{name: web, uid: u1, generation: {generation}, annotations: \
                 {{action-executor.dev/requests: '{requests}'}}}}"
            ))
        };
        let before = object_of(3, "3:r0@d0").metadata;
        let resource = ApiResource::erase::<Deployment>(&());
        let effect = Effect::metadata_patch(resource, &before, "r1@d1", None, Vec::new());
        let left = |generation, requests: &str| {
            Evidence::of(&effect, Some(&object_of(generation, requests).metadata))
        };
        assert!(matches!(left(3, "3:r0@d0 3:r1@d1"), Evidence::Made(_)));
        assert!(matches!(left(5, "3:r0@d0 3:r1@d1 4:r2@d2"), Evidence::Made(_)));
        assert_eq!(left(3, "3:r0@d0"), Evidence::NotYet);
        assert_eq!(left(4, "3:r0@d0 4:r2@d2"), Evidence::NeverMade);
        // Another client, such as an autoscaler, has changed the spec alone.
        assert_eq!(left(4, "3:r0@d0"), Evidence::NotYet);
        // Eight others may have dropped it.
        assert_eq!(left(3, &["3:r9@d9"; 8].join(" ")), Evidence::Unknowable);
    }

    #[test]
    fn a_deletion_shows_that_the_object_is_gone_and_not_by_whom() {
        let pod = object("metadata: {name: web-1, namespace: shop, uid: u1, resourceVersion: '7'}");
        let resource = ApiResource::erase::<Pod>(&());
        for effect in
            [Effect::deletion(resource, &pod.metadata, None), Effect::eviction(&pod.metadata, None)]
        {
            assert_eq!(evidence(&effect, "metadata: {uid: u2}"), Evidence::Gone);
            let going = "metadata: {uid: u1, deletionTimestamp: '2026-01-31T12:00:00Z'}";
            assert_eq!(evidence(&effect, going), Evidence::Gone);
            assert_eq!(Evidence::of(&effect, None), Evidence::Gone);
            let alive = |version| format!("metadata: {{uid: u1, resourceVersion: '{version}'}}");
            assert_eq!(evidence(&effect, &alive(8)), Evidence::NotYet);
        }
        let bound = Effect::deletion(ApiResource::erase::<Pod>(&()), &pod.metadata, None)
            .bound_to(&pod.metadata);
        let alive = |version| format!("metadata: {{uid: u1, resourceVersion: '{version}'}}");
        assert_eq!(evidence(&bound, &alive(7)), Evidence::NotYet);
        assert_eq!(evidence(&bound, &alive(8)), Evidence::NeverMade);
    }

    #[test]
    fn a_forced_deletion_was_not_made_while_the_object_is_there() {
        let going = |version: &str| {
            object(&format!(
                "metadata: {{name: web-1, namespace: shop, uid: u1, resourceVersion: '{version}', deletionTimestamp: \
                 '2026-01-31T12:00:00Z'}}"
            ))
            .metadata
        };
        let version = Some("7".to_owned());
        let effect = Effect::forced_deletion(ApiResource::erase::<Pod>(&()), &going("7"), version);
        assert_eq!(Evidence::of(&effect, Some(&going("7"))), Evidence::NotYet);
        assert_eq!(Evidence::of(&effect, Some(&going("8"))), Evidence::NeverMade);
        assert_eq!(evidence(&effect, "metadata: {uid: u2}"), Evidence::Gone);
        assert_eq!(Evidence::of(&effect, None), Evidence::Gone);
    }

    #[test]
    fn a_scaling_is_recognised_by_its_field_manager_on_the_replicas() {
        let noted = |generation: i64, managers: &[(&str, &str)]| {
            let entries: Vec<_> = managers
                .iter()
                .map(|(manager, at)| {
                    format!(
                        "{{manager: {manager}, time: '{at}', operation: Update, fieldsType: FieldsV1, \
                         fieldsV1: {{'f:spec': {{'f:replicas': {{}}}}}}}}"
                    )
                })
                .collect();
            let entries = entries.join(", ");
            format!(
                "metadata: {{name: web, uid: u1, resourceVersion: '{generation}', \
                 generation: {generation}, managedFields: [{entries}]}}"
            )
        };
        let before = object(&noted(3, &[("hpa", "2026-01-31T12:00:00Z")]));
        let resource = ApiResource::erase::<Deployment>(&());
        let effect = Effect::scaling(resource, &before.metadata, "r1@d1", None, [3, 5]);
        let ours = request_manager("r1@d1");
        let left = |generation, managers: &[_]| evidence(&effect, &noted(generation, managers));
        assert!(matches!(left(4, &[(&ours, "2026-01-31T12:00:01Z")]), Evidence::Made(_)));
        assert_eq!(left(3, &[("hpa", "2026-01-31T12:00:00Z")]), Evidence::NotYet);
        let other = request_manager("r2@d2");
        for manager in ["hpa", other.as_str()] {
            assert_eq!(left(4, &[(manager, "2026-01-31T12:00:02Z")]), Evidence::NotYet);
            assert_eq!(left(5, &[(manager, "2026-01-31T12:00:02Z")]), Evidence::Unknowable);
        }
        let bound = effect.clone().bound_to(&before.metadata);
        let changed = noted(4, &[("hpa", "2026-01-31T12:00:00Z")]);
        assert_eq!(evidence(&bound, &changed), Evidence::NeverMade);
        let after = object(&noted(4, &[(&ours, "2026-01-31T12:00:01Z")])).metadata;
        assert!(has_scaled(&after, "r1@d1") && !has_scaled(&after, "r1@d9"));
    }

    #[test]
    fn a_resize_is_recognised_by_its_manager() {
        let pod = |generation: i64, manager: &str| {
            object(&format!(
                "metadata: {{name: web-1, namespace: shop, uid: u1, resourceVersion: '7', generation: {generation}, \
                 managedFields: [{{manager: '{manager}', subresource: resize, time: '2026-01-31T12:00:00Z'}}, \
                 {{manager: kubelet, subresource: status, time: '2026-01-31T12:00:09Z'}}]}}"
            ))
        };
        let (before, ours) = (pod(3, "kubectl"), request_manager("r1@d1"));
        let effect = Effect::resize(&before.metadata, "r1@d1", None, Vec::new());
        let left = |pod: &DynamicObject| Evidence::of(&effect, Some(&pod.metadata));
        assert!(matches!(left(&pod(4, &ours)), Evidence::Made(_)));
        assert_eq!(left(&before), Evidence::NotYet);
        // Another client changed the pod: our test of the generation fails from now on.
        assert_eq!(left(&pod(4, "vpa")), Evidence::NeverMade);
        // Another one may have resized it after us.
        assert_eq!(left(&pod(5, "vpa")), Evidence::Unknowable);
        assert_eq!(left(&pod(5, "kubectl")), Evidence::NeverMade);
        let response = json!(pod(4, &ours));
        assert_eq!(confirmed(&effect, &response).expect("is confirmed").generation, Some(4));
        assert!(confirmed(&effect, &json!(before)).is_none());
    }

    #[test]
    fn a_change_of_the_status_is_recognised_by_its_manager_or_not_made_while_the_state_is_the_same()
    {
        let rollout = |manager: &str, step: i32, time: &str| {
            object(&format!(
                "metadata: {{name: web, namespace: shop, uid: u1, resourceVersion: '7', generation: 3, managedFields: \
                 [{{manager: '{manager}', subresource: status, time: '{time}', fieldsV1: {{'f:status': {{'f:abort': {{}}}}}}}}]}}\n\
                 status: {{currentStepIndex: {step}}}"
            ))
        };
        let (at, ours) = ("2026-01-31T12:00:00Z", request_manager("r1@d1"));
        let before = rollout("argo", 1, at);
        let decided_on =
            StatusDecision::on(&before.metadata, &before.data["status"], &["currentStepIndex"]);
        let resource = ApiResource::erase::<Deployment>(&());
        let (metadata, none) = (&before.metadata, Vec::new());
        let owned = decided_on.clone().and_owners(metadata, "abort");
        let of = |decided_on| {
            Effect::status_patch(
                resource.clone(),
                metadata,
                "r1@d1",
                None,
                decided_on,
                none.clone(),
            )
        };
        let left = |effect: &Effect, found: &DynamicObject| {
            Evidence::of(effect, Some(&found.metadata)).with_status_of(effect, found)
        };
        let effect = of(decided_on);
        assert!(matches!(left(&effect, &rollout(&ours, 2, at)), Evidence::Made(_)));
        assert_eq!(left(&effect, &before), Evidence::NotYet);
        assert_eq!(left(&effect, &rollout("argo", 2, at)), Evidence::Unknowable);
        // The same state again, which somebody has set since.
        let again = rollout("argo", 1, "2026-01-31T12:05:00Z");
        assert_eq!(left(&effect, &again), Evidence::NotYet);
        assert_eq!(left(&of(owned.clone()), &before), Evidence::NotYet);
        assert_eq!(left(&of(owned), &again), Evidence::Unknowable);
        // The same state again, after another pod template.
        let mut newer = before.clone();
        let revision = ("rollout.argoproj.io/revision".to_owned(), "4".to_owned());
        newer.metadata.annotations = Some([revision].into());
        assert_eq!(left(&effect, &newer), Evidence::Unknowable);
        assert!(confirmed(&effect, &json!(rollout(&ours, 2, at))).is_some());
        assert!(confirmed(&effect, &json!(before)).is_none());
    }

    #[test]
    fn a_creation_is_recognised_by_the_mark_and_its_absence_proves_nothing() {
        let metadata = object("metadata: {name: nightly-x, namespace: shop}").metadata;
        let job = json!({ "metadata": { "name": "nightly-x" } });
        let resource = ApiResource::erase::<Job>(&());
        let effect = Effect::creation(resource, &metadata, "r1@d1", None, job);
        let ours = "metadata: {uid: u9, annotations: {action-executor.dev/requests: '1:r1@d1'}}";
        assert!(matches!(evidence(&effect, ours), Evidence::Made(_)));
        assert_eq!(evidence(&effect, "metadata: {uid: u9}"), Evidence::Unknowable);
        assert_eq!(Evidence::of(&effect, None), Evidence::Unknowable);
    }

    #[test]
    fn a_creation_is_found_out_from_all_that_happened_since() {
        let ours = r#"{"type":"ADDED","object":{"metadata":{"resourceVersion":"8","annotations":
            {"action-executor.dev/requests":"1:r1@d1"}}}}"#;
        let deleted = ours.replace("ADDED", "DELETED");
        let bookmark = |version| {
            format!(
                r#"{{"type":"BOOKMARK","object":{{"apiVersion":"meta.k8s.io/v1","kind":"PartialObjectMetadata",
                "metadata":{{"resourceVersion":"{version}"}}}}}}"#
            )
        };
        let (old, new) = (bookmark(7), bookmark(9));
        let gone = r#"{"type":"ERROR","object":{"kind":"Status","code":410}}"#;
        let evidence = |events: &[&str]| {
            let events: Vec<_> = events
                .iter()
                .map(|text| serde_json::from_str(text).expect("is an event"))
                .collect();
            Evidence::of_creation("r1@d1", &events, "9")
        };
        for events in [&[ours, &deleted, &new][..], &[deleted.as_str()], &[ours]] {
            assert!(matches!(evidence(events), Evidence::Made(_)), "{events:?}");
        }
        assert_eq!(evidence(&[&new]), Evidence::NotYet);
        // The events may be incomplete.
        for events in [&[][..], &[old.as_str()], &[gone], &[&new, gone]] {
            assert_eq!(evidence(events), Evidence::Unknowable, "{events:?}");
        }
    }

    #[test]
    fn the_template_that_a_change_left_is_known_from_its_response_or_an_object_that_was_not_changed_since()
     {
        let template = json!({ "metadata": { "labels": { "app": "web" } } });
        let response = json!({
            "metadata": {
                "uid": "u1", "generation": 4,
                "annotations": { "action-executor.dev/requests": "5:r1@d1" },
            },
            "spec": { "template": template },
            "status": { "conditions": [{
                "type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded",
                "lastUpdateTime": "2026-01-31T12:00:00Z",
            }]},
        });
        let applied = confirmed(&patch("generation: 3,"), &response).expect("is confirmed");
        assert_eq!(applied.template, Some(template_digest(&template)));
        assert_eq!(applied.exceeded_at.as_deref(), Some("2026-01-31T12:00:00Z"));
        let found: DynamicObject = serde_json::from_value(response).expect("is an object");
        for (generation, is_known) in [(4, true), (3, false)] {
            let made = Applied { generation: Some(generation), ..Applied::default() };
            let evidence = Evidence::Made(made).with_template_of(&patch("generation: 3,"), &found);
            let Evidence::Made(applied) = evidence else { panic!("is made") };
            assert_eq!(applied.template.is_some(), is_known, "{generation}");
        }
    }

    #[test]
    fn a_response_confirms_an_effect_only_if_it_shows_it() {
        let marked = json!({ "uid": "u1", "name": "web", "generation": 4, "resourceVersion": "8",
            "annotations": { "action-executor.dev/requests": "4:r0@d0 5:r1@d1" } });
        let unmarked = json!({ "uid": "u1", "name": "web" });
        let success = json!({ "kind": "Status", "status": "Success" });
        let of_uid =
            |uid| json!({ "kind": "Status", "status": "Success", "details": { "uid": uid } });
        let meta = object("metadata: {name: web, namespace: shop, uid: u1}").metadata;
        let resource = ApiResource::erase::<Deployment>(&());
        let delete = Effect::deletion(resource.clone(), &meta, None);
        let evict = Effect::eviction(&meta, None);
        let scale = Effect::scaling(resource.clone(), &meta, "r1@d1", None, [1, 2]);
        let create = Effect::creation(resource, &meta, "r1@d1", None, json!({}));
        let with = |metadata: &Value, replicas: i32| json!({ "metadata": metadata, "spec": { "replicas": replicas } });
        for (effect, response, expected) in [
            (patch("generation: 3,"), with(&marked, 1), true),
            (patch("generation: 3,"), with(&unmarked, 1), false),
            (scale.clone(), with(&unmarked, 2), true),
            (scale.clone(), with(&unmarked, 1), false),
            (delete.clone(), with(&unmarked, 1), true),
            (delete.clone(), of_uid("u1"), true),
            (delete.clone(), of_uid("u2"), false),
            (delete.clone(), success.clone(), false),
            (evict.clone(), success.clone(), true),
            (evict.clone(), with(&unmarked, 1), false),
            (create.clone(), with(&marked, 1), true),
            (create.clone(), with(&unmarked, 1), false),
        ] {
            assert_eq!(confirmed(&effect, &response).is_some(), expected, "{effect:?} {response}");
        }
        for effect in [patch("generation: 3,"), delete, evict, scale, create] {
            for nothing in
                [json!({}), json!([]), Value::Null, json!({ "metadata": { "uid": "u2" } })]
            {
                assert_eq!(confirmed(&effect, &nothing), None, "{effect:?} {nothing}");
            }
        }
        let applied = confirmed(&patch("generation: 3,"), &with(&marked, 1)).expect("is confirmed");
        assert_eq!((applied.generation, applied.resource_version.as_deref()), (Some(4), Some("8")));
    }
}
