//! `job`: one action as a Kubernetes Job. Prints the manifest, or creates the Job and waits for its answer.
//!
//! The answer is the pod's termination message, byte for byte, and the exit status is the pod's: the same as of a
//! single request. If the pod is gone, evicted for example, the ledger still has the answer.
//!
//! The pod acts on the cluster in which it runs, and knows no other. So the Job is for the cluster that the request
//! means, and its pod knows that cluster by the name that the request may have for it.

use std::{
    io::{self, IsTerminal},
    time::Duration,
};

use k8s_openapi::api::{
    batch::v1::{Job, JobCondition},
    core::v1::{ContainerStateTerminated, Pod},
};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::{
    actions::request::ActionRequest,
    cli::{ClusterArgs, JobArgs},
    commands::{
        cluster::{self, ClusterFlags},
        document, run,
    },
    config::Settings,
    contract::{
        error::{ActionError, Code},
        names::{Namespace, RequestId},
        response::ActionResponse,
    },
    executor::reply::Reply,
    k8s::api::{
        client::{ApiCall, Cluster},
        error::ApiError,
    },
    ledger::{
        ClaimState, Ledger,
        record::{REQUEST_DIGEST, RequestMetadata},
    },
    manifests::{
        job,
        job::{CONTAINER, JobOptions},
    },
};

/// Limit on creating the Job, or on reading it once.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// How often the Job is read.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// What the Job controller may need beyond the Job's own deadline.
const DEADLINE_MARGIN: Duration = Duration::from_secs(60);

/// Prints the Job, creates it, or creates it and waits for its answer. Returns the output and the exit status.
///
/// # Errors
/// What is wrong with the request, or why the Job could not be created or its answer not be read.
pub fn run(args: &JobArgs, settings: &Settings) -> Result<(String, u8), ActionError> {
    let request = run::read_request(&args.file)?.with_cluster(args.cluster.cluster.as_ref())?;
    let meant = ClusterArgs { cluster: request.cluster.clone(), ..args.cluster.clone() };
    let id = request.id.clone().unwrap_or_else(RequestId::generate);
    let options = job_options(args, &request, cluster::name(&meant, settings)?)?;
    let manifest = job::manifest(&request, &id, &options);
    if !args.apply {
        return Ok((document(&manifest, args.output)?, 0));
    }
    run::runtime()?.block_on(async {
        let cluster = cluster::find(&meant, settings).await?.ok_or_else(|| {
            ActionError::new(Code::Configuration, "no cluster is configured to create the Job in")
        })?;
        let flags = cluster::flags(&meant, settings)?;
        let subject = RequestMetadata::of(&request, &id);
        let job = create(&cluster, &manifest, &subject).await?;
        if args.wait {
            let condition = wait(&cluster, &flags, &job).await?;
            let (answer, status) = answer(&cluster, &flags, &job, subject, &condition).await?;
            Ok((run::formatted(&answer, args.output), status))
        } else {
            let (namespace, name) = name_of(&job);
            let result = format!("Job '{name}' created in namespace '{namespace}'.");
            let job = json!({ "namespace": namespace, "name": name });
            let answer = json!({ "result": result, "id": &*id, "job": job });
            Ok((run::formatted(answer.to_string().as_bytes(), args.output), 0))
        }
    })
}

fn job_options(
    args: &JobArgs,
    request: &ActionRequest,
    cluster_name: Option<String>,
) -> Result<JobOptions, ActionError> {
    let namespace = match &args.namespace {
        Some(namespace) => namespace.clone(),
        // The Job of an action on a node is in the namespace of its record.
        None if request.action.namespace().is_empty() => Namespace::default(),
        None => Namespace::try_from(request.action.namespace().to_owned())
            .map_err(|what| ActionError::invalid_field("parameters.namespace", what))?,
    };
    Ok(JobOptions {
        image: args.image.clone(),
        namespace,
        service_account: args.service_account.clone(),
        policy_config_map: args.policy_config_map.clone(),
        cluster_name,
    })
}

/// Creates the Job. One that exists is used, if it is of the same request.
async fn create(
    cluster: &Cluster,
    manifest: &Value,
    subject: &RequestMetadata,
) -> Result<Job, ActionError> {
    let job: Job = serde_json::from_value(manifest.clone())
        .map_err(|error| ActionError::new(Code::Internal, format!("the Job: {error}")))?;
    let (namespace, name) = name_of(&job);
    let deadline = Instant::now() + CALL_TIMEOUT;
    match cluster.create(namespace, &job, deadline).await {
        Ok(job) => Ok(job),
        Err(ApiError::Conflict(_)) => {
            let existing = cluster.get::<Job>(namespace, name, deadline).await?;
            let annotations = existing.metadata.annotations.as_ref();
            let digest = annotations.and_then(|all| all.get(REQUEST_DIGEST));
            if digest != Some(&subject.digest) {
                return Err(ActionError::new(
                    Code::IdReused,
                    format!("Job '{name}' in namespace '{namespace}' belongs to another request"),
                )
                .with_field("id")
                .with_hint("use another id for this request"));
            }
            Ok(existing)
        }
        Err(error) => {
            let call = ApiCall::of::<Job>("create", namespace, Some(name));
            Err(cluster.explain(&call, error).await)
        }
    }
}

fn name_of(job: &Job) -> (&str, &str) {
    let meta = &job.metadata;
    (meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default())
}

/// Reads the Job until it has ended; returns its last condition.
async fn wait(
    cluster: &Cluster,
    flags: &ClusterFlags,
    job: &Job,
) -> Result<JobCondition, ActionError> {
    let (namespace, name) = name_of(job);
    let deadline = job.spec.as_ref().and_then(|spec| spec.active_deadline_seconds).unwrap_or(0);
    let end = Instant::now() + Duration::from_secs(deadline.unsigned_abs()) + DEADLINE_MARGIN;
    let mut reported = String::new();
    loop {
        let job = cluster.get::<Job>(namespace, name, Instant::now() + CALL_TIMEOUT).await?;
        if let Some(condition) = ended(&job) {
            return Ok(condition.clone());
        }
        report(&job, &mut reported);
        if Instant::now() + POLL_INTERVAL >= end {
            return Err(outcome_unknown(flags, &job, "has not ended within its deadline"));
        }
        sleep(POLL_INTERVAL).await;
    }
}

/// The condition with which the Job, its pods included, has ended.
fn ended(job: &Job) -> Option<&JobCondition> {
    job.status.as_ref()?.conditions.as_ref()?.iter().find(|condition| {
        condition.status == "True" && matches!(condition.type_.as_str(), "Complete" | "Failed")
    })
}

/// On a terminal, prints the state when it changes.
fn report(job: &Job, reported: &mut String) {
    if !io::stderr().is_terminal() {
        return;
    }
    let status = job.status.clone().unwrap_or_default();
    let count = |number: Option<i32>| number.unwrap_or(0);
    let stage = format!(
        "Job '{}': {} running, {} failed",
        name_of(job).1,
        count(status.active),
        count(status.failed)
    );
    if *reported != stage {
        eprintln!("{stage}");
        *reported = stage;
    }
}

/// The answer and the exit status of a Job that has ended.
async fn answer(
    cluster: &Cluster,
    flags: &ClusterFlags,
    job: &Job,
    subject: RequestMetadata,
    condition: &JobCondition,
) -> Result<(Vec<u8>, u8), ActionError> {
    let (namespace, name) = name_of(job);
    let selector = format!("batch.kubernetes.io/job-name={name}");
    let deadline = Instant::now() + CALL_TIMEOUT;
    let pods = cluster.list::<Pod>(namespace, &selector, deadline).await?;
    if let Some(last) = failure_log(&pods) {
        let message = last.message.clone().unwrap_or_default();
        let status = u8::try_from(last.exit_code).unwrap_or(Code::Internal.exit_status());
        return Ok((message.into_bytes(), status));
    }
    if let ClaimState::Answered(record) = Ledger::new(cluster, subject).find(deadline).await?
        && let Some(answer) = record.answer
    {
        let reply = Reply::from(ActionResponse { replayed: true, ..answer });
        return Ok((reply.to_json(), reply.exit_status()));
    }
    let why = condition.message.as_deref().unwrap_or("its pods are deleted");
    Err(outcome_unknown(flags, job, &format!("has no answer: {why}")))
}

/// The state of the container that ended last and has a message.
fn failure_log(pods: &[Pod]) -> Option<&ContainerStateTerminated> {
    let ended = pods.iter().filter_map(|pod| {
        let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
        let container = statuses.iter().find(|status| status.name == CONTAINER)?;
        let state = container.state.as_ref()?.terminated.as_ref()?;
        state.message.as_ref().filter(|message| !message.is_empty()).map(|_| state)
    });
    ended.max_by_key(|state| state.finished_at.as_ref().map(|time| time.0))
}

fn outcome_unknown(flags: &ClusterFlags, job: &Job, what: &str) -> ActionError {
    let (namespace, name) = name_of(job);
    let ClusterFlags { kubectl, own } = flags;
    ActionError::new(
        Code::OutcomeUnknown,
        format!("Job '{name}' in namespace '{namespace}' {what}"),
    )
    .with_hint(format!(
        "`kubectl{kubectl} -n {namespace} describe job {name}` prints its events, \
         `action-executor history{own} -n {namespace}` what was done"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pods(yaml: &str) -> Vec<Pod> {
        serde_yaml_ng::from_str(yaml).expect("are pods")
    }

    #[test]
    fn the_pod_that_ended_last_has_the_answer() {
        let pods = pods(
            r#"
- status: {containerStatuses: [{name: action, image: a, imageID: a, ready: false, restartCount: 0,
    state: {terminated: {exitCode: 75, finishedAt: "2026-01-01T00:00:02Z", message: "late"}}}]}
- status: {containerStatuses: [{name: action, image: a, imageID: a, ready: false, restartCount: 0,
    state: {terminated: {exitCode: 0, finishedAt: "2026-01-01T00:00:09Z", message: "done"}}}]}
- status: {containerStatuses: [{name: action, image: a, imageID: a, ready: false, restartCount: 0,
    state: {terminated: {exitCode: 137, finishedAt: "2026-01-01T00:00:10Z"}}}]}
"#,
        );
        let last = failure_log(&pods).expect("there is one");
        assert_eq!((last.exit_code, last.message.as_deref()), (0, Some("done")));
        assert!(failure_log(&[]).is_none());
    }

    #[test]
    fn an_unknown_outcome_names_the_commands_to_check() {
        let job = "metadata: {name: restart, namespace: shop}";
        let job: Job = serde_yaml_ng::from_str(job).expect("is a Job");
        let flags = ClusterFlags {
            kubectl: " --context kind-a".to_owned(),
            own: " --cluster a".to_owned(),
        };
        let hint = outcome_unknown(&flags, &job, "has no answer").hint.expect("has one");
        assert!(
            hint.starts_with("`kubectl --context kind-a -n shop describe job restart`"),
            "{hint}"
        );
        assert!(hint.contains("`action-executor history --cluster a -n shop`"), "{hint}");
    }

    #[test]
    fn a_job_has_ended_when_its_pods_have() {
        let job = |condition: &str| -> Job {
            let text = format!("status: {{conditions: [{{type: {condition}, status: \"True\"}}]}}");
            serde_yaml_ng::from_str(&text).expect("is a Job")
        };
        assert!(ended(&job("Complete")).is_some() && ended(&job("Failed")).is_some());
        assert!(ended(&job("FailureTarget")).is_none() && ended(&Job::default()).is_none());
    }
}
