//! The published schemas agree with what is read and written.

use std::{fs, path::PathBuf};

use action_executor::{
    actions::{ActionKind, Descriptor, request::ActionRequest},
    contract::error::Code,
};
use serde_json::{Value, json};

use crate::program::Program;

fn schema(of: &str) -> jsonschema::Validator {
    let done = Program::offline().args(["schema", of]).run();
    assert_eq!(done.status, 0, "{done:?}");
    let schema: Value = serde_json::from_str(&done.stdout).expect("is JSON");
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
    jsonschema::draft202012::meta::validate(&schema).expect("is a schema");
    jsonschema::validator_for(&schema).expect("is a schema that can be used")
}

/// The requests in tests/data, by name.
pub fn fixtures() -> Vec<(String, Vec<u8>)> {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let mut fixtures: Vec<_> = fs::read_dir(directory)
        .expect("is there")
        .map(|entry| entry.expect("is readable").path())
        .filter(|path| path.extension().is_some_and(|it| it == "json"))
        .map(|path| {
            let name = path.file_name().expect("has a name").to_string_lossy().into_owned();
            (name, fs::read(path).expect("is readable"))
        })
        .collect();
    fixtures.sort();
    fixtures
}

#[test]
fn the_request_schema_accepts_what_the_parser_accepts() {
    let schema = schema("request");
    for (name, bytes) in fixtures() {
        let Ok(value) = serde_json::from_slice::<Value>(&bytes) else { continue };
        let parsed = ActionRequest::parse(&bytes);
        // A schema cannot express duplicate keys, valid times, parameters that need another field, and parts of a unit.
        let beyond =
            ["duplicate", "issued_at", "without_wait", "longer_than", "part_of", "of_another_kind"];
        if beyond.iter().any(|it| name.contains(it)) {
            continue;
        }
        assert_eq!(schema.is_valid(&value), parsed.is_ok(), "{name}: {parsed:?}");
    }
}

#[test]
fn every_answer_matches_its_schema() {
    let (answer, problem) = (schema("answer"), schema("problem"));
    for (name, bytes) in fixtures() {
        let done = Program::offline().input(bytes).run();
        let schema = if done.status == 0 { &answer } else { &problem };
        let value = done.answer();
        let errors: Vec<_> = schema.iter_errors(&value).map(|it| it.to_string()).collect();
        assert!(errors.is_empty(), "{name}: {errors:?}");
    }
}

#[test]
fn every_action_has_an_accepted_fixture() {
    let accepted: Vec<_> = fixtures()
        .iter()
        .filter_map(|(_, bytes)| ActionRequest::parse(bytes).ok())
        .map(|request| request.action.kind())
        .collect();
    for kind in ActionKind::ALL {
        assert!(accepted.contains(&kind), "{}", kind.name());
    }
}

#[test]
fn the_docs_have_a_row_for_every_action_and_every_code() {
    let readme = include_str!("../../README.md");
    let page = include_str!("../../docs/reference/actions.md");
    let errors = include_str!("../../docs/reference/errors.md");
    for kind in ActionKind::ALL {
        let name = format!("`{}`", kind.name());
        assert!(readme.lines().any(|line| line.starts_with('|') && line.contains(&name)), "{name}");
        assert!(page.lines().any(|line| line.starts_with(&format!("| {name} | "))), "{name}");
        let Descriptor { rules, cluster_rules, .. } = kind.descriptor();
        for resource in rules.iter().chain(*cluster_rules).flat_map(|rule| rule.resources) {
            assert!(page.contains(resource), "{name}: {resource}");
        }
        let mut generator = schemars::SchemaGenerator::default();
        let schema = kind.parameters_schema(&mut generator).to_value();
        for (parameter, property) in schema["properties"].as_object().expect("are there") {
            let documented = page.contains(&format!("| {name} | `{parameter}` |"));
            assert!(documented || property["deprecated"] == true, "{name}: {parameter}");
        }
    }
    for code in Code::ALL {
        let (exit, status) = (code.exit_status(), code.http_status());
        let retry = if code.retryable() { "yes" } else { "no" };
        let row = format!("| `{code}` | {status} | {exit} | {retry} |");
        assert!(errors.contains(&row), "{row}");
    }
}

#[test]
fn the_example_of_the_original_service_is_answered() {
    // With a cluster `result` contains `restarted at`; see `restart_k8s`.
    let example = json!({
        "type": "restart_k8s",
        "parameters": {
            "deployment": "my-deployment", "pod_name": "my-pod-123", "namespace": "default",
        },
        "simulate": true,
    });
    let done = Program::offline().input(example.to_string()).run();
    assert_eq!(done.status, 0, "{done:?}");
    assert!(done.answer()["result"].is_string());
}
