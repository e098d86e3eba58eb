//! The requests and limits of a pod's containers: what a pod needs as a whole, and what in the cluster would keep a pod
//! with them from being created, placed or left as it is. Pure; nothing here refuses an action.
//!
//! A pod or its template is read as JSON, since it may have fields of later versions.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{LimitRange, LimitRangeItem, Node, Pod, ResourceQuota, ResourceRequirements},
    apimachinery::pkg::api::resource::Quantity as ApiQuantity,
};
use kube::api::DynamicObject;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    contract::{quantity::Quantity, response::Target},
    k8s::{
        pods,
        rollout::{self, RolloutStatus},
        workload::Workload,
    },
};

/// The resources that are compared.
const COMPARED: [&str; 2] = ["cpu", "memory"];

/// A request or a limit of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum AmountField {
    CpuRequest,
    MemoryRequest,
    CpuLimit,
    MemoryLimit,
}

impl AmountField {
    /// The list in which it is, and its resource.
    fn place(self) -> [&'static str; 2] {
        match self {
            AmountField::CpuRequest => ["requests", "cpu"],
            AmountField::MemoryRequest => ["requests", "memory"],
            AmountField::CpuLimit => ["limits", "cpu"],
            AmountField::MemoryLimit => ["limits", "memory"],
        }
    }

    /// For example `cpu`.
    pub(crate) fn resource(self) -> &'static str {
        self.place()[1]
    }

    /// For example `memory limit`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            AmountField::CpuRequest => "cpu request",
            AmountField::MemoryRequest => "memory request",
            AmountField::CpuLimit => "cpu limit",
            AmountField::MemoryLimit => "memory limit",
        }
    }

    /// Its path in a container.
    pub(crate) fn path(self) -> [&'static str; 3] {
        let [list, resource] = self.place();
        ["resources", list, resource]
    }

    /// Its value in this container; of a request that is not set, the limit.
    pub(crate) fn of(self, container: &Value) -> Option<Quantity> {
        let [list, resource] = self.place();
        amount(container, list, resource)
    }

    /// Whether this value itself is set in this container.
    pub(crate) fn is_set(self, container: &Value) -> bool {
        let [list, resource] = self.place();
        container["resources"][list][resource].is_string()
    }
}

/// A request or a limit that a container of a running pod is to have.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Amount {
    pub container: String,
    pub field: AmountField,
    pub value: Quantity,
}

impl Amount {
    /// Whether the container has it, by the resources in the pod's spec or in its status.
    fn is_in(&self, resources: Option<&ResourceRequirements>) -> bool {
        let [list, resource] = self.field.place();
        let lists = resources.and_then(|it| match list {
            "requests" => it.requests.as_ref(),
            _ => it.limits.as_ref(),
        });
        lists.and_then(|list| of(list, resource)) == Some(self.value)
    }
}

/// How far a kubelet has resized the pod that has the name now
/// (<https://kubernetes.io/docs/tasks/configure-pod-container/resize-container-resources>).
pub(crate) fn resize_status(
    pod: Option<&Pod>,
    name: &str,
    uid: &str,
    amounts: &[Amount],
) -> RolloutStatus {
    let Some(pod) = pod.filter(|pod| pod.metadata.uid.as_deref() == Some(uid)) else {
        return RolloutStatus::Failed(format!("pod '{name}' was deleted"));
    };
    if pods::has_finished(pod) {
        return RolloutStatus::Failed(format!("pod '{name}' has finished"));
    }
    let spec = pod.spec.as_ref();
    let containers = spec
        .into_iter()
        .flat_map(|spec| spec.containers.iter().chain(spec.init_containers.iter().flatten()));
    let wanted: Vec<_> = containers.map(|it| (it.name.as_str(), it.resources.as_ref())).collect();
    let status = pod.status.as_ref();
    let statuses = status.into_iter().flat_map(|status| {
        let init = status.init_container_statuses.iter().flatten();
        status.container_statuses.iter().flatten().chain(init)
    });
    let actual: Vec<_> = statuses.map(|it| (it.name.as_str(), it.resources.as_ref())).collect();
    let missing = |amount: &&Amount, all: &[(&str, Option<&ResourceRequirements>)]| {
        let found = all.iter().find(|(name, _)| *name == amount.container);
        !found.is_some_and(|(_, resources)| amount.is_in(*resources))
    };
    if let Some(amount) = amounts.iter().find(|it| missing(it, &wanted)) {
        return RolloutStatus::Failed(format!(
            "superseded: the {} of container '{}' was changed again in the meantime",
            amount.field.name(),
            amount.container
        ));
    }
    // A condition may be about the resources of before.
    let generation = pod.metadata.generation;
    let mut conditions =
        status.iter().flat_map(|status| status.conditions.iter().flatten()).filter(|it| {
            it.status == "True"
                && (it.observed_generation.is_none() || it.observed_generation >= generation)
        });
    let condition =
        conditions.find(|it| matches!(&*it.type_, "PodResizePending" | "PodResizeInProgress"));
    let reason = condition.and_then(|it| it.reason.as_deref()).unwrap_or_default();
    let why = condition.and_then(|it| it.message.as_deref()).unwrap_or_default();
    if reason == "Infeasible" {
        return RolloutStatus::Failed(format!(
            "the node of pod '{name}' cannot provide these resources: {why}"
        ));
    }
    match amounts.iter().find(|it| missing(it, &actual)) {
        None if condition.is_none() => {
            RolloutStatus::Complete(format!("the containers of pod '{name}' have their resources"))
        }
        _ if reason == "Deferred" => RolloutStatus::Waiting(format!(
            "the node of pod '{name}' does not have these resources free now: {why}"
        )),
        _ => RolloutStatus::Waiting(
            format!("the kubelet has not resized pod '{name}' yet {why}").trim_end().to_owned(),
        ),
    }
}

/// The warnings before a running pod is resized: its spec before and after, as JSON.
pub(crate) fn resize_warnings(before: &Value, after: &Value) -> Vec<String> {
    let restarts = ["containers", "initContainers"].into_iter().flat_map(|list| {
        let pairs = containers(before, list).zip(containers(after, list));
        pairs.filter(|(before, after)| before != after).filter_map(|(before, after)| {
            let policies = after["resizePolicy"].as_array().into_iter().flatten();
            let restarting = policies.filter(|it| it["restartPolicy"] == "RestartContainer");
            let changed = restarting.filter(|it| {
                let resource = it["resourceName"].as_str().unwrap_or_default();
                ["requests", "limits"].iter().any(|list| {
                    before["resources"][list][resource] != after["resources"][list][resource]
                })
            });
            let resource = changed.filter_map(|it| it["resourceName"].as_str()).next()?;
            let name = after["name"].as_str().unwrap_or_default();
            Some(format!(
                "container '{name}' is restarted: its resizePolicy for {resource} says so"
            ))
        })
    });
    restarts.chain(lowered_memory_warnings(before, after)).collect()
}

/// What limits the requests and limits of a namespace's pods.
#[derive(Clone, Debug, Default)]
pub(crate) struct ResourceLimits {
    pub quotas: Vec<ResourceQuota>,
    pub ranges: Vec<LimitRange>,
    /// VerticalPodAutoscalers, where they are installed.
    pub vertical_autoscalers: Vec<DynamicObject>,
    /// All nodes; none if they were not read, or are too many.
    pub nodes: Option<Vec<Node>>,
    /// What could not be read, and why.
    pub unavailable: Vec<String>,
}

/// The amount of a resource that a container has in `requests` or `limits`. A request that is not set is the limit, as
/// the API server sets it for a pod (`SetDefaults_Pod`).
fn amount(container: &Value, list: &str, resource: &str) -> Option<Quantity> {
    let set = |list: &str| {
        let value = &container["resources"][list][resource];
        Quantity::read(value.as_str()?)
    };
    match list {
        "requests" => set("requests").or_else(|| set("limits")),
        list => set(list),
    }
}

impl ResourceLimits {
    /// The warnings before the workload's pod template `before` becomes `after`.
    pub(crate) fn warnings(
        &self,
        workload: &Workload,
        target: &Target,
        before: &Value,
        after: &Value,
    ) -> Vec<String> {
        let mut warnings = Vec::new();
        warnings.extend(qos_warning(before, after));
        warnings.extend(lowered_memory_warnings(before, after));
        let quotas = self.quotas.iter().filter(|quota| !is_scoped(quota));
        warnings.extend(quotas.flat_map(|quota| quota_warnings(quota, workload, before, after)));
        let items = self.ranges.iter().flat_map(|range| {
            let name = range.metadata.name.as_deref().unwrap_or_default();
            range.spec.iter().flat_map(|spec| &spec.limits).map(move |item| (name, item))
        });
        warnings.extend(items.flat_map(|(name, item)| range_warnings(name, item, after)));
        warnings.extend(self.node_warning(after));
        let scaling = self.vertical_autoscalers.iter();
        warnings.extend(scaling.filter_map(|it| vertical_autoscaler_warning(it, target)));
        warnings.extend(self.unavailable.iter().cloned());
        warnings
    }

    /// No node has as much as a pod requests, whatever runs there.
    fn node_warning(&self, after: &Value) -> Option<String> {
        let nodes = self.nodes.as_ref().filter(|nodes| !nodes.is_empty())?;
        let allocatable = |node: &Node, resource: &str| {
            let status = node.status.as_ref()?;
            of(status.allocatable.as_ref()?, resource)
        };
        let needs = |resource| total(after, "requests", resource);
        let holds = |node: &Node| {
            COMPARED.iter().all(|resource| {
                allocatable(node, resource).is_none_or(|has| needs(resource) <= has)
            })
        };
        (!nodes.iter().any(holds)).then(|| {
            let needs = COMPARED.map(|it| format!("{} of {it}", needs(it))).join(" and ");
            format!("no node can hold a pod that requests {needs}: new pods would stay pending")
        })
    }
}

fn of(list: &BTreeMap<String, ApiQuantity>, resource: &str) -> Option<Quantity> {
    Quantity::read(&list.get(resource)?.0)
}

fn containers<'a>(pod: &'a Value, list: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    pod["spec"][list].as_array().map(Vec::as_slice).unwrap_or_default().iter()
}

/// Whether it is an init container that keeps running beside the containers (KEP-753).
fn is_sidecar(container: &Value) -> bool {
    container["restartPolicy"] == "Always"
}

/// What a pod requests, or is limited to, as a whole: its containers and sidecars together, or the init container that
/// needs more with the sidecars before it; and its overhead (`PodRequests` in `k8s.io/component-helpers/resource`).
fn total(pod: &Value, list: &str, resource: &str) -> Quantity {
    let of_pod = Quantity::read(pod["spec"]["resources"][list][resource].as_str().unwrap_or(""));
    let of_one = |it: &Value| amount(it, list, resource).unwrap_or_default();
    let (mut sidecars, mut at_start) = (Quantity::default(), Quantity::default());
    for container in containers(pod, "initContainers") {
        if is_sidecar(container) {
            sidecars = sidecars.plus(of_one(container));
            at_start = at_start.max(sidecars);
        } else {
            at_start = at_start.max(sidecars.plus(of_one(container)));
        }
    }
    let running = containers(pod, "containers").fold(sidecars, |sum, it| sum.plus(of_one(it)));
    let overhead = pod["spec"]["overhead"][resource].as_str().and_then(Quantity::read);
    of_pod.unwrap_or_else(|| running.max(at_start)).plus(overhead.unwrap_or_default())
}

/// The QoS class of a pod (`ComputePodQOS` in `pkg/apis/core/v1/helper/qos`).
fn qos_class(pod: &Value) -> &'static str {
    let of_pod = &pod["spec"]["resources"];
    let has_any = |it: &Value| {
        let lists = ["requests", "limits"].into_iter();
        lists.flat_map(|list| it[list].as_object().into_iter().flatten()).any(|(key, value)| {
            let above_0 =
                value.as_str().and_then(Quantity::read).is_some_and(|it| it > Quantity::default());
            COMPARED.contains(&key.as_str()) && above_0
        })
    };
    let all: Vec<&Value> = match has_any(of_pod) {
        true => vec![&pod["spec"]],
        false => containers(pod, "containers").chain(containers(pod, "initContainers")).collect(),
    };
    if !all.iter().any(|it| has_any(&it["resources"])) {
        return "BestEffort";
    }
    let is_guaranteed = |container: &&Value| {
        COMPARED.iter().all(|resource| {
            let limit = amount(container, "limits", resource);
            limit.is_some() && amount(container, "requests", resource) == limit
        })
    };
    if all.iter().all(is_guaranteed) { "Guaranteed" } else { "Burstable" }
}

fn qos_warning(before: &Value, after: &Value) -> Option<String> {
    let [before, after] = [before, after].map(qos_class);
    (before != after).then(|| {
        format!(
            "the QoS class of its pods changes from {before} to {after}, and with it who is killed first when a \
             node runs out of memory"
        )
    })
}

fn lowered_memory_warnings(before: &Value, after: &Value) -> Vec<String> {
    let lists = ["containers", "initContainers"].into_iter();
    let pairs = lists.flat_map(|list| containers(before, list).zip(containers(after, list)));
    pairs
        .filter_map(|(before, after)| {
            let limit = |container| amount(container, "limits", "memory");
            let (now, then) = (limit(before), limit(after)?);
            now.is_none_or(|now| then < now).then(|| {
                let name = after["name"].as_str().unwrap_or_default();
                format!(
                    "container '{name}' gets less memory than it may use now: it is killed (OOMKilled) if it uses \
                     more than {then}"
                )
            })
        })
        .collect()
}

/// A quota with scopes counts some pods only, which their template does not show.
fn is_scoped(quota: &ResourceQuota) -> bool {
    let Some(spec) = &quota.spec else { return false };
    spec.scope_selector.is_some() || spec.scopes.as_ref().is_some_and(|scopes| !scopes.is_empty())
}

fn quota_warnings(
    quota: &ResourceQuota,
    workload: &Workload,
    before: &Value,
    after: &Value,
) -> Vec<String> {
    let name = quota.metadata.name.as_deref().unwrap_or_default();
    let Some(hard) = quota.status.as_ref().and_then(|status| status.hard.as_ref()) else {
        return Vec::new();
    };
    let used = quota.status.as_ref().and_then(|status| status.used.as_ref());
    let pods = workload.desired_pods();
    hard.keys()
        .filter_map(|key| {
            let (list, resource) = key.split_once('.').unwrap_or(("requests", key));
            if !COMPARED.contains(&resource) || !["requests", "limits"].contains(&list) {
                return None;
            }
            let used = used.and_then(|used| of(used, key)).unwrap_or_default();
            let left = of(hard, key)?.minus(used);
            let (one, old) = (total(after, list, resource), total(before, list, resource));
            let more = one.minus(old).times(pods);
            if one > old && more > left {
                return Some(format!(
                    "quota '{name}' has {left} of {key} left, and the pods need {more} more in all: not all of them \
                     would be created"
                ));
            }
            (one > left && rollout::adds_pods_first(workload)).then(|| {
                format!(
                    "quota '{name}' has {left} of {key} left, and a new pod needs {one} before an old one is removed: \
                     the rollout would stop"
                )
            })
        })
        .collect()
}

/// What a LimitRange says about containers, or about a pod as a whole.
fn range_warnings(name: &str, item: &LimitRangeItem, after: &Value) -> Vec<String> {
    type Amount<'a> = Box<dyn Fn(&str, &str) -> Option<Quantity> + 'a>;
    let all: Vec<(String, Amount)> = match item.type_.as_str() {
        "Container" => ["containers", "initContainers"]
            .into_iter()
            .flat_map(|list| containers(after, list))
            .map(|container| {
                let name = container["name"].as_str().unwrap_or_default();
                let amount: Amount = Box::new(|list, resource| amount(container, list, resource));
                (format!("container '{name}'"), amount)
            })
            .collect(),
        "Pod" => {
            let amount: Amount = Box::new(|list, resource| {
                Some(total(after, list, resource)).filter(|it| *it > Quantity::default())
            });
            vec![("a pod".to_owned(), amount)]
        }
        _ => return Vec::new(),
    };
    let mut warnings = Vec::new();
    for (what, amount) in &all {
        for resource in COMPARED {
            let bound =
                |bounds: &Option<BTreeMap<String, ApiQuantity>>| of(bounds.as_ref()?, resource);
            let amounts =
                ["limits", "requests"].map(|list| amount(list, resource).map(|it| (list, it)));
            let amounts = amounts.into_iter().flatten();
            let outside = amounts.clone().find_map(|(list, is)| {
                let above =
                    bound(&item.max).filter(|max| is > *max).map(|max| ("allows at most", max));
                let below =
                    bound(&item.min).filter(|min| is < *min).map(|min| ("requires at least", min));
                above.or(below).map(|(verb, bound)| (list, is, verb, bound))
            });
            warnings.extend(outside.map(|(list, is, verb, bound)| {
                format!(
                    "LimitRange '{name}' {verb} {bound} of {resource}, and {what} would have {is} in its \
                     {list}: new pods would be refused"
                )
            }));
        }
    }
    warnings
}

/// A VerticalPodAutoscaler sets the requests of each pod that is created
/// (<https://github.com/kubernetes/autoscaler/blob/master/vertical-pod-autoscaler/docs/api.md>).
fn vertical_autoscaler_warning(autoscaler: &DynamicObject, target: &Target) -> Option<String> {
    let spec = &autoscaler.data["spec"];
    let mode = spec["updatePolicy"]["updateMode"].as_str().unwrap_or("Auto");
    let scaled = &spec["targetRef"];
    let is_of_target = scaled["kind"] == *target.kind && scaled["name"] == *target.name;
    (is_of_target && mode != "Off").then(|| {
        let name = autoscaler.metadata.name.as_deref().unwrap_or_default();
        format!(
            "VerticalPodAutoscaler '{name}' (mode {mode}) sets the requests of new pods, whatever their template says"
        )
    })
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::Deployment;
    use serde_json::json;

    use super::*;

    fn read<T: serde::de::DeserializeOwned>(yaml: &str) -> T {
        serde_yaml_ng::from_str(yaml).unwrap_or_else(|error| panic!("{yaml}: {error}"))
    }

    /// A template whose only container has these resources.
    fn template(resources: &str) -> Value {
        json!({ "spec": { "containers": [{ "name": "web", "resources": read::<Value>(resources) }] } })
    }

    fn workload(spec: &str) -> Workload {
        read::<Deployment>(&format!("spec: {{replicas: 3, selector: {{}}, template: {{}}{spec}}}"))
            .into()
    }

    fn warnings(limits: &ResourceLimits, before: &str, after: &str) -> Vec<String> {
        let target = Target::named("apps/v1", "Deployment", "shop", "web");
        limits.warnings(&workload(""), &target, &template(before), &template(after))
    }

    #[test]
    fn the_qos_class_follows_from_all_containers() {
        for (resources, class) in [
            ("{}", "BestEffort"),
            ("{requests: {cpu: '1'}}", "Burstable"),
            ("{requests: {example.com/gpu: '1'}}", "BestEffort"),
            ("{limits: {cpu: '1', memory: 1Gi}}", "Guaranteed"),
            ("{limits: {cpu: '1', memory: 1Gi}, requests: {memory: 1024Mi}}", "Guaranteed"),
            ("{limits: {cpu: '1', memory: 1Gi}, requests: {memory: 512Mi}}", "Burstable"),
            ("{limits: {cpu: '1'}}", "Burstable"),
        ] {
            assert_eq!(qos_class(&template(resources)), class, "{resources}");
        }
        let mut two = template("{limits: {cpu: '1', memory: 1Gi}}");
        two["spec"]["initContainers"] = json!([{ "name": "init" }]);
        assert_eq!(qos_class(&two), "Burstable");
        two["spec"]["resources"] = json!({ "limits": { "cpu": "2", "memory": "2Gi" } });
        assert_eq!(qos_class(&two), "Guaranteed");
    }

    #[test]
    fn a_pod_needs_what_its_containers_need_together_or_an_init_container_alone() {
        let cpu = |amount: &str| json!({ "requests": { "cpu": amount } });
        let mut pod = json!({ "spec": {
            "containers": [{ "resources": cpu("200m") }, { "resources": cpu("300m") }],
            "initContainers": [{ "resources": cpu("400m") }],
        }});
        let total = |pod: &Value| total(pod, "requests", "cpu").to_string();
        assert_eq!(total(&pod), "500m");
        pod["spec"]["initContainers"][0]["resources"] = cpu("2");
        assert_eq!(total(&pod), "2");
        pod["spec"]["initContainers"][0]["restartPolicy"] = "Always".into();
        assert_eq!(total(&pod), "2500m");
        pod["spec"]["overhead"] = json!({ "cpu": "100m" });
        assert_eq!(total(&pod), "2600m");
    }

    #[test]
    fn a_quota_that_the_pods_would_exceed_is_warned_of() {
        let quota = |used: &str| ResourceLimits {
            quotas: vec![read(&format!(
                "metadata: {{name: q}}\nstatus: {{hard: {{requests.memory: 10Gi, pods: '5'}}, used: {{requests.memory: \
                 {used}}}}}"
            ))],
            ..ResourceLimits::default()
        };
        let (before, after) = ("{requests: {memory: 1Gi}}", "{requests: {memory: 2Gi}}");
        assert_eq!(
            warnings(&quota("8Gi"), before, after),
            [
                "quota 'q' has 2Gi of requests.memory left, and the pods need 3Gi more in all: not all of them would be created"
            ]
        );
        assert_eq!(warnings(&quota("7Gi"), before, after), [""; 0]);
        // Each new pod comes before an old one goes.
        let stops = warnings(&quota("9Gi"), after, "{requests: {memory: 1500Mi}}");
        assert!(stops[0].ends_with("the rollout would stop"), "{stops:?}");
        let scoped = ResourceLimits {
            quotas: vec![read(
                "metadata: {name: q}\nspec: {scopes: [BestEffort]}\nstatus: {hard: {requests.memory: 1Gi}}",
            )],
            ..ResourceLimits::default()
        };
        assert_eq!(warnings(&scoped, before, after), [""; 0]);
    }

    #[test]
    fn a_limit_range_that_would_refuse_the_pods_is_warned_of() {
        let range = |item: &str| ResourceLimits {
            ranges: vec![read(&format!("metadata: {{name: r}}\nspec: {{limits: [{item}]}}"))],
            ..ResourceLimits::default()
        };
        let (before, after) = ("{limits: {memory: 1Gi}}", "{limits: {memory: 4Gi}}");
        for (item, expected) in [
            (
                "{type: Container, max: {memory: 2Gi}}",
                Some("at most 2Gi of memory, and container 'web' would have 4Gi"),
            ),
            ("{type: Container, min: {memory: 8Gi}}", Some("at least 8Gi")),
            ("{type: Pod, max: {memory: 3Gi}}", Some("and a pod would have 4Gi in its limits")),
            ("{type: Container, max: {memory: 4Gi, cpu: '1'}}", None),
            ("{type: PersistentVolumeClaim, max: {storage: 1Gi}}", None),
        ] {
            let found = warnings(&range(item), before, after);
            assert_eq!(found.len(), usize::from(expected.is_some()), "{item}: {found:?}");
            assert!(expected.is_none_or(|text| found[0].contains(text)), "{item}: {found:?}");
        }
    }

    #[test]
    fn nodes_that_are_all_too_small_are_warned_of() {
        let node = |memory: &str| {
            read::<Node>(&format!("status: {{allocatable: {{cpu: '4', memory: {memory}}}}}"))
        };
        let nodes =
            |nodes: Vec<Node>| ResourceLimits { nodes: Some(nodes), ..ResourceLimits::default() };
        let after = "{requests: {memory: 16Gi}}";
        let small =
            warnings(&nodes(vec![node("8Gi"), node("4Gi")]), "{requests: {memory: 1Gi}}", after);
        assert!(
            small[0].starts_with("no node can hold a pod that requests 0 of cpu and 16Gi"),
            "{small:?}"
        );
        for enough in
            [nodes(vec![node("8Gi"), node("16Gi")]), nodes(vec![]), ResourceLimits::default()]
        {
            assert_eq!(warnings(&enough, "{requests: {memory: 1Gi}}", after), [""; 0]);
        }
    }

    #[test]
    fn a_vertical_autoscaler_of_the_workload_is_warned_of_unless_it_is_off() {
        let of = |name: &str, mode: &str| ResourceLimits {
            vertical_autoscalers: vec![read(&format!(
                "metadata: {{name: v}}\nspec: {{targetRef: {{kind: Deployment, name: {name}}}, updatePolicy: \
                 {{updateMode: '{mode}'}}}}"
            ))],
            ..ResourceLimits::default()
        };
        let (before, after) = ("{requests: {cpu: '1'}}", "{requests: {cpu: '2'}}");
        assert!(
            warnings(&of("web", "Recreate"), before, after)[0]
                .starts_with("VerticalPodAutoscaler 'v'")
        );
        assert_eq!(warnings(&of("web", "Off"), before, after), [""; 0]);
        assert_eq!(warnings(&of("api", "Auto"), before, after), [""; 0]);
    }

    #[test]
    fn a_pod_is_resized_once_its_status_shows_the_resources() {
        let amounts = [Amount {
            container: "web".to_owned(),
            field: AmountField::MemoryLimit,
            value: Quantity::read("2Gi").expect("is one"),
        }];
        let pod = |spec: &str, actual: &str, conditions: &str| {
            read::<Pod>(&format!(
                "metadata: {{name: web-1, uid: u1, generation: 4}}\n\
                 spec: {{containers: [{{name: web, resources: {{limits: {{memory: {spec}}}}}}}]}}\n\
                 status: {{phase: Running, conditions: [{conditions}], containerStatuses: [{{name: web, ready: true, \
                 restartCount: 0, image: a, imageID: a, resources: {{limits: {{memory: {actual}}}}}}}]}}"
            ))
        };
        let status = |pod: &Pod| resize_status(Some(pod), "web-1", "u1", &amounts);
        let condition = |kind: &str, reason: &str, generation: i64| {
            format!(
                "{{type: {kind}, status: 'True', reason: {reason}, message: because, observedGeneration: {generation}}}"
            )
        };
        assert!(matches!(status(&pod("2Gi", "2048Mi", "")), RolloutStatus::Complete(_)));
        assert!(matches!(status(&pod("2Gi", "1Gi", "")), RolloutStatus::Waiting(_)));
        let infeasible = condition("PodResizePending", "Infeasible", 4);
        let RolloutStatus::Failed(why) = status(&pod("2Gi", "1Gi", &infeasible)) else {
            panic!("has failed")
        };
        assert!(
            why.contains("node of pod 'web-1' cannot provide these resources: because"),
            "{why}"
        );
        // Of an earlier resize.
        let stale = condition("PodResizePending", "Infeasible", 3);
        assert!(matches!(status(&pod("2Gi", "1Gi", &stale)), RolloutStatus::Waiting(_)));
        let deferred = condition("PodResizePending", "Deferred", 4);
        let RolloutStatus::Waiting(why) = status(&pod("2Gi", "1Gi", &deferred)) else {
            panic!("is waited for")
        };
        assert!(why.contains("does not have these resources free now: because"), "{why}");
        let running = condition("PodResizeInProgress", "''", 4);
        assert!(matches!(status(&pod("2Gi", "2Gi", &running)), RolloutStatus::Waiting(_)));
        let RolloutStatus::Failed(why) = status(&pod("3Gi", "3Gi", "")) else {
            panic!("has failed")
        };
        assert!(why.starts_with("superseded: the memory limit of container 'web'"), "{why}");
        for gone in [None, Some(&read::<Pod>("metadata: {name: web-1, uid: u2}"))] {
            assert!(matches!(
                resize_status(gone, "web-1", "u1", &amounts),
                RolloutStatus::Failed(_)
            ));
        }
    }

    #[test]
    fn a_container_that_a_resize_restarts_is_warned_of() {
        let pod = |limit: &str, policy: &str| {
            json!({ "spec": { "containers": [{
                "name": "web", "resources": { "limits": { "memory": limit } },
                "resizePolicy": [{ "resourceName": "memory", "restartPolicy": policy }],
            }]}})
        };
        let warnings = |to: &str, policy| resize_warnings(&pod("1Gi", policy), &pod(to, policy));
        assert_eq!(warnings("2Gi", "NotRequired"), [""; 0]);
        assert!(warnings("2Gi", "RestartContainer")[0].contains("'web' is restarted"));
        assert_eq!(warnings("1Gi", "RestartContainer"), [""; 0]);
        assert!(warnings("512Mi", "NotRequired")[0].contains("OOMKilled"));
    }

    #[test]
    fn less_memory_and_another_qos_class_are_warned_of() {
        let none = ResourceLimits::default();
        let less = warnings(&none, "{limits: {memory: 2Gi}}", "{limits: {memory: 1Gi}}");
        assert!(less[0].contains("OOMKilled"), "{less:?}");
        let class = warnings(&none, "{}", "{requests: {cpu: '1'}}");
        assert!(class[0].contains("from BestEffort to Burstable"), "{class:?}");
    }
}
