//! What a notification says: a CloudEvent 1.0 in the JSON event format, with the answer as its data. Pure.

use chrono::{DateTime, Utc};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;

use crate::{
    contract::{
        digest::sha256,
        error::ActionError,
        response::{ActionResponse, Outcome, rfc3339_millis},
    },
    ledger::record::{RequestMetadata, is_final},
    receipts::statement::Statement,
};

/// The source of events; that of a cluster with a name is below it.
const SOURCE: &str = "https://action-executor.dev/executor";

/// The event of a receipt has its envelope as data.
const RECEIPT: &str = "dev.action-executor.receipt.v1";

/// How many digits of the digest an id for the receiver has: 128 bits.
const ID_CHARACTERS: usize = 32;

/// How many digits of the request's digest the id of an event has: 64 bits.
const REQUEST_CHARACTERS: usize = 16;

/// An event, ready to be sent.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    /// The value of `webhook-id`: the same for the same event, another one for any other.
    pub id: String,
    pub body: Vec<u8>,
}

#[derive(Serialize)]
struct CloudEvent<'a, D> {
    specversion: &'a str,
    #[serde(rename = "type")]
    kind: &'a str,
    source: &'a str,
    id: &'a str,
    time: String,
    subject: &'a str,
    datacontenttype: &'a str,
    data: D,
}

impl Event {
    /// The action has this answer, or waits for an approval.
    pub(crate) fn answered(metadata: &RequestMetadata, response: &ActionResponse) -> Self {
        let (kind, suffix) = match (response.outcome, &response.approval) {
            (Outcome::PendingApproval, Some(approval)) => {
                let suffix = format!("pending_approval.{}", approval.digest);
                ("dev.action-executor.approval.pending.v1", suffix)
            }
            _ if !is_final(response) => {
                ("dev.action-executor.action.interrupted.v1", "interrupted".to_owned())
            }
            (outcome, _) => (kind_of(outcome), outcome.name().to_owned()),
        };
        let id = id_of(metadata, &suffix);
        let (subject, time) = (response.target.path(), response.finished_at);
        Event::new(kind, response.cluster.as_deref(), &id, &subject, time, response)
    }

    /// It is not known whether the effect of the action was made.
    pub(crate) fn unknown(metadata: &RequestMetadata, error: &ActionError) -> Self {
        let kind = "dev.action-executor.action.unknown.v1";
        let id = id_of(metadata, "unknown");
        let (cluster, subject) = (metadata.cluster.as_deref(), metadata.target.path());
        let error = error.clone().with_id(&metadata.id);
        Event::new(kind, cluster, &id, &subject, Utc::now(), error)
    }

    /// The receipt of an action: the signed line.
    pub(crate) fn receipt(statement: &Statement, line: &str) -> Self {
        let predicate = &statement.predicate;
        // Two receipts of a request are two events.
        let id = format!("{}.receipt.{}", predicate.request_id, &sha256(line.as_bytes())[..16]);
        let (cluster, subject) = (predicate.cluster.as_deref(), statement.subject());
        let envelope = serde_json::value::RawValue::from_string(line.to_owned()).ok();
        Event::new(RECEIPT, cluster, &id, subject, Utc::now(), envelope)
    }

    fn new(
        kind: &str,
        cluster: Option<&str>,
        id: &str,
        subject: &str,
        time: DateTime<Utc>,
        data: impl Serialize,
    ) -> Self {
        let source = source(cluster);
        let event = CloudEvent {
            specversion: "1.0",
            kind,
            source: &source,
            id,
            time: rfc3339_millis(time),
            subject,
            datacontenttype: "application/json",
            data,
        };
        Event {
            // A request's id may have a dot, which separates what is signed. Source and id together are unique.
            id: format!("msg_{}", &sha256(format!("{source} {id}").as_bytes())[..ID_CHARACTERS]),
            // Plain data always serializes.
            body: serde_json::to_vec(&event).unwrap_or_default(),
        }
    }
}

/// The id of an event about a request. A request's id is unique in its namespace, and while its record lasts: so the
/// namespace and the digest of the payload are in it, too.
fn id_of(metadata: &RequestMetadata, suffix: &str) -> String {
    let digest: String = metadata.digest.chars().take(REQUEST_CHARACTERS).collect();
    format!("{}/{}.{digest}.{suffix}", metadata.namespace(), metadata.id)
}

fn source(cluster: Option<&str>) -> String {
    match cluster {
        Some(name) => format!("{SOURCE}/clusters/{}", utf8_percent_encode(name, NON_ALPHANUMERIC)),
        None => SOURCE.to_owned(),
    }
}

fn kind_of(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Applied => "dev.action-executor.action.applied.v1",
        Outcome::Unchanged => "dev.action-executor.action.unchanged.v1",
        Outcome::Failed => "dev.action-executor.action.failed.v1",
        // Neither is a real action that ended.
        Outcome::Simulated | Outcome::PendingApproval => "dev.action-executor.action.simulated.v1",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::contract::{
        error::Code,
        names::RequestId,
        response::{PendingApproval, Rollout, RolloutState},
    };

    fn read(event: &Event) -> Value {
        serde_json::from_slice(&event.body).expect("is JSON")
    }

    #[test]
    fn an_event_has_the_answer_and_the_attributes_of_cloudevents() {
        let response = ActionResponse {
            cluster: Some("prod (https://api.example.com)".to_owned()),
            ..ActionResponse::example(Outcome::Applied)
        };
        let metadata = RequestMetadata::example();
        let event = Event::answered(&metadata, &response);
        let said = read(&event);
        for (name, value) in [
            ("specversion", "1.0"),
            ("type", "dev.action-executor.action.applied.v1"),
            (
                "source",
                "https://action-executor.dev/executor/clusters/prod%20%28https%3A%2F%2Fapi%2Eexample%2Ecom%29",
            ),
            ("id", &format!("default/alert-7.{}.applied", &metadata.digest[..16])),
            ("time", "2026-01-31T12:00:00.987Z"),
            ("subject", "apps/v1/Deployment/default/web"),
            ("datacontenttype", "application/json"),
        ] {
            assert_eq!(said[name], value, "{name}");
        }
        assert_eq!(said["data"]["result"], "Deployment 'web' restarted.");
        assert!(event.id.len() == 36 && event.id.starts_with("msg_"), "{}", event.id);
    }

    #[test]
    fn an_event_is_known_by_its_request_and_its_end() {
        let metadata = RequestMetadata::example();
        let of = |response: &ActionResponse| Event::answered(&metadata, response);
        let mut elsewhere = metadata.clone();
        elsewhere.target.namespace = "pay".to_owned();
        let other_payload = RequestMetadata { digest: "0".repeat(64), ..metadata.clone() };
        let other_id = RequestId::try_from("alert-8".to_owned()).expect("is an id");
        let other_id = RequestMetadata { id: other_id, ..metadata.clone() };
        let applied = ActionResponse::example(Outcome::Applied);
        let failed = |state| ActionResponse {
            rollout: Some(Rollout { state, message: String::new(), problems: Vec::new() }),
            ..ActionResponse::example(Outcome::Failed)
        };
        let pending = |digest: &str| ActionResponse {
            approval: Some(PendingApproval {
                digest: digest.to_owned(),
                expires_at: String::new(),
                command: "kubectl create".to_owned(),
            }),
            ..ActionResponse::example(Outcome::PendingApproval)
        };
        assert_eq!(of(&applied).id, of(&ActionResponse { replayed: true, ..applied.clone() }).id);
        let all = [
            of(&applied),
            of(&failed(RolloutState::Failed)),
            of(&failed(RolloutState::Interrupted)),
            of(&pending("a")),
            of(&pending("b")),
            Event::answered(&elsewhere, &applied),
            Event::answered(&other_payload, &applied),
            Event::answered(&other_id, &applied),
            of(&ActionResponse { cluster: Some("other".to_owned()), ..applied }),
            Event::unknown(
                &RequestMetadata::example(),
                &ActionError::new(Code::OutcomeUnknown, "the answer was lost"),
            ),
        ];
        for (at, event) in all.iter().enumerate() {
            assert!(all[..at].iter().all(|other| other.id != event.id), "{:?}", read(event));
        }
        assert_eq!(read(&all[2])["type"], "dev.action-executor.action.interrupted.v1");
        assert_eq!(read(&all[3])["type"], "dev.action-executor.approval.pending.v1");
        assert_eq!(read(&all[3])["data"]["approval"]["command"], "kubectl create");
        let unknown = all.last().map(read).expect("is there");
        assert_eq!(unknown["data"]["code"], "outcome_unknown");
        assert_eq!(unknown["data"]["id"], "alert-7");
    }
}
