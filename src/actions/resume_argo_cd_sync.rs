//! `resume_argo_cd_sync`: Argo CD syncs an Application by itself again, as before `suspend_argo_cd_sync`.
//!
//! `spec.syncPolicy.automated.enabled` becomes what it was: left out, which means true, or true. Argo CD then compares
//! the Application at once (`automatedSyncEnabled` in `controller/appcontroller.go`).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    actions::{
        BoxFuture, Descriptor, Plan, PlanInput, Plannable, Preview,
        shared::applications::{
            self, APPLICATION_SETS, Enabled, Owned, Sentences, UNAWAITED_APPLICATIONS,
        },
    },
    contract::{
        error::ActionError,
        names::{Namespace, ObjectName, null_is_default},
        response::{Target, rfc3339_millis},
    },
    k8s::{
        api::client::Cluster,
        applied_requests::AppliedRequests,
        argo_cd::{self, AutomatedSync, WAS_ENABLED},
        integrations::Integration,
    },
};

pub(crate) const DESCRIPTOR: Descriptor = Descriptor {
    name: "resume_argo_cd_sync",
    aliases: &[],
    description: "Resume automated sync of an Application of Argo CD that was suspended: it is compared with its source \
                  at once, and synced if it differs. Prune and self-heal are as they were. Refused if it has no \
                  automated sync, or belongs to an ApplicationSet that would set it back. Unchanged if it is not \
                  suspended.",
    takes_time: false,
    when: "the reason for the suspension is settled",
    when_not: "what the source has now must not be applied",
    destructive: true,
    example: r#"{"name":"shop","namespace":"argocd"}"#,
    rules: &[UNAWAITED_APPLICATIONS, APPLICATION_SETS],
    cluster_rules: &[],
    integration: Some(Integration::ArgoCd),
};

/// What `resume_argo_cd_sync` acts upon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Parameters {
    /// The Application.
    pub name: ObjectName,
    /// Its namespace.
    #[serde(default, deserialize_with = "null_is_default")]
    #[schemars(with = "Option<Namespace>")]
    pub namespace: Namespace,
}

impl Plannable for Parameters {
    fn target(&self) -> Target {
        applications::target(&self.namespace, &self.name)
    }

    fn namespace(&self) -> &str {
        &self.namespace
    }

    fn preview(&self, input: &PlanInput) -> Preview {
        let mark = AppliedRequests::default().change(&input.mark);
        Preview { result: self.would(), changes: vec![resumed(false).change(), mark] }
    }

    fn plan<'a>(&'a self, cluster: &'a Cluster, input: &'a PlanInput) -> BoxFuture<'a, Plan> {
        Box::pin(async move {
            let found = Owned::read(cluster, &self.namespace, &self.name, input).await?;
            self.decide(&found, input)
        })
    }
}

impl Parameters {
    fn would(&self) -> String {
        format!("Simulated: automated sync of Application '{}' would be resumed.", self.name)
    }

    fn decide(&self, found: &Owned, input: &PlanInput) -> Result<Plan, ActionError> {
        let (name, at) = (&self.name, rfc3339_millis(input.at));
        let sentences = Sentences {
            completed: format!("Argo CD syncs Application '{name}' by itself"),
            did: format!("Automated sync of Application '{name}' resumed at {at}."),
            would: self.would(),
            unchanged: format!("Automated sync of Application '{name}' is not suspended."),
        };
        let annotations = found.application.metadata.annotations.as_ref();
        let was_enabled = annotations.is_some_and(|all| all.contains_key(WAS_ENABLED));
        let change = |automated: AutomatedSync| (!automated.is_on()).then(|| resumed(was_enabled));
        let mut plan =
            applications::plan_automated_sync(self.target(), found, input, sentences, change)?;
        if plan.is_change() {
            let pruned = match argo_cd::automated_flag(&found.application, "prune") {
                true => ", and what it no longer has is deleted (prune)",
                false => "",
            };
            plan.warnings.push(format!(
                "Argo CD compares it at once: if it differs from its source, what that has now is applied{pruned}"
            ));
        }
        Ok(plan)
    }
}

/// The change of suspended automated sync. What was enabled in words is so again, and what says so is removed.
fn resumed(was_enabled: bool) -> Enabled {
    let annotations = if was_enabled { vec![(WAS_ENABLED, None)] } else { Vec::new() };
    Enabled { from: Some(false), to: was_enabled.then_some(true), annotations }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::actions::{Decision, shared::applications::ENABLED_POINTER};

    fn decide_on(metadata: &str, automated: &str) -> Plan {
        let application = serde_yaml_ng::from_str(&format!(
            "metadata: {{name: shop, namespace: argocd, uid: u1, generation: 7{metadata}}}\n\
             spec: {{syncPolicy: {{automated: {automated}}}}}"
        ));
        let found = Owned { application: application.expect("is an object"), set: None };
        let parameters = json!({ "name": "shop", "namespace": "argocd" });
        let parameters: Parameters = serde_json::from_value(parameters).expect("are some");
        parameters.decide(&found, &PlanInput::example()).expect("is planned")
    }

    #[test]
    fn an_approval_covers_automated_sync_not_the_generation() {
        let first = decide_on("", "{enabled: false, prune: true}");
        let other = decide_on("", "{enabled: false}");
        assert_eq!(first.found.generation, None);
        assert!(first.decision_etag.is_some() && first.decision_etag != other.decision_etag);
    }

    fn operations(plan: Plan) -> Vec<Value> {
        let effect = plan.expect_change().0;
        effect.operations()
    }

    #[test]
    fn an_omitted_value_is_omitted_again() {
        let plan = decide_on("", "{enabled: false, prune: true}");
        assert!(plan.warnings[0].contains("deleted (prune)"), "{:?}", plan.warnings);
        let found = operations(plan);
        assert_eq!(found.last(), Some(&json!({ "op": "remove", "path": ENABLED_POINTER })));
    }

    #[test]
    fn a_true_value_is_restored() {
        let kept = ", annotations: {action-executor.dev/argo-cd-automated-enabled: 'true'}";
        let found = operations(decide_on(kept, "{enabled: false}"));
        let set = json!({ "op": "add", "path": ENABLED_POINTER, "value": true });
        let path = "/metadata/annotations/action-executor.dev~1argo-cd-automated-enabled";
        assert!(found.contains(&set), "{found:?}");
        assert_eq!(found.last(), Some(&json!({ "op": "remove", "path": path })));
    }

    #[test]
    fn an_application_that_is_not_suspended_is_left_unchanged() {
        for automated in ["{}", "{enabled: true}"] {
            assert!(matches!(decide_on("", automated).decision, Decision::NoOp(_)));
        }
    }
}
