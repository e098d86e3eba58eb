//! `sync_argo_cd`: Argo CD syncs an Application to its source now.
//!
//! The field `operation` requests it, as Argo CD's own API and `kubectl patch` do
//! (`docs/user-guide/sync-kubectl.md`; `Sync` in `server/application/application.go`).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    actions::{
        BoxFuture, CompletionSpec, Descriptor, Plan, PlanInput, Plannable, Preview,
        shared::{
            applications::{self, APPLICATION_SETS, APPLICATIONS, Edit, Owned},
            restart,
        },
    },
    contract::{
        error::{ActionError, Code},
        names::{Namespace, ObjectName, null_is_default},
        response::{Change, Target, rfc3339_millis},
    },
    k8s::{
        api::client::Cluster,
        applied_requests::AppliedRequests,
        argo_cd,
        completion::Completion,
        conditional_patch::{add, test},
        integrations::Integration,
    },
};

pub(crate) const DESCRIPTOR: Descriptor = Descriptor {
    name: "sync_argo_cd",
    aliases: &[],
    description: "Have Argo CD sync an Application now, to the revision in its spec, with the options of its sync \
                  policy: what the source has is applied. What the source no longer has is deleted only with prune. \
                  Refused while another operation is in progress, and for an ApplicationSet's Application that does \
                  not keep annotations. With wait it is complete once this sync has succeeded, and fails with Argo \
                  CD's message; health is not awaited.",
    takes_time: true,
    when: "an Application without automated sync, or one whose sync has failed, is to get what its source has",
    when_not: "automated sync is suspended because of what the source has",
    destructive: true,
    example: r#"{"name":"shop","namespace":"argocd"}"#,
    rules: &[APPLICATIONS, APPLICATION_SETS, restart::EVENTS],
    cluster_rules: &[],
    integration: Some(Integration::ArgoCd),
};

/// What `sync_argo_cd` acts upon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Parameters {
    /// The Application.
    pub name: ObjectName,
    /// Its namespace.
    #[serde(default, deserialize_with = "null_is_default")]
    #[schemars(with = "Option<Namespace>")]
    pub namespace: Namespace,
    /// Whether what the source no longer has is deleted.
    #[serde(default, deserialize_with = "null_is_default")]
    #[schemars(with = "Option<bool>")]
    pub prune: bool,
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
        let sync = if self.prune { json!({ "prune": true }) } else { json!({}) };
        Preview { result: self.would(), changes: vec![change(json!({ "sync": sync })), mark] }
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
        let pruned = if self.prune { " and pruned" } else { "" };
        format!("Simulated: Application '{}' would be synced{pruned}.", self.name)
    }

    fn decide(&self, found: &Owned, input: &PlanInput) -> Result<Plan, ActionError> {
        let (target, application) = (self.target(), &found.application);
        let metadata = &application.metadata;
        let completion = CompletionSpec::Known(Completion::Synced {
            namespace: target.namespace.clone(),
            name: target.name.clone(),
            uid: metadata.uid.clone().unwrap_or_default(),
            mark: input.mark.clone(),
        });
        let at = rfc3339_millis(input.at);
        let did = format!("Argo CD was asked to sync Application '{}' at {at}.", self.name);
        if input.has_changed(metadata)? {
            return Ok(Plan::already_applied(target, metadata, did, completion));
        }
        input.check_found(&target, metadata)?;
        let with_uid = |refusal: ActionError| refusal.object_uid(metadata.uid.as_deref());
        if let Some(what) = argo_cd::operation_in_progress(application) {
            let detail = format!("{target} cannot be synced now: {what}");
            return Err(with_uid(ActionError::new(Code::PreconditionFailed, detail))
                .with_hint("wait until it has ended (status.operationState), or terminate it"));
        }
        found.check_kept(&target, None)?;
        let etag = applications::decision_etag(&application.data["spec"]);
        input.check_decision("the spec", &target, &etag).map_err(with_uid)?;
        let operation = argo_cd::sync_operation(application, &input.mark, self.prune);
        let operations =
            vec![test(&["operation"], Value::Null), add(&["operation"], operation.clone())];
        let (changes, would) = (vec![change(operation)], self.would());
        let edit = Edit { etag, operations, changes, did, would };
        let mut plan = edit.plan(target, metadata, input, completion);
        if self.prune {
            plan.warnings.push("what its source no longer has is deleted (prune)".to_owned());
        }
        Ok(plan)
    }
}

fn change(operation: Value) -> Change {
    Change { path: "/operation".to_owned(), from: Value::Null, to: operation }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decide_on(rest: &str, prune: bool) -> Result<Plan, ActionError> {
        decide(7, "{}", rest, prune, &PlanInput::example())
    }

    fn decide(
        generation: i64,
        spec: &str,
        rest: &str,
        prune: bool,
        input: &PlanInput,
    ) -> Result<Plan, ActionError> {
        let application = serde_yaml_ng::from_str(&format!(
            "metadata: {{name: shop, namespace: argocd, uid: u1, generation: {generation}}}\n\
             spec: {spec}\n{rest}"
        ));
        let found = Owned { application: application.expect("is an object"), set: None };
        let parameters = json!({ "name": "shop", "namespace": "argocd", "prune": prune });
        let parameters: Parameters = serde_json::from_value(parameters).expect("are some");
        parameters.decide(&found, input)
    }

    #[test]
    fn an_approval_covers_the_spec_not_the_status() {
        let [spec, other] = ["{project: a}", "{project: b}"];
        let first = decide(7, spec, "", false, &PlanInput::example()).expect("is planned");
        let input =
            PlanInput { decision_etag: first.decision_etag.clone(), ..PlanInput::example() };
        let later = decide(8, spec, "status: {health: {status: Healthy}}", false, &input);
        let later = later.expect("is planned");
        assert_eq!(first.decision_etag, later.decision_etag);
        // A generation would be part of the digest that is approved.
        assert_eq!([first.found.generation, later.found.generation], [None, None]);
        let refusal = decide(9, other, "", false, &input).expect_err("is refused");
        assert_eq!(refusal.code, Code::PreconditionFailed);
    }

    #[test]
    fn a_sync_is_an_operation_with_the_requests_mark_where_there_is_none() {
        for prune in [true, false] {
            let plan = decide_on("", prune).expect("is planned");
            assert_eq!(plan.warnings.len(), usize::from(prune));
            let effect = plan.expect_change().0;
            let found = effect.operations();
            let none = json!({ "op": "test", "path": "/operation", "value": null });
            assert!(found.contains(&none), "{found:?}");
            let set = found.last().expect("is one");
            assert_eq!(set["path"], "/operation");
            assert_eq!(set["value"]["sync"]["prune"] == true, prune);
            assert_eq!(set["value"]["info"][0]["value"], "r1@d1");
        }
    }

    #[test]
    fn an_operation_in_progress_refuses_another_one() {
        for rest in ["operation: {}", "status: {operationState: {phase: Running}}"] {
            let refusal = decide_on(rest, false).expect_err("is refused");
            assert_eq!(refusal.code, Code::PreconditionFailed);
        }
        let ended = "status: {operationState: {phase: Failed}}";
        assert!(decide_on(ended, false).is_ok());
    }
}
