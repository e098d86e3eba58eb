//! `taint`: sets a taint of a node, as `kubectl taint nodes --overwrite` does.
//!
//! The effect `NoExecute` ends the pods that do not tolerate it, so it counts as a drain: each of them is judged by the
//! policy and counted in its budget, and what would be lost with one must be accepted.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, Pod, Taint};
use kube::ResourceExt;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    actions::{
        AffectedObject, BoxFuture, ChangedKeys, CompletionSpec, Decision, Descriptor, Plan,
        PlanInput, Plannable, Preview,
        shared::{pod::MAX_NAMED_PODS, restart, taint as shared},
    },
    contract::{
        counted::counted,
        error::{ActionError, Code},
        names::{LabelValue, ObjectName, QualifiedName, null_is_default},
        response::{Target, rfc3339_millis},
    },
    k8s::{
        api::client::{Cluster, next_page},
        applied_requests::AppliedRequests,
        completion::Completion,
        drain_filter::{self, BlockReason},
        gitops, nodes, pods,
        rbac::PolicyRule,
        taints::{self, OUT_OF_SERVICE, TaintEffect, describe, ends_after},
    },
};

/// The pods of one page.
const PAGE_SIZE: u32 = 100;

pub(crate) const DESCRIPTOR: Descriptor = Descriptor {
    name: "taint",
    aliases: &[],
    description: "Taint a node: keep off pods that do not tolerate it, or with NoExecute end them too. Refused for keys \
                  that the policy does not list (without a rule: all). NoExecute counts as a drain that ignores \
                  disruption budgets: each pod that would end must be allowed by the policy and counts in the policy's \
                  budget, and it is refused if a pod would not come back (force) or would lose data in an emptyDir volume \
                  (delete_empty_dir_data). Simulate it first: the answer names these pods.",
    takes_time: false,
    when: "a node is to be kept for some pods, or is certainly off and its pods are to move",
    when_not: "no new pods are to come at all: use cordon; pods are to leave within their disruption budgets: use drain",
    destructive: true,
    example: r#"{"node":"worker-1","key":"example.com/dedicated","value":"db","effect":"NoSchedule"}"#,
    rules: &[],
    cluster_rules: &[
        PolicyRule { api_groups: &[""], resources: &["nodes"], verbs: &["get", "patch"] },
        restart::PODS,
    ],
    integration: None,
};

/// What `taint` acts upon, and the taint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Parameters {
    /// The node.
    pub node: ObjectName,
    /// The key of the taint.
    pub key: QualifiedName,
    /// Its value.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "str::is_empty")]
    #[schemars(with = "Option<LabelValue>")]
    pub value: LabelValue,
    /// What it does to pods that do not tolerate it.
    pub effect: TaintEffect,
    /// With `NoExecute`: end pods that have no controller, which do not come back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
    /// With `NoExecute`: end pods that have data in emptyDir volumes, which is lost.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub delete_empty_dir_data: bool,
}

impl Plannable for Parameters {
    fn target(&self) -> Target {
        shared::target(&self.node)
    }

    fn namespace(&self) -> &str {
        ""
    }

    fn node(&self) -> Option<&str> {
        Some(&self.node)
    }

    fn check(&self) -> Result<(), ActionError> {
        shared::check_key(&self.key)?;
        // The cluster acts on the key alone, and the pods are read and judged for this effect only.
        if *self.key == *OUT_OF_SERVICE && self.effect != TaintEffect::NoExecute {
            let what = format!("must be NoExecute for {OUT_OF_SERVICE}");
            return Err(ActionError::invalid_field("parameters.effect", what));
        }
        Ok(())
    }

    fn changed_keys(&self) -> Option<ChangedKeys<'_>> {
        Some(shared::changed_keys(&self.key))
    }

    fn preview(&self, input: &PlanInput) -> Preview {
        let change = shared::change(None, Some(&self.taint()));
        let mark = AppliedRequests::default().change(&input.mark);
        let result = format!("Simulated: {}.", self.would());
        Preview { result, changes: vec![change, mark] }
    }

    fn plan<'a>(&'a self, cluster: &'a Cluster, input: &'a PlanInput) -> BoxFuture<'a, Plan> {
        Box::pin(async move {
            let (node, ended) = tokio::try_join!(
                cluster.get_global::<Node>(&self.node, input.deadline),
                self.list_pods(cluster, input),
            )?;
            self.decide(&node, ended, input)
        })
    }
}

impl Parameters {
    fn taint(&self) -> Taint {
        Taint {
            key: self.key.to_string(),
            value: (!self.value.is_empty()).then(|| self.value.to_string()),
            effect: self.effect.name().to_owned(),
            time_added: None,
        }
    }

    fn would(&self) -> String {
        format!("Node '{}' would be tainted with {}", self.node, describe(&self.taint()))
    }

    /// Reads the pods that the taint ends.
    async fn list_pods(
        &self,
        cluster: &Cluster,
        input: &PlanInput,
    ) -> Result<EndedPods, ActionError> {
        let mut ended = EndedPods::default();
        if self.effect != TaintEffect::NoExecute {
            return Ok(ended);
        }
        let mut params = drain_filter::pods_of(&self.node, None).limit(PAGE_SIZE);
        loop {
            let page = cluster.page::<Pod>(&params, input.deadline).await?;
            page.items.iter().for_each(|pod| ended.add(pod, self));
            if !next_page(&mut params, &page.metadata) {
                return Ok(ended);
            }
        }
    }

    /// From the node, and the pods that the taint ends, to the plan.
    fn decide(
        &self,
        node: &Node,
        ended: EndedPods,
        input: &PlanInput,
    ) -> Result<Plan, ActionError> {
        let (target, found, taint) = (self.target(), &node.metadata, self.taint());
        let described = describe(&taint);
        let did = format!(
            "Node '{}' tainted with {described} at {}{}.",
            self.node,
            rfc3339_millis(input.at),
            ended.phrase("ends")
        );
        let completion = CompletionSpec::Known(Completion::Immediate(match self.effect {
            TaintEffect::NoExecute => format!(
                "Node '{}' has the taint; the cluster deletes the pods that do not tolerate it, which is not waited for",
                self.node
            ),
            _ => format!("Node '{}' has the taint; its pods keep running", self.node),
        }));
        if input.has_changed(found)? {
            return Ok(Plan::already_applied(target, found, did, completion));
        }
        input.check_found(&target, found)?;
        let is_same = |it: &&Taint| it.key == taint.key && it.effect == taint.effect;
        let before = taints::taints(node).iter().find(is_same);
        let value = |taint: &Taint| taint.value.clone().unwrap_or_default();
        if before.is_some_and(|before| value(before) == value(&taint)) {
            let decision = Decision::NoOp(format!(
                "Node '{}' is tainted with {described} already.",
                self.node
            ));
            return Ok(Plan::new(target, found, decision, completion));
        }
        let with_uid = |refusal: ActionError| refusal.object_uid(found.uid.as_deref());
        self.refuse_node_in_service(node).map_err(with_uid)?;
        ended.check_losses(&self.node).map_err(with_uid)?;
        // kubectl puts what is new first.
        let others = taints::taints(node).iter().filter(|it| !is_same(it)).cloned();
        let after: Vec<_> = std::iter::once(taint.clone()).chain(others).collect();
        let effect = shared::effect(node, &after, input);
        let would = format!("Simulated: {}{}.", self.would(), ended.phrase("would end"));
        let decision = Decision::apply(effect, did, would);
        let mut plan = Plan::new(target, found, decision, completion);
        plan.changes = vec![shared::change(before, Some(&taint)), shared::mark_change(node, input)];
        plan.warnings = self.warnings(node, &ended, input);
        plan.others = ended.pods;
        Ok(plan)
    }

    /// The taint says that the node is off. Then volumes are detached from it without a check.
    fn refuse_node_in_service(&self, node: &Node) -> Result<(), ActionError> {
        if *self.key != *OUT_OF_SERVICE || nodes::not_ready_warning(node).is_some() {
            return Ok(());
        }
        let detail = format!(
            "Node '{}' is ready, and {OUT_OF_SERVICE} is for a node that is off: volumes would be detached while its \
             containers use them",
            self.node
        );
        Err(ActionError::new(Code::DrainBlocked, detail)
            .with_hint("use drain for a node that runs"))
    }

    fn warnings(&self, node: &Node, ended: &EndedPods, input: &PlanInput) -> Vec<String> {
        let reverted = gitops::revert_warning(&node.metadata, "spec.taints");
        let off = (*self.key == *OUT_OF_SERVICE).then(|| {
            format!(
                "{OUT_OF_SERVICE} says that the machine is off: while Node '{}' is not ready, its terminating pods are \
                 deleted by force and their volumes detached. If it still runs, its containers keep running, and two pods may \
                 write to one volume. Remove the taint once the node is back",
                self.node
            )
        });
        let own = input.own_pod.as_ref().filter(|own| own.node == *self.node);
        let own = own.filter(|own| ended.pods.iter().any(|pod| pod.target.name == own.name));
        let own = own.map(|own| {
            format!(
                "this executor runs on Node '{}', in pod '{}', which ends too",
                self.node, own.name
            )
        });
        reverted.into_iter().chain(off).chain(own).chain(ended.warnings()).collect()
    }
}

/// The pods that a taint ends.
#[derive(Default)]
struct EndedPods {
    pods: Vec<AffectedObject>,
    names: Vec<String>,
    /// How many of them stay for the time that they tolerate the taint, for example `shop/web-1 (30 s)`.
    delayed: Vec<String>,
    /// What would be lost and is not accepted.
    blocked: BTreeMap<BlockReason, Vec<String>>,
    /// What is lost and is accepted.
    accepted: BTreeMap<BlockReason, Vec<String>>,
}

impl EndedPods {
    fn add(&mut self, pod: &Pod, parameters: &Parameters) {
        // On a node that is off, this key has terminating pods deleted by force, whatever they tolerate
        // (`pkg/controller/podgc/gc_controller.go`).
        let is_forced = *parameters.key == *OUT_OF_SERVICE && pods::is_terminating(pod);
        let seconds = match ends_after(pod, &parameters.taint()) {
            _ if is_forced => 0,
            Some(seconds) if !pods::is_terminating(pod) => seconds,
            _ => return,
        };
        let name = format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any());
        for reason in drain_filter::losses(pod) {
            let is_accepted = match reason {
                BlockReason::EmptyDir => parameters.delete_empty_dir_data,
                _ => parameters.force,
            };
            let list = if is_accepted { &mut self.accepted } else { &mut self.blocked };
            list.entry(reason).or_default().push(name.clone());
        }
        if seconds > 0 {
            self.delayed.push(format!("{name} ({seconds} s)"));
        }
        self.names.push(name);
        self.pods.push(AffectedObject::pod(&pod.metadata));
    }

    /// As the end of a sentence; empty without pods.
    fn phrase(&self, ends: &str) -> String {
        match self.names[..] {
            [] => String::new(),
            _ => format!("; it {ends} {}: {}", counted(self.names.len(), "pod"), join(&self.names)),
        }
    }

    fn check_losses(&self, node: &str) -> Result<(), ActionError> {
        if self.blocked.is_empty() {
            return Ok(());
        }
        let reasons = self.blocked.iter().map(|(reason, pods)| {
            format!("{} {}: {}", counted(pods.len(), "pod"), reason.consequence(), join(pods))
        });
        let reasons: Vec<_> = reasons.collect();
        let parameters: Vec<_> =
            self.blocked.keys().map(|reason| reason.accepting_parameter()).collect();
        let detail = format!("Node '{node}' was not tainted: {}", reasons.join("; "));
        Err(ActionError::new(Code::DrainBlocked, detail)
            .with_hint(format!("to accept this, set {}", parameters.join(", "))))
    }

    fn warnings(&self) -> Vec<String> {
        let budgets = (!self.pods.is_empty()).then(|| {
            format!(
                "{} end by deletion, at once and whatever their disruption budgets allow; drain respects these",
                counted(self.pods.len(), "pod")
            )
        });
        let delayed = (!self.delayed.is_empty()).then(|| {
            format!(
                "pods that tolerate the taint for some time end after it: {}",
                join(&self.delayed)
            )
        });
        let accepted = self.accepted.iter().map(|(reason, pods)| {
            let number = counted(pods.len(), "pod");
            format!("{number} {}, ended anyway: {}", reason.consequence(), join(pods))
        });
        budgets.into_iter().chain(delayed).chain(accepted).collect()
    }
}

fn join(names: &[String]) -> String {
    pods::join_names(names, MAX_NAMED_PODS)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const DEDICATED: &str = r#"{"node":"n1","key":"dedicated","value":"db","effect":"NoExecute"}"#;
    const READY: &str = "status: {conditions: [{type: Ready, status: 'True'}]}";

    fn parameters(text: &str) -> Parameters {
        serde_json::from_str(text).expect("are parameters")
    }

    fn node(yaml: &str) -> Node {
        serde_yaml_ng::from_str(&format!(
            "metadata: {{name: n1, uid: u1, resourceVersion: '7'}}\n{yaml}"
        ))
        .expect("is a Node")
    }

    fn pod(name: &str, spec: &str, owned: bool) -> Pod {
        let owner = "ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: web, uid: r, controller: true}]";
        let owner = if owned { owner } else { "labels: {}" };
        serde_yaml_ng::from_str(&format!(
            "metadata: {{name: {name}, namespace: shop, uid: {name}, {owner}}}\nspec: {{containers: []{spec}}}\n\
             status: {{phase: Running}}"
        ))
        .expect("is a pod")
    }

    fn decide(text: &str, node: &Node, pods: &[Pod]) -> Result<Plan, ActionError> {
        let (parameters, mut ended) = (parameters(text), EndedPods::default());
        pods.iter().for_each(|pod| ended.add(pod, &parameters));
        parameters.decide(node, ended, &PlanInput::example())
    }

    fn operations(plan: &Plan) -> Vec<Value> {
        let effect = plan.expect_change().0;
        effect.operations()
    }

    #[test]
    fn a_taint_is_added_or_overwritten_if_all_taints_are_as_they_were_read() {
        let new = json!({ "key": "dedicated", "value": "db", "effect": "NoExecute" });
        let other = json!({ "key": "dedicated", "value": "db", "effect": "NoSchedule" });
        let old = json!({ "key": "dedicated", "effect": "NoExecute" });
        for (read, after, from) in [
            (json!([]), json!([new]), Value::Null),
            (json!([other]), json!([new, other]), Value::Null),
            (json!([other, old]), json!([new, other]), json!("")),
        ] {
            let plan = decide(DEDICATED, &node(&format!("spec: {{taints: {read}}}")), &[]);
            let plan = plan.expect("is planned");
            let tested = if read == json!([]) { Value::Null } else { read };
            let end = operations(&plan).split_off(operations(&plan).len() - 2);
            assert_eq!(
                json!(end),
                json!([
                    { "op": "test", "path": "/spec/taints", "value": tested },
                    { "op": "add", "path": "/spec/taints", "value": after },
                ])
            );
            let change = &plan.changes[0];
            assert_eq!(change.path, "/spec/taints/dedicated:NoExecute");
            assert_eq!((&change.from, &change.to), (&from, &json!("db")));
        }
    }

    #[test]
    fn a_taint_that_is_there_is_left() {
        let tainted = node("spec: {taints: [{key: dedicated, value: db, effect: NoExecute}]}");
        let plan = decide(DEDICATED, &tainted, &[pod("a", "", true)]).expect("is planned");
        assert!(matches!(plan.decision, Decision::NoOp(_)), "{:?}", plan.decision);
        assert!(plan.others.is_empty());
    }

    #[test]
    fn a_request_is_not_applied_twice() {
        let mut marked = node("");
        let mark = ("action-executor.dev/requests".to_owned(), "1:r1@d1".to_owned());
        marked.metadata.annotations = Some([mark].into());
        let plan = decide(DEDICATED, &marked, &[]).expect("is planned");
        assert!(matches!(plan.decision, Decision::AlreadyApplied(..)), "{:?}", plan.decision);
    }

    #[test]
    fn the_pods_that_do_not_tolerate_it_without_end_are_affected() {
        let forever = ", tolerations: [{key: dedicated, operator: Exists}]";
        let some_time =
            ", tolerations: [{key: dedicated, operator: Exists, tolerationSeconds: 30}]";
        let mut leaving = pod("d", "", true);
        leaving.metadata.deletion_timestamp =
            serde_yaml_ng::from_str("2026-01-31T12:00:00Z").expect("is a time");
        let pods =
            [pod("a", "", true), pod("b", forever, true), pod("c", some_time, true), leaving];
        let plan = decide(DEDICATED, &node(READY), &pods).expect("is planned");
        let names: Vec<_> = plan.others.iter().map(|pod| pod.target.name.as_str()).collect();
        assert_eq!(names, ["a", "c"]);
        let (_, did, would) = plan.expect_change();
        assert!(did.ends_with("; it ends 2 pods: shop/a, shop/c."), "{did}");
        assert!(would.ends_with("; it would end 2 pods: shop/a, shop/c."), "{would}");
        let warnings = plan.warnings.join("; ");
        assert!(
            warnings.contains("disruption budgets") && warnings.contains("shop/c (30 s)"),
            "{warnings}"
        );
        let scheduled = DEDICATED.replace("NoExecute", "NoSchedule");
        let plan = decide(&scheduled, &node(READY), &[]).expect("is planned");
        assert_eq!(plan.warnings, [""; 0]);
    }

    #[test]
    fn losses_with_a_pod_must_be_accepted() {
        let scratch = ", volumes: [{name: tmp, emptyDir: {}}]";
        let pods = [pod("a", scratch, true), pod("b", "", false)];
        let error = decide(DEDICATED, &node(READY), &pods).expect_err("is refused");
        assert_eq!(error.code, Code::DrainBlocked);
        assert!(
            error.detail.contains("shop/a") && error.detail.contains("shop/b"),
            "{}",
            error.detail
        );
        let hint = error.hint.expect("has one");
        assert!(hint.contains("force: true") && hint.contains("delete_empty_dir_data"), "{hint}");
        let accepted = DEDICATED.replace('}', r#","force":true,"delete_empty_dir_data":true}"#);
        let plan = decide(&accepted, &node(READY), &pods).expect("is planned");
        assert_eq!(plan.others.len(), 2);
        assert!(plan.warnings.join("; ").contains("ended anyway"));
    }

    #[test]
    fn a_node_that_is_ready_is_not_taken_out_of_service() {
        let text = DEDICATED.replace("dedicated", OUT_OF_SERVICE);
        let error = decide(&text, &node(READY), &[]).expect_err("is refused");
        assert_eq!(error.code, Code::DrainBlocked);
        let lost = node("status: {conditions: [{type: Ready, status: Unknown}]}");
        let warnings = decide(&text, &lost, &[]).expect("is planned").warnings.join("; ");
        assert!(warnings.contains("two pods may write to one volume"), "{warnings}");
    }

    #[test]
    fn a_key_of_the_cluster_or_of_this_program_is_refused() {
        for (key, is_refused) in [
            ("node.kubernetes.io/unreachable", true),
            ("node.cloudprovider.kubernetes.io/shutdown", true),
            ("action-executor.dev/x", true),
            (OUT_OF_SERVICE, false),
            ("dedicated", false),
        ] {
            let checked = parameters(&DEDICATED.replace("dedicated", key)).check();
            let field = checked.err().and_then(|error| error.field);
            assert_eq!(field.as_deref() == Some("parameters.key"), is_refused, "{key}");
        }
    }
}
