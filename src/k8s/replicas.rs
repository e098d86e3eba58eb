//! How many replicas of a workload are old, new and ready, by its status. Pure.

use std::fmt;

use crate::k8s::workload::Workload;

/// The replicas of a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Replicas {
    /// As many as there should be.
    desired: i32,
    /// Of another template than the newest.
    old: i32,
    /// Of the newest template.
    new: i32,
    /// Ready, of any template.
    ready: i32,
}

impl Replicas {
    /// Of this workload; none if its controller has written no status for its spec yet.
    pub(crate) fn of(workload: &Workload) -> Option<Self> {
        let (generation, observed, replicas) = match workload {
            Workload::Deployment(it) => {
                let status = it.status.clone().unwrap_or_default();
                let desired = it.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
                let new = status.updated_replicas.unwrap_or(0);
                let old = status.replicas.unwrap_or(0) - new;
                let ready = status.ready_replicas.unwrap_or(0);
                let replicas = Replicas { desired, old, new, ready };
                (it.metadata.generation, status.observed_generation, replicas)
            }
            Workload::StatefulSet(it) => {
                let status = it.status.clone().unwrap_or_default();
                let desired = it.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
                let new = status.updated_replicas.unwrap_or(0);
                let ready = status.ready_replicas.unwrap_or(0);
                let replicas = Replicas { desired, old: status.replicas - new, new, ready };
                (it.metadata.generation, status.observed_generation, replicas)
            }
            Workload::DaemonSet(it) => {
                let status = it.status.clone().unwrap_or_default();
                let new = status.updated_number_scheduled.unwrap_or(0);
                let replicas = Replicas {
                    desired: status.desired_number_scheduled,
                    old: status.current_number_scheduled - new,
                    new,
                    ready: status.number_ready,
                };
                (it.metadata.generation, status.observed_generation, replicas)
            }
            Workload::ReplicaSet(it) => {
                let status = it.status.clone().unwrap_or_default();
                let replicas = Replicas {
                    desired: it.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1),
                    old: 0,
                    new: status.replicas,
                    ready: status.ready_replicas.unwrap_or(0),
                };
                (it.metadata.generation, status.observed_generation, replicas)
            }
        };
        // A controller may write its counts one after the other.
        let replicas = Replicas { old: replicas.old.max(0), ..replicas };
        (observed.unwrap_or(0) >= generation.unwrap_or(0)).then_some(replicas)
    }
}

impl fmt::Display for Replicas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Replicas { desired, old, new, ready } = self;
        write!(f, "old {old}   new {new}   ready {ready} of {desired}")
    }
}

#[cfg(test)]
mod tests {
    use serde::de::DeserializeOwned;

    use super::*;

    fn object<K: DeserializeOwned>(kind: &str, spec: &str, status: &str) -> Box<K> {
        let yaml = format!(
            "apiVersion: apps/v1\nkind: {kind}\nmetadata: {{name: web, generation: 2}}\n\
             spec: {{selector: {{}}, template: {{}}, serviceName: web{spec}}}\nstatus: {status}"
        );
        Box::new(serde_yaml_ng::from_str(&yaml).expect("is an object"))
    }

    #[test]
    fn replicas_of_each_kind_are_counted_as_its_controller_counts_them() {
        for (workload, expected) in [
            (
                Workload::Deployment(object(
                    "Deployment",
                    ", replicas: 3",
                    "{observedGeneration: 2, replicas: 4, updatedReplicas: 1, readyReplicas: 3}",
                )),
                "old 3   new 1   ready 3 of 3",
            ),
            (
                Workload::StatefulSet(object(
                    "StatefulSet",
                    ", replicas: 3",
                    "{observedGeneration: 2, replicas: 3, updatedReplicas: 2, readyReplicas: 2}",
                )),
                "old 1   new 2   ready 2 of 3",
            ),
            (
                Workload::DaemonSet(object(
                    "DaemonSet",
                    "",
                    "{observedGeneration: 2, desiredNumberScheduled: 5, currentNumberScheduled: 5, \
                     numberMisscheduled: 0, updatedNumberScheduled: 1, numberReady: 4}",
                )),
                "old 4   new 1   ready 4 of 5",
            ),
            (
                Workload::ReplicaSet(object(
                    "ReplicaSet",
                    ", replicas: 2",
                    "{observedGeneration: 2, replicas: 1}",
                )),
                "old 0   new 1   ready 0 of 2",
            ),
        ] {
            let replicas = Replicas::of(&workload).expect("are counted");
            assert_eq!(replicas.to_string(), expected);
        }
    }

    #[test]
    fn counts_of_an_earlier_spec_are_none() {
        let status = "{observedGeneration: 1, replicas: 3, updatedReplicas: 3, readyReplicas: 3}";
        let deployment = object("Deployment", ", replicas: 3", status);
        assert_eq!(Replicas::of(&Workload::Deployment(deployment)), None);
    }
}
