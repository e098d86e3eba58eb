//! `scale`: sets how many replicas a workload has, through the scale subresource as `kubectl scale` does.
//!
//! A relative number is made an absolute one when it is decided, and only that is ever sent: so what was
//! sent once, whether or not its answer came back, can be found and is never added a second time.

use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::actions::PlanInput;
use crate::actions::CompletionSpec;
use crate::actions::Descriptor;
use crate::actions::Plan;
use crate::actions::Plannable;
use crate::actions::Preview;
use crate::k8s::rbac::PolicyRule;
use crate::actions::BoxFuture;
use crate::actions::Decision;
use crate::actions::shared::restart;
use crate::contract::error::ActionError;
use crate::contract::error::Code;
use crate::k8s::autoscaling::autoscaler_of;
use crate::k8s::autoscaling::scaled_object_of;
use crate::k8s::api::client::Cluster;
use crate::k8s::api::completion::Completion;
use crate::k8s::api::mutation::Effect;
use crate::k8s::api::mutation::has_scaled;
use crate::k8s::rollout;
use crate::k8s::rollout::RolloutStatus;
use crate::k8s::api::preflight;
use crate::k8s::workload::Workload;
use crate::k8s::workload::WorkloadKind;
use crate::contract::names::Namespace;
use crate::contract::names::ObjectName;
use crate::contract::names::null_is_default;
use crate::contract::response::Change;
use crate::contract::response::Target;

/// Where the number stands (RFC 6901).
const REPLICAS_POINTER: &str = "/spec/replicas";

pub(crate) const DESCRIPTOR: Descriptor = Descriptor {
    name: "scale",
    aliases: &[],
    description: "Set how many replicas a Deployment, StatefulSet or ReplicaSet has: to a number \
                  (replicas) or by a difference (by). Refused where a HorizontalPodAutoscaler, KEDA or \
                  an owning Deployment sets the number and would change it back: change it there. \
                  Unchanged if the number is right already. With wait it stays until all replicas are \
                  available and none is too many.",
    example: r#"{"name":"web","replicas":3}"#,
    rules: &[
        PolicyRule {
            api_groups: &["apps"],
            resources: &["deployments", "statefulsets", "replicasets"],
            verbs: &["get"],
        },
        PolicyRule {
            api_groups: &["apps"],
            resources: &["deployments/scale", "statefulsets/scale", "replicasets/scale"],
            verbs: &["patch"],
        },
        // Who else sets the number.
        preflight::AUTOSCALERS,
        restart::PODS,
    ],
    cluster_rules: &[],
};

/// What `scale` acts upon, and how many replicas it is to have.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("oneOf" = [
    { "required": ["replicas"], "properties": { "replicas": { "type": "integer" }, "by": { "type": "null" } } },
    { "required": ["by"], "properties": { "by": { "type": "integer" }, "replicas": { "type": "null" } } },
]))]
pub struct Parameters {
    /// The kind of workload.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "is_deployment")]
    #[schemars(with = "Option<Scalable>", extend("default" = "Deployment"))]
    pub kind: Scalable,
    /// The workload to scale.
    pub name: ObjectName,
    /// Its namespace.
    #[serde(default, deserialize_with = "null_is_default")]
    #[schemars(with = "Option<Namespace>")]
    pub namespace: Namespace,
    /// How many replicas it is to have. Either this or `by`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 2147483647))]
    pub replicas: Option<i32>,
    /// How many replicas more, or fewer if negative, than it has. Either this or `replicas`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = -2147483648, max = 2147483647), extend("not" = { "const": 0 }))]
    pub by: Option<i32>,
    /// Act only if it has this many replicas now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 2147483647))]
    pub current_replicas: Option<i32>,
}

/// A kind of workload that has a number of replicas; the pods of a DaemonSet are as many as its nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Scalable {
    /// A Deployment.
    #[default]
    Deployment,
    /// A StatefulSet.
    StatefulSet,
    /// A ReplicaSet that no Deployment controls.
    ReplicaSet,
}

impl From<Scalable> for WorkloadKind {
    fn from(kind: Scalable) -> Self {
        match kind {
            Scalable::Deployment => WorkloadKind::Deployment,
            Scalable::StatefulSet => WorkloadKind::StatefulSet,
            Scalable::ReplicaSet => WorkloadKind::ReplicaSet,
        }
    }
}

fn is_deployment(kind: &Scalable) -> bool {
    *kind == Scalable::Deployment
}

impl Plannable for Parameters {
    fn target(&self) -> Target {
        WorkloadKind::from(self.kind).target(&self.namespace, &self.name)
    }

    fn namespace(&self) -> &str {
        &self.namespace
    }

    fn check(&self) -> Result<(), ActionError> {
        let negative = |number: Option<i32>| number.is_some_and(|number| number < 0);
        match (self.replicas, self.by) {
            (None, None) => {
                Err(ActionError::invalid_field("parameters.replicas", "missing, and so is by")
                    .with_hint("give replicas for a number, or by for a difference"))
            }
            (Some(_), Some(_)) => {
                Err(ActionError::invalid_field("parameters.by", "cannot be given beside replicas")
                    .with_hint("give replicas for a number, or by for a difference"))
            }
            (None, Some(0)) => Err(ActionError::invalid_field("parameters.by", "must not be 0")),
            (replicas, _) if negative(replicas) => {
                Err(ActionError::invalid_field("parameters.replicas", "must not be below 0"))
            }
            _ if negative(self.current_replicas) => {
                Err(ActionError::invalid_field("parameters.current_replicas", "must not be below 0"))
            }
            _ => Ok(()),
        }
    }

    fn preview(&self, _: &PlanInput) -> Preview {
        let Target { kind, name, .. } = self.target();
        let how = match (self.replicas, self.by) {
            (Some(replicas), _) => format!("to {replicas}"),
            (None, by) => format!("by {:+}", by.unwrap_or(0)),
        };
        let to_number = self.replicas.map(|replicas| change(Value::Null, replicas));
        Preview {
            result: format!("Simulated: {kind} '{name}' would be scaled {how}."),
            changes: to_number.into_iter().collect(),
        }
    }

    fn plan<'a>(&'a self, cluster: &'a Cluster, asked: &'a PlanInput) -> BoxFuture<'a, Plan> {
        Box::pin(async move {
            let (namespace, deadline) = (&self.namespace, asked.deadline);
            let found = cluster.workload(self.kind.into(), namespace, &self.name, deadline).await?;
            let autoscalers = cluster.list_all(Some(namespace), "", deadline).await?;
            decide(self, &found, &autoscalers, asked)
        })
    }
}

/// From the workload and the namespace's autoscalers as they were read to what is to be done.
fn decide(
    parameters: &Parameters,
    workload: &Workload,
    autoscalers: &[HorizontalPodAutoscaler],
    asked: &PlanInput,
) -> Result<Plan, ActionError> {
    let (target, found) = (parameters.target(), workload.metadata());
    let now = workload.replicas().unwrap_or(1);
    let named = format!("{} '{}'", target.kind, target.name);
    if has_scaled(found, &asked.id) {
        let completion = full_number(&target, workload, now);
        let did = format!("{named} scaled to {now}.");
        return Ok(Plan::already_made(target, found, did, completion));
    }
    asked.check_found(&target, found)?;
    let about = |refusal: ActionError| refusal.object_uid(found.uid.as_deref());
    refuse_what_would_be_changed_back(&target, workload, autoscalers).map_err(about)?;
    let wanted = replicas_wanted(parameters, now, asked).map_err(about)?;
    let completion = full_number(&target, workload, wanted);
    if wanted == now {
        let todo = Decision::NoOp(format!("{named} is scaled to {now} already."));
        return Ok(Plan::new(target, found, todo, completion));
    }
    let effect = Effect::scaling(workload.kind().resource(), found, &asked.id, wanted);
    let did = format!("{named} scaled from {now} to {wanted}.");
    let would = format!("Simulated: {named} would be scaled from {now} to {wanted}.");
    let mut plan =
        Plan::new(target, found, Decision::Apply(Box::new(effect), did, would), completion);
    plan.changes = vec![change(now.into(), wanted)];
    plan.warnings = warnings(workload, now, wanted);
    plan.replicas = u32::try_from(wanted).ok();
    plan.decided_on = Some(wanted.to_string());
    Ok(plan)
}

/// How many replicas are wanted where there are `now`.
fn replicas_wanted(parameters: &Parameters, now: i32, asked: &PlanInput) -> Result<i32, ActionError> {
    let target = parameters.target();
    let differs = |field: &str, detail: String| {
        ActionError::new(Code::PreconditionFailed, detail)
            .with_field(format!("parameters.{field}"))
            .with_hint("look at the target again and decide anew")
    };
    if parameters.current_replicas.is_some_and(|current| current != now) {
        let detail = format!("{target} is not as the request means it: it is scaled to {now}");
        return Err(differs("current_replicas", detail));
    }
    let Some(by) = parameters.by else { return Ok(parameters.replicas.unwrap_or(now)) };
    let sum = now.checked_add(by).filter(|sum| *sum >= 0);
    let Some(wanted) = sum else {
        let detail = format!("{target} is scaled to {now}: {by:+} is no number of replicas");
        return Err(differs("by", detail));
    };
    // What was judged, approved and written down is this number, not the difference.
    if asked.decision_etag.as_ref().is_some_and(|decided| *decided != wanted.to_string()) {
        let detail = format!(
            "{target} was scaled to {now} by someone else in between; nothing was added to that"
        );
        return Err(ActionError::new(Code::Conflict, detail)
            .with_retry_after(Some(std::time::Duration::from_secs(1))));
    }
    Ok(wanted)
}

fn full_number(target: &Target, workload: &Workload, replicas: i32) -> CompletionSpec {
    CompletionSpec::Known(Completion::Scaled {
        kind: workload.kind(),
        namespace: target.namespace.clone(),
        name: target.name.clone(),
        replicas,
    })
}

fn change(from: Value, to: i32) -> Change {
    Change { path: REPLICAS_POINTER.to_owned(), from, to: to.into() }
}

/// kubectl changes the number all the same, and whoever decides on it changes it back.
fn refuse_what_would_be_changed_back(
    target: &Target,
    workload: &Workload,
    autoscalers: &[HorizontalPodAutoscaler],
) -> Result<(), ActionError> {
    let namespace = &target.namespace;
    let managed = |by: String| {
        let detail = format!("{target} gets its number of replicas from {by}");
        ActionError::new(Code::TargetManaged, detail)
    };
    if let Some(autoscaler) = autoscaler_of(autoscalers, target) {
        let name = autoscaler.metadata.name.as_deref().unwrap_or_default();
        return Err(match scaled_object_of(autoscaler) {
            Some(object) => managed(format!(
                "HorizontalPodAutoscaler '{name}', which KEDA keeps for ScaledObject '{object}'"
            ))
            .with_hint(format!(
                "change minReplicaCount or maxReplicaCount of the ScaledObject, or hold it with \
                 `kubectl -n {namespace} annotate scaledobject {object} \
                 autoscaling.keda.sh/paused-replicas=N`"
            )),
            None => managed(format!("HorizontalPodAutoscaler '{name}'")).with_hint(format!(
                "change its minReplicas or maxReplicas: `kubectl -n {namespace} edit hpa {name}`"
            )),
        });
    }
    match (workload.kind(), workload.controller()) {
        (WorkloadKind::ReplicaSet, Some((kind, name))) => {
            let refusal = managed(format!("{kind} '{name}', which controls it"));
            Err(refusal.with_hint(format!("scale {kind} '{name}' instead")))
        }
        _ => Ok(()),
    }
}

fn warnings(workload: &Workload, now: i32, wanted: i32) -> Vec<String> {
    let kind = workload.kind().name();
    let mut warnings = Vec::new();
    if wanted == 0 {
        warnings.push(format!("the {kind} is scaled to 0: none of its pods is left"));
    }
    if workload.is_paused() {
        warnings.push(format!(
            "the {kind} is paused: its number of pods changes all the same, their template does not"
        ));
    } else if rollout::manual_update_reason(workload).is_none()
        && let RolloutStatus::Waiting(what) = rollout::status(workload, 0)
    {
        warnings.push(format!("a rollout is under way: {what}"));
    }
    if wanted < now && deletes_claims(workload) {
        warnings.push(
            "the volume claims of the pods that go are deleted with them \
             (persistentVolumeClaimRetentionPolicy.whenScaled is Delete)"
                .to_owned(),
        );
    }
    if let Some((owner, name)) = workload.controller() {
        warnings.push(format!("{owner} '{name}' controls the {kind} and may change it back"));
    }
    warnings
}

/// Whether a StatefulSet's claims go with the pods that are too many.
fn deletes_claims(workload: &Workload) -> bool {
    let Workload::StatefulSet(set) = workload else { return false };
    let spec = set.spec.as_ref();
    let policy =
        spec.and_then(|spec| spec.persistent_volume_claim_retention_policy.as_ref());
    policy.and_then(|it| it.when_scaled.as_deref()) == Some("Delete")
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};

    use super::*;
    use crate::actions::ActionKind;
    use crate::k8s::api::mutation::Mutation;

    fn read(parameters: &str) -> Result<Parameters, ActionError> {
        let text = format!(r#"{{"name":"web","namespace":"shop",{parameters}}}"#);
        match ActionKind::Scale.parse(&text)? {
            super::super::Action::Scale(parameters) => Ok(parameters),
            other => panic!("{other:?}"),
        }
    }

    fn metadata(more: &str) -> String {
        format!(
            "metadata: {{name: web, namespace: shop, uid: u1, resourceVersion: '7', \
             generation: 3{more}}}"
        )
    }

    /// A Deployment of three pods, with more of its metadata and spec as given.
    fn deployment(more: &str, spec: &str) -> Workload {
        let deployment: Deployment = serde_yaml_ng::from_str(&format!(
            "{}\n\
             spec: {{replicas: 3, selector: {{}}, template: {{}}{spec}}}\n\
             status: {{observedGeneration: 3, replicas: 3, updatedReplicas: 3, availableReplicas: 3}}",
            metadata(more)
        ))
        .expect("is a Deployment");
        deployment.into()
    }

    fn autoscaler(metadata: &str) -> HorizontalPodAutoscaler {
        serde_yaml_ng::from_str(&format!(
            "metadata: {{name: web-hpa{metadata}}}\n\
             spec: {{maxReplicas: 5, scaleTargetRef: {{apiVersion: apps/v1, kind: Deployment, name: web}}}}"
        ))
        .expect("is an autoscaler")
    }

    fn decide_on(workload: &Workload, parameters: &str) -> Result<Plan, ActionError> {
        let parameters = read(parameters).expect("are parameters");
        decide(&parameters, workload, &[], &PlanInput::example())
    }

    fn replicas_of(plan: &Plan) -> i32 {
        let Decision::Apply(effect, ..) = &plan.decision else { panic!("{:?}", plan.decision) };
        let Mutation::Scale { replicas, .. } = effect.mutation else { panic!("is no scaling") };
        replicas
    }

    #[test]
    fn takes_one_of_replicas_and_by_and_names_the_field_otherwise() {
        for (parameters, field) in [
            (r#""kind":"Deployment""#, "parameters.replicas"),
            (r#""replicas":null"#, "parameters.replicas"),
            (r#""replicas":2,"by":1"#, "parameters.by"),
            (r#""by":0"#, "parameters.by"),
            (r#""replicas":-1"#, "parameters.replicas"),
            (r#""replicas":2147483648"#, "parameters.replicas"),
            (r#""replicas":1.5"#, "parameters.replicas"),
            (r#""replicas":1,"current_replicas":-1"#, "parameters.current_replicas"),
            (r#""replicas":1,"kind":"DaemonSet""#, "parameters.kind"),
        ] {
            let error = read(parameters).expect_err("is refused");
            assert_eq!(error.code, Code::InvalidRequest);
            assert_eq!(error.field.as_deref(), Some(field), "{error:?}");
        }
        for parameters in [r#""replicas":0"#, r#""by":-1,"replicas":null,"kind":null"#] {
            assert!(read(parameters).is_ok(), "{parameters}");
        }
    }

    #[test]
    fn a_difference_becomes_a_number_when_it_is_decided() {
        for (parameters, wanted) in
            [(r#""replicas":5"#, 5), (r#""by":2"#, 5), (r#""by":-3"#, 0), (r#""replicas":0"#, 0)]
        {
            let plan = decide_on(&deployment("", ""), parameters).expect("is planned");
            assert_eq!(replicas_of(&plan), wanted);
            assert_eq!(plan.replicas.map(i64::from), Some(i64::from(wanted)));
            assert_eq!(plan.changes, [change(3.into(), wanted)]);
            let CompletionSpec::Known(Completion::Scaled { replicas, .. }) = plan.completion else {
                panic!("{:?}", plan.completion)
            };
            assert_eq!(replicas, wanted);
        }
    }

    #[test]
    fn a_difference_is_never_added_to_another_number_than_was_judged() {
        let parameters = read(r#""by":1"#).expect("are parameters");
        let again = |decided: u32| {
            let asked = PlanInput { decision_etag: Some(decided.to_string()), ..PlanInput::example() };
            decide(&parameters, &deployment("", ""), &[], &asked)
        };
        assert_eq!(replicas_of(&again(4).expect("is planned")), 4);
        let error = again(3).expect_err("is refused");
        assert_eq!(error.code, Code::Conflict);
    }

    #[test]
    fn there_are_never_fewer_than_none_nor_more_than_can_be_written() {
        for by in [-4, i32::MIN, i32::MAX] {
            let error = decide_on(&deployment("", ""), &format!(r#""by":{by}"#));
            let error = error.expect_err("is refused");
            assert_eq!(error.code, Code::PreconditionFailed);
            assert_eq!(error.field.as_deref(), Some("parameters.by"));
        }
    }

    #[test]
    fn a_number_that_is_right_already_is_left() {
        let plan = decide_on(&deployment("", ""), r#""replicas":3"#).expect("is planned");
        assert!(matches!(plan.decision, Decision::NoOp(_)), "{:?}", plan.decision);
        assert_eq!(plan.replicas, None);
    }

    #[test]
    fn another_number_than_the_request_means_is_refused() {
        let on = |current: i32| {
            let parameters = format!(r#""replicas":5,"current_replicas":{current}"#);
            decide_on(&deployment("", ""), &parameters)
        };
        assert!(on(3).is_ok());
        let error = on(4).expect_err("is refused");
        assert_eq!(error.code, Code::PreconditionFailed);
        assert_eq!(error.field.as_deref(), Some("parameters.current_replicas"));
    }

    #[test]
    fn what_the_same_request_did_is_known_by_its_field_manager() {
        let first = decide_on(&deployment("", ""), r#""by":1"#).expect("is planned");
        let Decision::Apply(effect, ..) = first.decision else { panic!("{:?}", first.decision) };
        let Mutation::Scale { manager, .. } = effect.mutation else { panic!("is no scaling") };
        let noted = format!(
            ", managedFields: [{{manager: {manager}, operation: Update, subresource: scale, \
             fieldsType: FieldsV1, fieldsV1: {{'f:spec': {{'f:replicas': {{}}}}}}}}]"
        );
        let again = decide_on(&deployment(&noted, ""), r#""by":1"#).expect("is planned");
        assert!(matches!(again.decision, Decision::AlreadyApplied(..)), "{:?}", again.decision);
    }

    #[test]
    fn who_else_sets_the_number_is_named() {
        let parameters = read(r#""replicas":5"#).expect("are parameters");
        let refusal = |autoscaler: HorizontalPodAutoscaler| {
            let asked = PlanInput::example();
            let plan = decide(&parameters, &deployment("", ""), &[autoscaler], &asked);
            let error = plan.expect_err("is refused");
            assert_eq!(error.code, Code::TargetManaged);
            format!("{} {}", error.detail, error.hint.expect("has one"))
        };
        let told = refusal(autoscaler(""));
        assert!(told.contains("HorizontalPodAutoscaler 'web-hpa'") && told.contains("edit hpa"));
        let told = refusal(autoscaler(", labels: {scaledobject.keda.sh/name: web-so}"));
        assert!(told.contains("ScaledObject 'web-so'"), "{told}");
        assert!(told.contains("autoscaling.keda.sh/paused-replicas"), "{told}");
    }

    #[test]
    fn a_replica_set_is_its_deployments_affair() {
        let set: ReplicaSet = serde_yaml_ng::from_str(&format!(
            "{}\nspec: {{replicas: 3, selector: {{}}}}",
            metadata(OWNED)
        ))
        .expect("is a ReplicaSet");
        let error = decide_on(&set.into(), r#""replicas":5,"kind":"ReplicaSet""#);
        let error = error.expect_err("is refused");
        assert_eq!(error.code, Code::TargetManaged);
        assert!(error.detail.contains("Deployment 'shop-web'"), "{}", error.detail);
        // Who owns another workload may or may not care.
        let plan = decide_on(&deployment(OWNED, ""), r#""replicas":5"#).expect("is planned");
        assert!(plan.warnings[0].contains("Deployment 'shop-web' controls the Deployment"));
    }

    const OWNED: &str = ", ownerReferences: [{apiVersion: apps/v1, kind: Deployment, \
                         name: shop-web, uid: d, controller: true}]";

    #[test]
    fn warns_of_what_a_careful_person_would_see() {
        let warnings = |workload: &Workload, parameters: &str| {
            decide_on(workload, parameters).expect("is planned").warnings.join("; ")
        };
        assert_eq!(warnings(&deployment("", ""), r#""replicas":5"#), "");
        assert!(warnings(&deployment("", ""), r#""replicas":0"#).contains("scaled to 0"));
        let paused = deployment("", ", paused: true");
        assert!(warnings(&paused, r#""replicas":5"#).contains("is paused"));
        let Workload::Deployment(mut rolling) = deployment("", "") else { panic!("is one") };
        rolling.status.as_mut().expect("has one").updated_replicas = Some(1);
        let told = warnings(&Workload::Deployment(rolling), r#""replicas":5"#);
        assert!(told.contains("a rollout is under way: 1 of 3"), "{told}");
        let set: StatefulSet = serde_yaml_ng::from_str(&format!(
            "{}\nspec: {{replicas: 3, selector: {{}}, template: {{}}, \
             persistentVolumeClaimRetentionPolicy: {{whenScaled: Delete}}}}\n\
             status: {{observedGeneration: 3, replicas: 3, readyReplicas: 3, updatedReplicas: 3}}",
            metadata("")
        ))
        .expect("is a StatefulSet");
        let set = set.into();
        let fewer = warnings(&set, r#""replicas":2,"kind":"StatefulSet""#);
        assert!(fewer.contains("volume claims"), "{fewer}");
        assert_eq!(warnings(&set, r#""replicas":4,"kind":"StatefulSet""#), "");
    }
}
