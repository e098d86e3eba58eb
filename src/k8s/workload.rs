//! Workloads: the kinds whose pods come from a template, and what they have in common. Pure.

use k8s_openapi::{
    api::{
        apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet},
        core::v1::{Pod, PodTemplateSpec},
    },
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};
use kube::{
    api::{ApiResource, DynamicObject},
    core::{ObjectMeta, Selector},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    contract::{
        error::{ActionError, Code},
        response::Target,
    },
    k8s::{pods, revisions},
};

/// A kind of workload, all of them in the group `apps/v1`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum WorkloadKind {
    /// Deployment
    #[default]
    Deployment,
    /// StatefulSet
    StatefulSet,
    /// DaemonSet
    DaemonSet,
    /// ReplicaSet
    ReplicaSet,
}

impl WorkloadKind {
    /// Its name, for example `Deployment`.
    pub fn name(self) -> &'static str {
        match self {
            WorkloadKind::Deployment => "Deployment",
            WorkloadKind::StatefulSet => "StatefulSet",
            WorkloadKind::DaemonSet => "DaemonSet",
            WorkloadKind::ReplicaSet => "ReplicaSet",
        }
    }

    /// Its name for kubectl, for example `deployment`.
    pub fn for_kubectl(self) -> &'static str {
        match self {
            WorkloadKind::Deployment => "deployment",
            WorkloadKind::StatefulSet => "statefulset",
            WorkloadKind::DaemonSet => "daemonset",
            WorkloadKind::ReplicaSet => "replicaset",
        }
    }

    /// Its API resource.
    pub fn resource(self) -> ApiResource {
        match self {
            WorkloadKind::Deployment => ApiResource::erase::<Deployment>(&()),
            WorkloadKind::StatefulSet => ApiResource::erase::<StatefulSet>(&()),
            WorkloadKind::DaemonSet => ApiResource::erase::<DaemonSet>(&()),
            WorkloadKind::ReplicaSet => ApiResource::erase::<ReplicaSet>(&()),
        }
    }

    /// The workload of this kind that the API returned, and its pod template with the fields that
    /// `k8s_openapi` does not know.
    ///
    /// # Errors
    /// [`Code::ClusterUnavailable`] if it is not one.
    pub(crate) fn read_with_template(
        self,
        object: DynamicObject,
    ) -> Result<(Workload, Value), ActionError> {
        let template = revisions::template_in(&object.data, "/spec/template");
        let value = serde_json::to_value(object);
        let workload: Result<Workload, _> = value.and_then(|value| {
            Ok(match self {
                WorkloadKind::Deployment => serde_json::from_value::<Deployment>(value)?.into(),
                WorkloadKind::StatefulSet => serde_json::from_value::<StatefulSet>(value)?.into(),
                WorkloadKind::DaemonSet => serde_json::from_value::<DaemonSet>(value)?.into(),
                WorkloadKind::ReplicaSet => serde_json::from_value::<ReplicaSet>(value)?.into(),
            })
        });
        // The message of serde may contain values of the object, which may be secret.
        match workload {
            Ok(workload) => Ok((workload, template)),
            Err(_) => {
                let detail = format!("the cluster returned a {} that cannot be read", self.name());
                Err(ActionError::new(Code::ClusterUnavailable, detail))
            }
        }
    }

    /// An object of this kind as a request names it.
    pub(crate) fn target(self, namespace: &str, name: &str) -> Target {
        Target::named("apps/v1", self.name(), namespace, name)
    }
}

/// A workload as it was read.
#[derive(Clone, Debug)]
pub(crate) enum Workload {
    /// A Deployment.
    Deployment(Box<Deployment>),
    /// A StatefulSet.
    StatefulSet(Box<StatefulSet>),
    /// A DaemonSet.
    DaemonSet(Box<DaemonSet>),
    /// A ReplicaSet.
    ReplicaSet(Box<ReplicaSet>),
}

impl Workload {
    /// Its kind.
    pub(crate) fn kind(&self) -> WorkloadKind {
        match self {
            Workload::Deployment(_) => WorkloadKind::Deployment,
            Workload::StatefulSet(_) => WorkloadKind::StatefulSet,
            Workload::DaemonSet(_) => WorkloadKind::DaemonSet,
            Workload::ReplicaSet(_) => WorkloadKind::ReplicaSet,
        }
    }

    /// Its metadata.
    pub(crate) fn metadata(&self) -> &ObjectMeta {
        match self {
            Workload::Deployment(it) => &it.metadata,
            Workload::StatefulSet(it) => &it.metadata,
            Workload::DaemonSet(it) => &it.metadata,
            Workload::ReplicaSet(it) => &it.metadata,
        }
    }

    /// Kind and name of its controller.
    pub(crate) fn controller(&self) -> Option<(&str, &str)> {
        let owner = pods::controller_of(self.metadata())?;
        Some((&owner.kind, &owner.name))
    }

    /// The template of its pods.
    pub(crate) fn template(&self) -> Option<&PodTemplateSpec> {
        match self {
            Workload::Deployment(it) => it.spec.as_ref().map(|spec| &spec.template),
            Workload::StatefulSet(it) => it.spec.as_ref().map(|spec| &spec.template),
            Workload::DaemonSet(it) => it.spec.as_ref().map(|spec| &spec.template),
            Workload::ReplicaSet(it) => it.spec.as_ref().and_then(|spec| spec.template.as_ref()),
        }
    }

    /// The desired number of pods; none for a DaemonSet, where it is the number of nodes.
    pub(crate) fn replicas(&self) -> Option<i32> {
        let replicas = match self {
            Workload::Deployment(it) => it.spec.as_ref()?.replicas,
            Workload::StatefulSet(it) => it.spec.as_ref()?.replicas,
            Workload::DaemonSet(_) => return None,
            Workload::ReplicaSet(it) => it.spec.as_ref()?.replicas,
        };
        Some(replicas.unwrap_or(1))
    }

    /// How many pods it is to have; of a DaemonSet, as its status says.
    pub(crate) fn desired_pods(&self) -> u64 {
        let number = match self {
            Workload::DaemonSet(it) => it.status.as_ref().map(|it| it.desired_number_scheduled),
            _ => self.replicas(),
        };
        number.and_then(|number| u64::try_from(number).ok()).unwrap_or(0)
    }

    /// How many old revisions its controller keeps; none for a ReplicaSet.
    pub(crate) fn revision_history_limit(&self) -> Option<i32> {
        match self {
            Workload::Deployment(it) => it.spec.as_ref()?.revision_history_limit,
            Workload::StatefulSet(it) => it.spec.as_ref()?.revision_history_limit,
            Workload::DaemonSet(it) => it.spec.as_ref()?.revision_history_limit,
            Workload::ReplicaSet(_) => None,
        }
    }

    /// Whether it is a StatefulSet that makes, replaces and removes one pod after the other, each once all pods of
    /// lower ordinals are ready.
    pub(crate) fn keeps_order(&self) -> bool {
        let Workload::StatefulSet(set) = self else { return false };
        let policy = set.spec.as_ref().and_then(|spec| spec.pod_management_policy.as_deref());
        policy != Some("Parallel")
    }

    /// Whether the status of a StatefulSet that keeps order shows that a pod is not ready.
    pub(crate) fn is_held_up(&self) -> bool {
        let Workload::StatefulSet(set) = self else { return false };
        let status = set.status.clone().unwrap_or_default();
        self.keeps_order() && status.ready_replicas.unwrap_or(0) < status.replicas
    }

    /// The ordinal of a StatefulSet's first pod.
    pub(crate) fn first_ordinal(&self) -> i32 {
        let Workload::StatefulSet(set) = self else { return 0 };
        let ordinals = set.spec.as_ref().and_then(|spec| spec.ordinals.as_ref());
        ordinals.and_then(|it| it.start).unwrap_or(0)
    }

    /// Whether it is a paused Deployment.
    pub(crate) fn is_paused(&self) -> bool {
        let Workload::Deployment(it) = self else { return false };
        it.spec.as_ref().and_then(|spec| spec.paused) == Some(true)
    }

    /// How many of a Deployment's pods are of an older template, and how many pods it has; none if no pod
    /// is outdated.
    pub(crate) fn outdated_pods(&self) -> Option<(i32, i32)> {
        let Workload::Deployment(it) = self else { return None };
        let status = it.status.as_ref()?;
        let (all, updated) = (status.replicas?, status.updated_replicas.unwrap_or(0));
        (updated < all).then_some((all - updated, all))
    }

    /// An annotation of its pod template.
    pub(crate) fn template_annotation(&self, key: &str) -> Option<&str> {
        let metadata = self.template()?.metadata.as_ref()?;
        metadata.annotations.as_ref()?.get(key).map(String::as_str)
    }

    /// Its pods' selector as the API writes it; empty if it has none.
    pub(crate) fn label_selector(&self) -> String {
        let selector: Option<&LabelSelector> = match self {
            Workload::Deployment(it) => it.spec.as_ref().map(|spec| &spec.selector),
            Workload::StatefulSet(it) => it.spec.as_ref().map(|spec| &spec.selector),
            Workload::DaemonSet(it) => it.spec.as_ref().map(|spec| &spec.selector),
            Workload::ReplicaSet(it) => it.spec.as_ref().map(|spec| &spec.selector),
        };
        let selector = selector.and_then(|it| Selector::try_from(it.clone()).ok());
        selector.map(|selector| selector.to_string()).unwrap_or_default()
    }
}

/// The names of the controller's pods of ordinals below `end` that are not ready and are not being deleted.
pub(crate) fn unready_pods<'a>(
    pods: &'a [Pod],
    controller_uid: Option<&str>,
    end: Option<i32>,
) -> Vec<&'a str> {
    pods.iter()
        .filter(|pod| pods::controller(pod).map(|owner| owner.uid.as_str()) == controller_uid)
        .filter(|pod| !pods::is_ready(pod) && !pods::is_terminating(pod))
        .filter_map(|pod| pod.metadata.name.as_deref())
        .filter(|name| end.is_none_or(|end| pods::ordinal(name).is_some_and(|it| it < end)))
        .collect()
}

/// The warning about these pods, for which a StatefulSet of this name waits if it keeps order (`processReplica` of
/// Kubernetes).
pub(crate) fn order_warning(stateful_set: &str, unready: &[&str]) -> Option<String> {
    (!unready.is_empty()).then(|| {
        format!(
            "with the podManagementPolicy OrderedReady, StatefulSet '{stateful_set}' creates, replaces and removes no \
             other pod until {} is ready",
            unready.join(", ")
        )
    })
}

impl From<Deployment> for Workload {
    fn from(it: Deployment) -> Self {
        Workload::Deployment(Box::new(it))
    }
}

impl From<StatefulSet> for Workload {
    fn from(it: StatefulSet) -> Self {
        Workload::StatefulSet(Box::new(it))
    }
}

impl From<DaemonSet> for Workload {
    fn from(it: DaemonSet) -> Self {
        Workload::DaemonSet(Box::new(it))
    }
}

impl From<ReplicaSet> for Workload {
    fn from(it: ReplicaSet) -> Self {
        Workload::ReplicaSet(Box::new(it))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_selector_is_written_as_the_api_reads_it() {
        let deployment: Deployment = serde_yaml_ng::from_str(
            "spec: {template: {}, selector: {matchLabels: {app: web}, matchExpressions: \
             [{key: tier, operator: In, values: [a, b]}]}}",
        )
        .expect("is a Deployment");
        let selector = Workload::from(deployment).label_selector();
        assert!(selector.contains("app=web") && selector.contains("tier in (a,b)"), "{selector}");
    }

    #[test]
    fn a_workload_has_one_replica_by_default_and_a_daemon_set_no_number() {
        let set: StatefulSet =
            serde_yaml_ng::from_str("spec: {template: {}, selector: {}}").expect("is one");
        assert_eq!(Workload::from(set).replicas(), Some(1));
        let set: DaemonSet =
            serde_yaml_ng::from_str("spec: {template: {}, selector: {}}").expect("is one");
        assert_eq!(Workload::from(set).replicas(), None);
    }

    #[test]
    fn an_ordered_stateful_set_waits_for_its_unready_pods_of_lower_ordinals() {
        let set = |policy: &str| -> Workload {
            let set: StatefulSet = serde_yaml_ng::from_str(&format!(
                "metadata: {{name: db, uid: u}}\n\
                 spec: {{template: {{}}, selector: {{}}{policy}}}\n\
                 status: {{replicas: 3, readyReplicas: 2}}"
            ))
            .expect("is one");
            set.into()
        };
        let pod = |name: &str, ready: &str, owner: &str| -> Pod {
            serde_yaml_ng::from_str(&format!(
                "metadata: {{name: {name}, ownerReferences: [{{apiVersion: apps/v1, kind: StatefulSet, name: db, \
                 uid: {owner}, controller: true}}]}}\n\
                 status: {{conditions: [{{type: Ready, status: '{ready}'}}]}}"
            ))
            .expect("is a pod")
        };
        let pods = [pod("db-0", "True", "u"), pod("db-1", "False", "u"), pod("x-1", "False", "v")];
        let ordered = set("");
        assert!(ordered.keeps_order() && ordered.is_held_up());
        assert!(!set(", podManagementPolicy: Parallel").is_held_up());
        assert_eq!(unready_pods(&pods, Some("u"), None), ["db-1"]);
        assert_eq!(unready_pods(&pods, Some("u"), Some(2)), ["db-1"]);
        assert!(unready_pods(&pods, Some("u"), Some(1)).is_empty());
        let warning = order_warning("db", &["db-1"]).expect("is one");
        assert!(warning.contains("until db-1 is ready"), "{warning}");
        assert_eq!(order_warning("db", &[]), None);
    }
}
