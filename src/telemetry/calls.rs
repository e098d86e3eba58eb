//! Durations of calls to the API server: the cluster's client records them, the metrics expose them.

use std::{fmt, sync::Arc};

use prometheus_client::{
    encoding::{EncodeLabelSet, LabelSetEncoder},
    metrics::{family::Family, histogram::Histogram},
};

/// The labels of a call to the API server.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct CallLabels {
    /// `ok`, or the kind of error.
    pub result: &'static str,
    /// The cluster.
    #[prometheus(flatten)]
    pub cluster: ClusterLabel,
}

/// The label with the name of a cluster, which only series of a list of clusters have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct ClusterLabel(pub Option<Arc<str>>);

impl EncodeLabelSet for ClusterLabel {
    fn encode(&self, encoder: &mut LabelSetEncoder) -> fmt::Result {
        let label = self.0.as_deref().map(|name| ("cluster", name));
        label.into_iter().collect::<Vec<_>>().encode(encoder)
    }
}

/// Durations of calls in seconds; each attempt is a call.
pub(crate) type Calls = Family<CallLabels, Histogram>;

/// Upper bounds in seconds, from a millisecond to ten seconds.
const BUCKETS: [f64; 13] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// A histogram without calls.
pub(crate) fn no_calls() -> Calls {
    Family::new_with_constructor(|| Histogram::new(BUCKETS))
}
