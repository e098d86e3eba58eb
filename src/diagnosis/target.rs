//! What can be diagnosed, and how a caller names it: as for kubectl, `deployment/web`.

use k8s_openapi::api::{
    batch::v1::{CronJob, Job},
    core::v1::{Node, Pod},
};
use kube::api::ApiResource;

use crate::{
    contract::{
        error::ActionError,
        names::{Namespace, ObjectName},
        response,
    },
    k8s::{rbac::PolicyRule, workload::WorkloadKind},
};

/// A kind that can be diagnosed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TargetKind {
    Workload(WorkloadKind),
    Pod,
    Job,
    CronJob,
    Node,
}

/// Each kind, with the names that kubectl has for it.
const KINDS: [(TargetKind, &[&str]); 8] = [
    (TargetKind::Workload(WorkloadKind::Deployment), &["deployment", "deployments", "deploy"]),
    (TargetKind::Workload(WorkloadKind::StatefulSet), &["statefulset", "statefulsets", "sts"]),
    (TargetKind::Workload(WorkloadKind::DaemonSet), &["daemonset", "daemonsets", "ds"]),
    (TargetKind::Workload(WorkloadKind::ReplicaSet), &["replicaset", "replicasets", "rs"]),
    (TargetKind::Pod, &["pod", "pods", "po"]),
    (TargetKind::Job, &["job", "jobs"]),
    (TargetKind::CronJob, &["cronjob", "cronjobs", "cj"]),
    (TargetKind::Node, &["node", "nodes", "no"]),
];

/// The longest target: a kind, and a name of at most 253 characters.
pub(crate) const MAX_LENGTH: usize = 320;

impl TargetKind {
    /// Its name, for example `Deployment`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            TargetKind::Workload(kind) => kind.name(),
            TargetKind::Pod => "Pod",
            TargetKind::Job => "Job",
            TargetKind::CronJob => "CronJob",
            TargetKind::Node => "Node",
        }
    }

    /// Its resource in the API.
    pub(crate) fn resource(self) -> ApiResource {
        match self {
            TargetKind::Workload(kind) => kind.resource(),
            TargetKind::Pod => ApiResource::erase::<Pod>(&()),
            TargetKind::Job => ApiResource::erase::<Job>(&()),
            TargetKind::CronJob => ApiResource::erase::<CronJob>(&()),
            TargetKind::Node => ApiResource::erase::<Node>(&()),
        }
    }

    /// Permission to read it.
    pub(crate) fn rule(self) -> PolicyRule {
        const fn get(
            api_groups: &'static [&'static str],
            resources: &'static [&'static str],
        ) -> PolicyRule {
            PolicyRule { api_groups, resources, verbs: &["get"] }
        }
        match self {
            TargetKind::Workload(WorkloadKind::Deployment) => get(&["apps"], &["deployments"]),
            TargetKind::Workload(WorkloadKind::StatefulSet) => get(&["apps"], &["statefulsets"]),
            TargetKind::Workload(WorkloadKind::DaemonSet) => get(&["apps"], &["daemonsets"]),
            TargetKind::Workload(WorkloadKind::ReplicaSet) => get(&["apps"], &["replicasets"]),
            TargetKind::Pod => get(&[""], &["pods"]),
            TargetKind::Job => get(&["batch"], &["jobs"]),
            TargetKind::CronJob => get(&["batch"], &["cronjobs"]),
            TargetKind::Node => get(&[""], &["nodes"]),
        }
    }

    fn named(text: &str) -> Option<Self> {
        let text = text.split('.').next().unwrap_or_default().to_ascii_lowercase();
        KINDS.iter().find(|(_, names)| names.contains(&text.as_str())).map(|(kind, _)| *kind)
    }
}

/// An object to diagnose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub kind: TargetKind,
    /// None for a node.
    pub namespace: Option<Namespace>,
    pub name: ObjectName,
}

impl Target {
    /// Reads `deployment/web`. A namespace that is not given is `default`.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`](crate::contract::error::Code::InvalidRequest) naming the field.
    pub(crate) fn read(text: &str, namespace: Option<Namespace>) -> Result<Self, ActionError> {
        let wrong = |what: String| {
            ActionError::invalid_field("target", what).with_hint("write it as deployment/web")
        };
        if text.is_empty() || text.len() > MAX_LENGTH {
            return Err(wrong(format!("must have 1 to {MAX_LENGTH} characters")));
        }
        let (kind, name) =
            text.split_once('/').ok_or_else(|| wrong("must have a kind and a name".to_owned()))?;
        let kind = TargetKind::named(kind).ok_or_else(|| {
            let known: Vec<_> = KINDS.iter().map(|(_, names)| names[0]).collect();
            wrong(format!("its kind must be one of {}", known.join(", ")))
        })?;
        let name = ObjectName::try_from(name.to_owned()).map_err(wrong)?;
        if kind == TargetKind::Node {
            return match namespace {
                None => Ok(Target { kind, namespace: None, name }),
                Some(_) => {
                    Err(ActionError::invalid_field("namespace", "a node is in no namespace"))
                }
            };
        }
        Ok(Target { kind, namespace: Some(namespace.unwrap_or_default()), name })
    }

    /// Its namespace; empty for a node.
    pub(crate) fn namespace(&self) -> &str {
        self.namespace.as_deref().unwrap_or_default()
    }

    /// Its name, if it is a node.
    pub(crate) fn node(&self) -> Option<&str> {
        (self.kind == TargetKind::Node).then_some(&*self.name)
    }

    /// The object as a report names it, before it is read.
    pub(crate) fn object(&self) -> response::Target {
        let resource = self.kind.resource();
        let (kind, namespace) = (self.kind.name(), self.namespace());
        response::Target::named(&resource.api_version, kind, namespace, &self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, namespace: Option<&str>) -> Result<Target, String> {
        let namespace = namespace.map(|it| Namespace::try_from(it.to_owned()).expect("is one"));
        Target::read(text, namespace).map_err(|error| error.field.unwrap_or_default())
    }

    #[test]
    fn a_target_is_named_as_for_kubectl() {
        for (text, kind) in [
            ("deployment/web", "Deployment"),
            ("Deploy/web", "Deployment"),
            ("deployments.apps/web", "Deployment"),
            ("sts/web", "StatefulSet"),
            ("ds/web", "DaemonSet"),
            ("rs/web", "ReplicaSet"),
            ("po/web", "Pod"),
            ("job/web", "Job"),
            ("cj/web", "CronJob"),
        ] {
            let target = read(text, Some("shop")).expect(text);
            assert_eq!((target.kind.name(), target.namespace()), (kind, "shop"), "{text}");
        }
        assert_eq!(read("pod/web", None).expect("is one").namespace(), "default");
        let node = read("node/n1.example.com", None).expect("is one");
        assert_eq!((node.namespace(), node.node()), ("", Some("n1.example.com")));
        assert_eq!(node.object().to_string(), "Node n1.example.com");
    }

    #[test]
    fn another_target_is_refused_by_its_field() {
        let long = format!("pod/{}", "x".repeat(400));
        for text in ["", "web", "secret/web", "pod/", "pod/Web", "pod/a/b", "/web", &long] {
            assert_eq!(read(text, None), Err("target".to_owned()), "{text}");
        }
        assert_eq!(read("node/n1", Some("shop")), Err("namespace".to_owned()));
    }
}
