//! Properties that hold for every input, checked with generated and mutated inputs.

use std::time::{Duration, Instant};

use action_executor::actions::request::{ActionRequest, MAX_REQUEST_BYTES};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::{ledger::Random, readers};

/// A valid request, with each optional field present or absent.
fn accepted() -> impl Strategy<Value = Value> {
    let name = "[a-z0-9]([-a-z0-9]{0,20}[a-z0-9])?";
    let action = prop_oneof![
        name.prop_map(|it| ("restart_k8s", json!({ "deployment": it }))),
        name.prop_map(|it| ("restart_deployment", json!({ "deployment": it, "pod_name": null }))),
        name.prop_map(|it| ("restart_pod", json!({ "pod_name": it, "deployment": "Any thing" }))),
    ];
    let text = proptest::option::of("[!-~äöü→]([ -~äöü→]{0,48}[!-~äöü→])?");
    (
        action,
        proptest::option::of(name),
        proptest::option::of(any::<bool>()),
        proptest::option::of("[A-Za-z0-9._:-]{1,128}"),
        text,
        proptest::option::of(0i64..4_102_444_800),
        any::<bool>(),
        proptest::option::of(1u64..=3600),
        proptest::option::of("[!-~]{1,40}"),
    )
        .prop_map(|(action, namespace, simulate, id, reason, at, wait, timeout, uid)| {
            let (kind, mut parameters) = action;
            parameters["namespace"] = namespace.into();
            let mut request = json!({ "type": kind, "parameters": parameters, "wait": wait });
            let mut put = |name: &str, value: Option<Value>| {
                if let Some(value) = value {
                    request[name] = value;
                }
            };
            put("simulate", simulate.map(Value::from));
            put("id", id.map(Value::from));
            put("reason", reason.map(Value::from));
            put(
                "issued_at",
                at.map(|seconds| {
                    let at = chrono::DateTime::from_timestamp(seconds, 0).expect("is a time");
                    Value::from(at.to_rfc3339())
                }),
            );
            put("timeout_seconds", timeout.map(Value::from));
            put("precondition", uid.map(|uid| json!({ "uid": uid })));
            request
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_parser_panics_on_no_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = ActionRequest::parse(&bytes);
    }

    #[test]
    fn the_parser_panics_on_no_json(text in "[\\[\\]{}\":,a-z0-9 .\\\\-]{0,200}") {
        let _ = ActionRequest::parse(text.as_bytes());
    }

    #[test]
    fn an_accepted_request_serializes_with_the_same_meaning(request in accepted()) {
        let first = ActionRequest::parse(request.to_string().as_bytes()).expect("is accepted");
        let written = serde_json::to_vec(&first).expect("is written");
        let second = ActionRequest::parse(&written).expect("is accepted again");
        prop_assert_eq!(first, second);
    }

    #[test]
    fn a_simulation_with_a_changed_byte_never_becomes_real(
        request in accepted(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        removes in any::<bool>(),
    ) {
        let mut request = request;
        request["simulate"] = true.into();
        let mut bytes = request.to_string().into_bytes();
        let at = at.index(bytes.len());
        if removes { bytes.remove(at); } else { bytes.insert(at, byte); }
        if let Ok(parsed) = ActionRequest::parse(&bytes) {
            prop_assert!(parsed.simulate);
        }
    }

    #[test]
    fn a_rejection_always_names_a_field_or_a_position(request in accepted(), junk in "[a-z]{1,12}") {
        let mut request = request;
        request[&junk] = 1.into();
        if let Err(error) = ActionRequest::parse(request.to_string().as_bytes()) {
            prop_assert!(error.field.is_some(), "{:?}", error);
        }
    }
}

#[test]
fn a_request_of_the_maximum_size_is_read_and_a_larger_one_rejected() {
    let request = r#"{"type":"restart_k8s","parameters":{"deployment":"web"}}"#;
    let padded = format!("{request}{}", " ".repeat(MAX_REQUEST_BYTES - request.len()));
    assert!(ActionRequest::parse(padded.as_bytes()).is_ok());
    assert!(ActionRequest::parse(format!("{padded} ").as_bytes()).is_err());
}

/// Parses the bytes with every parser of external input.
fn read_as_everything(bytes: &[u8]) {
    readers::request(bytes);
    if let Ok(text) = std::str::from_utf8(bytes) {
        readers::documents(text);
    }
    readers::headers(bytes);
}

/// The valid inputs that are mutated.
const SEEDS: [&str; 8] = [
    r#"{"type":"restart_k8s","parameters":{"deployment":"web","namespace":"shop"},"simulate":false,"id":"a-7","wait":true,"timeout_seconds":60,"issued_at":"2026-01-31T12:00:00Z","precondition":{"uid":"u","resource_version":"7"}}"#,
    r#"{"type":"scale","parameters":{"kind":"Deployment","name":"web","replicas":3}}"#,
    r#"{"type":"drain","parameters":{"node":"n1"},"reason":"disk"}"#,
    "version: 1\nactions: {allow: [restart_k8s, scale]}\nnamespaces: {allow: [shop-*], deny: [kube-system]}\ncooldown_seconds: 60\n",
    "version: 1\nkeys:\n- name: ci\n  sha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08\n",
    "text/html, application/*;q=0.5, */*;q=0.1",
    "application/cloudevents+json; charset=\"utf-8\"",
    "86399.999",
];

#[test]
#[ignore = "takes a minute: inputs changed at random, as long as the fuzzer would need to start"]
fn mutated_inputs_make_no_reader_panic() {
    let mut random = Random::new("changed");
    let until = Instant::now() + Duration::from_secs(60);
    let mut tried = 0;
    while Instant::now() < until {
        let mut bytes = SEEDS[random.below(SEEDS.len() as u64) as usize].as_bytes().to_vec();
        for _ in 0..=random.below(6) {
            let at = random.below(bytes.len() as u64 + 1) as usize;
            match random.below(5) {
                0 => bytes.insert(at, random.below(256) as u8),
                1 if at < bytes.len() => bytes[at] = random.below(256) as u8,
                2 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
                3 => bytes.truncate(at),
                _ => {
                    let part =
                        bytes[at..(at + random.below(20) as usize).min(bytes.len())].to_vec();
                    let to = random.below(bytes.len() as u64 + 1) as usize;
                    bytes.splice(to..to, part);
                }
            }
        }
        read_as_everything(&bytes);
        tried += 1;
    }
    println!("{tried} inputs");
    assert!(tried > 10_000, "{tried}");
}

#[test]
fn the_seeds_of_the_mutations_are_valid() {
    for seed in SEEDS {
        read_as_everything(seed.as_bytes());
    }
}
