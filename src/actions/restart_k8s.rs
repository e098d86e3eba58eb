//! `restart_k8s`: replaces a Deployment's pods by its own rollout, as `kubectl rollout restart` does.

use k8s_openapi::api::apps::v1::Deployment;
use kube::api::ApiResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Action, Asked, CompletionOf, Descriptor, Plan, Plannable, Preview, Rule, Step, Todo, ignored,
};
use crate::{
    error::{ActionError, Code},
    k8s::{
        cluster::Cluster,
        effect::{Effect, Made},
        marks::Marks,
        restart,
        rollout::{self, Verdict},
    },
    names::{Namespace, ObjectName, null_is_default},
    request::read_parameters,
    response::{Change, Target, rfc3339_millis},
};

pub(super) const DESCRIPTOR: Descriptor = Descriptor {
    name: "restart_k8s",
    aliases: &["restart_deployment"],
    description: "Restart a Deployment: replace all its pods through its own rollout, at the pace \
                  that its strategy allows. Refused for a paused Deployment.",
    rules: &[
        Rule { api_groups: &["apps"], resources: &["deployments"], verbs: &["get", "patch"] },
        // Only to say what the new pods' own trouble is when an awaited rollout does not complete.
        Rule { api_groups: &[""], resources: &["pods"], verbs: &["list"] },
    ],
    parse: |text| read_parameters(text).map(Action::RestartK8s),
    schema: |generator| Parameters::json_schema(generator),
};

/// What `restart_k8s` acts upon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Parameters {
    /// The Deployment to restart.
    pub deployment: ObjectName,
    /// Its namespace.
    #[serde(default, deserialize_with = "null_is_default")]
    #[schemars(with = "Option<Namespace>")]
    pub namespace: Namespace,
    /// Ignored, with a warning: the original service's example carries it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("deprecated" = true))]
    pub pod_name: Option<String>,
}

impl Plannable for Parameters {
    fn target(&self) -> Target {
        Target {
            api_version: "apps/v1".to_owned(),
            kind: "Deployment".to_owned(),
            namespace: self.namespace.to_string(),
            name: self.deployment.to_string(),
            uid: None,
            resource_version: None,
        }
    }

    fn namespace(&self) -> &str {
        &self.namespace
    }

    fn warnings(&self) -> Vec<String> {
        self.pod_name.iter().map(|_| ignored("pod_name", DESCRIPTOR.name)).collect()
    }

    fn preview(&self, asked: &Asked) -> Preview {
        Preview { result: would(&self.deployment), changes: changes(&Deployment::default(), asked) }
    }

    fn plan<'a>(&'a self, cluster: &'a Cluster, asked: &'a Asked) -> Step<'a, Plan> {
        Box::pin(async move {
            let deployment: Deployment =
                cluster.get(&self.namespace, &self.deployment, asked.deadline).await?;
            decide(self.target(), &deployment, asked)
        })
    }
}

/// From the Deployment as it was read to what is to be done.
fn decide(mut target: Target, deployment: &Deployment, asked: &Asked) -> Result<Plan, ActionError> {
    target.uid = deployment.metadata.uid.clone();
    target.resource_version = deployment.metadata.resource_version.clone();
    if Marks::on(&deployment.metadata).hold(&asked.id) {
        return Ok(already_restarted(target, deployment, asked));
    }
    asked
        .check_same(&target)
        .and_then(|()| refuse_what_would_not_restart(&target, deployment))
        .map_err(|refusal| refusal.about(target.uid.as_deref()))?;
    Ok(Plan {
        todo: restart(&target.name, deployment, asked),
        changes: changes(deployment, asked),
        warnings: warnings(deployment),
        completion: CompletionOf::Rollout,
        found: deployment.metadata.clone(),
        target,
    })
}

/// The Deployment carries this request's mark: the restart was made, and its answer did not arrive.
fn already_restarted(target: Target, deployment: &Deployment, asked: &Asked) -> Plan {
    let made = Made {
        resource_version: deployment.metadata.resource_version.clone(),
        generation: deployment.metadata.generation,
    };
    Plan {
        todo: Todo::AlreadyMade(made, done(&target.name, asked)),
        changes: Vec::new(),
        warnings: Vec::new(),
        completion: CompletionOf::Rollout,
        found: deployment.metadata.clone(),
        target,
    }
}

fn restart(name: &str, deployment: &Deployment, asked: &Asked) -> Todo {
    let patch = restart::patch(asked.at, &asked.id);
    let resource = ApiResource::erase::<Deployment>(&());
    let effect = Effect::patch(resource, &deployment.metadata, &asked.id, patch);
    Todo::Make(Box::new(effect), done(name, asked), would(name))
}

/// What the restart changes, and the mark that every change leaves.
fn changes(deployment: &Deployment, asked: &Asked) -> Vec<Change> {
    let mut changes = restart::changes(deployment, asked.at, &asked.id);
    changes.push(Marks::on(&deployment.metadata).change(&asked.id));
    changes
}

fn done(name: &str, asked: &Asked) -> String {
    format!("Deployment '{name}' restarted at {}.", rfc3339_millis(asked.at))
}

fn would(name: &str) -> String {
    format!("Simulated: Deployment '{name}' would be restarted.")
}

/// kubectl refuses a paused Deployment too: the patch would be stored and no pod restarted.
fn refuse_what_would_not_restart(
    target: &Target,
    deployment: &Deployment,
) -> Result<(), ActionError> {
    let Target { namespace, name, .. } = target;
    if deployment.metadata.deletion_timestamp.is_some() {
        return Err(ActionError::new(
            Code::TargetNotFound,
            format!("Deployment '{name}' in namespace '{namespace}' is being deleted"),
        ));
    }
    if deployment.spec.as_ref().and_then(|spec| spec.paused) == Some(true) {
        return Err(ActionError::new(
            Code::TargetPaused,
            format!(
                "Deployment '{name}' in namespace '{namespace}' is paused; no pod would restart"
            ),
        )
        .with_hint(format!(
            "`kubectl -n {namespace} rollout resume deployment/{name}` resumes it"
        )));
    }
    Ok(())
}

fn warnings(deployment: &Deployment) -> Vec<String> {
    let spec = deployment.spec.as_ref();
    let replicas = spec.and_then(|spec| spec.replicas).unwrap_or(1);
    let recreate = spec
        .and_then(|spec| spec.strategy.as_ref())
        .is_some_and(|strategy| strategy.type_.as_deref() == Some("Recreate"));
    let mut warnings = Vec::new();
    if replicas == 0 {
        warnings.push("the Deployment is scaled to 0: there is no pod to restart".to_owned());
    } else if recreate {
        warnings.push(format!(
            "the strategy is Recreate: all {replicas} pods stop before new ones start"
        ));
    }
    if let Verdict::Waiting(what) = rollout::deployment(deployment, 0) {
        warnings.push(format!("another rollout is under way: {what}"));
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{k8s::effect::Mutation, request::Precondition};

    /// The decision on a rolled-out Deployment with `spec` and annotations as given.
    fn decide_on(spec: &str, annotations: &str, asked: &Asked) -> Result<Plan, ActionError> {
        let deployment = serde_yaml_ng::from_str(&format!(
            "metadata: {{name: web, namespace: shop, uid: u1, resourceVersion: '7', generation: 3, \
             annotations: {annotations}}}\n\
             spec: {{selector: {{}}, template: {{}}{spec}}}\n\
             status: {{observedGeneration: 3, replicas: 2, updatedReplicas: 2, availableReplicas: 2}}"
        ))
        .expect("is a Deployment");
        let target: Parameters = serde_json::from_str(r#"{"deployment":"web","namespace":"shop"}"#)
            .expect("are parameters");
        decide(target.target(), &deployment, asked)
    }

    #[test]
    fn plans_one_patch_bound_to_the_object() {
        let plan = decide_on(", replicas: 2", "{}", &Asked::example()).expect("is planned");
        let Todo::Make(effect, did, would) = plan.todo else { panic!("{:?}", plan.todo) };
        let Mutation::Patch { body, .. } = effect.mutation else { panic!("is no patch") };
        assert_eq!(body["metadata"]["uid"], "u1");
        assert_eq!(body["metadata"]["resourceVersion"], "7");
        assert_eq!(did, "Deployment 'web' restarted at 2026-01-31T12:00:00.987Z.");
        assert_eq!(would, "Simulated: Deployment 'web' would be restarted.");
        assert!(plan.warnings.is_empty(), "{:?}", plan.warnings);
    }

    #[test]
    fn refuses_a_paused_deployment() {
        let error =
            decide_on(", replicas: 2, paused: true", "{}", &Asked::example()).expect_err("refused");
        assert_eq!(error.code, Code::TargetPaused);
        assert!(error.hint.expect("has one").contains("rollout resume deployment/web"));
    }

    #[test]
    fn does_not_repeat_what_the_same_request_did() {
        let mark = "{action-executor.dev/requests: '4:r0 5:r1 6:r2'}";
        let plan = decide_on(", replicas: 2", mark, &Asked::example()).expect("is planned");
        assert!(matches!(plan.todo, Todo::AlreadyMade(Made { generation: Some(3), .. }, _)));
    }

    #[test]
    fn refuses_another_object_than_the_request_means() {
        let wanting = |uid: Option<&str>, version: Option<&str>| {
            let opaque = |text: &str| text.to_owned().try_into().expect("is opaque");
            let precondition =
                Precondition { uid: uid.map(opaque), resource_version: version.map(opaque) };
            decide_on(
                ", replicas: 2",
                "{}",
                &Asked { precondition: Some(precondition), ..Asked::example() },
            )
        };
        let error = wanting(Some("u2"), None).expect_err("is refused");
        assert_eq!(error.code, Code::PreconditionFailed);
        assert_eq!(error.field.as_deref(), Some("precondition.uid"));
        let error = wanting(Some("u1"), Some("6")).expect_err("is refused");
        assert_eq!(error.field.as_deref(), Some("precondition.resource_version"));
        assert!(wanting(Some("u1"), Some("7")).is_ok());
    }

    #[test]
    fn warns_of_what_a_restart_will_not_do_or_will_break() {
        let warnings = |spec: &str| {
            decide_on(spec, "{}", &Asked::example()).expect("is planned").warnings.join("; ")
        };
        assert!(warnings(", replicas: 0").contains("scaled to 0"));
        assert!(warnings(", replicas: 2, strategy: {type: Recreate}").contains("all 2 pods stop"));
        assert!(warnings(", replicas: 3").contains("another rollout is under way"));
    }
}
