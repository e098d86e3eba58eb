//! `pause_keda`: KEDA stops scaling by a ScaledObject or a ScaledJob until it is resumed, by the annotations that
//! <https://keda.sh/docs/latest/concepts/scaling-deployments/#pausing-autoscaling> describes.

use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use kube::api::DynamicObject;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    actions::{
        AffectedObject, BoxFuture, CompletionSpec, Descriptor, Plan, PlanInput, Plannable, Preview,
        shared::{
            annotations,
            keda::{self, PauseChange},
            restart,
        },
    },
    contract::{
        counted::counted,
        error::ActionError,
        names::{Namespace, ObjectName, null_is_default},
        response::{Change, Target},
    },
    k8s::{
        api::client::Cluster,
        applied_requests::AppliedRequests,
        completion::Completion,
        integrations::Integration,
        keda::{KedaKind, PAUSED, PAUSED_REPLICAS, Pause, is_paused_in_one_direction},
        rbac::PolicyRule,
        workload::WorkloadKind,
    },
};

/// To judge the workload that KEDA scales to a number.
const SCALED: PolicyRule = PolicyRule {
    api_groups: &["apps"],
    resources: &["deployments", "statefulsets"],
    verbs: &["get"],
};

pub(crate) const DESCRIPTOR: Descriptor = Descriptor {
    name: "pause_keda",
    aliases: &[],
    description: "Pause KEDA's scaling by a ScaledObject or ScaledJob until resume_keda: the number of replicas stays as \
                  it is, or, with replicas, KEDA scales a ScaledObject's target to that number and stops there. KEDA \
                  deletes the HorizontalPodAutoscaler meanwhile. A paused ScaledJob starts no Jobs. With wait it is \
                  complete once KEDA reports Paused, and has that number. Unchanged if it is paused in this way \
                  already.",
    takes_time: true,
    when: "a workload that KEDA scales is to have a fixed number of replicas, or no new Jobs, for a while",
    when_not: "the bounds have to change permanently: change them in the ScaledObject",
    destructive: true,
    example: r#"{"name":"web","replicas":3}"#,
    rules: &[keda::RULE, SCALED, restart::EVENTS],
    cluster_rules: &[],
    integration: Some(Integration::Keda),
};

/// What `pause_keda` acts upon, and the number of replicas meanwhile.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Parameters {
    /// The kind of object.
    #[serde(default, deserialize_with = "null_is_default")]
    #[schemars(with = "Option<KedaKind>")]
    pub kind: KedaKind,
    /// The object.
    pub name: ObjectName,
    /// Its namespace.
    #[serde(default, deserialize_with = "null_is_default")]
    #[schemars(with = "Option<Namespace>")]
    pub namespace: Namespace,
    /// The number of replicas meanwhile, for a ScaledObject. Without it the number stays as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub replicas: Option<i32>,
}

impl Plannable for Parameters {
    fn target(&self) -> Target {
        self.kind.custom().target(&self.namespace, &self.name)
    }

    fn namespace(&self) -> &str {
        &self.namespace
    }

    fn check(&self) -> Result<(), ActionError> {
        let field = "parameters.replicas";
        match (self.kind, self.replicas) {
            (_, Some(replicas)) if replicas < 0 => {
                Err(ActionError::invalid_field(field, "must not be below 0"))
            }
            (KedaKind::ScaledJob, Some(_)) => {
                Err(ActionError::invalid_field(field, "is only for a ScaledObject"))
            }
            _ => Ok(()),
        }
    }

    fn preview(&self, input: &PlanInput) -> Preview {
        let (key, value) = self.entry();
        let path = annotations::path(key);
        let mark = AppliedRequests::default().change_beside(&input.mark);
        let Target { kind, name, .. } = self.target();
        Preview {
            result: format!("Simulated: {kind} '{name}' would be {}.", self.participle()),
            changes: vec![Change { path, from: Value::Null, to: value.into() }, mark],
        }
    }

    fn plan<'a>(&'a self, cluster: &'a Cluster, input: &'a PlanInput) -> BoxFuture<'a, Plan> {
        Box::pin(async move {
            let kind = self.kind.custom();
            let (namespace, deadline) = (&self.namespace, input.deadline);
            let found = cluster.get_custom(kind, namespace, &self.name, deadline).await?;
            let mut plan = self.decide(&found, input)?;
            if plan.is_change() && self.replicas.is_some() {
                plan.others.extend(scaled(cluster, namespace, &found, input).await?);
            }
            Ok(plan)
        })
    }
}

/// The workload that KEDA scales, for the policy and the budget to judge, too; none if there is none, or of another
/// kind.
async fn scaled(
    cluster: &Cluster,
    namespace: &str,
    found: &DynamicObject,
    input: &PlanInput,
) -> Result<Option<AffectedObject>, ActionError> {
    let (kind, name) = scale_target(found);
    let affected = AffectedObject::workload;
    Ok(match kind {
        "Deployment" => {
            let found = cluster.get_opt::<Deployment>(namespace, name, input.deadline).await?;
            found.map(|it| affected(WorkloadKind::Deployment, &it.metadata))
        }
        "StatefulSet" => {
            let found = cluster.get_opt::<StatefulSet>(namespace, name, input.deadline).await?;
            found.map(|it| affected(WorkloadKind::StatefulSet, &it.metadata))
        }
        _ => None,
    })
}

/// The kind and the name of what KEDA scales.
fn scale_target(found: &DynamicObject) -> (&str, &str) {
    let of = |pointer: &str| found.data.pointer(pointer).and_then(Value::as_str);
    let kind = of("/spec/scaleTargetRef/kind").unwrap_or("Deployment");
    (kind, of("/spec/scaleTargetRef/name").unwrap_or_default())
}

impl Parameters {
    /// The annotation that pauses it.
    fn entry(&self) -> (&'static str, String) {
        match self.replicas {
            Some(replicas) => (PAUSED_REPLICAS, replicas.to_string()),
            None => (PAUSED, "true".to_owned()),
        }
    }

    fn participle(&self) -> String {
        match self.replicas {
            Some(replicas) => format!("paused at {}", replicas_of(replicas)),
            None => "paused".to_owned(),
        }
    }

    fn decide(&self, found: &DynamicObject, input: &PlanInput) -> Result<Plan, ActionError> {
        let (target, now) = (self.target(), Pause::of(self.kind, &found.metadata));
        // Paused at a number is paused as it is.
        let wanted = match (self.replicas, now) {
            (Some(replicas), _) => Pause::At(Some(replicas)),
            (None, Pause::At(_)) => now,
            (None, _) => Pause::AsItIs,
        };
        let (key, value) = self.entry();
        let entries = if now == wanted { Vec::new() } else { vec![(key, Some(value))] };
        let at = match now {
            Pause::At(Some(replicas)) => format!(", at {}", replicas_of(replicas)),
            _ => String::new(),
        };
        let change = PauseChange {
            kind: self.kind,
            already: format!("{} '{}' is paused already{at}.", target.kind, target.name),
            target,
            pause: wanted,
            entries,
            participle: self.participle(),
        };
        let mut plan = change.decide(found, input)?;
        if wanted == Pause::AsItIs && is_paused_in_one_direction(self.kind, &found.metadata) {
            // The Paused condition was True before.
            let sentence = "KEDA said Paused before, of one direction: when it stops in the other is not awaited";
            plan.completion = CompletionSpec::Known(Completion::Immediate(sentence.to_owned()));
        }
        if plan.is_change() {
            plan.replicas = self.replicas.and_then(|it| u32::try_from(it).ok());
            plan.warnings.extend(self.warnings_on(found));
        }
        Ok(plan)
    }

    fn warnings_on(&self, found: &DynamicObject) -> Vec<String> {
        let (kind, name) = scale_target(found);
        let scaled = format!("{kind} '{name}'");
        match (self.kind, self.replicas) {
            (KedaKind::ScaledJob, _) => vec!["Jobs that run continue until they finish".to_owned()],
            (_, Some(replicas)) => vec![format!(
                "KEDA scales {scaled} to {} at once, also beyond minReplicaCount and maxReplicaCount",
                replicas_of(replicas)
            )],
            (_, None) => vec![format!(
                "KEDA deletes the HorizontalPodAutoscaler: nothing scales {scaled} until it is resumed"
            )],
        }
    }
}

fn replicas_of(number: i32) -> String {
    counted(usize::try_from(number).unwrap_or(0), "replica")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::actions::{ActionKind, Decision};

    fn decide_on(parameters: &str, annotations: &str) -> Plan {
        let found: DynamicObject = serde_yaml_ng::from_str(&format!(
            "metadata: {{name: web, namespace: shop, uid: u1, generation: 3, annotations: {{{annotations}}}}}\n\
             spec: {{scaleTargetRef: {{name: api}}}}\n\
             status: {{conditions: [{{type: Paused, status: 'False'}}]}}"
        ))
        .expect("is an object");
        let text = format!("{{name: web, namespace: shop{parameters}}}");
        let parameters: Parameters = serde_yaml_ng::from_str(&text).expect("are parameters");
        parameters.decide(&found, &PlanInput::example()).expect("is planned")
    }

    fn last_operation(plan: &Plan) -> Value {
        let effect = plan.expect_change().0;
        effect.operations().pop().expect("is one")
    }

    fn wanted(plan: &Plan) -> Pause {
        let CompletionSpec::Known(Completion::ScalingPaused { pause, .. }) = &plan.completion
        else {
            panic!("{:?}", plan.completion)
        };
        *pause
    }

    #[test]
    fn a_pause_sets_one_annotation_and_the_number_is_judged_by_the_policy() {
        let plan = decide_on("", "");
        let path = "/metadata/annotations/autoscaling.keda.sh~1paused";
        assert_eq!(last_operation(&plan), json!({ "op": "add", "path": path, "value": "true" }));
        assert_eq!((plan.replicas, wanted(&plan)), (None, Pause::AsItIs));
        let plan = decide_on(", replicas: 3", "");
        let path = format!("{path}-replicas");
        assert_eq!(last_operation(&plan), json!({ "op": "add", "path": path, "value": "3" }));
        assert_eq!((plan.replicas, wanted(&plan)), (Some(3), Pause::At(Some(3))));
        assert!(plan.warnings[0].starts_with("KEDA scales Deployment 'api' to 3 replicas at once"));
    }

    #[test]
    fn an_object_paused_alike_is_unchanged() {
        for (parameters, annotations, sentence) in [
            ("", "autoscaling.keda.sh/paused: 'true'", "is paused already."),
            ("", "autoscaling.keda.sh/paused-replicas: '2'", "is paused already, at 2 replicas."),
            (", replicas: 2", "autoscaling.keda.sh/paused-replicas: '2'", "at 2 replicas."),
        ] {
            let plan = decide_on(parameters, annotations);
            assert!(matches!(&plan.decision, Decision::NoOp(it) if it.ends_with(sentence)));
            assert_eq!(plan.replicas, None);
        }
        let other = decide_on(", replicas: 3", "autoscaling.keda.sh/paused-replicas: '2'");
        assert!(other.is_change());
    }

    #[test]
    fn a_pause_beside_one_of_one_direction_is_not_awaited() {
        let one = "autoscaling.keda.sh/paused-scale-in: 'true'";
        let plan = decide_on("", one);
        let CompletionSpec::Known(Completion::Immediate(why)) = &plan.completion else {
            panic!("{:?}", plan.completion)
        };
        assert!(why.contains("not awaited"), "{why}");
        // KEDA writes the number only once it has scaled.
        assert_eq!(wanted(&decide_on(", replicas: 3", one)), Pause::At(Some(3)));
    }

    #[test]
    fn a_scaled_job_has_no_replicas() {
        for text in
            [r#"{"name":"web","kind":"ScaledJob","replicas":1}"#, r#"{"name":"web","replicas":-1}"#]
        {
            let refusal = ActionKind::PauseKeda.parse(text).expect_err("is refused");
            assert_eq!(refusal.field.as_deref(), Some("parameters.replicas"));
        }
    }
}
