//! The Kubernetes Job of one request, as data.
//!
//! The Job's name comes from the request's id, as the name of its record does, so the API server refuses a second
//! Job for the same request. Every pod has the same id, so the action is done once however often Kubernetes
//! starts one. The podFailurePolicy (KEP-3329) lists the exit statuses for which another pod is useless. The Job
//! meets the `restricted` Pod Security Standard.

use std::time::Duration;

use serde_json::{Value, json};

use crate::{
    actions::request::ActionRequest,
    config::variables::{CLUSTER_NAME, NODE_NAME, POD_NAME},
    contract::{
        error::Code,
        names::{Namespace, ObjectName, RequestId},
    },
    executor::wait::DEFAULT_WAIT,
    ledger::record::{MANAGED_BY, REQUEST_DIGEST, REQUEST_ID, RequestMetadata},
};

/// The name of the container.
pub(crate) const CONTAINER: &str = "action";

/// The directory of the mounted policy.
const POLICY_DIRECTORY: &str = "/etc/action-executor/policy";

/// How often a pod is retried; with the Job controller's backoff that takes over five minutes.
const BACKOFF_LIMIT: u32 = 5;

/// The time for that backoff and for starting the pods, in addition to the action's own time.
const DEADLINE_MARGIN: Duration = Duration::from_secs(600);

/// How long a finished Job is kept: as long as its record by default.
const TTL: Duration = Duration::from_secs(3600);

/// Where and as whom the Job runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct JobOptions {
    /// The image.
    pub image: String,
    /// The namespace of the Job.
    pub namespace: Namespace,
    /// The service account of the Job.
    pub service_account: ObjectName,
    /// The ConfigMap with the policy, under the key `policy.yaml`.
    pub policy_config_map: ObjectName,
    /// The name by which the pod knows its cluster, if it is to have one: that which a request names has to be this
    /// one.
    pub cluster_name: Option<String>,
}

/// The Job that runs `request` with this `id`.
pub(crate) fn manifest(request: &ActionRequest, id: &RequestId, options: &JobOptions) -> Value {
    let subject = RequestMetadata::of(request, id);
    let request = ActionRequest { id: Some(id.clone()), ..request.clone() };
    let labels = json!({
        "app.kubernetes.io/name": "action-executor",
        "app.kubernetes.io/component": "job",
        MANAGED_BY.0: MANAGED_BY.1,
        "action-executor.dev/action": subject.action,
    });
    json!({
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": subject.event_name(),
            "namespace": options.namespace,
            "labels": labels,
            "annotations": { REQUEST_ID: &*subject.id, REQUEST_DIGEST: subject.digest },
        },
        "spec": spec(&labels, environment(&request, options), active_deadline(&request), options),
    })
}

fn environment(request: &ActionRequest, options: &JobOptions) -> Value {
    let request = serde_json::to_string(request).unwrap_or_default();
    let variables = [
        json!({ "name": "ACTION_REQUEST", "value": request }),
        json!({ "name": "ACTION_EXECUTOR_POLICY", "value": format!("{POLICY_DIRECTORY}/policy.yaml") }),
        // A drain of the node on which the pod runs evicts it last.
        json!({ "name": POD_NAME.name, "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } }),
        json!({ "name": NODE_NAME.name, "valueFrom": { "fieldRef": { "fieldPath": "spec.nodeName" } } }),
    ];
    let name = options.cluster_name.iter();
    let name = name.map(|name| json!({ "name": CLUSTER_NAME.name, "value": name }));
    variables.into_iter().chain(name).collect()
}

/// After an eviction the next pod resumes the wait, with the full timeout. A rollback of a failed rollout has the
/// same timeout as the rollout.
fn active_deadline(request: &ActionRequest) -> Duration {
    let rollouts = if request.action.rollback_on_failure() { 2 } else { 1 };
    let once = rollouts * request.timeout.unwrap_or(DEFAULT_WAIT);
    2 * once + DEADLINE_MARGIN
}

fn spec(labels: &Value, environment: Value, deadline: Duration, options: &JobOptions) -> Value {
    json!({
        "backoffLimit": BACKOFF_LIMIT,
        "activeDeadlineSeconds": deadline.as_secs(),
        "ttlSecondsAfterFinished": TTL.as_secs(),
        "podFailurePolicy": {
            "rules": [
                // A disruption by the cluster is no failure of the action.
                { "action": "Ignore", "onPodConditions": [{ "type": "DisruptionTarget", "status": "True" }] },
                {
                    "action": "FailJob",
                    "onExitCodes": { "containerName": CONTAINER, "operator": "In", "values": permanent_exit_codes() },
                },
            ],
        },
        "template": {
            "metadata": { "labels": labels },
            "spec": {
                "restartPolicy": "Never",
                "serviceAccountName": options.service_account,
                // A Service named action-something would set ACTION_ variables.
                "enableServiceLinks": false,
                "securityContext": {
                    "runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532,
                    "seccompProfile": { "type": "RuntimeDefault" },
                },
                "containers": [{
                    "name": CONTAINER,
                    "image": options.image,
                    "env": environment,
                    "resources": {
                        "requests": { "cpu": "10m", "memory": "16Mi" },
                        "limits": { "memory": "64Mi" },
                    },
                    "securityContext": {
                        "allowPrivilegeEscalation": false,
                        "readOnlyRootFilesystem": true,
                        "capabilities": { "drop": ["ALL"] },
                    },
                    "volumeMounts": [{ "name": "policy", "mountPath": POLICY_DIRECTORY, "readOnly": true }],
                }],
                "volumes": [{
                    "name": "policy",
                    // Without it the program prints the error and the Job fails at once; a pod that waits for a
                    // volume reports nothing until the Job's deadline.
                    "configMap": { "name": options.policy_config_map, "optional": true },
                }],
            },
        },
    })
}

/// The exit statuses of errors that a retry does not change.
fn permanent_exit_codes() -> Vec<u8> {
    let mut statuses: Vec<u8> = Code::ALL
        .into_iter()
        .filter(|code| !code.retryable())
        .map(|code| code.exit_status())
        .collect();
    statuses.sort_unstable();
    statuses.dedup();
    statuses
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(request: &str) -> Value {
        made_for(None, request)
    }

    fn made_for(cluster: Option<&str>, request: &str) -> Value {
        let request = ActionRequest::parse(request.as_bytes()).expect("is a request");
        let options = JobOptions {
            image: "registry.example/action-executor:1".to_owned(),
            namespace: "shop".to_owned().try_into().expect("is a name"),
            service_account: ObjectName::action_executor(),
            policy_config_map: "limits".to_owned().try_into().expect("is a name"),
            cluster_name: cluster.map(str::to_owned),
        };
        let id = RequestId::try_from("alert-7".to_owned()).expect("is an id");
        manifest(&request, &id, &options)
    }

    const REQUEST: &str = r#"{"type":"restart_k8s","parameters":{"deployment":"web"}}"#;

    #[test]
    fn the_same_request_is_the_same_job() {
        assert_eq!(made(REQUEST), made(REQUEST));
        let name = made(REQUEST)["metadata"]["name"].clone();
        let name = name.as_str().expect("is text");
        assert!(name.starts_with("action-executor-") && name.len() < 63, "{name}");
    }

    #[test]
    fn the_request_in_the_job_has_the_id() {
        let job = made(REQUEST);
        let text = job["spec"]["template"]["spec"]["containers"][0]["env"][0]["value"].clone();
        let read = ActionRequest::parse(text.as_str().expect("is text").as_bytes());
        let read = read.expect("is a request");
        assert_eq!(read.id.as_deref(), Some("alert-7"));
        assert!(read.simulate);
    }

    #[test]
    fn the_pod_knows_its_cluster_by_name_if_that_has_one() {
        let name_in = |cluster| {
            let job = made_for(cluster, REQUEST);
            let all = job["spec"]["template"]["spec"]["containers"][0]["env"].clone();
            let all = all.as_array().expect("is a list").clone();
            let variable = all.into_iter().find(|it| it["name"] == CLUSTER_NAME.name);
            variable.map(|it| it["value"].clone())
        };
        assert_eq!(name_in(Some("blue")), Some(json!("blue")));
        assert_eq!(name_in(None), None);
    }

    #[test]
    fn a_permanent_error_fails_the_job() {
        assert_eq!(permanent_exit_codes(), [64, 65, 69, 70, 77, 78]);
    }

    #[test]
    fn the_job_has_more_time_than_the_action() {
        let job = made(
            r#"{"type":"restart_k8s","parameters":{"deployment":"web"},"wait":true,"timeout_seconds":3600}"#,
        );
        assert_eq!(job["spec"]["activeDeadlineSeconds"], 7800);
    }
}
