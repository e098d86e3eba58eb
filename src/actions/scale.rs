//! `scale`: sets how many replicas a workload has, through the scale subresource as `kubectl scale` does.
//!
//! A difference is turned into an absolute number in the plan, and only that is sent. So a change whose
//! response was lost can be found, and a difference is never applied twice.

use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    actions::{
        Action, BoxFuture, CompletionSpec, Decision, Descriptor, Plan, PlanInput, Plannable,
        Preview,
        plan::READ_AGAIN,
        shared::{
            restart,
            selection::{Chosen, Selection},
        },
    },
    contract::{
        error::{ActionError, Code},
        label_selector::LabelSelector,
        names::{Namespace, ObjectName, null_is_default},
        response::{Change, Target},
    },
    k8s::{
        api::{client::Cluster, preflight},
        autoscaling::{autoscaler_of, bounds, is_disabled_at_zero, scaled_object_of},
        completion::Completion,
        effect::Effect,
        field_managers::has_scaled,
        gitops,
        rbac::PolicyRule,
        rollout,
        workload::{Workload, WorkloadKind},
    },
};

/// The path of the change (RFC 6901).
const REPLICAS_POINTER: &str = "/spec/replicas";

pub(crate) const DESCRIPTOR: Descriptor = Descriptor {
    name: "scale",
    aliases: &[],
    description: "Set how many replicas a Deployment, StatefulSet or ReplicaSet has: to a number \
                  (replicas) or by a difference (by). Refused where a HorizontalPodAutoscaler, KEDA or \
                  an owning Deployment sets the number and would change it back: change it there. \
                  Scaling to 0 disables a HorizontalPodAutoscaler. \
                  Unchanged if it has that number already. With wait it is complete once all replicas \
                  are available and no surplus one is left.",
    takes_time: true,
    when: "the load needs more or fewer pods, and no autoscaler sets the number",
    when_not: "pods crash: more of them crash too",
    destructive: true,
    example: r#"{"name":"web","replicas":3}"#,
    rules: &[
        PolicyRule {
            api_groups: &["apps"],
            resources: &["deployments", "statefulsets", "replicasets"],
            // To list is for a selector.
            verbs: &["get", "list", "watch"],
        },
        PolicyRule {
            api_groups: &["apps"],
            resources: &["deployments/scale", "statefulsets/scale", "replicasets/scale"],
            verbs: &["patch"],
        },
        // Whether an autoscaler sets the number.
        preflight::AUTOSCALERS,
        restart::PODS,
        restart::EVENTS,
    ],
    cluster_rules: &[],
    integration: None,
};

/// What `scale` acts upon, and the desired number of replicas.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("allOf" = [
    { "oneOf": [
        { "required": ["name"], "properties": {
        "selector": { "type": "null" }, "max_targets": { "type": "null" }, "max_failures": { "type": "null" },
    } },
        { "required": ["selector"], "properties": { "name": { "type": "null" } } },
    ] },
    { "oneOf": [
        { "required": ["replicas"], "properties": { "replicas": { "type": "integer" }, "by": { "type": "null" } } },
        { "required": ["by"], "properties": { "by": { "type": "integer" }, "replicas": { "type": "null" } } },
    ] },
]))]
pub struct Parameters {
    /// The kind of workload.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "is_deployment")]
    #[schemars(with = "Option<Scalable>", extend("default" = "Deployment"))]
    pub kind: Scalable,
    /// The workload to scale. Either this or `selector`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<ObjectName>,
    /// Scale all workloads of the kind that match this label selector, one after the other, instead of one by its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<LabelSelector>,
    /// With `selector`: refused if more match; 10 if it is omitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 50))]
    pub max_targets: Option<u32>,
    /// With `selector`: how many may fail before the others are left alone; 0 if it is omitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 49))]
    pub max_failures: Option<u32>,
    /// Its namespace.
    #[serde(default, deserialize_with = "null_is_default")]
    #[schemars(with = "Option<Namespace>")]
    pub namespace: Namespace,
    /// The desired number of replicas. Either this or `by`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 2147483647))]
    pub replicas: Option<i32>,
    /// How many replicas to add, or to remove if negative. Either this or `replicas`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = -2147483648, max = 2147483647), extend("not" = { "const": 0 }))]
    pub by: Option<i32>,
    /// Act only if it has this many replicas now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 2147483647))]
    pub current_replicas: Option<i32>,
}

/// A kind of workload with a number of replicas.
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

impl Parameters {
    fn chosen(&self) -> Chosen<'_> {
        Chosen {
            field: "name",
            name: self.name.as_ref(),
            selector: self.selector.as_ref(),
            max_targets: self.max_targets,
            max_failures: self.max_failures,
        }
    }
}

impl Plannable for Parameters {
    fn target(&self) -> Target {
        self.chosen().target(self.kind.into(), &self.namespace)
    }

    fn namespace(&self) -> &str {
        &self.namespace
    }

    fn selection(&self) -> Option<Selection<'_>> {
        self.chosen().selection(self.kind.into(), &self.namespace)
    }

    fn on(&self, target: ObjectName) -> Option<Action> {
        self.selection()?;
        Some(Action::Scale(Parameters {
            name: Some(target),
            selector: None,
            max_targets: None,
            max_failures: None,
            ..self.clone()
        }))
    }

    fn check(&self) -> Result<(), ActionError> {
        self.chosen().check()?;
        let negative = |number: Option<i32>| number.is_some_and(|number| number < 0);
        match (self.replicas, self.by) {
            (None, None) => Err(ActionError::invalid_field(
                "parameters.replicas",
                "missing: give replicas or by",
            )
            .with_hint("give replicas for a number, or by for a difference")),
            (Some(_), Some(_)) => {
                Err(ActionError::invalid_field("parameters.by", "cannot be combined with replicas")
                    .with_hint("give replicas for a number, or by for a difference"))
            }
            (None, Some(0)) => Err(ActionError::invalid_field("parameters.by", "must not be 0")),
            (replicas, _) if negative(replicas) => {
                Err(ActionError::invalid_field("parameters.replicas", "must not be below 0"))
            }
            _ if negative(self.current_replicas) => Err(ActionError::invalid_field(
                "parameters.current_replicas",
                "must not be below 0",
            )),
            _ => Ok(()),
        }
    }

    fn preview(&self, _: &PlanInput) -> Preview {
        let how = match (self.replicas, self.by) {
            (Some(replicas), _) => format!("to {replicas}"),
            (None, by) => format!("by {:+}", by.unwrap_or(0)),
        };
        if let Some(selection) = self.selection() {
            return selection.preview(&format!("scaled {how}"));
        }
        let Target { kind, name, .. } = self.target();
        let to_number = self.replicas.map(|replicas| change(Value::Null, replicas));
        Preview {
            result: format!("Simulated: {kind} '{name}' would be scaled {how}."),
            changes: to_number.into_iter().collect(),
        }
    }

    fn plan<'a>(&'a self, cluster: &'a Cluster, input: &'a PlanInput) -> BoxFuture<'a, Plan> {
        if let Some(selection) = self.selection() {
            return Box::pin(async move { selection.resolve(cluster, input).await });
        }
        Box::pin(async move {
            let (namespace, deadline) = (&self.namespace, input.deadline);
            let name = self.target().name;
            let (found, autoscalers) = tokio::try_join!(
                cluster.workload(self.kind.into(), namespace, &name, deadline),
                cluster.list(namespace, "", deadline),
            )?;
            let mut plan = decide(self, &found, &autoscalers, input)?;
            if let Some(desired) = plan.replicas.and_then(|it| i32::try_from(it).ok()) {
                let end = found.first_ordinal().saturating_add(desired);
                plan.warnings.extend(cluster.order_warning(&found, Some(end), deadline).await);
            }
            Ok(plan)
        })
    }
}

fn decide(
    parameters: &Parameters,
    workload: &Workload,
    autoscalers: &[HorizontalPodAutoscaler],
    input: &PlanInput,
) -> Result<Plan, ActionError> {
    let (target, found) = (parameters.target(), workload.metadata());
    let current = workload.replicas().unwrap_or(1);
    let object = format!("{} '{}'", target.kind, target.name);
    // A scaling leaves no mark; another request with the same id may have left one.
    input.has_changed(found)?;
    if has_scaled(found, &input.mark) {
        let completion = completion_of(&target, workload, current);
        let did = format!("{object} scaled to {current}.");
        return Ok(Plan::already_applied(target, found, did, completion));
    }
    input.check_found(&target, found)?;
    let with_uid = |refusal: ActionError| refusal.object_uid(found.uid.as_deref());
    let desired = target_replicas(parameters, current, input).map_err(with_uid)?;
    let autoscaler = autoscaler_of(autoscalers, &target);
    refuse_managed(&target, workload, autoscaler, [current, desired]).map_err(with_uid)?;
    let completion = completion_of(&target, workload, desired);
    if desired == current {
        let decision = Decision::NoOp(format!("{object} is scaled to {current} already."));
        return Ok(Plan::new(target, found, decision, completion));
    }
    let (resource, precondition) = (workload.kind().resource(), input.precondition.as_ref());
    let effect = Effect::scaling(resource, found, &input.mark, precondition, [current, desired]);
    let did = format!("{object} scaled from {current} to {desired}.");
    let would = format!("Simulated: {object} would be scaled from {current} to {desired}.");
    let mut plan = Plan::new(target, found, Decision::apply(effect, did, would), completion);
    plan.changes = vec![change(current.into(), desired)];
    plan.warnings = warnings(workload, autoscaler, current, desired);
    plan.replicas = u32::try_from(desired).ok();
    plan.decision_etag = Some(desired.to_string());
    Ok(plan)
}

/// How many replicas are wanted where there are `now`.
fn target_replicas(
    parameters: &Parameters,
    current: i32,
    input: &PlanInput,
) -> Result<i32, ActionError> {
    let target = parameters.target();
    let differs = |field: &str, detail: String| {
        ActionError::new(Code::PreconditionFailed, detail)
            .with_field(format!("parameters.{field}"))
            .with_hint(READ_AGAIN)
    };
    if parameters.current_replicas.is_some_and(|expected| expected != current) {
        let detail =
            format!("{target} does not have the expected number of replicas: it has {current}");
        return Err(differs("current_replicas", detail));
    }
    let Some(by) = parameters.by else { return Ok(parameters.replicas.unwrap_or(current)) };
    let sum = current.checked_add(by).filter(|sum| *sum >= 0);
    let Some(desired) = sum else {
        let detail = format!("{target} has {current} replicas: {by:+} is not possible");
        return Err(differs("by", detail));
    };
    // The policy check, the approval and the record are for this number, not for the difference.
    if input.decision_etag.as_ref().is_some_and(|decided| *decided != desired.to_string()) {
        let detail = format!(
            "{target} was scaled to {current} while the request was running; nothing was changed"
        );
        return Err(ActionError::new(Code::Conflict, detail)
            .with_retry_after(Some(std::time::Duration::from_secs(1))));
    }
    Ok(desired)
}

fn completion_of(target: &Target, workload: &Workload, replicas: i32) -> CompletionSpec {
    CompletionSpec::Known(Completion::Scaled {
        kind: workload.kind(),
        namespace: target.namespace.clone(),
        name: target.name.clone(),
        uid: workload.metadata().uid.clone(),
        replicas,
    })
}

fn change(from: Value, to: i32) -> Change {
    Change { path: REPLICAS_POINTER.to_owned(), from, to: to.into() }
}

/// kubectl changes the number anyway, and the controller that sets it changes it back. Not so with an autoscaler that
/// is disabled at 0 replicas: 0 lasts, and from 0 on it sets the number again.
fn refuse_managed(
    target: &Target,
    workload: &Workload,
    autoscaler: Option<&HorizontalPodAutoscaler>,
    replicas: [i32; 2],
) -> Result<(), ActionError> {
    let namespace = &target.namespace;
    let managed_by = |by: String| {
        let detail = format!("the replicas of {target} are managed by {by}");
        ActionError::new(Code::TargetManaged, detail)
    };
    let acts = |it: &&HorizontalPodAutoscaler| !(replicas.contains(&0) && is_disabled_at_zero(it));
    if let Some(autoscaler) = autoscaler.filter(acts) {
        let name = autoscaler.metadata.name.as_deref().unwrap_or_default();
        return Err(match scaled_object_of(autoscaler) {
            Some(object) => managed_by(format!(
                "HorizontalPodAutoscaler '{name}', which KEDA manages for ScaledObject '{object}'"
            ))
            .with_hint(format!(
                "change minReplicaCount or maxReplicaCount of the ScaledObject, or pause it at a number with \
                 pause_keda (name {object}, replicas), which needs the integration keda, or with `kubectl -n \
                 {namespace} annotate scaledobject {object} autoscaling.keda.sh/paused-replicas=N`"
            )),
            None => managed_by(format!("HorizontalPodAutoscaler '{name}'")).with_hint(
                "change its bounds with set_autoscaler_bounds; if they are above 0, a scaling to 0 and back is possible \
                 here, and disables the autoscaler meanwhile",
            ),
        });
    }
    match (workload.kind(), workload.controller()) {
        (WorkloadKind::ReplicaSet, Some((kind, name))) => {
            let refusal = managed_by(format!("{kind} '{name}', which controls it"));
            Err(refusal.with_hint(format!("scale {kind} '{name}' instead")))
        }
        _ => Ok(()),
    }
}

fn warnings(
    workload: &Workload,
    autoscaler: Option<&HorizontalPodAutoscaler>,
    current: i32,
    desired: i32,
) -> Vec<String> {
    let kind = workload.kind().name();
    let mut warnings = Vec::new();
    if desired == 0 {
        warnings.push(format!("the {kind} is scaled to 0: no pod is left"));
    }
    if let Some(autoscaler) = autoscaler {
        let name = autoscaler.metadata.name.as_deref().unwrap_or_default();
        let name = format!("HorizontalPodAutoscaler '{name}'");
        warnings.push(if desired == 0 {
            format!(
                "{name} does nothing while the number is 0 (ScalingDisabled); it sets the number again once another \
                 one is set"
            )
        } else {
            let [min, max] = bounds(autoscaler);
            format!("{name} sets the number from now on, from {min} to {max}")
        });
    }
    if workload.is_paused() {
        warnings.push(format!(
            "the {kind} is paused: its number of pods changes, their template does not"
        ));
    } else if rollout::manual_update_reason(workload).is_none() {
        warnings.extend(rollout::unfinished_warning(workload));
    }
    if desired < current && deletes_claims_on_scale_down(workload) {
        warnings.push(
            "the volume claims of the removed pods are deleted with them \
             (persistentVolumeClaimRetentionPolicy.whenScaled is Delete)"
                .to_owned(),
        );
    }
    warnings.extend(gitops::undo_warnings(workload.metadata(), "spec.replicas"));
    warnings
}

/// Whether a StatefulSet's volume claims are deleted with the pods that are too many.
fn deletes_claims_on_scale_down(workload: &Workload) -> bool {
    let Workload::StatefulSet(set) = workload else { return false };
    let spec = set.spec.as_ref();
    let policy = spec.and_then(|spec| spec.persistent_volume_claim_retention_policy.as_ref());
    policy.and_then(|it| it.when_scaled.as_deref()) == Some("Delete")
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};

    use super::*;
    use crate::{actions::ActionKind, k8s::effect::Mutation};

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
        let effect = plan.expect_change().0;
        let Mutation::Scale { replicas, .. } = effect.mutation else { panic!("is no scaling") };
        replicas
    }

    #[test]
    fn exactly_one_of_replicas_and_by_is_required() {
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
    fn a_difference_becomes_a_number_in_the_plan() {
        for (parameters, desired) in
            [(r#""replicas":5"#, 5), (r#""by":2"#, 5), (r#""by":-3"#, 0), (r#""replicas":0"#, 0)]
        {
            let plan = decide_on(&deployment("", ""), parameters).expect("is planned");
            assert_eq!(replicas_of(&plan), desired);
            assert_eq!(plan.replicas.map(i64::from), Some(i64::from(desired)));
            assert_eq!(plan.changes, [change(3.into(), desired)]);
            let CompletionSpec::Known(Completion::Scaled { replicas, .. }) = plan.completion else {
                panic!("{:?}", plan.completion)
            };
            assert_eq!(replicas, desired);
        }
    }

    #[test]
    fn a_difference_is_never_applied_to_another_number_than_that_of_the_first_plan() {
        let parameters = read(r#""by":1"#).expect("are parameters");
        let again = |decided: u32| {
            let input =
                PlanInput { decision_etag: Some(decided.to_string()), ..PlanInput::example() };
            decide(&parameters, &deployment("", ""), &[], &input)
        };
        assert_eq!(replicas_of(&again(4).expect("is planned")), 4);
        let error = again(3).expect_err("is refused");
        assert_eq!(error.code, Code::Conflict);
    }

    #[test]
    fn a_number_below_0_or_above_the_maximum_is_refused() {
        for by in [-4, i32::MIN, i32::MAX] {
            let error = decide_on(&deployment("", ""), &format!(r#""by":{by}"#));
            let error = error.expect_err("is refused");
            assert_eq!(error.code, Code::PreconditionFailed);
            assert_eq!(error.field.as_deref(), Some("parameters.by"));
        }
    }

    #[test]
    fn a_workload_with_the_desired_number_is_left() {
        let plan = decide_on(&deployment("", ""), r#""replicas":3"#).expect("is planned");
        assert!(matches!(plan.decision, Decision::NoOp(_)), "{:?}", plan.decision);
        assert_eq!(plan.replicas, None);
    }

    #[test]
    fn another_current_number_than_expected_is_refused() {
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
    fn a_request_is_recognised_by_its_field_manager() {
        let first = decide_on(&deployment("", ""), r#""by":1"#).expect("is planned");
        let effect = first.expect_change().0;
        let Mutation::Scale { manager, .. } = &effect.mutation else { panic!("is no scaling") };
        let noted = format!(
            ", managedFields: [{{manager: {manager}, operation: Update, subresource: scale, \
             fieldsType: FieldsV1, fieldsV1: {{'f:spec': {{'f:replicas': {{}}}}}}}}]"
        );
        let again = decide_on(&deployment(&noted, ""), r#""by":1"#).expect("is planned");
        assert!(matches!(again.decision, Decision::AlreadyApplied(..)), "{:?}", again.decision);
    }

    #[test]
    fn a_managed_number_is_refused_with_the_name_of_its_manager() {
        let parameters = read(r#""replicas":5"#).expect("are parameters");
        let refusal = |autoscaler: HorizontalPodAutoscaler| {
            let input = PlanInput::example();
            let plan = decide(&parameters, &deployment("", ""), &[autoscaler], &input);
            let error = plan.expect_err("is refused");
            assert_eq!(error.code, Code::TargetManaged);
            format!("{} {}", error.detail, error.hint.expect("has one"))
        };
        let message = refusal(autoscaler(""));
        assert!(
            message.contains("HorizontalPodAutoscaler 'web-hpa'")
                && message.contains("set_autoscaler_bounds")
        );
        let message = refusal(autoscaler(", labels: {scaledobject.keda.sh/name: web-so}"));
        assert!(message.contains("ScaledObject 'web-so'"), "{message}");
        assert!(message.contains("autoscaling.keda.sh/paused-replicas"), "{message}");
    }

    #[test]
    fn an_autoscaler_that_is_disabled_at_0_is_warned_of_and_one_that_is_not_is_refused() {
        let decide_from =
            |replicas: &str, autoscaler: HorizontalPodAutoscaler, parameters: &str| {
                let workload = deployment("", "");
                let Workload::Deployment(mut workload) = workload else { panic!("is one") };
                workload.spec.as_mut().expect("has one").replicas = replicas.parse().ok();
                let parameters = read(parameters).expect("are parameters");
                decide(
                    &parameters,
                    &Workload::Deployment(workload),
                    &[autoscaler],
                    &PlanInput::example(),
                )
            };
        let plan = decide_from("3", autoscaler(""), r#""replicas":0"#).expect("is planned");
        assert!(plan.warnings[1].contains("'web-hpa' does nothing while"), "{:?}", plan.warnings);
        let plan = decide_from("0", autoscaler(""), r#""by":2"#).expect("is planned");
        assert_eq!(
            plan.warnings,
            ["HorizontalPodAutoscaler 'web-hpa' sets the number from now on, from 1 to 5"]
        );
        let plan = decide_from("0", autoscaler(""), r#""replicas":0"#).expect("is planned");
        assert!(matches!(plan.decision, Decision::NoOp(_)), "{:?}", plan.decision);

        let mut from_zero = autoscaler("");
        from_zero.spec.as_mut().expect("has one").min_replicas = Some(0);
        let mut has_scaled_to_zero = autoscaler("");
        has_scaled_to_zero.status = serde_yaml_ng::from_str(
            "{desiredReplicas: 0, conditions: [{type: ScaledToZero, status: 'True'}]}",
        )
        .expect("is a status");
        let of_keda = autoscaler(", labels: {scaledobject.keda.sh/name: web-so}");
        for autoscaler in [from_zero, has_scaled_to_zero, of_keda] {
            for (from, parameters) in [("3", r#""replicas":0"#), ("0", r#""replicas":2"#)] {
                let error = decide_from(from, autoscaler.clone(), parameters);
                assert_eq!(error.expect_err("is refused").code, Code::TargetManaged);
            }
        }
    }

    #[test]
    fn a_replica_set_of_a_deployment_is_refused() {
        let set: ReplicaSet = serde_yaml_ng::from_str(&format!(
            "{}\nspec: {{replicas: 3, selector: {{}}}}",
            metadata(OWNED)
        ))
        .expect("is a ReplicaSet");
        let error = decide_on(&set.into(), r#""replicas":5,"kind":"ReplicaSet""#);
        let error = error.expect_err("is refused");
        assert_eq!(error.code, Code::TargetManaged);
        assert!(error.detail.contains("Deployment 'shop-web'"), "{}", error.detail);
        // The owner of another workload may or may not change it back.
        let plan = decide_on(&deployment(OWNED, ""), r#""replicas":5"#).expect("is planned");
        assert!(plan.warnings[0].contains("Deployment 'shop-web' controls it"));
    }

    const OWNED: &str = ", ownerReferences: [{apiVersion: apps/v1, kind: Deployment, \
                         name: shop-web, uid: d, controller: true}]";

    #[test]
    fn a_scaling_with_side_effects_is_warned_of() {
        let warnings = |workload: &Workload, parameters: &str| {
            decide_on(workload, parameters).expect("is planned").warnings.join("; ")
        };
        assert_eq!(warnings(&deployment("", ""), r#""replicas":5"#), "");
        assert!(warnings(&deployment("", ""), r#""replicas":0"#).contains("scaled to 0"));
        let paused = deployment("", ", paused: true");
        assert!(warnings(&paused, r#""replicas":5"#).contains("is paused"));
        let synced = deployment(", annotations: {argocd.argoproj.io/tracking-id: 'shop:a'}", "");
        assert!(warnings(&synced, r#""replicas":5"#).contains("if the source sets spec.replicas"));
        let Workload::Deployment(mut rolling) = deployment("", "") else { panic!("is one") };
        rolling.status.as_mut().expect("has one").updated_replicas = Some(1);
        let message = warnings(&Workload::Deployment(rolling), r#""replicas":5"#);
        assert!(message.contains("a rollout is in progress: 1 of 3"), "{message}");
        let set: StatefulSet = serde_yaml_ng::from_str(&format!(
            "{}\nspec: {{replicas: 3, selector: {{}}, template: {{}}, \
             persistentVolumeClaimRetentionPolicy: {{whenScaled: Delete}}}}\n\
             status: {{observedGeneration: 3, replicas: 3, readyReplicas: 3, availableReplicas: 3, \
             updatedReplicas: 3}}",
            metadata("")
        ))
        .expect("is a StatefulSet");
        let set = set.into();
        let fewer = warnings(&set, r#""replicas":2,"kind":"StatefulSet""#);
        assert!(fewer.contains("volume claims"), "{fewer}");
        assert_eq!(warnings(&set, r#""replicas":4,"kind":"StatefulSet""#), "");
    }
}
