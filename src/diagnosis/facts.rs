//! What was read of a target and of what belongs to it: objects as the API returned them, and why something is missing.

use chrono::{DateTime, Utc};
use k8s_openapi::api::{
    autoscaling::v2::HorizontalPodAutoscaler,
    batch::v1::{CronJob, Job},
    core::v1::{Event, Node, Pod},
    policy::v1::PodDisruptionBudget,
};
use kube::core::ObjectMeta;
use schemars::JsonSchema;
use serde::Serialize;

use crate::{
    contract::{error::ActionError, response::Target},
    diagnosis::parts::Part,
    k8s::workload::Workload,
    ledger::history::HistoryEntry,
};

/// All that a report is made of.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    pub target: Target,
    pub object: Object,
    pub pods: Vec<Pod>,
    /// Whether there are more pods than were read.
    pub more_pods: bool,
    /// The Jobs that a CronJob owns.
    pub jobs: Vec<Job>,
    pub events: Vec<Event>,
    pub autoscalers: Vec<HorizontalPodAutoscaler>,
    pub pdbs: Vec<PodDisruptionBudget>,
    pub log: Option<Log>,
    pub history: Vec<HistoryEntry>,
    pub unread: Vec<Unread>,
    /// The API server's time.
    pub now: DateTime<Utc>,
}

/// The target.
#[derive(Clone, Debug)]
pub(crate) enum Object {
    Workload(Workload),
    Pod(Box<Pod>),
    Job(Box<Job>),
    CronJob(Box<CronJob>),
    Node(Box<Node>),
}

/// The end of a container's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Log {
    pub pod: String,
    pub container: String,
    /// Whether it is that of the container's instance before.
    pub is_previous: bool,
    pub text: String,
}

/// A part of the diagnosis that is missing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(crate) struct Unread {
    /// The part.
    pub part: Part,
    /// Why it could not be read.
    pub why: String,
    /// What would allow it: the rule that is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl Unread {
    pub(crate) fn new(part: Part, error: &ActionError) -> Self {
        let hint = error.hint.as_deref().map(str::to_owned);
        Unread { part, why: error.detail.clone(), hint }
    }
}

impl Object {
    pub(crate) fn metadata(&self) -> &ObjectMeta {
        match self {
            Object::Workload(it) => it.metadata(),
            Object::Pod(it) => &it.metadata,
            Object::Job(it) => &it.metadata,
            Object::CronJob(it) => &it.metadata,
            Object::Node(it) => &it.metadata,
        }
    }
}

impl Facts {
    /// Why this part is missing, if it is.
    pub(crate) fn is_unread(&self, part: Part) -> bool {
        self.unread.iter().any(|unread| unread.part == part)
    }
}
