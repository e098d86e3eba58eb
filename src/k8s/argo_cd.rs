//! What Argo CD's Applications and ApplicationSets say: automated sync, the operation that runs, and what an
//! ApplicationSet sets back. Pure.
//!
//! Read in Argo CD 3.5: `pkg/apis/application/v1alpha1/types.go` (`IsAutomatedSyncEnabled`, `Operation`),
//! `controller/appcontroller.go` (`processRequestedAppOperation`, `setOperationState`),
//! `server/application/application.go` (`Sync`) and `applicationset/controllers/applicationset_controller.go`
//! (`createOrUpdateInCluster`).

use kube::{api::DynamicObject, core::ObjectMeta};
use serde_json::{Value, json};

use crate::k8s::{
    applied_requests::REQUESTS_ANNOTATION, completion::deleted, integrations::APPLICATION,
    pods::controller_of, rollout::RolloutStatus,
};

/// The name of the entry in an operation's `info` with the mark of the request that started it.
const REQUEST_INFO: &str = "action-executor.dev/request";

/// Who started an operation, as Argo CD shows it.
const USERNAME: &str = "action-executor";

/// How the message of an operation begins that a sync window blocks (`SyncAppState` in `controller/sync.go`).
const BLOCKED: &str = "Sync operation blocked by sync window";

/// Keeps that `enabled` was true, and not left out, before it was set to false.
pub(crate) const WAS_ENABLED: &str = "action-executor.dev/argo-cd-automated-enabled";

/// Automated sync of an Application.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AutomatedSync {
    /// The Application has none: `spec.syncPolicy.automated` is not set.
    None,
    /// It is off: `enabled` is false, which Argo CD 3.1 and newer know.
    Off,
    /// It is on, and `enabled` is left out.
    On,
    /// It is on, and `enabled` is true.
    ExplicitlyOn,
}

impl AutomatedSync {
    pub(crate) fn of(application: &DynamicObject) -> Self {
        let automated = &application.data["spec"]["syncPolicy"]["automated"];
        match (automated.is_object(), automated["enabled"].as_bool()) {
            (false, _) => AutomatedSync::None,
            (true, Some(false)) => AutomatedSync::Off,
            (true, Some(true)) => AutomatedSync::ExplicitlyOn,
            (true, None) => AutomatedSync::On,
        }
    }

    pub(crate) fn is_on(self) -> bool {
        matches!(self, AutomatedSync::On | AutomatedSync::ExplicitlyOn)
    }
}

/// What automated sync does besides applying, for a warning: `prune` and `selfHeal`.
pub(crate) fn automated_flag(application: &DynamicObject, flag: &str) -> bool {
    application.data["spec"]["syncPolicy"]["automated"][flag] == true
}

/// The metadata without its generation. The CRD of Applications has no status subresource, so each status that Argo CD
/// writes is a generation: a patch that tests it might never succeed.
pub(crate) fn without_generation(metadata: &ObjectMeta) -> ObjectMeta {
    ObjectMeta { generation: None, ..metadata.clone() }
}

/// The operation that syncs the Application to the revision of its spec, as Argo CD's own API makes it: options and
/// retries of the spec's sync policy.
pub(crate) fn sync_operation(application: &DynamicObject, mark: &str, prune: bool) -> Value {
    let policy = &application.data["spec"]["syncPolicy"];
    let mut operation = json!({
        "initiatedBy": { "username": USERNAME },
        "info": [{ "name": REQUEST_INFO, "value": mark }],
        "sync": { "syncStrategy": { "hook": {} } },
    });
    if prune {
        operation["sync"]["prune"] = true.into();
    }
    if policy["syncOptions"].is_array() {
        operation["sync"]["syncOptions"] = policy["syncOptions"].clone();
    }
    if policy["retry"].is_object() {
        operation["retry"] = policy["retry"].clone();
    }
    operation
}

/// Why no operation can be started now: another one was requested, or runs (`ErrAnotherOperationInProgress`).
pub(crate) fn operation_in_progress(application: &DynamicObject) -> Option<String> {
    let state = &application.data["status"]["operationState"];
    let phase = state["phase"].as_str().unwrap_or_default();
    if application.data["operation"].is_object() {
        let by = initiator(&application.data["operation"]);
        return Some(format!("an operation of {by} is requested"));
    }
    matches!(phase, "Running" | "Terminating").then(|| {
        let by = initiator(&state["operation"]);
        format!("an operation of {by} is {}", phase.to_lowercase())
    })
}

fn initiator(operation: &Value) -> String {
    let by = &operation["initiatedBy"];
    match by["username"].as_str() {
        Some(name) => format!("'{name}'"),
        None if by["automated"] == true => "automated sync".to_owned(),
        None => "someone unknown".to_owned(),
    }
}

fn is_ours(operation: &Value, mark: &str) -> bool {
    let info = operation["info"].as_array().into_iter().flatten();
    info.into_iter().any(|it| it["name"] == REQUEST_INFO && it["value"] == mark)
}

/// The status of the sync that the request with this mark started. The controller removes `operation` in the same patch
/// in which it writes the final phase.
pub(crate) fn sync_status(
    application: Option<&DynamicObject>,
    name: &str,
    uid: &str,
    mark: &str,
) -> RolloutStatus {
    let described = format!("Application '{name}'");
    let Some(application) = application else { return deleted(APPLICATION.kind, name) };
    if application.metadata.uid.as_deref() != Some(uid) {
        let why = format!("{described} was replaced by another object of its name");
        return RolloutStatus::Failed(why);
    }
    let state = &application.data["status"]["operationState"];
    if is_ours(&state["operation"], mark) {
        return phase_status(&described, state);
    }
    if is_ours(&application.data["operation"], mark) {
        return RolloutStatus::Waiting(format!("Argo CD has not started the sync of {described}"));
    }
    RolloutStatus::Failed(format!(
        "superseded: another operation on {described} came before the end of this one was seen"
    ))
}

fn phase_status(described: &str, state: &Value) -> RolloutStatus {
    let message = state["message"].as_str().unwrap_or("no message");
    let phase = state["phase"].as_str().unwrap_or("Running");
    match phase {
        "Succeeded" => {
            let revision = state["syncResult"]["revision"].as_str().filter(|it| !it.is_empty());
            let revision = revision.map(|it| format!(" to {it}")).unwrap_or_default();
            RolloutStatus::Complete(format!("{described} is synced{revision}: {message}"))
        }
        "Failed" | "Error" => {
            RolloutStatus::Failed(format!("the sync of {described} ended with {phase}: {message}"))
        }
        // It stays Running until the window permits it.
        _ if message.starts_with(BLOCKED) => RolloutStatus::Failed(format!(
            "the sync of {described} is blocked by a sync window of its project, and runs once the window permits it: \
             end it with `argocd app terminate-op` if it is not to"
        )),
        _ => RolloutStatus::Waiting(format!("the sync of {described} is {phase}: {message}")),
    }
}

/// The ApplicationSet that controls the Application, by its name.
pub(crate) fn application_set_of(metadata: &ObjectMeta) -> Option<&str> {
    let owner = controller_of(metadata)?;
    let is_set = owner.kind == "ApplicationSet" && owner.api_version.starts_with("argoproj.io/");
    is_set.then_some(owner.name.as_str())
}

/// What an ApplicationSet sets back on this Application of it, and what its owner can write to keep it; none if
/// nothing of `fields` or of this program's annotation is set back. It overwrites the whole spec and all annotations,
/// but for what `ignoreApplicationDifferences` and `preservedFields` name, unless it only creates Applications.
pub(crate) fn set_back(
    set: &DynamicObject,
    application: &str,
    fields: Option<&str>,
) -> Option<(String, String)> {
    let spec = &set.data["spec"];
    let policy = spec["syncPolicy"]["applicationsSync"].as_str().unwrap_or("sync");
    if matches!(policy, "create-only" | "create-delete") {
        return None;
    }
    if let Some(field) = fields.filter(|field| !ignores(spec, application, field)) {
        let hint = format!(
            "to allow it, add `{{jsonPointers: [{field}]}}` to its ignoreApplicationDifferences"
        );
        return Some((field.to_owned(), hint));
    }
    let requests = (REQUESTS_ANNOTATION, "by which a retry recognises what was done already");
    let enabled = fields.map(|_| (WAS_ENABLED, "by which a resumption restores what was there"));
    let annotations = [Some(requests), enabled].into_iter().flatten();
    let (key, purpose) = annotations.into_iter().find(|(key, _)| !preserves(spec, key))?;
    let what = format!("the annotation {key}, {purpose}");
    let hint = format!("to allow it, add {key} to its preservedFields.annotations");
    Some((what, hint))
}

fn preserves(spec: &Value, key: &str) -> bool {
    let preserved = spec["preservedFields"]["annotations"].as_array();
    preserved.is_some_and(|all| all.iter().any(|it| it == key))
}

/// Whether a rule of the ApplicationSet leaves this field of this Application as it is.
fn ignores(spec: &Value, application: &str, field: &str) -> bool {
    let rules = spec["ignoreApplicationDifferences"].as_array().into_iter().flatten();
    let concerns =
        |rule: &&Value| rule["name"].as_str().is_none_or(|it| it.is_empty() || it == application);
    rules.into_iter().filter(concerns).any(|rule| {
        let pointers = rule["jsonPointers"].as_array().into_iter().flatten();
        let covers = |pointer: &str| {
            field.strip_prefix(pointer).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        pointers.into_iter().filter_map(Value::as_str).any(covers)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn application(yaml: &str) -> DynamicObject {
        serde_yaml_ng::from_str(&format!("metadata: {{name: shop, uid: u1}}\n{yaml}"))
            .expect("is an object")
    }

    #[test]
    fn automated_sync_is_on_unless_it_is_disabled_or_missing() {
        for (automated, expected) in [
            ("null", AutomatedSync::None),
            ("{}", AutomatedSync::On),
            ("{prune: true}", AutomatedSync::On),
            ("{enabled: true}", AutomatedSync::ExplicitlyOn),
            ("{enabled: false, prune: true}", AutomatedSync::Off),
        ] {
            let found = application(&format!("spec: {{syncPolicy: {{automated: {automated}}}}}"));
            assert_eq!(AutomatedSync::of(&found), expected, "{automated}");
        }
        assert_eq!(AutomatedSync::of(&application("spec: {}")), AutomatedSync::None);
    }

    #[test]
    fn an_operation_has_the_options_and_retries_of_the_spec() {
        let policy = "{syncOptions: [CreateNamespace=true], retry: {limit: 2}}";
        let found = application(&format!("spec: {{syncPolicy: {policy}}}"));
        let operation = sync_operation(&found, "r1@d1", true);
        assert_eq!(
            operation,
            json!({
                "initiatedBy": { "username": "action-executor" },
                "info": [{ "name": "action-executor.dev/request", "value": "r1@d1" }],
                "sync": {
                    "syncStrategy": { "hook": {} }, "prune": true, "syncOptions": ["CreateNamespace=true"],
                },
                "retry": { "limit": 2 },
            })
        );
        let plain = sync_operation(&application("spec: {}"), "r1@d1", false);
        assert_eq!(plain["sync"], json!({ "syncStrategy": { "hook": {} } }));
    }

    #[test]
    fn an_operation_that_is_requested_or_runs_is_in_progress() {
        for (yaml, expected) in [
            ("status: {}", None),
            ("status: {operationState: {phase: Succeeded}}", None),
            ("operation: {initiatedBy: {username: ann}}", Some("of 'ann' is requested")),
            (
                "status: {operationState: {phase: Running, operation: {initiatedBy: {automated: true}}}}",
                Some("of automated sync is running"),
            ),
            ("status: {operationState: {phase: Terminating}}", Some("is terminating")),
        ] {
            let found = operation_in_progress(&application(yaml));
            assert_eq!(found.is_some(), expected.is_some(), "{yaml}");
            assert!(found.unwrap_or_default().contains(expected.unwrap_or_default()), "{yaml}");
        }
    }

    #[test]
    fn a_sync_is_judged_by_the_state_of_its_own_operation() {
        let ours = "{info: [{name: action-executor.dev/request, value: r1@d1}]}";
        let state = |phase: &str, operation: &str| {
            format!(
                "status: {{operationState: {{phase: {phase}, message: m, operation: {operation}, \
                 syncResult: {{revision: abc}}}}}}"
            )
        };
        for (yaml, expected) in [
            (format!("operation: {ours}"), "waiting"),
            (format!("operation: {ours}\n{}", state("Succeeded", "{}")), "waiting"),
            (format!("operation: {ours}\n{}", state("Running", ours)), "waiting"),
            (state("Terminating", ours), "waiting"),
            (
                format!(
                    "status: {{operationState: {{phase: Running, operation: {ours}, message: \
                     Sync operation blocked by sync window}}}}"
                ),
                "failed",
            ),
            (state("Succeeded", ours), "complete"),
            (state("Failed", ours), "failed"),
            (state("Error", ours), "failed"),
            // Another one, after ours.
            (state("Succeeded", "{}"), "failed"),
            (format!("operation: {{}}\n{}", state("Succeeded", "{}")), "failed"),
        ] {
            let found = application(&yaml);
            let found = match sync_status(Some(&found), "shop", "u1", "r1@d1") {
                RolloutStatus::Waiting(_) => "waiting",
                RolloutStatus::Complete(_) => "complete",
                RolloutStatus::Failed(_) => "failed",
            };
            assert_eq!(found, expected, "{yaml}");
        }
        let other = application(&state("Succeeded", ours));
        assert!(matches!(
            sync_status(Some(&other), "shop", "u2", "r1@d1"),
            RolloutStatus::Failed(_)
        ));
        assert!(matches!(sync_status(None, "shop", "u1", "r1@d1"), RolloutStatus::Failed(_)));
    }

    #[test]
    fn an_application_set_sets_back_what_it_does_not_leave_alone() {
        let field = Some("/spec/syncPolicy/automated");
        let preserved = "preservedFields: {annotations: [action-executor.dev/requests, \
                         action-executor.dev/argo-cd-automated-enabled]}";
        let one = "preservedFields: {annotations: [action-executor.dev/requests]}";
        let ignored = |more: &str| {
            format!("ignoreApplicationDifferences: [{{jsonPointers: [/spec/syncPolicy]{more}}}]")
        };
        for (spec, field, expected) in [
            ("{}".to_owned(), field, Some("/spec/syncPolicy/automated")),
            ("{syncPolicy: {applicationsSync: create-update}}".to_owned(), field, Some("/spec")),
            ("{syncPolicy: {applicationsSync: create-only}}".to_owned(), field, None),
            ("{syncPolicy: {applicationsSync: create-delete}}".to_owned(), field, None),
            (format!("{{{preserved}}}"), field, Some("/spec")),
            (format!("{{{preserved}}}"), None, None),
            (format!("{{{}}}", ignored("")), field, Some("the annotation")),
            (format!("{{{preserved}, {}}}", ignored("")), field, None),
            (format!("{{{one}, {}}}", ignored("")), field, Some("the annotation")),
            (format!("{{{one}}}"), None, None),
            (format!("{{{preserved}, {}}}", ignored(", name: shop")), field, None),
            (format!("{{{preserved}, {}}}", ignored(", name: other")), field, Some("/spec")),
        ] {
            let set = application(&format!("spec: {spec}"));
            let found = set_back(&set, "shop", field);
            assert_eq!(found.is_some(), expected.is_some(), "{spec}");
            let what = found.map(|(what, _)| what).unwrap_or_default();
            assert!(what.starts_with(expected.unwrap_or_default()), "{spec}: {what}");
        }
    }
}
