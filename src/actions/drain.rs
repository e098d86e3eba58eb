//! `drain`: cordons a node and evicts its pods, as `kubectl drain` does.
//!
//! Everything that blocks the drain is found and named before anything is changed. The effect is the
//! cordon; the evictions follow it, in `executor::drain`.

use std::collections::{BTreeMap, HashMap, HashSet};

use chrono::Utc;
use k8s_openapi::api::{
    apps::v1::DaemonSet,
    core::v1::{Node, PersistentVolume, Pod},
    policy::v1::PodDisruptionBudget,
};
use kube::{ResourceExt, api::ListParams};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::{task::JoinSet, time::Instant};

use crate::{
    actions::{
        AffectedObject, BoxFuture, CompletionSpec, Decision, Descriptor, Plan, PlanInput,
        Plannable, Preview,
        shared::{restart, toggle::CORDON},
    },
    contract::{
        error::{ActionError, Code},
        names::{LabelSelector, ObjectName},
        response::{Target, rfc3339_millis},
    },
    k8s::{
        api::{
            client::{Cluster, next_page},
            preflight,
        },
        completion::Completion,
        drain_filter::{self, BlockReason, DrainOptions, EvictionSet, SkipReason, plural},
        nodes, pdb, pods,
        rbac::PolicyRule,
    },
};

/// The most pods that are named for one reason.
const MAX_NAMED_PODS: usize = 50;

/// The most exhausted budgets whose blocking pods are listed.
const MAX_BUDGETS: usize = 20;

/// The objects of one page: pods are large, and little of each is kept.
const PAGE_SIZE: u32 = 100;

/// When an exhausted budget may allow a disruption again.
const RETRY_AFTER: std::time::Duration = std::time::Duration::from_secs(5);

pub(crate) const DESCRIPTOR: Descriptor = Descriptor {
    name: "drain",
    aliases: &[],
    description: "Drain a node: cordon it and evict its pods within their disruption budgets, so that \
                  it can be repaired or removed. With wait, the response comes once they are gone; \
                  without it, each pod that can be evicted now is evicted once. Refused, before anything is changed, if a pod \
                  would not come back (force), would lose data in an emptyDir volume \
                  (delete_empty_dir_data), or can never be evicted. Pods of DaemonSets and static pods \
                  stay. Simulate it first: the response names all pods that would be evicted.",
    takes_time: true,
    when: "a node is to be repaired or removed",
    when_not: "one pod is at fault, or the other nodes have no room",
    destructive: true,
    example: r#"{"node":"worker-1"}"#,
    rules: &[],
    cluster_rules: &[
        PolicyRule { api_groups: &[""], resources: &["nodes"], verbs: &["get", "patch"] },
        restart::PODS,
        PolicyRule { api_groups: &[""], resources: &["pods/eviction"], verbs: &["create"] },
        preflight::BUDGETS,
        // Whether the DaemonSet of a pod exists.
        PolicyRule { api_groups: &["apps"], resources: &["daemonsets"], verbs: &["get"] },
        // Only to warn of volumes that exist on this node only.
        PolicyRule { api_groups: &[""], resources: &["persistentvolumes"], verbs: &["list"] },
    ],
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
    /// Evict only pods with these labels, as `app=web,tier!=db`.
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
            node_pods.explain_exhausted_budgets(cluster, input).await?;
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

    /// Reads the pods of the node page by page.
    async fn list_pods(
        &self,
        cluster: &Cluster,
        input: &PlanInput,
    ) -> Result<NodePods, ActionError> {
        let mut node_pods = NodePods::default();
        let mut daemon_sets = DaemonSets::default();
        let mut params =
            drain_filter::pods_of(&self.node, self.pod_selector.as_deref()).limit(PAGE_SIZE);
        let (budgets, mut page) = tokio::try_join!(
            Budgets::read(cluster, input),
            cluster.page::<Pod>(&params, input.deadline),
        )?;
        loop {
            daemon_sets.read_those_of(&page.items, cluster, input.deadline).await?;
            for pod in &page.items {
                node_pods.add(pod, &self.options(), daemon_sets.exists(pod), budgets.of(pod));
            }
            if !next_page(&mut params, &page.metadata) {
                return Ok(node_pods);
            }
            page = cluster.page::<Pod>(&params, input.deadline).await?;
        }
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
            let sentence = format!("Node '{name}' is cordoned and has no pods to evict.");
            let completion = CompletionSpec::Known(Completion::Immediate(sentence.clone()));
            return Ok(Plan::new(target, found, Decision::NoOp(sentence), completion));
        }
        let effect = CORDON.effect(found, was_cordoned, input);
        let decision = Decision::Apply(Box::new(effect), did, node_pods.would(name, was_cordoned));
        let mut plan = Plan::new(target, found, decision, completion);
        plan.changes = CORDON.changes(found, was_cordoned, input);
        plan.warnings = node_pods.warnings(input.wait);
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
            some.map(|(pod, _)| {
                EvictionSet::uid_hash(pod.target.uid.as_deref().unwrap_or_default())
            })
            .collect()
        };
        EvictionSet {
            unprotected: hashes(true),
            protected: hashes(false),
            selector: self.pod_selector.as_deref().map(str::to_owned),
            grace_period_seconds: self.grace_period_seconds,
            deleted_for: self.skip_wait_for_delete_timeout_seconds,
            uncordon_on_failure: self.uncordon_on_failure && !was_cordoned,
        }
    }
}

/// Which DaemonSets of the node's pods exist.
#[derive(Default)]
struct DaemonSets(HashMap<(String, String), bool>);

impl DaemonSets {
    /// Reads those of these pods that are not known yet, all at the same time.
    async fn read_those_of(
        &mut self,
        pods: &[Pod],
        cluster: &Cluster,
        deadline: Instant,
    ) -> Result<(), ActionError> {
        let named: HashSet<_> = pods.iter().filter_map(daemon_set_of).collect();
        let mut reads = JoinSet::new();
        for (namespace, name) in named.into_iter().filter(|key| !self.0.contains_key(key)) {
            let cluster = cluster.clone();
            reads.spawn(async move {
                let found = cluster.get_opt::<DaemonSet>(&namespace, &name, deadline).await;
                found.map(|found| ((namespace, name), found.is_some()))
            });
        }
        while let Some(read) = reads.join_next().await {
            let read = read.map_err(|error| ActionError::new(Code::Internal, error.to_string()))?;
            self.0.extend([read?]);
        }
        Ok(())
    }

    /// Whether the pod's DaemonSet exists; true for a pod that has none.
    fn exists(&self, pod: &Pod) -> bool {
        daemon_set_of(pod).and_then(|key| self.0.get(&key)).copied().unwrap_or(true)
    }
}

/// Namespace and name of the pod's DaemonSet.
fn daemon_set_of(pod: &Pod) -> Option<(String, String)> {
    let name = drain_filter::daemon_set(pod)?;
    Some((pod.namespace().unwrap_or_default(), name.to_owned()))
}

/// All disruption budgets by namespace.
struct Budgets(HashMap<String, Vec<PodDisruptionBudget>>);

impl Budgets {
    async fn read(cluster: &Cluster, input: &PlanInput) -> Result<Self, ActionError> {
        let mut budgets: HashMap<String, Vec<PodDisruptionBudget>> = HashMap::new();
        for budget in cluster.list_all::<PodDisruptionBudget>(None, "", input.deadline).await? {
            budgets.entry(budget.namespace().unwrap_or_default()).or_default().push(budget);
        }
        Ok(Budgets(budgets))
    }

    /// The budgets of the pod's namespace.
    fn of(&self, pod: &Pod) -> &[PodDisruptionBudget] {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        self.0.get(namespace).map(Vec::as_slice).unwrap_or_default()
    }
}

/// A budget that allows no disruption now.
struct ExhaustedBudget {
    budget: PodDisruptionBudget,
    pods: Vec<String>,
    /// Why, with the blocking pods; set once those are listed.
    reason: String,
}

/// The pods of the node, by what happens to them.
#[derive(Default)]
struct NodePods {
    to_evict: Vec<AffectedObject>,
    /// For each of them, whether no budget may refuse its eviction.
    unprotected: Vec<bool>,
    /// How many stay, by reason.
    skipped: BTreeMap<SkipReason, usize>,
    blocked: BTreeMap<BlockReason, Vec<String>>,
    /// Pods that are evicted although something is lost, by what was accepted.
    accepted_risks: BTreeMap<BlockReason, Vec<String>>,
    /// Pods that more than one budget selects, with the budgets' names.
    multiple_budgets: Vec<String>,
    /// By namespace and name.
    exhausted: BTreeMap<String, ExhaustedBudget>,
    /// Volume claims, with the pod that mounts each.
    claims: BTreeMap<String, String>,
    /// About the pods' volumes.
    warnings: Vec<String>,
}

impl NodePods {
    fn add(
        &mut self,
        pod: &Pod,
        options: &DrainOptions,
        daemon_set_exists: bool,
        budgets: &[PodDisruptionBudget],
    ) {
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let name = pod.metadata.name.clone().unwrap_or_default();
        let pod_name = format!("{namespace}/{name}");
        let accepted_reasons =
            match drain_filter::classify(pod, options, daemon_set_exists, Utc::now()) {
                drain_filter::DrainVerdict::Evict(accepted_reasons) => accepted_reasons,
                drain_filter::DrainVerdict::Skip(why) => {
                    return *self.skipped.entry(why).or_default() += 1;
                }
                drain_filter::DrainVerdict::Block(reason) => {
                    return self.blocked.entry(reason).or_default().push(pod_name);
                }
            };
        for reason in accepted_reasons {
            self.accepted_risks.entry(reason).or_default().push(pod_name.clone());
        }
        let is_unprotected = match pdb::classify(pod, budgets) {
            pdb::BudgetVerdict::Unprotected => true,
            pdb::BudgetVerdict::Allowed(_) => false,
            pdb::BudgetVerdict::Blocked(budget) | pdb::BudgetVerdict::Stale(budget) => {
                let key = format!("{namespace}/{}", pdb::name_of(budget));
                let (budget, reason) = (budget.clone(), String::new());
                let exhausted = ExhaustedBudget { budget, pods: Vec::new(), reason };
                self.exhausted.entry(key).or_insert(exhausted).pods.push(pod_name.clone());
                false
            }
            pdb::BudgetVerdict::Ambiguous(budgets) => {
                let names: Vec<_> = budgets.into_iter().map(pdb::name_of).collect();
                return self.multiple_budgets.push(format!("{pod_name} ({})", names.join(", ")));
            }
        };
        for claim in pods::claims(pod.spec.as_ref()) {
            self.claims.insert(format!("{namespace}/{claim}"), pod_name.clone());
        }
        self.unprotected.push(is_unprotected);
        self.to_evict.push(AffectedObject {
            target: Target {
                api_version: "v1".to_owned(),
                kind: "Pod".to_owned(),
                namespace,
                name,
                uid: pod.metadata.uid.clone(),
                resource_version: None,
            },
            labels: pod.metadata.labels.clone().unwrap_or_default(),
        });
    }

    /// Lists the pods that block the exhausted budgets.
    async fn explain_exhausted_budgets(
        &mut self,
        cluster: &Cluster,
        input: &PlanInput,
    ) -> Result<(), ActionError> {
        for (number, exhausted) in self.exhausted.values_mut().enumerate() {
            let selector = pdb::selector_of(&exhausted.budget).map(|it| it.to_string());
            let pods = match selector {
                Some(selector) if number < MAX_BUDGETS => {
                    let namespace = exhausted.budget.namespace().unwrap_or_default();
                    cluster.list::<Pod>(&namespace, &selector, input.deadline).await?
                }
                _ => Vec::new(),
            };
            exhausted.reason = pdb::reason(&exhausted.budget, &pods);
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
            let local = drain_filter::local_claim(volume).and_then(|claim| self.claims.get(&claim));
            self.warnings.extend(local.map(|pod| {
                let name = volume.name_any();
                format!("the volume '{name}' of pod {pod} exists on this node only: without the node the pod cannot run")
            }));
        }
    }

    /// Refuses with everything that blocks the drain. With `wait`, an exhausted budget does not block it.
    fn check_blockers(&self, node: &str, wait: bool) -> Result<(), ActionError> {
        let exhausted = self
            .exhausted
            .values()
            .map(|exhausted| format!("{}: {}", exhausted.reason, join_names(&exhausted.pods)));
        if self.blocked.is_empty() && self.multiple_budgets.is_empty() {
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
            format!("{} {}: {}", plural(pods.len(), "pod"), reason.consequence(), join_names(pods))
        });
        let ambiguous = (!self.multiple_budgets.is_empty()).then(|| {
            format!(
                "{} of more than one disruption budget, which the API server never evicts: {}",
                plural(self.multiple_budgets.len(), "pod"),
                join_names(&self.multiple_budgets)
            )
        });
        let all: Vec<_> = blocked.chain(ambiguous).chain(exhausted).collect();
        let detail = format!("Node '{node}' was not cordoned: {}", all.join("; "));
        let parameters: Vec<_> =
            self.blocked.keys().map(|reason| reason.accepting_parameter()).collect();
        let refusal = ActionError::new(Code::DrainBlocked, detail);
        Err(match parameters[..] {
            [] => refusal
                .with_hint("change the selectors so that one disruption budget selects each pod"),
            _ => refusal.with_hint(format!("to accept this, set {}", parameters.join(", "))),
        })
    }

    fn would(&self, node: &str, was_cordoned: bool) -> String {
        let cordon = match was_cordoned {
            true => format!("Node '{node}' is cordoned already"),
            false => format!("Node '{node}' would be cordoned"),
        };
        let names: Vec<_> = self.to_evict.iter().map(|pod| pod_name(&pod.target)).collect();
        let eviction = match names[..] {
            [] => "no pod would be evicted".to_owned(),
            _ => format!("{} would be evicted: {}", plural(names.len(), "pod"), join_names(&names)),
        };
        let describe =
            |(why, number): (&SkipReason, &usize)| format!("{number} {}", why.description());
        let skipped: Vec<_> = self.skipped.iter().map(describe).collect();
        let skipped = match skipped[..] {
            [] => String::new(),
            _ => format!("; pods that would stay: {}", skipped.join(", ")),
        };
        format!("Simulated: {cordon}, and {eviction}{skipped}.")
    }

    fn warnings(&self, wait: bool) -> Vec<String> {
        let accepted_risks = self.accepted_risks.iter().map(|(reason, pods)| {
            let what = reason.consequence();
            format!("{} {what}, evicted anyway: {}", plural(pods.len(), "pod"), join_names(pods))
        });
        let exhausted = self.exhausted.values().filter(|_| wait).map(|exhausted| {
            format!(
                "waiting for a disruption budget: {}: {}",
                exhausted.reason,
                join_names(&exhausted.pods)
            )
        });
        accepted_risks.chain(exhausted).chain(self.warnings.iter().cloned()).collect()
    }
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

    fn budget(name: &str, allowed: i32) -> PodDisruptionBudget {
        serde_yaml_ng::from_str(&format!(
            "metadata: {{name: {name}, namespace: shop, generation: 1}}\n\
             spec: {{selector: {{matchLabels: {{app: web}}}}}}\n\
             status: {{observedGeneration: 1, currentHealthy: 2, desiredHealthy: 2, expectedPods: 2, \
             disruptionsAllowed: {allowed}}}"
        ))
        .expect("is a budget")
    }

    fn parameters(fields: &str) -> Parameters {
        serde_json::from_str(&format!(r#"{{"node":"n1"{fields}}}"#)).expect("are parameters")
    }

    fn node_pods(
        parameters: &Parameters,
        pods: &[Pod],
        budgets: &[PodDisruptionBudget],
    ) -> NodePods {
        let mut node_pods = NodePods::default();
        for pod in pods {
            node_pods.add(pod, &parameters.options(), true, budgets);
        }
        for exhausted in node_pods.exhausted.values_mut() {
            exhausted.reason = pdb::reason(&exhausted.budget, &[]);
        }
        node_pods
    }

    fn plan_for(
        fields: &str,
        pods: &[Pod],
        budgets: &[PodDisruptionBudget],
        wait: bool,
    ) -> Result<Plan, ActionError> {
        let parameters = parameters(fields);
        let node_pods = node_pods(&parameters, pods, budgets);
        parameters.decide(&node(""), node_pods, &PlanInput { wait, ..PlanInput::example() })
    }

    #[test]
    fn a_drain_is_one_cordon_and_names_the_pods_to_evict() {
        let pods = [pod("a", "", "ReplicaSet"), pod("agent", "", "DaemonSet")];
        let plan = plan_for("", &pods, &[], false).expect("is planned");
        let Decision::Apply(effect, did, would) = plan.decision else {
            panic!("{:?}", plan.decision)
        };
        let change =
            serde_json::json!({ "op": "add", "path": "/spec/unschedulable", "value": true });
        assert_eq!(effect.operations().last(), Some(&change));
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
        let budgets = [budget("one", 1), budget("two", 1)];
        let refusal = plan_for("", &pods, &budgets, true).expect_err("is refused");
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
        let (pods, budgets) = ([pod("a", "", "ReplicaSet")], [budget("web", 0)]);
        let refusal = plan_for("", &pods, &budgets, false).expect_err("is refused");
        assert_eq!(refusal.code, Code::DisruptionBudget);
        for part in ["PodDisruptionBudget 'web' allows 0", "shop/a"] {
            assert!(refusal.detail.contains(part), "{part}: {}", refusal.detail);
        }
        let plan = plan_for("", &pods, &budgets, true).expect("is planned");
        assert!(
            plan.warnings[0].starts_with("waiting for a disruption budget"),
            "{:?}",
            plan.warnings
        );
        // A permanent blocker beside it makes the refusal permanent.
        let both = [pod("a", "", "ReplicaSet"), pod("bare", "", "")];
        let refusal = plan_for("", &both, &budgets, false).expect_err("is refused");
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
}
