//! A request in environment variables, as in a Kubernetes Job.
//!
//! `ACTION_REQUEST` has the complete request as JSON. Otherwise each field has a variable: `ACTION_TYPE`,
//! `ACTION_SIMULATE` and so on, and `ACTION_PARAM_<NAME>` for each parameter. Both become JSON and go through the
//! parser of every other request. `ACTION_ID` may be set with a request from any source, so that the creator of a
//! Job can set its id. Any other variable that starts with `ACTION_` is an error: a misspelt `ACTION_SIMULATE`
//! must not be ignored.

use std::{collections::BTreeMap, ffi::OsString};

use schemars::SchemaGenerator;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::{
    actions::{ActionKind, request::IdempotencyKey},
    config::text_only,
    contract::error::{ActionError, Code},
};

const PREFIX: &str = "ACTION_";
const PARAMETER_PREFIX: &str = "ACTION_PARAM_";
const ID: &str = "ACTION_ID";

/// The prefix of settings, and of what Kubernetes sets for a Service named `action-executor`.
const SERVICE_PREFIX: &str = "ACTION_EXECUTOR_";

/// The fields of a request, one variable each, without the prefix.
#[derive(Deserialize)]
struct Variables {
    request: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
    simulate: Option<String>,
    requester: Option<String>,
    reason: Option<String>,
    issued_at: Option<String>,
    wait: Option<String>,
    timeout_seconds: Option<String>,
    observe_seconds: Option<String>,
    cluster: Option<String>,
    precondition_uid: Option<String>,
    precondition_resource_version: Option<String>,
}

/// Every variable of a request.
const NAMES: [&str; 13] = [
    "ACTION_REQUEST",
    "ACTION_TYPE",
    "ACTION_SIMULATE",
    ID,
    "ACTION_REQUESTER",
    "ACTION_REASON",
    "ACTION_ISSUED_AT",
    "ACTION_WAIT",
    "ACTION_TIMEOUT_SECONDS",
    "ACTION_OBSERVE_SECONDS",
    "ACTION_CLUSTER",
    "ACTION_PRECONDITION_UID",
    "ACTION_PRECONDITION_RESOURCE_VERSION",
];

/// The request in the environment.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct EnvRequest {
    /// The request as JSON, if there is one.
    pub body: Option<Vec<u8>>,
    /// The id of this request, or of the request from another source.
    pub key: Option<IdempotencyKey>,
}

/// The request in these variables.
///
/// # Errors
/// [`Code::Usage`] if `ACTION_REQUEST` is set with others than `ACTION_ID`,
/// [`Code::InvalidRequest`] for an unknown variable or a wrong id.
pub(crate) fn request(
    vars: impl Iterator<Item = (OsString, OsString)>,
) -> Result<EnvRequest, ActionError> {
    let vars: BTreeMap<String, String> = text_only(vars)
        .filter(|(name, _)| name.starts_with(PREFIX) && !name.starts_with(SERVICE_PREFIX))
        .collect();
    refuse_unknown(&vars)?;
    let key = vars.get(ID).map(|id| IdempotencyKey::new(id, ID)).transpose()?;
    if vars.keys().all(|name| name == ID) {
        return Ok(EnvRequest { body: None, key });
    }
    let fields: Variables = envy::prefixed(PREFIX)
        .from_iter(vars.clone())
        .map_err(|_| ActionError::new(Code::Internal, "the environment cannot be read"))?;
    if let Some(request) = fields.request {
        if vars.len() > 1 + usize::from(key.is_some()) {
            return Err(ActionError::new(
                Code::Usage,
                "ACTION_REQUEST is set, and so are other ACTION_ variables of a request",
            )
            .with_hint("set ACTION_REQUEST or the others, not both"));
        }
        return Ok(EnvRequest { body: Some(request.into_bytes()), key });
    }
    let parameters = parameters(fields.kind.as_deref(), &vars);
    let body = to_json(fields, parameters).to_string().into_bytes();
    Ok(EnvRequest { body: Some(body), key })
}

fn refuse_unknown(vars: &BTreeMap<String, String>) -> Result<(), ActionError> {
    let known = |name: &str| NAMES.contains(&name) || name.starts_with(PARAMETER_PREFIX);
    match vars.keys().find(|name| !known(name)) {
        None => Ok(()),
        Some(name) => Err(ActionError::invalid_field(name, "unknown environment variable")
            .with_hint(format!(
                "known: {}, and {PARAMETER_PREFIX}<NAME> for each parameter",
                NAMES.join(", ")
            ))),
    }
}

fn to_json(fields: Variables, parameters: Map<String, Value>) -> Value {
    let mut request = Map::new();
    let mut put = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            request.insert(name.to_owned(), value);
        }
    };
    put("type", fields.kind.map(Value::from));
    put("parameters", Some(parameters.into()));
    put("simulate", fields.simulate.map(|text| typed_value(text, "boolean")));
    put("requester", fields.requester.map(Value::from));
    put("reason", fields.reason.map(Value::from));
    put("issued_at", fields.issued_at.map(Value::from));
    put("wait", fields.wait.map(|text| typed_value(text, "boolean")));
    put("timeout_seconds", fields.timeout_seconds.map(|text| typed_value(text, "integer")));
    put("observe_seconds", fields.observe_seconds.map(|text| typed_value(text, "integer")));
    put("cluster", fields.cluster.map(Value::from));
    let precondition: Map<_, _> = [
        ("uid", fields.precondition_uid),
        ("resource_version", fields.precondition_resource_version),
    ]
    .into_iter()
    .filter_map(|(name, value)| Some((name.to_owned(), Value::from(value?))))
    .collect();
    put("precondition", (!precondition.is_empty()).then(|| json!(precondition)));
    request.into()
}

/// Each `ACTION_PARAM_<NAME>`, in the type of that parameter in the action's schema.
fn parameters(kind: Option<&str>, vars: &BTreeMap<String, String>) -> Map<String, Value> {
    let schema = kind
        .and_then(|kind| ActionKind::named(kind).ok())
        .map(|kind| kind.parameters_schema(&mut SchemaGenerator::default()).to_value());
    let type_of = |name: &str| {
        let kind = schema.as_ref()?.pointer(&format!("/properties/{name}/type"))?;
        // The type of an optional parameter is a list: the type and "null".
        kind.as_str().or_else(|| kind.get(0)?.as_str()).map(str::to_owned)
    };
    vars.iter()
        .filter_map(|(name, value)| Some((name.strip_prefix(PARAMETER_PREFIX)?, value)))
        .map(|(name, value)| {
            let name = name.to_lowercase();
            let kind = type_of(&name).unwrap_or_default();
            (name, typed_value(value.clone(), &kind))
        })
        .collect()
}

/// The JSON value in `text` if it has this type; else the text itself, which the parser refuses with the field's
/// path.
fn typed_value(text: String, kind: &str) -> Value {
    match (kind, serde_json::from_str(&text)) {
        ("boolean", Ok(value @ Value::Bool(_))) => value,
        ("integer" | "number", Ok(value @ Value::Number(_))) => value,
        ("array", Ok(value @ Value::Array(_))) => value,
        ("object", Ok(value @ Value::Object(_))) => value,
        _ => Value::from(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actions::request::ActionRequest;

    fn read(vars: &[(&str, &str)]) -> Result<Option<ActionRequest>, ActionError> {
        let found = request(vars.iter().map(|(name, value)| (name.into(), value.into())))?;
        let read =
            |body: Vec<u8>| ActionRequest::parse(&body)?.with_idempotency_key(found.key.as_ref());
        found.body.map(read).transpose()
    }

    const WEB: [(&str, &str); 2] =
        [("ACTION_TYPE", "restart_k8s"), ("ACTION_PARAM_DEPLOYMENT", "web")];

    fn with(more: &[(&str, &str)]) -> Result<ActionRequest, ActionError> {
        read(&[&WEB, more].concat()).map(|request| request.expect("there is one"))
    }

    #[test]
    fn an_environment_without_action_variables_has_no_request() {
        assert_eq!(read(&[("PATH", "/bin"), ("ACTIONS_RUNNER", "x")]), Ok(None));
    }

    #[test]
    fn the_variables_of_a_service_named_action_executor_are_ignored() {
        assert_eq!(read(&[("ACTION_EXECUTOR_SERVICE_HOST", "10.0.0.7")]), Ok(None));
    }

    #[test]
    fn a_parameter_that_is_a_list_is_json() {
        let images = r#"[{"container": "main", "image": "registry.example.com/web:2"}]"#;
        let request = read(&[
            ("ACTION_TYPE", "set_image"),
            ("ACTION_PARAM_NAME", "web"),
            ("ACTION_PARAM_IMAGES", images),
        ]);
        let request = request.expect("is read").expect("there is one");
        assert_eq!(request.action.kind(), ActionKind::SetImage);
        let wrong = read(&[
            ("ACTION_TYPE", "set_image"),
            ("ACTION_PARAM_NAME", "web"),
            ("ACTION_PARAM_IMAGES", "main=web:2"),
        ]);
        let error = wrong.expect_err("is refused");
        assert!(error.to_string().contains("parameters.images"), "{error}");
    }

    #[test]
    fn a_request_is_a_simulation_by_default() {
        assert!(with(&[]).expect("is accepted").simulate);
        assert!(!with(&[("ACTION_SIMULATE", "false")]).expect("is accepted").simulate);
    }

    #[test]
    fn a_non_boolean_simulate_is_refused() {
        for wrong in ["no", "0", "False", "none"] {
            let error = with(&[("ACTION_SIMULATE", wrong)]).expect_err("is refused");
            assert!(error.detail.starts_with("simulate: expected a boolean"), "{}", error.detail);
        }
    }

    #[test]
    fn every_field_has_a_variable() {
        let request = with(&[
            ("ACTION_PARAM_NAMESPACE", "shop"),
            ("ACTION_ID", "7"),
            ("ACTION_REQUESTER", "pager"),
            ("ACTION_REASON", "p99"),
            ("ACTION_ISSUED_AT", "2026-01-31T12:00:00Z"),
            ("ACTION_WAIT", "true"),
            ("ACTION_TIMEOUT_SECONDS", "60"),
            ("ACTION_PRECONDITION_UID", "u"),
            ("ACTION_PRECONDITION_RESOURCE_VERSION", "42"),
        ])
        .expect("is accepted");
        let whole = ActionRequest::parse(
            br#"{"type":"restart_k8s","parameters":{"deployment":"web","namespace":"shop"},
            "id":"7","requester":"pager","reason":"p99","issued_at":"2026-01-31T12:00:00Z",
            "wait":true,"timeout_seconds":60,"precondition":{"uid":"u","resource_version":"42"}}"#,
        );
        assert_eq!(Ok(request), whole);
    }

    #[test]
    fn a_misspelt_variable_is_refused() {
        let error = with(&[("ACTION_SIMULATED", "false")]).expect_err("is refused");
        assert_eq!(error.detail, "ACTION_SIMULATED: unknown environment variable");
    }

    #[test]
    fn action_request_excludes_other_variables() {
        let whole = r#"{"type":"restart_k8s","parameters":{"deployment":"web"}}"#;
        assert_eq!(read(&[("ACTION_REQUEST", whole)]), read(&WEB));
        let error = with(&[("ACTION_REQUEST", whole)]).expect_err("is refused");
        assert_eq!(error.code, Code::Usage);
    }

    #[test]
    fn action_id_sets_the_id_of_any_request() {
        let whole = r#"{"type":"restart_k8s","parameters":{"deployment":"web"}}"#;
        let request = read(&[("ACTION_REQUEST", whole), ("ACTION_ID", "job-7")]);
        let request = request.expect("is accepted").expect("there is one");
        assert_eq!(request.id.as_deref(), Some("job-7"));
        assert_eq!(read(&[("ACTION_ID", "job-7")]), Ok(None));
        let other = whole.replace("}}", r#"},"id":"job-8"}"#);
        let error = read(&[("ACTION_REQUEST", &other), ("ACTION_ID", "job-7")]);
        assert_eq!(error.expect_err("is refused").detail, "id: differs from ACTION_ID");
        assert!(read(&[("ACTION_ID", "not an id")]).is_err());
    }

    #[test]
    fn a_missing_type_is_refused_as_in_json() {
        let error = read(&[("ACTION_PARAM_DEPLOYMENT", "web")]).expect_err("is refused");
        assert_eq!(error.detail, "type: missing");
    }
}
