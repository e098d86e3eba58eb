//! `resume_argo_cd_sync`: Argo CD syncs an Application by itself again, as before `suspend_argo_cd_sync`.
//!
//! `spec.syncPolicy.automated.enabled` becomes what it was: left out, which means true, or true. Argo CD then compares
//! the Application at once (`automatedSyncEnabled` in `controller/appcontroller.go`).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    actions::{
        BoxFuture, CompletionSpec, Decision, Descriptor, Plan, PlanInput, Plannable, Preview,
        shared::{
            annotations,
            applications::{
                self, APPLICATION_SETS, ENABLED, ENABLED_POINTER, Owned, UNAWAITED_APPLICATIONS,
            },
        },
    },
    contract::{
        error::ActionError,
        names::{Namespace, ObjectName, null_is_default},
        response::{Change, Target, rfc3339_millis},
    },
    k8s::{
        api::client::Cluster,
        applied_requests::AppliedRequests,
        argo_cd::{self, AutomatedSync, WAS_ENABLED},
        completion::Completion,
        conditional_patch::{add, remove, test},
        effect::Effect,
        gitops,
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
        Preview { result: self.would(), changes: vec![change(false), mark] }
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
        let (target, application) = (self.target(), &found.application);
        let metadata = &application.metadata;
        let name = &*self.name;
        let sentence = format!("Argo CD syncs Application '{name}' by itself");
        let completion = CompletionSpec::Known(Completion::Immediate(sentence));
        let at = rfc3339_millis(input.at);
        let did = format!("Automated sync of Application '{name}' resumed at {at}.");
        if input.has_changed(metadata)? {
            return Ok(Plan::already_applied(target, metadata, did, completion));
        }
        input.check_found(&target, metadata)?;
        let automated = AutomatedSync::of(application);
        applications::check_automated(&target, metadata, automated)?;
        if automated.is_on() {
            let sentence = format!("Automated sync of Application '{name}' is not suspended.");
            return Ok(Plan::new(target, metadata, Decision::NoOp(sentence), completion));
        }
        found.check_kept(&target, Some(ENABLED_POINTER))?;
        let etag =
            applications::decision_etag(&application.data["spec"]["syncPolicy"]["automated"]);
        input
            .check_decision("automated sync", &target, &etag)
            .map_err(|refusal| refusal.object_uid(metadata.uid.as_deref()))?;
        let annotations = metadata.annotations.as_ref();
        let was_enabled = annotations.is_some_and(|all| all.contains_key(WAS_ENABLED));
        let forget = [(WAS_ENABLED, None)];
        let forgotten = if was_enabled { forget.as_slice() } else { &[] };
        let set = match was_enabled {
            true => add(&ENABLED, Value::Bool(true)),
            false => remove(&ENABLED),
        };
        let mut operations = vec![test(&ENABLED, Value::Bool(false)), set];
        operations.extend(annotations::operations(metadata, forgotten));
        let found = argo_cd::without_generation(metadata);
        let effect = Effect::patch(
            applications::resource(),
            &found,
            &input.mark,
            input.precondition.as_ref(),
            operations,
        );
        let decision = Decision::Apply(Box::new(effect), did, self.would());
        let mut plan = Plan::new(target, &found, decision, completion);
        plan.decision_etag = Some(etag);
        plan.changes = vec![change(was_enabled)];
        plan.changes.extend(annotations::changes(metadata, forgotten));
        plan.changes.push(applications::mark(metadata, input));
        let field = "spec.syncPolicy.automated.enabled";
        plan.warnings = gitops::undo_warnings(metadata, field);
        let pruned = match argo_cd::automated_flag(application, "prune") {
            true => ", and what it no longer has is deleted (prune)",
            false => "",
        };
        plan.warnings.push(format!(
            "Argo CD compares it at once: if it differs from its source, what that has now is applied{pruned}"
        ));
        Ok(plan)
    }
}

fn change(was_enabled: bool) -> Change {
    let to = if was_enabled { Value::Bool(true) } else { Value::Null };
    Change { path: ENABLED_POINTER.to_owned(), from: Value::Bool(false), to }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

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
    fn what_is_approved_is_automated_sync_as_it_is_and_not_the_generation() {
        let first = decide_on("", "{enabled: false, prune: true}");
        let other = decide_on("", "{enabled: false}");
        assert_eq!(first.found.generation, None);
        assert!(first.decision_etag.is_some() && first.decision_etag != other.decision_etag);
    }

    fn operations(plan: Plan) -> Vec<Value> {
        let Decision::Apply(effect, ..) = plan.decision else { panic!("{:?}", plan.decision) };
        effect.operations()
    }

    #[test]
    fn what_was_left_out_is_left_out_again() {
        let plan = decide_on("", "{enabled: false, prune: true}");
        assert!(plan.warnings[0].contains("deleted (prune)"), "{:?}", plan.warnings);
        let found = operations(plan);
        assert_eq!(found.last(), Some(&json!({ "op": "remove", "path": ENABLED_POINTER })));
    }

    #[test]
    fn what_was_true_is_true_again() {
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
