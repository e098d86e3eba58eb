//! `drain`: cordons a node and evicts its pods, as `kubectl drain` does, once nothing stands in the way.
//!
//! All that stands in the way is found and named before anything is done. The effect is the cordon, with
//! its mark; the evictions follow it (in `src/drain.rs`).

use std::collections::{BTreeMap, HashMap};

use chrono::Utc;
use k8s_openapi::api::{
    apps::v1::DaemonSet,
    core::v1::{Node, PersistentVolume, Pod},
    policy::v1::PodDisruptionBudget,
};
use kube::{ResourceExt, api::ListParams};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::actions::PlanInput;
use crate::actions::CompletionSpec;
use crate::actions::Descriptor;
use crate::actions::AffectedObject;
use crate::actions::Plan;
use crate::actions::Plannable;
use crate::actions::Preview;
use crate::k8s::rbac::PolicyRule;
use crate::actions::BoxFuture;
use crate::actions::Decision;
use crate::actions::shared::cordoning;
use crate::actions::shared::restart;
use crate::contract::error::ActionError;
use crate::contract::error::Code;
use crate::k8s::api::client::Call;
use crate::k8s::api::client::Cluster;
use crate::k8s::api::completion::Completion;
use crate::k8s::pdb;
use crate::k8s::drain_filter;
use crate::k8s::drain_filter::DrainOptions;
use crate::k8s::drain_filter::EvictionSet;
use crate::k8s::drain_filter::BlockReason;
use crate::k8s::drain_filter::SkipReason;
use crate::k8s::drain_filter::plural;
use crate::k8s::api::error::ApiError;
use crate::k8s::applied_requests::AppliedRequests;
use crate::k8s::nodes;
use crate::k8s::pods;
use crate::k8s::api::preflight;
use crate::contract::names::LabelSelector;
use crate::contract::names::ObjectName;
use crate::contract::response::Target;
use crate::contract::response::rfc3339_millis;

/// The most pods that are named for one reason.
const MAX_NAMED_PODS: usize = 50;

/// The most budgets without room of which it is said who holds them.
const MAX_BUDGETS: usize = 20;

/// How many objects are read at once: whole pods are large, and little of each is kept.
const PAGE_SIZE: u32 = 100;

/// When a budget without room is worth another look.
const RETRY_AFTER: std::time::Duration = std::time::Duration::from_secs(5);

pub(crate) const DESCRIPTOR: Descriptor = Descriptor {
    name: "drain",
    aliases: &[],
    description: "Drain a node: cordon it and evict its pods within their disruption budgets, so that \
                  it can be repaired or removed. Set wait to stay until they are gone; without it each \
                  pod that can go now is evicted once. Refused, before anything is done, if a pod \
                  would not come back (force), would lose data in an emptyDir volume \
                  (delete_empty_dir_data), or may never be evicted. Pods of DaemonSets and static pods \
                  stay. Simulate it first: the answer names all pods that would go.",
    example: r#"{"node":"worker-1"}"#,
    rules: &[],
    cluster_rules: &[
        PolicyRule { api_groups: &[""], resources: &["nodes"], verbs: &["get", "patch"] },
        restart::PODS,
        PolicyRule { api_groups: &[""], resources: &["pods/eviction"], verbs: &["create"] },
        preflight::BUDGETS,
        // Whether the DaemonSet of a pod exists.
        PolicyRule { api_groups: &["apps"], resources: &["daemonsets"], verbs: &["get"] },
        // Only to warn of volumes that no other node has.
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
    /// Leave pods of DaemonSets where they are, since they would be made again at once. With `false` they
    /// stand in the way.
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
    /// Let the node take pods again if the drain fails, unless it was cordoned before.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub uncordon_on_failure: bool,
}

fn yes() -> bool {
    true
}

impl Plannable for Parameters {
    fn target(&self) -> Target {
        cordoning::target(&self.node)
    }

    fn namespace(&self) -> &str {
        ""
    }

    fn node(&self) -> Option<&str> {
        Some(&self.node)
    }

    fn preview(&self, asked: &PlanInput) -> Preview {
        let cordon = cordoning::preview(&self.node, true, asked);
        let result =
            format!("Simulated: Node '{}' would be cordoned and its pods be evicted.", self.node);
        Preview { result, ..cordon }
    }

    fn plan<'a>(&'a self, cluster: &'a Cluster, asked: &'a PlanInput) -> BoxFuture<'a, Plan> {
        Box::pin(async move {
            let node: Node = cluster.get_global(&self.node, asked.deadline).await?;
            let mut survey = self.list_pods(cluster, asked).await?;
            survey.name_holders(cluster, asked).await?;
            survey.warn_of_local_volumes(cluster, asked).await;
            self.decide(&node, survey, asked)
        })
    }
}

impl Parameters {
    fn accepted(&self) -> DrainOptions {
        DrainOptions {
            unmanaged: self.force,
            daemon_sets: self.ignore_daemonsets,
            empty_dir_data: self.delete_empty_dir_data,
            deleted_for: self.skip_wait_for_delete_timeout_seconds,
        }
    }

    /// Reads the pods of the node page by page, and keeps what is needed of each.
    async fn list_pods(&self, cluster: &Cluster, asked: &PlanInput) -> Result<NodePods, ActionError> {
        let budgets = Budgets::read(cluster, asked).await?;
        let mut survey = NodePods::default();
        let mut daemon_sets: HashMap<String, bool> = HashMap::new();
        let mut params = drain_filter::pods_of(&self.node, self.pod_selector.as_deref()).limit(PAGE_SIZE);
        loop {
            let page = cluster.page::<Pod>(&params, asked.deadline).await?;
            for pod in &page.items {
                let exists = match drain_filter::daemon_set(pod) {
                    None => true,
                    Some(name) => {
                        let namespace = pod.namespace().unwrap_or_default();
                        let key = format!("{namespace}/{name}");
                        match daemon_sets.get(&key) {
                            Some(exists) => *exists,
                            None => {
                                let found = exists_daemon_set(cluster, &namespace, name, asked);
                                let exists = found.await?;
                                daemon_sets.insert(key, exists);
                                exists
                            }
                        }
                    }
                };
                survey.add(pod, &self.accepted(), exists, budgets.of(pod));
            }
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params.continue_token = Some(token),
                None => return Ok(survey),
            }
        }
    }

    /// From the node and what is on it to what is to be done.
    fn decide(&self, node: &Node, survey: NodePods, asked: &PlanInput) -> Result<Plan, ActionError> {
        let (found, target) = (&node.metadata, self.target());
        let name = &*self.node;
        let was_cordoned = nodes::is_cordoned(node);
        let drained = self.drained(&survey, was_cordoned);
        let completion = CompletionSpec::Drained(drained);
        let at = rfc3339_millis(asked.at);
        let did = match was_cordoned {
            true => format!("Node '{name}' was cordoned already; its drain began at {at}."),
            false => format!("Node '{name}' cordoned at {at}."),
        };
        if AppliedRequests::from_metadata(found).contains(&asked.id) {
            let plan = Plan::already_made(target, found, did, completion);
            return Ok(Plan { others: survey.going, ..plan });
        }
        asked.check_found(&target, found)?;
        let about = |refusal: ActionError| refusal.object_uid(found.uid.as_deref());
        survey.refuse(name, asked.wait).map_err(about)?;
        if was_cordoned && survey.going.is_empty() {
            let sentence = format!("Node '{name}' is cordoned and has no pods to evict.");
            let completion = CompletionSpec::Known(Completion::Immediate(sentence.clone()));
            return Ok(Plan::new(target, found, Decision::NoOp(sentence), completion));
        }
        let effect = cordoning::effect(node, true, asked);
        let todo = Decision::Apply(Box::new(effect), did, survey.would(name, was_cordoned));
        let mut plan = Plan::new(target, found, todo, completion);
        plan.changes = cordoning::changes(node, true, asked);
        plan.warnings = survey.warnings(asked.wait);
        plan.others = survey.going;
        Ok(plan)
    }

    fn drained(&self, survey: &NodePods, was_cordoned: bool) -> EvictionSet {
        let signs = |free: bool| {
            let some = survey.going.iter().zip(&survey.free).filter(|(_, it)| **it == free);
            some.map(|(pod, _)| EvictionSet::uid_hash(pod.target.uid.as_deref().unwrap_or_default()))
                .collect()
        };
        EvictionSet {
            unprotected: signs(true),
            protected: signs(false),
            selector: self.pod_selector.as_deref().map(str::to_owned),
            grace_period_seconds: self.grace_period_seconds,
            deleted_for: self.skip_wait_for_delete_timeout_seconds,
            uncordon_on_failure: self.uncordon_on_failure && !was_cordoned,
        }
    }
}

async fn exists_daemon_set(
    cluster: &Cluster,
    namespace: &str,
    name: &str,
    asked: &PlanInput,
) -> Result<bool, ActionError> {
    match cluster.try_get::<DaemonSet>(namespace, name, asked.deadline).await {
        Ok(_) => Ok(true),
        Err(ApiError::NotFound) => Ok(false),
        Err(fault) => {
            let call = Call::of::<DaemonSet>("get", namespace, Some(name));
            Err(cluster.explain(&call, fault).await)
        }
    }
}

/// All disruption budgets, by namespace.
struct Budgets(HashMap<String, Vec<PodDisruptionBudget>>);

impl Budgets {
    async fn read(cluster: &Cluster, asked: &PlanInput) -> Result<Self, ActionError> {
        let mut budgets: HashMap<String, Vec<PodDisruptionBudget>> = HashMap::new();
        for budget in cluster.list_all::<PodDisruptionBudget>(None, "", asked.deadline).await? {
            budgets.entry(budget.namespace().unwrap_or_default()).or_default().push(budget);
        }
        Ok(Budgets(budgets))
    }

    /// Those that may speak for this pod.
    fn of(&self, pod: &Pod) -> &[PodDisruptionBudget] {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        self.0.get(namespace).map(Vec::as_slice).unwrap_or_default()
    }
}

/// A budget that lets none of its pods go now.
struct ExhaustedBudget {
    budget: PodDisruptionBudget,
    pods: Vec<String>,
    /// Why, and who holds it; known once its pods were looked at.
    reason: String,
}

/// What is on the node.
#[derive(Default)]
struct NodePods {
    /// The pods that are to go.
    going: Vec<AffectedObject>,
    /// For each of them, whether no budget may refuse its eviction.
    free: Vec<bool>,
    /// How many stay.
    staying: BTreeMap<SkipReason, usize>,
    /// Pods that stand in the way.
    blocking: BTreeMap<BlockReason, Vec<String>>,
    /// Pods that go although something is lost.
    losing: BTreeMap<BlockReason, Vec<String>>,
    /// Pods under more than one budget, with their names.
    multiple_budgets: Vec<String>,
    /// Budgets without room, by namespace and name.
    full: BTreeMap<String, ExhaustedBudget>,
    /// Claims on volumes, with the pod that has them.
    claims: BTreeMap<String, String>,
    /// What was seen of their volumes.
    warnings: Vec<String>,
}

impl NodePods {
    fn add(
        &mut self,
        pod: &Pod,
        accepted: &DrainOptions,
        daemon_set_exists: bool,
        budgets: &[PodDisruptionBudget],
    ) {
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let name = pod.metadata.name.clone().unwrap_or_default();
        let pods_name = format!("{namespace}/{name}");
        let losses = match drain_filter::classify(pod, accepted, daemon_set_exists, Utc::now()) {
            drain_filter::DrainVerdict::Evict(losses) => losses,
            drain_filter::DrainVerdict::Skip(why) => return *self.staying.entry(why).or_default() += 1,
            drain_filter::DrainVerdict::Block(loss) => {
                return self.blocking.entry(loss).or_default().push(pods_name);
            }
        };
        for loss in losses {
            self.losing.entry(loss).or_default().push(pods_name.clone());
        }
        let is_free = match pdb::classify(pod, budgets) {
            pdb::BudgetVerdict::Unprotected => true,
            pdb::BudgetVerdict::Allowed(_) => false,
            pdb::BudgetVerdict::Blocked(budget) | pdb::BudgetVerdict::Stale(budget) => {
                let key = format!("{namespace}/{}", pdb::name_of(budget));
                let (budget, reason) = (budget.clone(), String::new());
                let full = ExhaustedBudget { budget, pods: Vec::new(), reason };
                self.full.entry(key).or_insert(full).pods.push(pods_name.clone());
                false
            }
            pdb::BudgetVerdict::Ambiguous(budgets) => {
                let names: Vec<_> = budgets.into_iter().map(pdb::name_of).collect();
                return self.multiple_budgets.push(format!("{pods_name} ({})", names.join(", ")));
            }
        };
        for claim in pods::claims(pod.spec.as_ref()) {
            self.claims.insert(format!("{namespace}/{claim}"), pods_name.clone());
        }
        self.free.push(is_free);
        self.going.push(AffectedObject {
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

    /// Finds out which pods hold the budgets that have no room.
    async fn name_holders(&mut self, cluster: &Cluster, asked: &PlanInput) -> Result<(), ActionError> {
        for (number, full) in self.full.values_mut().enumerate() {
            let selector = pdb::selector_of(&full.budget).map(|it| it.to_string());
            let pods = match selector {
                Some(selector) if number < MAX_BUDGETS => {
                    let namespace = full.budget.namespace().unwrap_or_default();
                    cluster.list::<Pod>(&namespace, &selector, asked.deadline).await?
                }
                _ => Vec::new(),
            };
            full.reason = pdb::reason(&full.budget, &pods);
        }
        Ok(())
    }

    /// Looks which volumes no other node has. It is for a warning, so that it fails with one.
    async fn warn_of_local_volumes(&mut self, cluster: &Cluster, asked: &PlanInput) {
        if self.claims.is_empty() {
            return;
        }
        let mut params = ListParams::default().limit(PAGE_SIZE);
        loop {
            let page = match cluster.page::<PersistentVolume>(&params, asked.deadline).await {
                Ok(page) => page,
                Err(error) => {
                    let why = error.with_its_hint();
                    let warning = format!("volumes could not be looked at: {why}");
                    return self.warnings.push(warning);
                }
            };
            self.add_volumes(&page.items);
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params.continue_token = Some(token),
                None => return,
            }
        }
    }

    fn add_volumes(&mut self, volumes: &[PersistentVolume]) {
        for volume in volumes {
            let local = drain_filter::local_claim(volume).and_then(|claim| self.claims.get(&claim));
            self.warnings.extend(local.map(|pod| {
                let name = volume.name_any();
                format!("the volume '{name}' of pod {pod} is on this node alone: without the node the pod cannot run")
            }));
        }
    }

    /// Refuses if anything stands in the way, and names all of it. Budgets that have no room now are
    /// waited for, if anything is.
    fn refuse(&self, node: &str, wait: bool) -> Result<(), ActionError> {
        let full = self.full.values().map(|full| format!("{}: {}", full.reason, named(&full.pods)));
        if self.blocking.is_empty() && self.multiple_budgets.is_empty() {
            let full: Vec<_> = full.collect();
            if full.is_empty() || wait {
                return Ok(());
            }
            let detail = format!("Node '{node}' was not cordoned: {}", full.join("; "));
            return Err(ActionError::new(Code::DisruptionBudget, detail)
                .with_hint("wait until the named pods are ready, or set wait")
                .with_retry_after(Some(RETRY_AFTER)));
        }
        let blocking = self.blocking.iter().map(|(loss, pods)| {
            format!("{} {}: {}", plural(pods.len(), "pod"), loss.how_to_allow(), named(pods))
        });
        let torn = (!self.multiple_budgets.is_empty()).then(|| {
            format!(
                "{} under more than one disruption budget, which may never be evicted: {}",
                plural(self.multiple_budgets.len(), "pod"),
                named(&self.multiple_budgets)
            )
        });
        let all: Vec<_> = blocking.chain(torn).chain(full).collect();
        let detail = format!("Node '{node}' was not cordoned, for there are {}", all.join("; "));
        let ways: Vec<_> = self.blocking.keys().map(|loss| loss.is_allowed_by()).collect();
        let refusal = ActionError::new(Code::DrainBlocked, detail);
        Err(match ways[..] {
            [] => refusal.with_hint("leave each pod one disruption budget"),
            _ => refusal.with_hint(format!("if that is accepted, set {}", ways.join(", "))),
        })
    }

    fn would(&self, node: &str, was_cordoned: bool) -> String {
        let cordon = match was_cordoned {
            true => format!("Node '{node}' is cordoned already"),
            false => format!("Node '{node}' would be cordoned"),
        };
        let names: Vec<_> = self.going.iter().map(|pod| pods_name(&pod.target)).collect();
        let evicted = match names[..] {
            [] => "no pod would be evicted".to_owned(),
            _ => format!("{} would be evicted: {}", plural(names.len(), "pod"), named(&names)),
        };
        let stay = |(why, number): (&SkipReason, &usize)| format!("{number} {}", why.description());
        let staying: Vec<_> = self.staying.iter().map(stay).collect();
        let staying = match staying[..] {
            [] => String::new(),
            _ => format!("; pods that would stay: {}", staying.join(", ")),
        };
        format!("Simulated: {cordon}, and {evicted}{staying}.")
    }

    fn warnings(&self, wait: bool) -> Vec<String> {
        let losing = self.losing.iter().map(|(loss, pods)| {
            let what = loss.how_to_allow();
            format!("{} {what}, evicted all the same: {}", plural(pods.len(), "pod"), named(pods))
        });
        let full = self.full.values().filter(|_| wait).map(|full| {
            format!("room has to be waited for: {}: {}", full.reason, named(&full.pods))
        });
        losing.chain(full).chain(self.warnings.iter().cloned()).collect()
    }
}

fn pods_name(pod: &Target) -> String {
    format!("{}/{}", pod.namespace, pod.name)
}

fn named(names: &[String]) -> String {
    let more = names.len().saturating_sub(MAX_NAMED_PODS);
    let listed = names[..names.len() - more].join(", ");
    if more == 0 { listed } else { format!("{listed} and {more} more") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::k8s::api::mutation::Mutation;

    const READY: &str = "status: {phase: Running, conditions: [{type: Ready, status: 'True'}]}";

    fn node(spec: &str) -> Node {
        serde_yaml_ng::from_str(&format!(
            "metadata: {{name: n1, uid: u1, resourceVersion: '7'}}\nspec: {{{spec}}}"
        ))
        .expect("is a Node")
    }

    /// A running pod of a controller, with what it has besides.
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

    fn surveyed(parameters: &Parameters, pods: &[Pod], budgets: &[PodDisruptionBudget]) -> NodePods {
        let mut survey = NodePods::default();
        for pod in pods {
            survey.add(pod, &parameters.accepted(), true, budgets);
        }
        for full in survey.full.values_mut() {
            full.reason = pdb::reason(&full.budget, &[]);
        }
        survey
    }

    fn decided(
        fields: &str,
        pods: &[Pod],
        budgets: &[PodDisruptionBudget],
        wait: bool,
    ) -> Result<Plan, ActionError> {
        let parameters = parameters(fields);
        let survey = surveyed(&parameters, pods, budgets);
        parameters.decide(&node(""), survey, &PlanInput { wait, ..PlanInput::example() })
    }

    #[test]
    fn plans_one_cordon_and_names_the_pods_that_go() {
        let pods = [pod("a", "", "ReplicaSet"), pod("agent", "", "DaemonSet")];
        let plan = decided("", &pods, &[], false).expect("is planned");
        let Decision::Apply(effect, did, would) = plan.decision else { panic!("{:?}", plan.decision) };
        let Mutation::Patch { body, .. } = effect.mutation else { panic!("is a patch") };
        assert_eq!(body["spec"]["unschedulable"], true);
        assert_eq!(did, "Node 'n1' cordoned at 2026-01-31T12:00:00.987Z.");
        assert_eq!(
            would,
            "Simulated: Node 'n1' would be cordoned, and 1 pod would be evicted: shop/a; pods that \
             would stay: 1 of DaemonSets."
        );
        assert_eq!(plan.others.len(), 1);
        assert_eq!(plan.warnings, Vec::<String>::new());
        let CompletionSpec::Drained(drained) = plan.completion else { panic!("is drained") };
        assert!(drained.contains(&pods[0].metadata) && drained.is_free(&pods[0].metadata));
        assert!(!drained.contains(&pods[1].metadata));
    }

    #[test]
    fn names_all_that_stands_in_the_way_at_once() {
        let pods = [
            pod("bare", "", ""),
            pod("cache", "volumes: [{name: tmp, emptyDir: {}}]", "ReplicaSet"),
            pod("torn", "", "ReplicaSet"),
        ];
        let budgets = [budget("one", 1), budget("two", 1)];
        let refusal = decided("", &pods, &budgets, true).expect_err("is refused");
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
        assert_eq!(&*hint, "if that is accepted, set delete_empty_dir_data: true, force: true");
    }

    #[test]
    fn a_budget_without_room_is_refused_for_now_and_waited_for_if_that_is_asked() {
        let (pods, budgets) = ([pod("a", "", "ReplicaSet")], [budget("web", 0)]);
        let refusal = decided("", &pods, &budgets, false).expect_err("is refused");
        assert_eq!(refusal.code, Code::DisruptionBudget);
        for part in ["PodDisruptionBudget 'web' allows 0", "shop/a"] {
            assert!(refusal.detail.contains(part), "{part}: {}", refusal.detail);
        }
        let plan = decided("", &pods, &budgets, true).expect("is planned");
        assert!(plan.warnings[0].starts_with("room has to be waited for"), "{:?}", plan.warnings);
        // With something for good beside it, it is refused for good.
        let both = [pod("a", "", "ReplicaSet"), pod("bare", "", "")];
        let refusal = decided("", &both, &budgets, false).expect_err("is refused");
        assert_eq!(refusal.code, Code::DrainBlocked);
        assert!(refusal.detail.contains("PodDisruptionBudget 'web'"), "{}", refusal.detail);
    }

    #[test]
    fn what_is_accepted_is_warned_of() {
        let pods = [pod("bare", "", ""), pod("cache", "volumes: [{name: t, emptyDir: {}}]", "")];
        let accepted = r#","force":true,"delete_empty_dir_data":true"#;
        let plan = decided(accepted, &pods, &[], false).expect("is planned");
        assert_eq!(plan.others.len(), 2);
        let told = plan.warnings.join("; ");
        assert!(told.contains("emptyDir") && told.contains("without a controller"), "{told}");
    }

    #[test]
    fn warns_of_a_volume_that_no_other_node_has() {
        let claim = "volumes: [{name: d, persistentVolumeClaim: {claimName: data}}]";
        let parameters = parameters("");
        let mut survey = surveyed(&parameters, &[pod("db", claim, "StatefulSet")], &[]);
        let volume = "metadata: {name: pv-1}\n\
                      spec: {claimRef: {namespace: shop, name: data}, local: {path: /data}}";
        survey.add_volumes(&[serde_yaml_ng::from_str(volume).expect("is a volume")]);
        let plan = parameters.decide(&node(""), survey, &PlanInput::example()).expect("is planned");
        assert!(plan.warnings[0].contains("'pv-1' of pod shop/db"), "{:?}", plan.warnings);
    }

    #[test]
    fn a_cordoned_node_without_pods_is_drained() {
        let parameters = parameters("");
        let survey = NodePods::default();
        let node = node("unschedulable: true");
        let plan = parameters.decide(&node, survey, &PlanInput::example()).expect("is planned");
        assert!(matches!(plan.decision, Decision::NoOp(_)), "{:?}", plan.decision);
    }

    #[test]
    fn a_node_that_was_cordoned_before_stays_so_whatever_happens() {
        let parameters = parameters(r#","uncordon_on_failure":true"#);
        let survey = surveyed(&parameters, &[pod("a", "", "ReplicaSet")], &[]);
        assert!(parameters.drained(&survey, false).uncordon_on_failure);
        assert!(!parameters.drained(&survey, true).uncordon_on_failure);
    }

    #[test]
    fn daemon_sets_stand_in_the_way_only_if_that_is_said() {
        let pods = [pod("agent", "", "DaemonSet")];
        assert!(decided("", &pods, &[], false).is_ok());
        let refusal = decided(r#","ignore_daemonsets":false"#, &pods, &[], false);
        assert_eq!(refusal.expect_err("is refused").code, Code::DrainBlocked);
    }
}
