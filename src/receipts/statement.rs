//! What a receipt says: an in-toto Statement v1 (<https://github.com/in-toto/attestation>) about the object of an action. Pure.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    actions::request::ActionRequest,
    contract::{
        digest::sha256,
        error::ActionError,
        image::ImageReference,
        json::strict_object,
        response::{ActionResponse, Target, TargetOutcome, rfc3339_millis},
    },
    k8s::mask::masked,
    ledger::record::{RequestMetadata, is_final},
};

const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";

/// The type of the predicate. A change that a reader has to know of gets another version.
const PREDICATE_TYPE: &str = "https://action-executor.dev/receipt/v1";

/// The outcome of an action of which it is not known whether its effect was made.
pub(crate) const UNKNOWN: &str = "unknown";

/// What replaces a parameter that may be a secret.
const MASKED: &str = "[masked]";

/// A Statement.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Statement {
    #[serde(rename = "_type")]
    kind: String,
    subject: Vec<Subject>,
    #[serde(rename = "predicateType")]
    predicate_type: String,
    pub predicate: Predicate,
}

/// The object of the action, as a ResourceDescriptor.
///
/// in-toto takes a subject for immutable and compares subjects by their digests alone. An object of Kubernetes changes,
/// but its uid does not, and no other object ever has it: its digest names this object and no later one of the same
/// name. A target without a uid (one that was not read, or the namespace of several targets) has the digest of its
/// name.
#[derive(Debug, Serialize, Deserialize)]
struct Subject {
    name: String,
    digest: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
}

/// What became of the action.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Predicate {
    pub request_id: String,
    request_digest: BTreeMap<String, String>,
    pub action: String,
    parameters: Value,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requester: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    client: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approved_by: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    impersonated_users: Vec<String>,
    pub outcome: String,
    /// Whether the outcome stays. One that is not known, or whose wait was interrupted, may get another receipt.
    #[serde(rename = "final")]
    is_final: bool,
    /// Whether an attempt that did not make the effect itself signed it, by the record in the cluster.
    pub resumed: bool,
    result: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    targets: Vec<Part>,
    started_at: String,
    pub finished_at: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    executor_version: String,
}

/// One of several targets, which has a receipt of its own under its id.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Part {
    request_id: String,
    name: String,
    outcome: TargetOutcome,
}

/// Where an action comes from.
#[derive(Clone, Copy)]
pub(crate) struct RequestOrigin<'a> {
    pub request: &'a ActionRequest,
    pub metadata: &'a RequestMetadata,
    /// The person who approved it, as the approval names them.
    pub approved_by: Option<&'a str>,
    /// The users in whose names attempts at it called the cluster.
    pub impersonated_users: &'a [String],
}

impl Statement {
    /// The action has this answer.
    pub(crate) fn answered(origin: RequestOrigin<'_>, response: &ActionResponse) -> Self {
        let parts = response.targets.iter().map(|it| Part {
            request_id: it.id.clone(),
            name: it.target.path(),
            outcome: it.outcome,
        });
        Statement::new(origin, &response.target, |bare| Predicate {
            outcome: response.outcome.name().to_owned(),
            is_final: is_final(response),
            resumed: response.replayed,
            result: response.result.clone(),
            targets: parts.collect(),
            started_at: rfc3339_millis(response.started_at),
            finished_at: rfc3339_millis(response.finished_at),
            ..bare
        })
    }

    /// It is not known whether the effect of the action was made.
    pub(crate) fn unknown(
        origin: RequestOrigin<'_>,
        error: &ActionError,
        [started_at, finished_at]: [DateTime<Utc>; 2],
    ) -> Self {
        let target = &origin.metadata.target;
        let uid = error.refused_uid().map(str::to_owned);
        let target = Target { uid: uid.or_else(|| target.uid.clone()), ..target.clone() };
        Statement::new(origin, &target, |bare| Predicate {
            result: error.detail.clone(),
            started_at: rfc3339_millis(started_at),
            finished_at: rfc3339_millis(finished_at),
            ..bare
        })
    }

    fn new(
        RequestOrigin { request, metadata, approved_by, impersonated_users }: RequestOrigin<'_>,
        target: &Target,
        complete: impl FnOnce(Predicate) -> Predicate,
    ) -> Self {
        let predicate = Predicate {
            request_id: metadata.id.to_string(),
            request_digest: sha256_set(metadata.digest.clone()),
            action: metadata.action.to_owned(),
            // Plain data always serializes.
            parameters: without_secrets(
                serde_json::to_value(&request.action).unwrap_or_default(),
                &request.action.plannable().images(),
            ),
            requester: metadata.requester.clone(),
            reason: metadata.reason.clone(),
            client: metadata.client.clone(),
            approved_by: approved_by.map(str::to_owned),
            impersonated_users: impersonated_users.to_vec(),
            outcome: UNKNOWN.to_owned(),
            is_final: false,
            resumed: false,
            result: String::new(),
            targets: Vec::new(),
            started_at: String::new(),
            finished_at: String::new(),
            cluster: metadata.cluster.clone(),
            executor_version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        Statement {
            kind: STATEMENT_TYPE.to_owned(),
            subject: vec![Subject::of(target)],
            predicate_type: PREDICATE_TYPE.to_owned(),
            predicate: complete(predicate),
        }
    }

    /// Reads the payload of a receipt. Fields that this version does not know are ignored, as in-toto demands.
    ///
    /// # Errors
    /// Why it is no receipt, in a sentence without its end.
    pub(crate) fn read(payload: &[u8]) -> Result<Self, String> {
        let mut json = serde_json::Deserializer::from_slice(payload);
        let statement: Statement = strict_object(&mut json)
            .and_then(|statement| json.end().map(|()| statement))
            .map_err(|error| format!("the payload is not a receipt: {error}"))?;
        if statement.kind != STATEMENT_TYPE {
            return Err(format!("the payload's _type is not {STATEMENT_TYPE}"));
        }
        if statement.predicate_type != PREDICATE_TYPE {
            return Err(format!("the payload's predicateType is not {PREDICATE_TYPE}"));
        }
        match statement.subject.len() {
            1 => Ok(statement),
            number => Err(format!("the payload has {number} subjects and not one")),
        }
    }

    /// The name of the object.
    pub(crate) fn subject(&self) -> &str {
        self.subject.first().map_or("", |subject| &subject.name)
    }
}

impl Subject {
    fn of(target: &Target) -> Self {
        let name = target.path();
        let known = [("uid", &target.uid), ("resourceVersion", &target.resource_version)];
        let known = known.into_iter().filter_map(|(name, value)| Some((name, value.clone()?)));
        Subject {
            digest: sha256_set(sha256(target.uid.as_ref().unwrap_or(&name).as_bytes())),
            annotations: known.map(|(name, value)| (name.to_owned(), value)).collect(),
            name,
        }
    }
}

fn sha256_set(digest: String) -> BTreeMap<String, String> {
    BTreeMap::from([("sha256".to_owned(), digest)])
}

/// The parameters with each text masked that looks like a secret, by itself or by its name. The images stay as they
/// are: a tag after a repository such as `token-service` looks like the value of a secret.
fn without_secrets(mut parameters: Value, images: &[&ImageReference]) -> Value {
    mask_within("", &mut parameters, images);
    parameters
}

fn mask_within(name: &str, value: &mut Value, images: &[&ImageReference]) {
    match value {
        Value::String(text) if images.iter().any(|image| ***image == **text) => {}
        Value::String(text) => {
            let whole = format!("{name}: {text}");
            let line = masked(&whole);
            if line != whole {
                let rest = line.strip_prefix(&format!("{name}: "));
                *text = rest.unwrap_or(MASKED).to_owned();
            }
        }
        Value::Array(all) => all.iter_mut().for_each(|value| mask_within(name, value, images)),
        Value::Object(fields) => {
            fields.iter_mut().for_each(|(name, value)| mask_within(name, value, images));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::contract::{error::Code, names::RequestId, response::Outcome};

    fn request() -> (ActionRequest, RequestMetadata) {
        let text = r#"{"type":"restart_k8s","parameters":{"deployment":"web"},"simulate":false,
            "requester":"pager","reason":"p99 is 4 s"}"#;
        let request = ActionRequest::parse(text.as_bytes()).expect("is a request");
        let id = RequestId::try_from("alert-7".to_owned()).expect("is an id");
        let metadata = RequestMetadata::of(&request, &id);
        (request, metadata)
    }

    /// An origin without an approval and without users.
    fn bare<'a>(request: &'a ActionRequest, metadata: &'a RequestMetadata) -> RequestOrigin<'a> {
        RequestOrigin { request, metadata, approved_by: None, impersonated_users: &[] }
    }

    #[test]
    fn a_receipt_says_who_did_what_to_which_object_and_how_it_ended() {
        let (request, metadata) = request();
        let origin = RequestOrigin {
            request: &request,
            metadata: &metadata,
            approved_by: Some("bob"),
            impersonated_users: &["jo@example.com".to_owned()],
        };
        let response = ActionResponse::example(Outcome::Applied);
        let said = serde_json::to_value(Statement::answered(origin, &response)).expect("is JSON");
        assert_eq!(said["_type"], STATEMENT_TYPE);
        assert_eq!(said["predicateType"], PREDICATE_TYPE);
        let subject = &said["subject"][0];
        assert_eq!(subject["name"], "apps/v1/Deployment/default/web");
        assert_eq!(subject["digest"]["sha256"], sha256(b"u1"));
        assert_eq!(subject["annotations"]["uid"], "u1");
        let predicate = &said["predicate"];
        for (name, value) in [
            ("requestId", json!("alert-7")),
            ("requestDigest", json!({"sha256": metadata.digest})),
            ("action", json!("restart_k8s")),
            ("requester", json!("pager")),
            ("reason", json!("p99 is 4 s")),
            ("approvedBy", json!("bob")),
            ("impersonatedUsers", json!(["jo@example.com"])),
            ("outcome", json!("applied")),
            ("final", json!(true)),
            ("resumed", json!(false)),
            ("startedAt", json!("2026-01-31T12:00:00.987Z")),
            ("executorVersion", json!(env!("CARGO_PKG_VERSION"))),
        ] {
            assert_eq!(predicate[name], value, "{name} in {said}");
        }
        assert_eq!(predicate["parameters"]["deployment"], "web");
        let read = Statement::read(said.to_string().as_bytes()).expect("is one");
        assert_eq!(read.subject(), "apps/v1/Deployment/default/web");
    }

    #[test]
    fn an_outcome_that_is_not_known_is_not_final() {
        let (request, metadata) = request();
        let origin = bare(&request, &metadata);
        let error = ActionError::new(Code::OutcomeUnknown, "the answer was lost");
        let at = "2026-01-31T12:00:00Z".parse().expect("is a time");
        let said = serde_json::to_value(Statement::unknown(origin, &error, [at, at]));
        let predicate = &said.expect("is JSON")["predicate"];
        assert_eq!(
            (&predicate["outcome"], &predicate["final"]),
            (&json!("unknown"), &json!(false))
        );
        assert_eq!(predicate["result"], "the answer was lost");
    }

    #[test]
    fn an_object_without_a_uid_has_the_digest_of_its_name() {
        let subject = Subject::of(&Target::named("v1", "Node", "", "n1"));
        assert_eq!(subject.name, "v1/Node/n1");
        assert_eq!(subject.digest["sha256"], sha256(b"v1/Node/n1"));
        assert!(subject.annotations.is_empty());
    }

    #[test]
    fn parameters_that_look_like_secrets_are_masked() {
        let parameters = json!({
            "name": "web",
            "set": {"db-password": "hunter2", "note": "Bearer 0123abcd"},
            "containers": [{"image": "registry.example.com/shop/web:1.2"}],
            "replicas": 3,
        });
        let expected = json!({
            "name": "web",
            "set": {"db-password": "[masked]", "note": "Bearer [masked]"},
            "containers": [{"image": "registry.example.com/shop/web:1.2"}],
            "replicas": 3,
        });
        assert_eq!(without_secrets(parameters, &[]), expected);
    }

    #[test]
    fn images_are_not_masked_and_texts_that_look_like_them_are() {
        let of = |request: &str| {
            let request = ActionRequest::parse(request.as_bytes()).expect("is a request");
            let id = RequestId::try_from("alert-7".to_owned()).expect("is an id");
            let metadata = RequestMetadata::of(&request, &id);
            let response = ActionResponse::example(Outcome::Applied);
            let said = Statement::answered(bare(&request, &metadata), &response);
            said.predicate.parameters
        };
        let images = json!([
            {"container": "web", "image": "registry/token-service:1.2"},
            {"container": "proxy", "image": "registry.example.com:5000/secret-store/api-key:v1"},
        ]);
        let request = json!({"type": "set_image", "parameters": {"name": "web", "images": images}});
        assert_eq!(of(&request.to_string())["images"], images);
        // A text in the form of an image, where no image is expected.
        let request = r#"{"type":"annotate","parameters":{"kind":"Deployment","name":"web",
            "set":{"image":"registry/token-service:1.2","note":"password:hunter2"}}}"#;
        let masked =
            json!({"image": "registry/token-service:[masked]", "note": "password:[masked]"});
        assert_eq!(of(request)["set"], masked);
    }

    #[test]
    fn a_payload_of_another_type_is_no_receipt() {
        let (request, metadata) = request();
        let origin = bare(&request, &metadata);
        let response = ActionResponse::example(Outcome::Applied);
        let said = serde_json::to_value(Statement::answered(origin, &response)).expect("is JSON");
        for (name, value) in [
            ("_type", json!("https://in-toto.io/Statement/v0.1")),
            ("predicateType", json!("https://slsa.dev/provenance/v1")),
            ("subject", json!([])),
            ("predicate", json!({})),
        ] {
            let mut other = said.clone();
            other[name] = value;
            assert!(Statement::read(other.to_string().as_bytes()).is_err(), "{name}");
        }
        assert!(Statement::read(b"{}").is_err() && Statement::read(b"").is_err());
    }
}
