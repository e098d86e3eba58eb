//! Events that are not HTTP: recognised by their shape, and split into requests.
//!
//! Each request stays the text that it was sent as, so that it is read as strictly as everywhere else.

use serde::Deserialize;
use serde_json::value::RawValue;

/// An invocation.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The request itself, or the one in the `detail` of an event of EventBridge.
    Single(Message),
    /// A batch from a queue.
    Sqs(Vec<Message>),
    /// Notifications of a topic.
    Sns(Vec<Message>),
}

/// A request in an event.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Message {
    /// The id that its source gave it: the same when it is delivered again.
    pub id: Option<String>,
    /// The request in JSON.
    pub body: Vec<u8>,
}

/// The fields by which events are recognised; all others are ignored.
#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow, rename = "detail-type")]
    detail_type: Option<&'a RawValue>,
    id: Option<String>,
    #[serde(borrow)]
    detail: Option<&'a RawValue>,
    #[serde(rename = "Records")]
    records: Option<Vec<LambdaRecord>>,
}

#[derive(Deserialize)]
struct LambdaRecord {
    #[serde(rename = "messageId")]
    message_id: Option<String>,
    body: Option<String>,
    #[serde(rename = "Sns")]
    sns: Option<SnsNotification>,
}

#[derive(Deserialize)]
struct SnsNotification {
    #[serde(rename = "MessageId")]
    message_id: String,
    #[serde(rename = "Message")]
    message: String,
}

/// Recognises an invocation. What is not a known event is a request, for its parser to judge.
pub(crate) fn read(text: &[u8]) -> Event {
    let whole = || Event::Single(Message { id: None, body: text.to_vec() });
    let Ok(envelope) = serde_json::from_slice::<Envelope>(text) else { return whole() };
    if let (Some(_), Some(detail)) = (envelope.detail_type, envelope.detail) {
        let body = detail.get().as_bytes().to_vec();
        return Event::Single(Message { id: envelope.id, body });
    }
    let Some(records) = envelope.records.filter(|records| !records.is_empty()) else {
        return whole();
    };
    if records.iter().all(|record| record.sns.is_some()) {
        let notifications = records.into_iter().filter_map(|record| record.sns);
        return Event::Sns(
            notifications
                .map(|it| Message { id: Some(it.message_id), body: it.message.into_bytes() })
                .collect(),
        );
    }
    if records.iter().all(|record| record.message_id.is_some() && record.body.is_some()) {
        let messages = records.into_iter().map(|record| Message {
            id: record.message_id,
            body: record.body.unwrap_or_default().into_bytes(),
        });
        return Event::Sqs(messages.collect());
    }
    whole()
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUEST: &str = r#"{"type":"restart_k8s","parameters":{"deployment":"web"}}"#;

    fn message(id: Option<&str>) -> Message {
        Message { id: id.map(str::to_owned), body: REQUEST.as_bytes().to_vec() }
    }

    #[test]
    fn a_request_is_itself() {
        assert_eq!(read(REQUEST.as_bytes()), Event::Single(message(None)));
        for odd in ["", "[]", "7", "{}", r#"{"Records":[]}"#, r#"{"detail":{}}"#] {
            assert!(matches!(read(odd.as_bytes()), Event::Single(_)), "{odd}");
        }
    }

    #[test]
    fn an_event_of_eventbridge_carries_it_in_its_detail() {
        let event = format!(
            r#"{{"version":"0","id":"17793124-05d4","detail-type":"action","source":"pager",
                "account":"1","time":"2026-01-01T00:00:00Z","region":"eu-west-1","resources":[],
                "detail":{REQUEST}}}"#
        );
        assert_eq!(read(event.as_bytes()), Event::Single(message(Some("17793124-05d4"))));
    }

    #[test]
    fn records_of_a_queue_and_of_a_topic_carry_it_as_text() {
        let text = serde_json::to_string(REQUEST).expect("is JSON");
        let queue = format!(
            r#"{{"Records":[{{"messageId":"m-1","body":{text},"eventSource":"aws:sqs"}}]}}"#
        );
        assert_eq!(read(queue.as_bytes()), Event::Sqs(vec![message(Some("m-1"))]));
        let topic = format!(
            r#"{{"Records":[{{"EventSource":"aws:sns","Sns":{{"MessageId":"n-1","Message":{text}}}}}]}}"#
        );
        assert_eq!(read(topic.as_bytes()), Event::Sns(vec![message(Some("n-1"))]));
    }
}
