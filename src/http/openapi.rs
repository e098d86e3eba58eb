//! `GET /openapi.json`: the API as OpenAPI 3.1, from the types that read and write it.
//!
//! The schemas are those of schemars (OpenAPI 3.1 uses JSON Schema 2020-12 as it is), the statuses and codes
//! those of [`Code`]. Each endpoint describes its own operation. The pages for people, and HEAD, which is
//! allowed where GET is, are not described.

use std::collections::BTreeMap;

use schemars::{JsonSchema, SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use crate::{
    contract::error::{ActionError, Code},
    http::endpoints::{
        actions, cloudevents, diagnosis, execute, history, metrics, operation, readiness,
    },
};

/// One method of one path.
pub(crate) struct Operation {
    /// The path.
    pub path: &'static str,
    /// The method.
    pub method: &'static str,
    /// Its name for programs.
    pub id: &'static str,
    /// The group that it belongs to.
    pub tag: Tag,
    /// What it does, in a few words.
    pub summary: &'static str,
    /// What else is to be known, or nothing.
    pub description: String,
    /// Whether it requires authentication, if that is on.
    pub authenticated: bool,
    /// The parameters in its path, query and header.
    pub parameters: Vec<Value>,
    /// The body of its request.
    pub request: Option<Value>,
    /// The responses that are not problem documents.
    pub responses: Vec<(u16, Value)>,
    /// The problems that are the operation's own.
    pub errors: Vec<Code>,
}

/// A group of operations.
#[derive(Clone, Copy)]
pub(crate) enum Tag {
    /// Requests, and what was done.
    Actions,
    /// The descriptions of the API.
    Documents,
    /// The health of the server.
    Operation,
}

/// The problems of any request.
const TRANSPORT_ERRORS: [Code; 8] = [
    Code::InvalidRequest,
    Code::MisdirectedRequest,
    Code::CrossSite,
    Code::PayloadTooLarge,
    Code::HeaderTooLarge,
    Code::RequestTimeout,
    Code::Overloaded,
    Code::Internal,
];

/// The problems of reading from the cluster.
pub(crate) const CLUSTER_ERRORS: [Code; 6] = [
    Code::Forbidden,
    Code::RejectedByCluster,
    Code::CredentialsRefused,
    Code::Configuration,
    Code::ClusterUnreachable,
    Code::ClusterUnavailable,
];

/// The problems of authentication, authorization and a caller's rate.
pub(crate) const AUTH_ERRORS: [Code; 3] =
    [Code::Unauthenticated, Code::CallerForbidden, Code::TooManyRequests];

const DESCRIPTION: &str = "Runs one checked action on a Kubernetes cluster, at most once, for an SRE agent, a \
    person or an alert. It simulates unless a request says `\"simulate\": false`. An error is a problem \
    document (RFC 9457) with a stable `code`.";

/// The document in one line of JSON.
pub(crate) fn text() -> String {
    document().to_string()
}

/// The document.
pub(crate) fn document() -> Value {
    let settings = SchemaSettings::draft2020_12()
        .with(|settings| settings.definitions_path = "/components/schemas".into());
    let generator = &mut settings.into_generator();
    let operations = [
        execute::operation(generator),
        cloudevents::operation(generator),
        cloudevents::validation_operation(),
        history::operation(generator),
        diagnosis::operation(generator),
        operation::operation(generator),
        actions::operation(generator),
        own_operation(),
        readiness::health_operation(),
        readiness::operation(generator),
        metrics::operation(),
    ];
    let mut paths = Map::new();
    for operation in operations {
        let path = paths.entry(operation.path).or_insert_with(|| json!({}));
        let method = operation.method.to_ascii_lowercase();
        path[method] = operation.described(generator);
    }
    json!({
        "openapi": "3.1.1",
        "info": {
            "title": "action-executor",
            "version": env!("CARGO_PKG_VERSION"),
            "summary": "Checked actions on a Kubernetes cluster, each at most once.",
            "description": DESCRIPTION,
            "license": { "name": "MIT", "identifier": "MIT" },
        },
        "servers": [{ "url": "/", "description": "The server of this document." }],
        "tags": [
            { "name": "actions", "description": "Requests, and what was done." },
            { "name": "documents", "description": "The actions and this API, for programs." },
            { "name": "operation", "description": "The health of the server." },
        ],
        "paths": paths,
        "components": {
            "schemas": generator.take_definitions(true),
            "securitySchemes": {
                "bearer": {
                    "type": "http", "scheme": "bearer",
                    "description": "A key from the server's keys file, or a Kubernetes token for the \
                                    server's audience.",
                },
                "mutualTLS": {
                    "type": "mutualTLS",
                    "description": "A client certificate, if the server accepts them.",
                },
            },
        },
    })
}

fn own_operation() -> Operation {
    let content = json!({ "application/json": { "schema": {
        "type": "object", "required": ["openapi", "info", "paths"],
    } } });
    Operation::document("/openapi.json", "getOpenApi", "This document", content)
}

impl Tag {
    fn name(self) -> &'static str {
        match self {
            Tag::Actions => "actions",
            Tag::Documents => "documents",
            Tag::Operation => "operation",
        }
    }
}

impl Operation {
    /// A public GET, of which nothing else is said yet.
    pub(crate) fn get(
        path: &'static str,
        id: &'static str,
        tag: Tag,
        summary: &'static str,
    ) -> Self {
        Operation {
            path,
            method: "GET",
            id,
            tag,
            summary,
            description: String::new(),
            authenticated: false,
            parameters: Vec::new(),
            request: None,
            responses: Vec::new(),
            errors: Vec::new(),
        }
    }

    /// A GET of a document that is the same for every client, which revalidates it by its tag.
    pub(crate) fn document(
        path: &'static str,
        id: &'static str,
        summary: &'static str,
        content: Value,
    ) -> Self {
        let etag = json!({ "ETag": { "schema": { "type": "string" }, "description": "Its tag." } });
        let mut found = response("The document.", content);
        found["headers"] = etag.clone();
        let not_modified = json!({ "description": "The client has it.", "headers": etag });
        let tags = "The tags of the documents that the client has.";
        Operation {
            parameters: vec![header("If-None-Match", tags, json!({ "type": "string" }))],
            responses: vec![(200, found), (304, not_modified)],
            ..Self::get(path, id, Tag::Documents, summary)
        }
    }

    /// The operation as OpenAPI has it.
    fn described(self, generator: &mut SchemaGenerator) -> Value {
        let mut responses: BTreeMap<u16, Value> = self.responses.into_iter().collect();
        let mut by_status: BTreeMap<u16, Vec<Code>> = BTreeMap::new();
        for code in Code::ALL {
            if self.errors.contains(&code) || TRANSPORT_ERRORS.contains(&code) {
                by_status.entry(code.http_status()).or_default().push(code);
            }
        }
        for (status, codes) in by_status {
            let response = responses.entry(status).or_insert_with(|| json!({}));
            add_problems(response, status, &codes, generator);
        }
        let responses: Map<_, _> =
            responses.into_iter().map(|(status, it)| (status.to_string(), it)).collect();
        let security = if self.authenticated {
            json!([{ "bearer": [] }, { "mutualTLS": [] }, {}])
        } else {
            json!([])
        };
        let mut described = json!({
            "operationId": self.id,
            "tags": [self.tag.name()],
            "summary": self.summary,
            "security": security,
            "responses": responses,
        });
        if !self.description.is_empty() {
            described["description"] = self.description.into();
        }
        if !self.parameters.is_empty() {
            described["parameters"] = self.parameters.into();
        }
        if let Some(request) = self.request {
            described["requestBody"] = request;
        }
        described
    }
}

/// Adds to a response the problems that have its status.
fn add_problems(
    response: &mut Value,
    status: u16,
    codes: &[Code],
    generator: &mut SchemaGenerator,
) {
    let listed: Vec<_> = codes.iter().map(|code| format!("`{code}`: {}.", code.title())).collect();
    let listed = listed.join(" ");
    let description = match response["description"].as_str() {
        Some(own) => format!("{}. Or a problem. {listed}", own.trim_end_matches('.')),
        None => listed,
    };
    response["description"] = description.into();
    let problem = generator.subschema_for::<ActionError>().to_value();
    let mut content = json!({ "schema": problem });
    // A problem that the operation itself describes stays.
    if response["content"]["application/problem+json"].is_null() {
        let names: Vec<_> = codes.iter().map(|code| code.name()).collect();
        content["schema"] = json!({
            "allOf": [problem, { "properties": {
                "code": { "enum": names }, "status": { "const": status },
            } }],
        });
        content["examples"] = codes
            .iter()
            .map(|code| {
                let example = ActionError::new(*code, code.title());
                (code.name(), json!({ "summary": code.title(), "value": example }))
            })
            .collect();
        response["content"]["application/problem+json"] = content;
    }
    if codes.iter().any(|code| code.retryable()) {
        response["headers"]["Retry-After"] = json!({
            "schema": { "type": "integer", "minimum": 1 },
            "description": "Seconds to wait before a retry, if known.",
        });
    }
    if status == 401 {
        response["headers"]["WWW-Authenticate"] = json!({
            "schema": { "type": "string" }, "description": "How to authenticate (RFC 6750).",
        });
    }
}

/// A response with this content.
pub(crate) fn response(description: &str, content: Value) -> Value {
    json!({ "description": description, "content": content })
}

/// JSON of this type.
pub(crate) fn json_content<T: JsonSchema>(generator: &mut SchemaGenerator) -> Value {
    json!({ "application/json": { "schema": generator.subschema_for::<T>() } })
}

/// A parameter in the query.
pub(crate) fn query(name: &str, description: &str, schema: Value) -> Value {
    json!({ "name": name, "in": "query", "description": description, "schema": schema })
}

/// A parameter in the header.
pub(crate) fn header(name: &str, description: &str, schema: Value) -> Value {
    json!({ "name": name, "in": "header", "description": description, "schema": schema })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        actions::ActionKind,
        http::routes::{Asset, MatchedPath, ROUTES, Route},
    };

    #[test]
    fn every_route_but_the_pages_is_described() {
        let document = document();
        for (path, methods, route, _) in &ROUTES {
            let method = methods[0].to_ascii_lowercase();
            let is_described = document["paths"][path][method]["operationId"].is_string();
            let is_page = matches!(route, Route::Asset(Asset::Page | Asset::Script | Asset::Style));
            // MCP describes itself, to its own clients.
            let is_mcp = matches!(route, Route::Mcp | Route::ProtectedResource);
            assert_eq!(is_described, !is_page && !is_mcp, "{path}");
        }
    }

    #[test]
    fn every_described_operation_is_served() {
        let document = document();
        for (path, operations) in document["paths"].as_object().expect("are there") {
            for method in operations.as_object().expect("are there").keys() {
                let method = method.to_ascii_uppercase();
                assert!(MatchedPath::of(path).route(&method).is_ok(), "{method} {path}");
            }
        }
    }

    /// Every `example` and `examples` beside a `schema`, with both.
    fn examples(value: &Value) -> Vec<(Value, Value)> {
        let mut found = Vec::new();
        if let (Some(schema), Some(example)) = (value.get("schema"), value.get("example")) {
            found.push((schema.clone(), example.clone()));
        }
        if let (Some(schema), Some(examples)) = (value.get("schema"), value.get("examples")) {
            let examples = examples.as_object().into_iter().flat_map(Map::values);
            found.extend(examples.map(|it| (schema.clone(), it["value"].clone())));
        }
        let parts: Vec<_> = match value {
            Value::Object(parts) => parts.values().collect(),
            Value::Array(parts) => parts.iter().collect(),
            _ => Vec::new(),
        };
        found.extend(parts.into_iter().flat_map(examples));
        found
    }

    #[test]
    fn every_example_keeps_to_its_schema() {
        let document = document();
        let examples = examples(&document["paths"]);
        assert!(examples.len() > ActionKind::ALL.len() + Code::ALL.len(), "{}", examples.len());
        for (mut schema, example) in examples {
            schema["components"] = document["components"].clone();
            let validator = jsonschema::validator_for(&schema).expect("is a schema");
            assert!(validator.is_valid(&example), "{example}: {:?}", validator.validate(&example));
        }
    }

    #[test]
    fn every_reference_leads_somewhere() {
        let document = document();
        let text = document.to_string();
        for reference in text.split("\"$ref\":\"#").skip(1) {
            let pointer = reference.split('"').next().unwrap_or_default();
            assert!(document.pointer(pointer).is_some(), "{pointer}");
        }
    }
}
