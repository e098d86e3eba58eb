//! `annotate`: sets and removes annotations of an object, as `kubectl annotate --overwrite` does.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    actions::{
        BoxFuture, ChangedKeys, Descriptor, KeysOf, Plan, PlanInput, Plannable, Preview,
        shared::metadata::{self, Entries, LabelledKind},
    },
    contract::{
        error::ActionError,
        json::unique_map,
        names::{Namespace, ObjectName, QualifiedName, null_is_default},
        response::Target,
    },
    k8s::api::client::Cluster,
};

pub(crate) const DESCRIPTOR: Descriptor = Descriptor {
    name: "annotate",
    aliases: &[],
    description: "Set and remove annotations of a Deployment, StatefulSet, DaemonSet, CronJob, Job or pod; the pod \
                  template stays as it is. Refused for keys that the policy does not list (without a rule: all). \
                  Unchanged if the annotations have these values already.",
    takes_time: false,
    when: "a tool or a person is to find a note or a setting on an object",
    when_not: "objects are to be selected by it: use label",
    destructive: false,
    example: r#"{"name":"web","set":{"example.com/incident":"https://incidents.example.com/4711"}}"#,
    rules: &[metadata::WORKLOADS, metadata::JOBS, metadata::PODS],
    cluster_rules: &[],
    integration: None,
};

/// What `annotate` acts upon, and the desired annotations.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Parameters {
    /// The kind of object.
    #[serde(default, deserialize_with = "null_is_default")]
    #[schemars(with = "Option<LabelledKind>")]
    pub kind: LabelledKind,
    /// The object.
    pub name: ObjectName,
    /// Its namespace.
    #[serde(default, deserialize_with = "null_is_default")]
    #[schemars(with = "Option<Namespace>")]
    pub namespace: Namespace,
    /// The annotations to set: each key with its value. Together with `remove` 1 to 20.
    #[serde(default, deserialize_with = "unique_map", skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 20))]
    pub set: BTreeMap<QualifiedName, String>,
    /// The keys of the annotations to remove.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = 20, "uniqueItems" = true))]
    pub remove: Vec<QualifiedName>,
}

impl Parameters {
    fn entries(&self) -> Entries<'_> {
        let Parameters { kind, name, namespace, set, remove } = self;
        Entries { of: KeysOf::Annotations, kind: *kind, name, namespace, set, remove }
    }
}

impl Plannable for Parameters {
    fn target(&self) -> Target {
        self.entries().target()
    }

    fn namespace(&self) -> &str {
        &self.namespace
    }

    fn check(&self) -> Result<(), ActionError> {
        self.entries().check()
    }

    fn changed_keys(&self) -> Option<ChangedKeys<'_>> {
        Some(self.entries().changed_keys())
    }

    fn preview(&self, input: &PlanInput) -> Preview {
        self.entries().preview(input)
    }

    fn plan<'a>(&'a self, cluster: &'a Cluster, input: &'a PlanInput) -> BoxFuture<'a, Plan> {
        Box::pin(self.entries().plan(cluster, input))
    }
}
