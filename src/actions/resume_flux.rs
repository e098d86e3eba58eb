//! `resume_flux`: Flux reconciles a suspended Kustomization or HelmRelease again, and at once, as `flux resume` has it
//! do (`cmd/flux/resume.go`).

use kube::api::DynamicObject;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    actions::{
        BoxFuture, CompletionSpec, Descriptor, Plan, PlanInput, Plannable, Preview,
        shared::{
            flux::{AWAITED_HELM_RELEASES, AWAITED_KUSTOMIZATIONS},
            restart,
            toggle::Toggle,
        },
    },
    contract::{
        error::ActionError,
        names::{Namespace, ObjectName, null_is_default},
        response::Target,
    },
    k8s::{
        api::client::Cluster,
        completion::Completion,
        flux::{self, FluxKind, Pass},
        integrations::Integration,
    },
};

pub(crate) const DESCRIPTOR: Descriptor = Descriptor {
    name: "resume_flux",
    aliases: &[],
    description: "Resume a suspended Kustomization or HelmRelease of Flux: it is reconciled at once, so what its source \
                  changed since is applied and what others changed in the cluster is reverted. With wait it is \
                  complete once Flux says Ready, and fails with Flux's reason. Unchanged if it is not suspended.",
    takes_time: true,
    when: "the reason for the suspension is settled",
    when_not: "what the source has now must not be applied",
    destructive: true,
    example: r#"{"name":"apps","namespace":"flux-system"}"#,
    rules: &[AWAITED_KUSTOMIZATIONS, AWAITED_HELM_RELEASES, restart::EVENTS],
    cluster_rules: &[],
    integration: Some(Integration::Flux),
};

/// What `resume_flux` acts upon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Parameters {
    /// The kind of object.
    #[serde(default, deserialize_with = "null_is_default")]
    #[schemars(with = "Option<FluxKind>")]
    pub kind: FluxKind,
    /// The object.
    pub name: ObjectName,
    /// Its namespace.
    #[serde(default, deserialize_with = "null_is_default")]
    #[schemars(with = "Option<Namespace>")]
    pub namespace: Namespace,
}

impl Plannable for Parameters {
    fn target(&self) -> Target {
        self.toggle().target(&self.namespace, &self.name)
    }

    fn namespace(&self) -> &str {
        &self.namespace
    }

    fn preview(&self, input: &PlanInput) -> Preview {
        self.toggle().preview(&self.target(), input)
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
    fn toggle(&self) -> Toggle {
        Toggle::of_flux(self.kind, false)
    }

    fn decide(&self, found: &DynamicObject, input: &PlanInput) -> Result<Plan, ActionError> {
        let (target, is_suspended) = (self.target(), flux::is_suspended(found));
        // The change is a generation.
        let generation = found.metadata.generation.unwrap_or(0) + i64::from(is_suspended);
        let completion = CompletionSpec::Known(Completion::Reconciled {
            kind: self.kind,
            namespace: target.namespace.clone(),
            name: target.name.clone(),
            uid: found.metadata.uid.clone().unwrap_or_default(),
            pass: Pass::OfGeneration(generation),
        });
        let mut plan =
            self.toggle().decide(target, &found.metadata, is_suspended, completion, input)?;
        if plan.is_change() {
            plan.warnings.push(at_once(found));
        }
        Ok(plan)
    }
}

fn at_once(found: &DynamicObject) -> String {
    let pruned = match flux::prunes(found) {
        true => ", and what it no longer has is deleted (spec.prune)",
        false => "",
    };
    format!("Flux reconciles it at once: what its source has now is applied{pruned}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::actions::Decision;

    fn decide_on(rest: &str) -> Plan {
        let found: DynamicObject = serde_yaml_ng::from_str(&format!(
            "metadata: {{name: apps, namespace: shop, uid: u1, generation: 3}}\n{rest}"
        ))
        .expect("is an object");
        let parameters: Parameters =
            serde_json::from_value(json!({ "name": "apps", "namespace": "shop" }))
                .expect("are some");
        parameters.decide(&found, &PlanInput::example()).expect("is planned")
    }

    #[test]
    fn a_resumption_removes_the_field_and_is_reconciled_at_once() {
        let plan = decide_on("spec: {suspend: true, prune: true}");
        assert!(plan.warnings[0].contains("deleted (spec.prune)"), "{:?}", plan.warnings);
        let effect = plan.expect_change().0;
        let change = json!({ "op": "remove", "path": "/spec/suspend" });
        assert_eq!(effect.operations().last(), Some(&change));
        let CompletionSpec::Known(Completion::Reconciled { pass, .. }) = plan.completion else {
            panic!("{:?}", plan.completion)
        };
        assert_eq!(pass, Pass::OfGeneration(4));
    }

    #[test]
    fn an_object_that_is_not_suspended_is_left_unchanged_and_its_own_generation_is_awaited() {
        let plan = decide_on("spec: {}");
        assert!(matches!(plan.decision, Decision::NoOp(_)));
        let CompletionSpec::Known(Completion::Reconciled { pass, .. }) = plan.completion else {
            panic!("{:?}", plan.completion)
        };
        assert_eq!(pass, Pass::OfGeneration(3));
    }
}
