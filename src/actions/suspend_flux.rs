//! `suspend_flux`: Flux reconciles a Kustomization or a HelmRelease no more until it is resumed, as `flux suspend` does
//! (`cmd/flux/suspend.go`).

use kube::api::DynamicObject;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    actions::{
        BoxFuture, CompletionSpec, Descriptor, Plan, PlanInput, Plannable, Preview,
        shared::{
            flux::{HELM_RELEASES, KUSTOMIZATIONS},
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
        flux::{self, FluxKind},
        integrations::Integration,
    },
};

pub(crate) const DESCRIPTOR: Descriptor = Descriptor {
    name: "suspend_flux",
    aliases: &[],
    description: "Suspend a Kustomization or HelmRelease of Flux: what its source changes, or others change in the \
                  cluster, is reconciled no more until resume_flux. What is deployed keeps running, and a \
                  reconciliation that runs continues. Unchanged if it is suspended already.",
    takes_time: false,
    when: "a change in the source does harm, or a change in the cluster must not be reverted during an incident",
    when_not: "the source can be fixed: reconcile_flux applies it then",
    destructive: false,
    example: r#"{"name":"apps","namespace":"flux-system"}"#,
    rules: &[KUSTOMIZATIONS, HELM_RELEASES],
    cluster_rules: &[],
    integration: Some(Integration::Flux),
};

/// What `suspend_flux` acts upon.
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
        Toggle::of_flux(self.kind, true)
    }

    fn decide(&self, found: &DynamicObject, input: &PlanInput) -> Result<Plan, ActionError> {
        let target = self.target();
        let sentence = format!(
            "Flux does not reconcile {} '{}' until it is resumed",
            target.kind, target.name
        );
        let completion = CompletionSpec::Known(Completion::Immediate(sentence));
        let is_suspended = flux::is_suspended(found);
        let mut plan =
            self.toggle().decide(target, &found.metadata, is_suspended, completion, input)?;
        if plan.is_change() {
            plan.warnings.extend(flux::running_warning(found));
            if flux::manages_itself(found) {
                plan.warnings.push(format!(
                    "Kustomization '{}' is in its own source: while it is suspended, a change of it there is not \
                     applied either, also none that resumes it",
                    self.name
                ));
            }
        }
        Ok(plan)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::actions::Decision;

    fn decide_on(kind: FluxKind, metadata: &str, rest: &str) -> Plan {
        let found: DynamicObject = serde_yaml_ng::from_str(&format!(
            "metadata: {{name: apps, namespace: shop, uid: u1, generation: 3{metadata}}}\n{rest}"
        ))
        .expect("is an object");
        let name = |text: &str| text.to_owned().try_into().expect("is a name");
        let namespace = "shop".to_owned().try_into().expect("is a name");
        let parameters = Parameters { kind, name: name("apps"), namespace };
        parameters.decide(&found, &PlanInput::example()).expect("is planned")
    }

    #[test]
    fn a_suspension_is_one_patch_of_either_kind() {
        for (kind, api_version) in [
            (FluxKind::Kustomization, "kustomize.toolkit.fluxcd.io/v1"),
            (FluxKind::HelmRelease, "helm.toolkit.fluxcd.io/v2"),
        ] {
            let plan = decide_on(kind, "", "spec: {interval: 10m}");
            assert_eq!(plan.target.api_version, api_version);
            let (effect, did, _) = plan.expect_change();
            let change = json!({ "op": "add", "path": "/spec/suspend", "value": true });
            assert_eq!(effect.operations().last(), Some(&change));
            assert!(did.contains("'apps' suspended at"), "{did}");
        }
    }

    #[test]
    fn an_object_that_is_suspended_is_left_unchanged() {
        let plan = decide_on(FluxKind::HelmRelease, "", "spec: {suspend: true}");
        assert!(matches!(plan.decision, Decision::NoOp(_)));
    }

    #[test]
    fn a_running_reconciliation_and_a_kustomization_in_its_own_source_are_warned_of() {
        let labels = ", labels: {kustomize.toolkit.fluxcd.io/name: apps, \
                      kustomize.toolkit.fluxcd.io/namespace: shop}";
        let running = "spec: {}\nstatus: {conditions: [{type: Reconciling, status: 'True'}]}";
        let warnings = decide_on(FluxKind::Kustomization, labels, running).warnings.join("\n");
        for expected in ["continues until it ends", "is in its own source", "will revert it"] {
            assert!(warnings.contains(expected), "{warnings}");
        }
        assert_eq!(decide_on(FluxKind::Kustomization, "", "spec: {}").warnings, [""; 0]);
    }
}
