//! `suspend_argo_cd_sync`: Argo CD syncs an Application by itself no more, until it is resumed.
//!
//! `spec.syncPolicy.automated.enabled` is set to false, which Argo CD 3.1 and newer know (`IsAutomatedSyncEnabled` in
//! `pkg/apis/application/v1alpha1/types.go`); `prune`, `selfHeal` and the rest stay as they are. The API server of an
//! older CRD refuses the unknown field, since patches are validated strictly.

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
    name: "suspend_argo_cd_sync",
    aliases: &[],
    description: "Suspend automated sync of an Application of Argo CD (3.1 or newer): what its source changes, or others \
                  change in the cluster, is not synced by itself until resume_argo_cd_sync; a sync that runs \
                  continues. Refused if it has no automated sync, or belongs to an ApplicationSet that would set it back. \
                  Unchanged if it is suspended already.",
    takes_time: false,
    when: "a change in the source does harm, or a change in the cluster must not be reverted during an incident",
    when_not: "the source can be fixed",
    destructive: false,
    example: r#"{"name":"shop","namespace":"argocd"}"#,
    rules: &[UNAWAITED_APPLICATIONS, APPLICATION_SETS],
    cluster_rules: &[],
    integration: Some(Integration::ArgoCd),
};

/// What `suspend_argo_cd_sync` acts upon.
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
        let changes = vec![suspended(AutomatedSync::On).change(), mark];
        Preview { result: self.would(), changes }
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
        format!("Simulated: automated sync of Application '{}' would be suspended.", self.name)
    }

    fn decide(&self, found: &Owned, input: &PlanInput) -> Result<Plan, ActionError> {
        let (name, at) = (&self.name, rfc3339_millis(input.at));
        let sentences = Sentences {
            completed: format!("Argo CD syncs Application '{name}' only on request"),
            did: format!("Automated sync of Application '{name}' suspended at {at}."),
            would: self.would(),
            unchanged: format!("Automated sync of Application '{name}' is suspended already."),
        };
        let change = |automated: AutomatedSync| automated.is_on().then(|| suspended(automated));
        let mut plan =
            applications::plan_automated_sync(self.target(), found, input, sentences, change)?;
        if plan.is_change() {
            plan.warnings.extend(
                argo_cd::operation_in_progress(&found.application)
                    .map(|what| format!("{what}, and continues until it ends")),
            );
        }
        Ok(plan)
    }
}

/// The change of automated sync that is on. That it was enabled in words is kept in an annotation.
fn suspended(automated: AutomatedSync) -> Enabled {
    let (from, annotations) = match automated {
        AutomatedSync::ExplicitlyOn => (Some(true), vec![(WAS_ENABLED, Some("true".to_owned()))]),
        _ => (None, Vec::new()),
    };
    Enabled { from, to: Some(false), annotations }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        actions::{Decision, shared::applications::ENABLED_POINTER},
        contract::error::Code,
    };

    fn found(metadata: &str, rest: &str) -> Owned {
        let application = serde_yaml_ng::from_str(&format!(
            "metadata: {{name: shop, namespace: argocd, uid: u1, generation: 7{metadata}}}\n{rest}"
        ));
        Owned { application: application.expect("is an object"), set: None }
    }

    fn decide_on(found: &Owned) -> Result<Plan, ActionError> {
        let parameters = json!({ "name": "shop", "namespace": "argocd" });
        let parameters: Parameters = serde_json::from_value(parameters).expect("are some");
        parameters.decide(found, &PlanInput::example())
    }

    fn operations(plan: Plan) -> Vec<Value> {
        let effect = plan.expect_change().0;
        effect.operations()
    }

    #[test]
    fn only_whether_it_is_enabled_changes_and_no_generation_is_tested() {
        let on = found("", "spec: {syncPolicy: {automated: {prune: true}}}");
        let found = operations(decide_on(&on).expect("is planned"));
        let change = json!({ "op": "add", "path": ENABLED_POINTER, "value": false });
        assert_eq!(found.last(), Some(&change));
        assert!(found.contains(&json!({ "op": "test", "path": ENABLED_POINTER, "value": null })));
        // Each status that Argo CD writes is a generation.
        assert!(!json!(found).to_string().contains("/metadata/generation"));
    }

    #[test]
    fn an_approval_covers_automated_sync_not_the_status() {
        let plan = |rest: &str| decide_on(&found("", rest)).expect("is planned");
        let first = plan("spec: {syncPolicy: {automated: {prune: true}}}");
        let later = plan("spec: {syncPolicy: {automated: {prune: true}}}\nstatus: {health: {}}");
        let other = plan("spec: {syncPolicy: {automated: {prune: false}}}");
        assert_eq!((first.found.generation, later.found.generation), (None, None));
        assert_eq!(first.decision_etag, later.decision_etag);
        assert_ne!(first.decision_etag, other.decision_etag);
    }

    #[test]
    fn an_explicit_true_is_kept() {
        let on = found("", "spec: {syncPolicy: {automated: {enabled: true}}}");
        let found = json!(operations(decide_on(&on).expect("is planned"))).to_string();
        assert!(found.contains("argo-cd-automated-enabled\",\"value\":\"true\""), "{found}");
    }

    #[test]
    fn an_application_without_automated_sync_is_refused_and_a_suspended_one_left_unchanged() {
        let refusal = decide_on(&found("", "spec: {syncPolicy: {}}")).expect_err("is refused");
        assert_eq!(refusal.code, Code::PreconditionFailed);
        let off = found("", "spec: {syncPolicy: {automated: {enabled: false}}}");
        let plan = decide_on(&off).expect("is planned");
        assert!(matches!(plan.decision, Decision::NoOp(_)));
    }

    #[test]
    fn an_application_set_that_would_set_it_back_refuses_it() {
        let owner = ", ownerReferences: [{apiVersion: argoproj.io/v1alpha1, kind: ApplicationSet, \
                     name: all, uid: s1, controller: true}]";
        let mut owned = found(owner, "spec: {syncPolicy: {automated: {}}}");
        assert_eq!(argo_cd::application_set_of(&owned.application.metadata), Some("all"));
        owned.set =
            Some(serde_yaml_ng::from_str("metadata: {name: all}\nspec: {}").expect("is one"));
        let refusal = decide_on(&owned).expect_err("is refused");
        assert_eq!(refusal.code, Code::TargetManaged);
        assert!(refusal.detail.contains("ApplicationSet 'all'"), "{}", refusal.detail);
        assert!(refusal.hint.expect("has one").contains("ignoreApplicationDifferences"));
    }

    #[test]
    fn a_running_operation_is_warned_of() {
        let running = "spec: {syncPolicy: {automated: {}}}\n\
                       status: {operationState: {phase: Running, operation: {initiatedBy: {automated: true}}}}";
        let plan = decide_on(&found("", running)).expect("is planned");
        assert!(plan.warnings[0].contains("of automated sync is running"), "{:?}", plan.warnings);
    }
}
