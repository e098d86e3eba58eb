//! What the actions that create a Job have in common: its name, which is the request's alone, and the plan of its
//! creation. Must not depend on one of them.

use k8s_openapi::api::batch::v1::Job;
use kube::{
    Resource,
    api::{ApiResource, DynamicObject},
    core::ObjectMeta,
};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{
    actions::{CompletionSpec, Decision, Plan, PlanInput, Preview},
    contract::{
        digest::sha256,
        error::{ActionError, Code},
        response::{Change, Target, rfc3339_millis},
    },
    k8s::{
        REQUEST_ID_ANNOTATION,
        api::client::Cluster,
        completion::Completion,
        effect::{Applied, Effect},
        rbac::PolicyRule,
    },
};

/// The RBAC rule to create a Job and to wait for it.
pub(crate) const CREATION: PolicyRule = PolicyRule {
    api_groups: &["batch"],
    resources: &["jobs"],
    // list: each plan records the version of the list. watch: completion, and evidence of a creation
    // without an answer.
    verbs: &["get", "list", "create", "watch"],
};

/// The RBAC rule to report why a Job failed when the request waits.
pub(crate) const LOGS: PolicyRule =
    PolicyRule { api_groups: &[""], resources: &["pods/log"], verbs: &["get"] };

/// The longest label value: Job and pods are labelled with the name.
const MAX_NAME_CHARACTERS: usize = 63;

/// The longest suffix of the host names of an indexed Job's pods: the API server rejects a Job whose last one would be
/// too long. The name does not depend on whether this Job is indexed, since each attempt must find it.
const MAX_INDEX_CHARACTERS: usize = "-2147483646".len();

/// The length of the digest that distinguishes the Jobs of two requests.
const DIGEST_CHARACTERS: usize = 10;

/// The minimal lifetime of a finished Job in seconds: a request that is resent after a crash must find the
/// Job, or it would start a second one.
const MIN_TTL_SECONDS: i64 = 600;

/// The object that the Job comes from, which was read with the fields that this program does not know.
///
/// # Errors
/// [`Code::Internal`] if it is of another kind.
pub(crate) fn parse<K: DeserializeOwned + Resource>(
    target: &Target,
    object: &DynamicObject,
) -> Result<K, ActionError> {
    object.clone().try_parse().map_err(|error| {
        ActionError::new(Code::Internal, format!("{target} cannot be read: {error}"))
    })
}

/// The Job of a request, before its creation.
pub(crate) struct NewJob {
    pub name: String,
    /// The Job that has this name already.
    existing: Option<Job>,
    /// The version of the list of Jobs before that was read.
    version: Option<String>,
}

impl NewJob {
    /// The Job of this request that is made from the object of this name.
    pub(crate) async fn read(
        cluster: &Cluster,
        namespace: &str,
        source: &str,
        input: &PlanInput,
    ) -> Result<Self, ActionError> {
        let name = name(source, &input.id);
        let (existing, version) = tokio::try_join!(
            cluster.get_opt::<Job>(namespace, &name, input.deadline),
            cluster.list_version::<Job>(namespace, &name, input.deadline),
        )?;
        Ok(NewJob { name, existing, version })
    }

    /// The plan of its creation from the target with this metadata. `what` describes the new Job; `manifest` decides on
    /// its labels, annotations, owners and spec.
    ///
    /// # Errors
    /// Another Job has its name, the target is not the one that the request means, or why there is no manifest.
    pub(crate) fn plan(
        &self,
        target: Target,
        found: &ObjectMeta,
        what: &str,
        manifest: impl FnOnce() -> Result<Value, ActionError>,
        input: &PlanInput,
    ) -> Result<Plan, ActionError> {
        let NewJob { name, existing, version } = self;
        let completion = CompletionSpec::Known(Completion::Finished {
            namespace: target.namespace.clone(),
            name: name.clone(),
            mark: input.mark.clone(),
        });
        let did = format!("{what} created at {}.", rfc3339_millis(input.at));
        match existing {
            Some(job) if input.has_changed(&job.metadata)? => {
                // The Job changes nothing of the target.
                let decision = Decision::AlreadyApplied(Applied::default(), did);
                return Ok(Plan::new(target, found, decision, completion));
            }
            Some(_) => return Err(name_is_taken(&target, name)),
            None => {}
        }
        input.check_found(&target, found)?;
        let metadata = ObjectMeta {
            name: Some(name.clone()),
            namespace: Some(target.namespace.clone()),
            ..ObjectMeta::default()
        };
        let resource = ApiResource::erase::<Job>(&());
        let object = whole(manifest()?, &metadata, &input.id);
        let effect = Effect::creation(resource, &metadata, &input.mark, version.clone(), object);
        let Preview { result: would, changes } = preview(name, what);
        let decision = Decision::apply(effect, did, would);
        let mut plan = Plan::new(target, found, decision, completion);
        plan.changes = changes;
        Ok(plan)
    }
}

/// The name of a request's Job: that of its source and a digest of the request's id, so that each attempt
/// has the same. It is a DNS label, also with an index, since pods are named after it.
pub(crate) fn name(source: &str, request_id: &str) -> String {
    let label = source.replace('.', "-");
    let max = MAX_NAME_CHARACTERS - MAX_INDEX_CHARACTERS - 1 - DIGEST_CHARACTERS;
    let stem: String = label.chars().take(max).collect();
    let digest = &sha256(request_id.as_bytes())[..DIGEST_CHARACTERS];
    format!("{}-{digest}", stem.trim_end_matches('-'))
}

/// What is known of the creation without a cluster.
pub(crate) fn preview(job: &str, what: &str) -> Preview {
    let creation = Change { path: "/metadata/name".to_owned(), from: Value::Null, to: job.into() };
    Preview { result: format!("Simulated: {what} would be created."), changes: vec![creation] }
}

/// The manifest with its name, the request's id and a minimal lifetime.
fn whole(mut job: Value, metadata: &ObjectMeta, request_id: &str) -> Value {
    job["apiVersion"] = "batch/v1".into();
    job["kind"] = "Job".into();
    job["metadata"]["name"] = metadata.name.clone().into();
    job["metadata"]["namespace"] = metadata.namespace.clone().into();
    job["metadata"]["annotations"][REQUEST_ID_ANNOTATION] = request_id.into();
    let ttl = &mut job["spec"]["ttlSecondsAfterFinished"];
    if let Some(seconds) = ttl.as_i64() {
        *ttl = seconds.max(MIN_TTL_SECONDS).into();
    }
    job
}

fn name_is_taken(target: &Target, job: &str) -> ActionError {
    ActionError::new(
        Code::RejectedByCluster,
        format!("Job '{job}' exists and was not created by this request, so no Job was created from {target}"),
    )
    .with_hint("send the request with another id")
}

#[cfg(test)]
impl NewJob {
    /// The Job of the request `r1`, for tests.
    pub(crate) fn example(source: &str, existing: Option<&Job>) -> Self {
        let (existing, version) = (existing.cloned(), Some("70".to_owned()));
        NewJob { name: name(source, "r1"), existing, version }
    }
}

#[cfg(test)]
mod tests {
    use crate::contract::names::Namespace;

    #[test]
    fn a_job_name_is_a_label_and_depends_on_the_request_alone() {
        for source in
            ["nightly", "nightly.report", &"a".repeat(52), &format!("{}-b", "a".repeat(51))]
        {
            let name = super::name(source, "alert-7");
            let last_of_indexed = format!("{name}-2147483646");
            assert!(Namespace::try_from(last_of_indexed.clone()).is_ok(), "{last_of_indexed}");
            assert_eq!(name, super::name(source, "alert-7"));
            assert_ne!(name, super::name(source, "alert-8"));
        }
    }
}
