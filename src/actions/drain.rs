//! `drain`: cordons a node and evicts its pods, as `kubectl drain` does.
//!
//! Everything that blocks the drain is found and named before anything is changed. The effect is the
//! cordon; the evictions follow it, in `executor::drain`.

use std::collections::BTreeMap;

use chrono::Utc;
use k8s_openapi::api::{
    core::v1::{Node, PersistentVolume, Pod},
    policy::v1::PodDisruptionBudget,
};
use kube::{
    ResourceExt,
    api::{ApiResource, ListParams},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    actions::{
        AffectedObject, BoxFuture, CompletionSpec, Decision, Descriptor, Plan, PlanInput,
        Plannable, Preview,
        shared::{pod::MAX_NAMED_PODS, restart, toggle::CORDON},
    },
    contract::{
        counted::counted,
        error::{ActionError, Code},
        label_selector::LabelSelector,
        names::ObjectName,
        response::{Target, rfc3339_millis},
    },
    k8s::{
        api::{
            client::{Cluster, next_page},
            node_pods::{NodePodReader, Pdbs},
            preflight,
        },
        applied_requests::{AppliedRequests, DRAINS_ANNOTATION},
        completion::Completion,
        conditional_patch::add,
        drain_filter::{self, BlockReason, DrainOptions, EvictionSet, SkipReason},
        effect::Effect,
        nodes, pdb,
        pod_set::PodSet,
        pods,
        rbac::PolicyRule,
        replacement::Doubt,
    },
};

/// The most exhausted disruption budgets whose blocking pods are listed.
const MAX_PDBS: usize = 20;

/// The volumes of one page.
const PAGE_SIZE: u32 = 100;

/// When an exhausted disruption budget may allow a disruption again.
const RETRY_AFTER: std::time::Duration = std::time::Duration::from_secs(5);

pub(crate) const DESCRIPTOR: Descriptor = Descriptor {
    name: "drain",
    aliases: &[],
    description: "Drain a node: cordon it and evict its pods within their disruption budgets, so that \
                  it can be repaired or removed. With wait, the answer comes once they are gone; \
                  without it, each pod that can be evicted now is evicted once. Refused, before anything is changed, if a pod \
                  would not come back (force), would lose data in an emptyDir volume \
                  (delete_empty_dir_data), or can never be evicted. Pods of DaemonSets and static pods \
                  stay. Simulate it first: the answer names all pods that would be evicted.",
    takes_time: true,
    when: "a node is to be repaired or removed",
    when_not: "one pod is at fault, or the other nodes have no capacity",
    destructive: true,
    example: r#"{"node":"worker-1"}"#,
    rules: &[],
    cluster_rules: &[
        PolicyRule { api_groups: &[""], resources: &["nodes"], verbs: &["get", "patch"] },
        restart::PODS,
        PolicyRule { api_groups: &[""], resources: &["pods/eviction"], verbs: &["create"] },
        preflight::PDBS,
        // Whether the DaemonSet of a pod exists.
        PolicyRule { api_groups: &["apps"], resources: &["daemonsets"], verbs: &["get"] },
        // Only to warn of volumes that exist on this node only.
        PolicyRule { api_groups: &[""], resources: &["persistentvolumes"], verbs: &["list"] },
    ],
    integration: None,
};

/// What `drain` acts upon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Parameters {
    /// The node to drain.
    pub node: ObjectName,
    /// Evict pods that have data in emptyDir volumes, which is lost.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub delete_empty_dir_data: bool,
    /// Evict pods that have no controller, or whose DaemonSet does not exist: they do not come back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
    /// Leave pods of DaemonSets on the node, since they would be recreated at once. With `false` they block
    /// the drain.
    #[serde(default = "yes", skip_serializing_if = "Clone::clone")]
    #[schemars(extend("default" = true))]
    pub ignore_daemonsets: bool,
    /// How many seconds each pod may take to stop, instead of its own grace period.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_period_seconds: Option<u32>,
    /// Evict only pods with these labels, for example `app=web,tier!=db`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_selector: Option<LabelSelector>,
    /// Do not wait for pods that have been deleted for more than so many seconds; 0: wait for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skip_wait_for_delete_timeout_seconds: Option<u32>,
    /// Uncordon the node if the drain fails, unless it was cordoned before.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub uncordon_on_failure: bool,
}

fn yes() -> bool {
    true
}

impl Plannable for Parameters {
    fn target(&self) -> Target {
        CORDON.target("", &self.node)
    }

    fn namespace(&self) -> &str {
        ""
    }

    fn node(&self) -> Option<&str> {
        Some(&self.node)
    }

    fn preview(&self, input: &PlanInput) -> Preview {
        let cordon = CORDON.preview(&self.target(), input);
        let result =
            format!("Simulated: Node '{}' would be cordoned and its pods evicted.", self.node);
        Preview { result, ..cordon }
    }

    fn plan<'a>(&'a self, cluster: &'a Cluster, input: &'a PlanInput) -> BoxFuture<'a, Plan> {
        Box::pin(async move {
            let (node, mut node_pods) = tokio::try_join!(
                cluster.get_global::<Node>(&self.node, input.deadline),
                self.list_pods(cluster, input),
            )?;
            // Pods may have come between the list and a cordon by another client.
            if nodes::is_cordoned(&node) && node_pods.to_evict.is_empty() {
                node_pods = self.list_pods(cluster, input).await?;
            }
            node_pods.explain_exhausted_pdbs(cluster, input).await?;
            node_pods.warn_of_local_volumes(cluster, input).await;
            self.decide(&node, node_pods, input)
        })
    }
}

impl Parameters {
    fn options(&self) -> DrainOptions {
        DrainOptions {
            unmanaged: self.force,
            daemon_sets: self.ignore_daemonsets,
            empty_dir_data: self.delete_empty_dir_data,
            deleted_for: self.skip_wait_for_delete_timeout_seconds,
        }
    }

    /// Reads and judges the pods of the node.
    async fn list_pods(
        &self,
        cluster: &Cluster,
        input: &PlanInput,
    ) -> Result<NodePods, ActionError> {
        let mut node_pods = NodePods::default();
        let mut reader = NodePodReader::new(cluster, &self.node, self.pod_selector.as_deref());
        let (pdbs, mut page) = tokio::try_join!(
            Pdbs::read(cluster, input.deadline),
            reader.next(|_| true, input.deadline),
        )?;
        while let Some(pods) = page {
            for pod in &pods {
                let exists = reader.daemon_set_exists(pod);
                if node_pods.add(pod, &self.options(), exists, pdbs.of(pod)) {
                    node_pods.note(pod, self.grace_period_seconds, input);
                }
            }
            page = reader.next(|_| true, input.deadline).await?;
        }
        Ok(node_pods)
    }

    /// From the node and its pods to the plan.
    fn decide(
        &self,
        node: &Node,
        node_pods: NodePods,
        input: &PlanInput,
    ) -> Result<Plan, ActionError> {
        let (found, target) = (&node.metadata, self.target());
        let name = &*self.node;
        let was_cordoned = nodes::is_cordoned(node);
        let eviction_set = self.eviction_set(&node_pods, was_cordoned);
        let (drains, mark) =
            (AppliedRequests::listed_in(found, DRAINS_ANNOTATION), eviction_set.mark(&input.mark));
        let completion = CompletionSpec::Drained(eviction_set);
        let at = rfc3339_millis(input.at);
        let did = match was_cordoned {
            true => format!("Node '{name}' was cordoned already; its drain began at {at}."),
            false => format!("Node '{name}' cordoned at {at}."),
        };
        if input.has_changed(found)? {
            let plan = Plan::already_applied(target, found, did, completion);
            return Ok(Plan { others: node_pods.to_evict, ..plan });
        }
        input.check_found(&target, found)?;
        let with_uid = |refusal: ActionError| refusal.object_uid(found.uid.as_deref());
        node_pods.check_blockers(name, input.wait).map_err(with_uid)?;
        if was_cordoned && node_pods.to_evict.is_empty() {
            let stay = node_pods.skipped_phrase("stay");
            let sentence = format!("Node '{name}' is cordoned and has no pods to evict{stay}.");
            let completion = CompletionSpec::Known(Completion::Immediate(sentence.clone()));
            return Ok(Plan::new(target, found, Decision::NoOp(sentence), completion));
        }
        let mut change = CORDON.operations(found, was_cordoned);
        change
            .push(add(&["metadata", "annotations", DRAINS_ANNOTATION], drains.push(&mark).into()));
        let precondition = input.precondition.as_ref();
        let resource = ApiResource::erase::<Node>(&());
        let effect = Effect::patch(resource, found, &input.mark, precondition, change);
        let decision = Decision::apply(effect, did, node_pods.would(name, was_cordoned));
        let mut plan = Plan::new(target, found, decision, completion);
        plan.changes = CORDON.changes(found, was_cordoned, input);
        plan.changes.push(drains.change_of(DRAINS_ANNOTATION, &mark));
        plan.warnings = node_pods.warnings(input);
        plan.warnings.extend(nodes::lost_warning(node));
        plan.warnings.extend(own_node_warning(name, input));
        plan.others = node_pods.to_evict;
        Ok(plan)
    }

    fn eviction_set(&self, node_pods: &NodePods, was_cordoned: bool) -> EvictionSet {
        let hashes = |unprotected: bool| {
            let some = node_pods
                .to_evict
                .iter()
                .zip(&node_pods.unprotected)
                .filter(|(_, it)| **it == unprotected);
            some.filter_map(|(pod, _)| pod.target.uid.as_deref()).collect()
        };
        EvictionSet {
            unprotected: hashes(true),
            protected: hashes(false),
            skipped: node_pods.skipped_set.clone(),
            selector: self.pod_selector.as_deref().map(str::to_owned),
            options: self.options(),
            grace_period_seconds: self.grace_period_seconds,
            uncordon_on_failure: self.uncordon_on_failure && !was_cordoned,
        }
    }
}

/// A disruption budget that allows no disruption now.
struct ExhaustedPdb {
    pdb: PodDisruptionBudget,
    pods: Vec<String>,
    /// Why, with the blocking pods; set once those are listed.
    reason: String,
    /// Whether it never allows one.
    is_final: bool,
}

/// The pods of the node, by what happens to them.
#[derive(Default)]
struct NodePods {
    to_evict: Vec<AffectedObject>,
    /// For each of them, whether no disruption budget may refuse its eviction.
    unprotected: Vec<bool>,
    /// How many stay, by reason.
    skipped: BTreeMap<SkipReason, usize>,
    /// The same pods.
    skipped_set: PodSet,
    blocked: BTreeMap<BlockReason, Vec<String>>,
    /// Pods that are evicted although something is lost, by what was accepted.
    accepted_risks: BTreeMap<BlockReason, Vec<String>>,
    /// Pods that more than one disruption budget selects, with the names of those budgets.
    multiple_pdbs: Vec<String>,
    /// By namespace and name.
    exhausted: BTreeMap<String, ExhaustedPdb>,
    /// Volume claims, with the pod that mounts each.
    claims: BTreeMap<String, String>,
    /// Pods to evict that ask autoscalers not to move them, by the annotation.
    objecting: BTreeMap<&'static str, Vec<String>>,
    /// Pods that may not come back, although they have a controller.
    doubtful: BTreeMap<Doubt, Vec<String>>,
    /// Pods to evict that may take longer to stop than the request waits, with their times.
    slow: Vec<String>,
    /// About the pods' volumes.
    warnings: Vec<String>,
}

impl NodePods {
    /// Adds a pod, and returns whether it is evicted.
    fn add(
        &mut self,
        pod: &Pod,
        options: &DrainOptions,
        daemon_set_exists: bool,
        pdbs: &[PodDisruptionBudget],
    ) -> bool {
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let pod_name = format!("{namespace}/{}", pod.name_any());
        let accepted_reasons =
            match drain_filter::classify(pod, options, daemon_set_exists, Utc::now()) {
                drain_filter::FilterResult::Evict(accepted_reasons) => accepted_reasons,
                drain_filter::FilterResult::Skip(why) => {
                    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
                    self.skipped_set.insert(uid);
                    *self.skipped.entry(why).or_default() += 1;
                    return false;
                }
                drain_filter::FilterResult::Block(reason) => {
                    self.blocked.entry(reason).or_default().push(pod_name);
                    return false;
                }
            };
        for reason in accepted_reasons {
            self.accepted_risks.entry(reason).or_default().push(pod_name.clone());
        }
        let is_unprotected = match pdb::classify(pod, pdbs) {
            pdb::PdbDecision::Unprotected => true,
            pdb::PdbDecision::Allowed(_) => false,
            pdb::PdbDecision::Blocked(pdb) | pdb::PdbDecision::Stale(pdb) => {
                let key = format!("{namespace}/{}", pdb::name_of(pdb));
                let (pdb, reason) = (pdb.clone(), String::new());
                let exhausted = ExhaustedPdb { pdb, pods: Vec::new(), reason, is_final: false };
                self.exhausted.entry(key).or_insert(exhausted).pods.push(pod_name.clone());
                false
            }
            pdb::PdbDecision::Ambiguous(pdbs) => {
                let names: Vec<_> = pdbs.into_iter().map(pdb::name_of).collect();
                self.multiple_pdbs.push(format!("{pod_name} ({})", names.join(", ")));
                return false;
            }
        };
        for claim in pods::pvcs(pod.spec.as_ref()) {
            self.claims.insert(format!("{namespace}/{claim}"), pod_name.clone());
        }
        self.unprotected.push(is_unprotected);
        self.to_evict.push(AffectedObject::pod(&pod.metadata));
        true
    }

    /// Notes what is to be warned of about a pod that is evicted.
    fn note(&mut self, pod: &Pod, grace_period_seconds: Option<u32>, input: &PlanInput) {
        let pod_name = format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any());
        let wait = input.timeout;
        let seconds = drain_filter::grace_period_beyond(pod, grace_period_seconds, wait);
        let slow = seconds.filter(|_| input.wait);
        self.slow.extend(slow.map(|seconds| format!("{pod_name} ({seconds} s)")));
        let owner = pods::controller(pod).filter(|_| !pods::has_finished(pod));
        if let Some(doubt) = owner.and_then(Doubt::of) {
            self.doubtful.entry(doubt).or_default().push(pod_name.clone());
        }
        if let Some(annotation) = drain_filter::disruption_objection(&pod.metadata) {
            self.objecting.entry(annotation).or_default().push(pod_name);
        }
    }

    /// Lists the pods that block the exhausted disruption budgets.
    async fn explain_exhausted_pdbs(
        &mut self,
        cluster: &Cluster,
        input: &PlanInput,
    ) -> Result<(), ActionError> {
        for (number, exhausted) in self.exhausted.values_mut().enumerate() {
            let selector = pdb::selector_of(&exhausted.pdb).map(|it| it.to_string());
            let pods = match selector {
                Some(selector) if number < MAX_PDBS => {
                    let namespace = exhausted.pdb.namespace().unwrap_or_default();
                    cluster.list::<Pod>(&namespace, &selector, input.deadline).await?
                }
                _ => Vec::new(),
            };
            let never = cluster.never_allows(&exhausted.pdb, &pods, input.deadline).await;
            exhausted.is_final = never.is_some();
            exhausted.reason = never.unwrap_or_else(|| pdb::reason(&exhausted.pdb, &pods));
        }
        Ok(())
    }

    /// Finds volumes that exist on this node only. An error is a warning too.
    async fn warn_of_local_volumes(&mut self, cluster: &Cluster, input: &PlanInput) {
        if self.claims.is_empty() {
            return;
        }
        let mut params = ListParams::default().limit(PAGE_SIZE);
        loop {
            let page = match cluster.page::<PersistentVolume>(&params, input.deadline).await {
                Ok(page) => page,
                Err(error) => {
                    let why = error.with_its_hint();
                    let warning = format!("local volumes are unknown: {why}");
                    return self.warnings.push(warning);
                }
            };
            self.add_volumes(&page.items);
            if !next_page(&mut params, &page.metadata) {
                return;
            }
        }
    }

    fn add_volumes(&mut self, volumes: &[PersistentVolume]) {
        for volume in volumes {
            let local = drain_filter::local_pvc(volume).and_then(|claim| self.claims.get(&claim));
            self.warnings.extend(local.map(|pod| {
                let name = volume.name_any();
                format!("the volume '{name}' of pod {pod} exists on this node only: without the node the pod cannot run")
            }));
        }
    }

    /// Refuses with everything that blocks the drain. With `wait`, an exhausted disruption budget does not block it.
    fn check_blockers(&self, node: &str, wait: bool) -> Result<(), ActionError> {
        let exhausted = self
            .exhausted
            .values()
            .map(|exhausted| format!("{}: {}", exhausted.reason, join_names(&exhausted.pods)));
        let is_final = |it: &&ExhaustedPdb| it.is_final;
        let ways_out = self.exhausted.values().filter(is_final).map(|it| pdb::way_out(&it.pdb));
        let mut hints: Vec<_> = ways_out.collect();
        if self.blocked.is_empty() && self.multiple_pdbs.is_empty() && hints.is_empty() {
            let exhausted: Vec<_> = exhausted.collect();
            if exhausted.is_empty() || wait {
                return Ok(());
            }
            let detail = format!("Node '{node}' was not cordoned: {}", exhausted.join("; "));
            return Err(ActionError::new(Code::DisruptionBudget, detail)
                .with_hint("wait until the named pods are ready, or set \"wait\": true")
                .with_retry_after(Some(RETRY_AFTER)));
        }
        let blocked = self.blocked.iter().map(|(reason, pods)| {
            format!("{} {}: {}", counted(pods.len(), "pod"), reason.consequence(), join_names(pods))
        });
        let ambiguous = (!self.multiple_pdbs.is_empty()).then(|| {
            format!(
                "{} of more than one disruption budget, which the API server never evicts: {}",
                counted(self.multiple_pdbs.len(), "pod"),
                join_names(&self.multiple_pdbs)
            )
        });
        let all: Vec<_> = blocked.chain(ambiguous).chain(exhausted).collect();
        let detail = format!("Node '{node}' was not cordoned: {}", all.join("; "));
        let parameters: Vec<_> =
            self.blocked.keys().map(|reason| reason.accepting_parameter()).collect();
        if !parameters.is_empty() {
            hints.insert(0, format!("to accept this, set {}", parameters.join(", ")));
        } else if !self.multiple_pdbs.is_empty() {
            let hint = "change the selectors so that one disruption budget selects each pod";
            hints.insert(0, hint.to_owned());
        }
        Err(ActionError::new(Code::DrainBlocked, detail).with_hint(hints.join("; ")))
    }

    /// The pods that stay, as the end of a sentence; empty if there are none.
    fn skipped_phrase(&self, stay: &str) -> String {
        let skipped = self.skipped.iter();
        let skipped: Vec<_> =
            skipped.map(|(why, number)| format!("{number} {}", why.description())).collect();
        match skipped[..] {
            [] => String::new(),
            _ => format!("; pods that {stay}: {}", skipped.join(", ")),
        }
    }

    fn would(&self, node: &str, was_cordoned: bool) -> String {
        let cordon = match was_cordoned {
            true => format!("Node '{node}' is cordoned already"),
            false => format!("Node '{node}' would be cordoned"),
        };
        let names: Vec<_> = self.to_evict.iter().map(|pod| pod_name(&pod.target)).collect();
        let eviction = match names[..] {
            [] => "no pod would be evicted".to_owned(),
            _ => {
                format!("{} would be evicted: {}", counted(names.len(), "pod"), join_names(&names))
            }
        };
        let skipped = self.skipped_phrase("would stay");
        format!("Simulated: {cordon}, and {eviction}{skipped}.")
    }

    fn warnings(&self, input: &PlanInput) -> Vec<String> {
        let accepted_risks = self.accepted_risks.iter().map(|(reason, pods)| {
            let what = reason.consequence();
            format!("{} {what}, evicted anyway: {}", counted(pods.len(), "pod"), join_names(pods))
        });
        let exhausted = self.exhausted.values().filter(|_| input.wait).map(|exhausted| {
            format!(
                "waiting for a disruption budget: {}: {}",
                exhausted.reason,
                join_names(&exhausted.pods)
            )
        });
        let objecting = self.objecting.iter().map(|(annotation, pods)| {
            let number = counted(pods.len(), "pod");
            format!("{number} annotated with {annotation}, evicted anyway: {}", join_names(pods))
        });
        let doubtful = self.doubtful.iter().map(|(doubt, pods)| {
            let number = counted(pods.len(), "pod");
            format!("{number}, each of which {}: {}", doubt.meaning(), join_names(pods))
        });
        let slow = (!self.slow.is_empty()).then(|| {
            let (number, wait) = (counted(self.slow.len(), "pod"), input.timeout.as_secs());
            let pods = join_names(&self.slow);
            format!("{number} may take longer to stop than the wait of {wait} s: {pods}")
        });
        let warnings = self.warnings.iter().cloned();
        let of_pods = exhausted.chain(objecting).chain(doubtful);
        accepted_risks.chain(of_pods).chain(slow).chain(warnings).collect()
    }
}

/// The warning about a drain of the node on which the executor runs.
fn own_node_warning(node: &str, input: &PlanInput) -> Option<String> {
    let own_pod = input.own_pod.as_ref().filter(|own_pod| own_pod.node == node)?;
    Some(format!(
        "this executor runs on Node '{node}', in pod '{}', which is evicted last: if the answer says that the drain was \
         interrupted, resend the same request, and the executor that starts elsewhere completes it",
        own_pod.name
    ))
}

fn pod_name(pod: &Target) -> String {
    format!("{}/{}", pod.namespace, pod.name)
}

fn join_names(names: &[String]) -> String {
    pods::join_names(names, MAX_NAMED_PODS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::OwnPod;

    const READY: &str = "status: {phase: Running, conditions: [{type: Ready, status: 'True'}]}";

    fn node(spec: &str) -> Node {
        serde_yaml_ng::from_str(&format!(
            "metadata: {{name: n1, uid: u1, resourceVersion: '7'}}\nspec: {{{spec}}}"
        ))
        .expect("is a Node")
    }

    /// A running pod with this spec and owner.
    fn pod(name: &str, spec: &str, owner: &str) -> Pod {
        let owner = match owner {
            "" => String::new(),
            kind => format!(
                ", ownerReferences: [{{apiVersion: apps/v1, kind: {kind}, name: web, uid: r, \
                 controller: true}}]"
            ),
        };
        serde_yaml_ng::from_str(&format!(
            "metadata: {{name: {name}, namespace: shop, uid: uid-{name}, labels: {{app: web}}{owner}}}\n\
             spec: {{containers: [], {spec}}}\n{READY}"
        ))
        .expect("is a pod")
    }

    fn pdb(name: &str, allowed: i32) -> PodDisruptionBudget {
        serde_yaml_ng::from_str(&format!(
            "metadata: {{name: {name}, namespace: shop, generation: 1}}\n\
             spec: {{selector: {{matchLabels: {{app: web}}}}}}\n\
             status: {{observedGeneration: 1, currentHealthy: 2, desiredHealthy: 2, expectedPods: 2, \
             disruptionsAllowed: {allowed}}}"
        ))
        .expect("is a PDB")
    }

    fn parameters(fields: &str) -> Parameters {
        serde_json::from_str(&format!(r#"{{"node":"n1"{fields}}}"#)).expect("are parameters")
    }

    fn node_pods(parameters: &Parameters, pods: &[Pod], pdbs: &[PodDisruptionBudget]) -> NodePods {
        let mut node_pods = NodePods::default();
        for pod in pods {
            if node_pods.add(pod, &parameters.options(), true, pdbs) {
                node_pods.note(pod, None, &PlanInput { wait: true, ..PlanInput::example() });
            }
        }
        for exhausted in node_pods.exhausted.values_mut() {
            exhausted.reason = pdb::reason(&exhausted.pdb, &[]);
        }
        node_pods
    }

    fn plan_for(
        fields: &str,
        pods: &[Pod],
        pdbs: &[PodDisruptionBudget],
        wait: bool,
    ) -> Result<Plan, ActionError> {
        let parameters = parameters(fields);
        let node_pods = node_pods(&parameters, pods, pdbs);
        parameters.decide(&node(""), node_pods, &PlanInput { wait, ..PlanInput::example() })
    }

    #[test]
    fn a_drain_is_one_cordon_and_names_the_pods_to_evict() {
        let pods = [pod("a", "", "ReplicaSet"), pod("agent", "", "DaemonSet")];
        let plan = plan_for("", &pods, &[], false).expect("is planned");
        let (effect, did, would) = plan.expect_change();
        let change =
            serde_json::json!({ "op": "add", "path": "/spec/unschedulable", "value": true });
        let operations = effect.operations();
        assert!(operations.contains(&change), "{operations:?}");
        let CompletionSpec::Drained(set) = &plan.completion else { panic!("is drained") };
        let drains = "/metadata/annotations/action-executor.dev~1drains";
        let shown = serde_json::json!({
            "op": "add", "path": drains, "value": format!("1:{}", set.mark("r1@d1")),
        });
        assert_eq!(operations.last(), Some(&shown));
        assert_eq!(plan.changes.last().map(|change| &*change.path), Some(drains));
        assert_eq!(did, "Node 'n1' cordoned at 2026-01-31T12:00:00.987Z.");
        assert_eq!(
            would,
            "Simulated: Node 'n1' would be cordoned, and 1 pod would be evicted: shop/a; pods that \
             would stay: 1 of DaemonSets."
        );
        assert_eq!(plan.others.len(), 1);
        assert_eq!(plan.warnings, Vec::<String>::new());
        let CompletionSpec::Drained(eviction_set) = plan.completion else { panic!("is drained") };
        assert!(
            eviction_set.contains(&pods[0].metadata)
                && eviction_set.is_unprotected(&pods[0].metadata)
        );
        assert!(!eviction_set.contains(&pods[1].metadata));
    }

    #[test]
    fn all_blockers_are_named_in_one_refusal() {
        let pods = [
            pod("bare", "", ""),
            pod("cache", "volumes: [{name: tmp, emptyDir: {}}]", "ReplicaSet"),
            pod("torn", "", "ReplicaSet"),
        ];
        let pdbs = [pdb("one", 1), pdb("two", 1)];
        let refusal = plan_for("", &pods, &pdbs, true).expect_err("is refused");
        assert_eq!(refusal.code, Code::DrainBlocked);
        for part in [
            "was not cordoned",
            "1 pod without a controller, which would not come back: shop/bare",
            "1 pod with data in emptyDir volumes, which would be lost: shop/cache",
            "shop/torn (one, two)",
        ] {
            assert!(refusal.detail.contains(part), "{part}: {}", refusal.detail);
        }
        let hint = refusal.hint.expect("has one");
        assert_eq!(&*hint, "to accept this, set delete_empty_dir_data: true, force: true");
    }

    #[test]
    fn an_exhausted_budget_is_refused_as_retryable_and_waited_for_with_wait() {
        let (pods, pdbs) = ([pod("a", "", "ReplicaSet")], [pdb("web", 0)]);
        let refusal = plan_for("", &pods, &pdbs, false).expect_err("is refused");
        assert_eq!(refusal.code, Code::DisruptionBudget);
        for part in ["PodDisruptionBudget 'web' allows 0", "shop/a"] {
            assert!(refusal.detail.contains(part), "{part}: {}", refusal.detail);
        }
        let plan = plan_for("", &pods, &pdbs, true).expect("is planned");
        assert!(
            plan.warnings[0].starts_with("waiting for a disruption budget"),
            "{:?}",
            plan.warnings
        );
        // One that never allows a disruption is refused permanently, also with wait.
        let node_pods = || {
            let mut node_pods = node_pods(&parameters(""), &pods, &pdbs);
            node_pods.exhausted.values_mut().for_each(|exhausted| exhausted.is_final = true);
            node_pods
        };
        for wait in [true, false] {
            let input = PlanInput { wait, ..PlanInput::example() };
            let refusal = parameters("").decide(&node(""), node_pods(), &input);
            let refusal = refusal.expect_err("is refused");
            assert_eq!(refusal.code, Code::DrainBlocked);
            assert!(refusal.hint.expect("has one").contains("restart_pod"));
        }
        // A permanent blocker beside it makes the refusal permanent.
        let both = [pod("a", "", "ReplicaSet"), pod("bare", "", "")];
        let refusal = plan_for("", &both, &pdbs, false).expect_err("is refused");
        assert_eq!(refusal.code, Code::DrainBlocked);
        assert!(refusal.detail.contains("PodDisruptionBudget 'web'"), "{}", refusal.detail);
    }

    #[test]
    fn accepted_losses_are_warned_of() {
        let pods = [pod("bare", "", ""), pod("cache", "volumes: [{name: t, emptyDir: {}}]", "")];
        let options = r#","force":true,"delete_empty_dir_data":true"#;
        let plan = plan_for(options, &pods, &[], false).expect("is planned");
        assert_eq!(plan.others.len(), 2);
        let warnings = plan.warnings.join("; ");
        assert!(
            warnings.contains("emptyDir") && warnings.contains("without a controller"),
            "{warnings}"
        );
    }

    #[test]
    fn a_volume_of_this_node_only_is_warned_of() {
        let claim = "volumes: [{name: d, persistentVolumeClaim: {claimName: data}}]";
        let parameters = parameters("");
        let mut node_pods = node_pods(&parameters, &[pod("db", claim, "StatefulSet")], &[]);
        let volume = "metadata: {name: pv-1}\n\
                      spec: {claimRef: {namespace: shop, name: data}, local: {path: /data}}";
        node_pods.add_volumes(&[serde_yaml_ng::from_str(volume).expect("is a volume")]);
        let plan =
            parameters.decide(&node(""), node_pods, &PlanInput::example()).expect("is planned");
        assert!(plan.warnings[0].contains("'pv-1' of pod shop/db"), "{:?}", plan.warnings);
    }

    #[test]
    fn a_cordoned_node_without_pods_is_left() {
        let parameters = parameters("");
        let node_pods = NodePods::default();
        let node = node("unschedulable: true");
        let plan = parameters.decide(&node, node_pods, &PlanInput::example()).expect("is planned");
        assert!(matches!(plan.decision, Decision::NoOp(_)), "{:?}", plan.decision);
    }

    #[test]
    fn a_node_that_was_cordoned_before_is_never_uncordoned() {
        let parameters = parameters(r#","uncordon_on_failure":true"#);
        let node_pods = node_pods(&parameters, &[pod("a", "", "ReplicaSet")], &[]);
        assert!(parameters.eviction_set(&node_pods, false).uncordon_on_failure);
        assert!(!parameters.eviction_set(&node_pods, true).uncordon_on_failure);
    }

    #[test]
    fn daemon_sets_block_only_with_ignore_daemonsets_false() {
        let pods = [pod("agent", "", "DaemonSet")];
        assert!(plan_for("", &pods, &[], false).is_ok());
        let refusal = plan_for(r#","ignore_daemonsets":false"#, &pods, &[], false);
        assert_eq!(refusal.expect_err("is refused").code, Code::DrainBlocked);
    }

    #[test]
    fn slow_pods_those_that_object_and_the_executors_own_node_are_warned_of() {
        let mut slow = pod("slow", "terminationGracePeriodSeconds: 3600", "ReplicaSet");
        let annotation = ("cluster-autoscaler.kubernetes.io/safe-to-evict", "false");
        slow.metadata.annotations =
            Some([annotation].map(|(key, value)| (key.to_owned(), value.to_owned())).into());
        let parameters = parameters("");
        let node_pods = node_pods(&parameters, &[slow], &[]);
        let own_pod = Some(OwnPod { name: "executor-1".to_owned(), node: "n1".to_owned() });
        let input = PlanInput { wait: true, own_pod, ..PlanInput::example() };
        let plan = parameters.decide(&node(""), node_pods, &input).expect("is planned");
        let warnings = plan.warnings.join("; ");
        for part in ["safe-to-evict", "wait of 300 s: shop/slow (3600 s)", "'executor-1'"] {
            assert!(warnings.contains(part), "{part}: {warnings}");
        }
    }
}
