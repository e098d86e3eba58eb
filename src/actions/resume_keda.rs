//! `resume_keda`: KEDA scales by a ScaledObject or a ScaledJob again: the annotations that pause it are removed.

use kube::api::DynamicObject;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    actions::{
        BoxFuture, CompletionSpec, Descriptor, Plan, PlanInput, Plannable, Preview,
        shared::{
            annotations,
            keda::{self, PauseChange},
            restart,
        },
    },
    contract::{
        error::ActionError,
        names::{Namespace, ObjectName, null_is_default},
        response::{Change, Target},
    },
    k8s::{
        api::client::Cluster,
        applied_requests::AppliedRequests,
        completion::Completion,
        integrations::Integration,
        keda::{KedaKind, PAUSED, PAUSED_REPLICAS, Pause, is_on, is_paused_in_one_direction},
    },
};

pub(crate) const DESCRIPTOR: Descriptor = Descriptor {
    name: "resume_keda",
    aliases: &[],
    description: "Resume KEDA's scaling by a paused ScaledObject or ScaledJob: KEDA scales by its triggers at once. A \
                  pause in one direction (paused-scale-in, paused-scale-out) stays. With wait it is complete once KEDA \
                  says that it is not paused. Unchanged if it is not paused.",
    takes_time: true,
    when: "the reason for the pause is settled",
    when_not: "the number of replicas must not change at once",
    destructive: true,
    example: r#"{"name":"web"}"#,
    rules: &[keda::RULE, restart::EVENTS],
    cluster_rules: &[],
    integration: Some(Integration::Keda),
};

/// What `resume_keda` acts upon.
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
}

impl Plannable for Parameters {
    fn target(&self) -> Target {
        self.kind.custom().target(&self.namespace, &self.name)
    }

    fn namespace(&self) -> &str {
        &self.namespace
    }

    fn preview(&self, input: &PlanInput) -> Preview {
        let path = annotations::path(PAUSED);
        let mark = AppliedRequests::default().change_beside(&input.mark);
        let Target { kind, name, .. } = self.target();
        Preview {
            result: format!("Simulated: {kind} '{name}' would be resumed."),
            changes: vec![Change { path, from: "true".into(), to: Value::Null }, mark],
        }
    }

    fn plan<'a>(&'a self, cluster: &'a Cluster, input: &'a PlanInput) -> BoxFuture<'a, Plan> {
        Box::pin(async move {
            let kind = self.kind.custom();
            let (namespace, deadline) = (&self.namespace, input.deadline);
            let found = cluster.get_custom(kind, namespace, &self.name, deadline).await?;
            self.decide(&found, input)
        })
    }
}

impl Parameters {
    fn decide(&self, found: &DynamicObject, input: &PlanInput) -> Result<Plan, ActionError> {
        let (target, metadata) = (self.target(), &found.metadata);
        let annotations = metadata.annotations.as_ref();
        let has_number = self.kind == KedaKind::ScaledObject
            && annotations.is_some_and(|all| all.contains_key(PAUSED_REPLICAS));
        let is_paused = is_on(metadata, PAUSED);
        let removed = [(has_number, PAUSED_REPLICAS), (is_paused, PAUSED)];
        let removed = removed.into_iter().filter_map(|(is_set, key)| is_set.then_some((key, None)));
        let change = PauseChange {
            kind: self.kind,
            already: format!("{} '{}' is not paused.", target.kind, target.name),
            target,
            pause: Pause::None,
            entries: removed.collect(),
            participle: "resumed".to_owned(),
        };
        let mut plan = change.decide(found, input)?;
        let in_one_direction = is_paused_in_one_direction(self.kind, metadata);
        if in_one_direction {
            // The Paused condition stays True.
            let sentence = "KEDA scales it in one direction only, and says Paused as before";
            plan.completion = CompletionSpec::Known(Completion::Immediate(sentence.to_owned()));
        }
        if plan.is_change() {
            plan.warnings.push(match in_one_direction {
                true => {
                    "a pause in one direction stays: autoscaling.keda.sh/paused-scale-in or -out"
                        .to_owned()
                }
                false => "KEDA scales by its triggers at once, and may end pods".to_owned(),
            });
        }
        Ok(plan)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actions::Decision;

    fn decide_on(annotations: &str) -> Plan {
        let found: DynamicObject = serde_yaml_ng::from_str(&format!(
            "metadata: {{name: web, namespace: shop, uid: u1, generation: 3, annotations: {{{annotations}}}}}\n\
             status: {{conditions: [{{type: Paused, status: 'True'}}]}}"
        ))
        .expect("is an object");
        let parameters: Parameters =
            serde_yaml_ng::from_str("{name: web, namespace: shop}").expect("are parameters");
        parameters.decide(&found, &PlanInput::example()).expect("is planned")
    }

    #[test]
    fn pausing_annotations_are_removed() {
        let both = "autoscaling.keda.sh/paused: 'true', autoscaling.keda.sh/paused-replicas: '2'";
        for (annotations, removed) in [
            ("autoscaling.keda.sh/paused: 'true'", 1),
            ("autoscaling.keda.sh/paused-replicas: '2'", 1),
            (both, 2),
        ] {
            let plan = decide_on(annotations);
            let effect = plan.expect_change().0;
            let operations = effect.operations();
            let removals = operations.iter().filter(|it| it["op"] == "remove").count();
            assert_eq!(removals, removed, "{annotations}");
        }
    }

    #[test]
    fn an_unpaused_object_is_unchanged() {
        for annotations in ["", "autoscaling.keda.sh/paused: 'false'"] {
            assert!(matches!(decide_on(annotations).decision, Decision::NoOp(_)));
        }
    }

    #[test]
    fn a_pause_in_one_direction_stays_and_is_not_awaited() {
        let plan = decide_on(
            "autoscaling.keda.sh/paused: 'true', autoscaling.keda.sh/paused-scale-in: 'true'",
        );
        assert!(plan.warnings[0].contains("one direction stays"), "{:?}", plan.warnings);
        assert!(matches!(plan.completion, CompletionSpec::Known(Completion::Immediate(_))));
    }
}
