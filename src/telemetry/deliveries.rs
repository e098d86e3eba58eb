//! Deliveries of notifications: their sender counts them, the metrics expose them.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
};

/// The labels of a delivery.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct DeliveryLabels {
    /// `delivered`, `rejected` by the sink, `failed` after the last attempt, or `dropped` from a full queue.
    pub result: &'static str,
}

/// Numbers of notifications by what became of them.
pub(crate) type Deliveries = Family<DeliveryLabels, Counter>;

/// Counters without deliveries. Each result has one, so that the first increase is seen.
pub(crate) fn no_deliveries() -> Deliveries {
    let deliveries = Deliveries::default();
    for result in ["delivered", "rejected", "failed", "dropped"] {
        deliveries.get_or_create(&DeliveryLabels { result }).inc_by(0);
    }
    deliveries
}
