//! What the Warning Events of an object say. Pure.

use chrono::{DateTime, TimeDelta, Utc};
use k8s_openapi::api::core::v1::Event;

use crate::k8s::{FIELD_MANAGER, jobs::printable};

/// The newest Event, without those of this program.
pub(crate) fn newest(events: &[Event]) -> Option<&Event> {
    let others =
        events.iter().filter(|it| it.reporting_component.as_deref() != Some(FIELD_MANAGER));
    others.max_by_key(|event| last_seen(event))
}

/// The Event in a sentence, with its age.
pub(crate) fn sentence(event: &Event, now: DateTime<Utc>) -> String {
    let object = &event.involved_object;
    let (kind, name) = (object.kind.as_deref(), object.name.as_deref());
    let ago = last_seen(event).map(|at| (now - at).max(TimeDelta::zero()).num_seconds());
    format!(
        "Event of {} {}{}: {}: {}",
        kind.unwrap_or("object"),
        name.unwrap_or_default(),
        ago.map(|seconds| format!(" {seconds} s ago")).unwrap_or_default(),
        event.reason.as_deref().unwrap_or("Warning"),
        printable(event.message.as_deref().unwrap_or_default().trim())
    )
}

/// When it happened last: a series of `events.k8s.io` has its own time.
pub(crate) fn last_seen(event: &Event) -> Option<DateTime<Utc>> {
    let series = event.series.as_ref().and_then(|series| series.last_observed_time.as_ref());
    let newest = series.or(event.event_time.as_ref()).map(|time| time.0);
    let newest = newest.or(event.last_timestamp.as_ref().map(|time| time.0));
    let at = newest.or(event.metadata.creation_timestamp.as_ref().map(|time| time.0))?;
    DateTime::from_timestamp(at.as_second(), 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(yaml: &str) -> Event {
        serde_yaml_ng::from_str(&format!("{{metadata: {{}}, {yaml}}}")).expect("is an Event")
    }

    #[test]
    fn the_newest_event_of_others_is_reported_with_its_age() {
        let object = "involvedObject: {kind: ReplicaSet, name: web-5d4f}";
        let ours = "reportingComponent: action-executor, lastTimestamp: '2026-01-31T12:00:59Z'";
        let events = [
            event(&format!("{object}, reason: Old, lastTimestamp: '2026-01-31T12:00:10Z'")),
            event(&format!(
                "{object}, reason: FailedCreate, message: exceeded quota, \
                 lastTimestamp: '2026-01-31T12:00:30Z'"
            )),
            event(&format!("{object}, reason: ActionRefused, {ours}")),
        ];
        let now = "2026-01-31T12:01:00Z".parse().expect("is a time");
        let newest = newest(&events).expect("is there");
        assert_eq!(
            sentence(newest, now),
            "Event of ReplicaSet web-5d4f 30 s ago: FailedCreate: exceeded quota"
        );
    }

    #[test]
    fn a_series_is_as_new_as_its_last_event() {
        let seen = |yaml: &str| last_seen(&event(&format!("involvedObject: {{}}, {yaml}")));
        let times = "eventTime: '2026-01-31T12:00:00.000000Z', series: {count: 3, lastObservedTime: \
                     '2026-01-31T12:00:40.000000Z'}";
        assert_eq!(seen(times), "2026-01-31T12:00:40Z".parse().ok());
        assert_eq!(seen("eventTime: null"), None);
    }
}
