//! What holds for every input, tried on many that nobody thought of.

use action_executor::request::{ActionRequest, MAX_REQUEST_BYTES};
use proptest::prelude::*;
use serde_json::{Value, json};

/// A request that is accepted, with every field present or not.
fn accepted() -> impl Strategy<Value = Value> {
    let name = "[a-z0-9]([-a-z0-9]{0,20}[a-z0-9])?";
    let action = prop_oneof![
        name.prop_map(|it| ("restart_k8s", json!({ "deployment": it }))),
        name.prop_map(|it| ("restart_deployment", json!({ "deployment": it, "pod_name": null }))),
        name.prop_map(|it| ("restart_pod", json!({ "pod_name": it, "deployment": "Any thing" }))),
    ];
    let text = proptest::option::of("[ -~äöü→]{1,50}");
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
    fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = ActionRequest::parse(&bytes);
    }

    #[test]
    fn no_json_makes_the_parser_panic(text in "[\\[\\]{}\":,a-z0-9 .\\\\-]{0,200}") {
        let _ = ActionRequest::parse(text.as_bytes());
    }

    #[test]
    fn what_is_accepted_is_written_with_the_same_meaning(request in accepted()) {
        let first = ActionRequest::parse(request.to_string().as_bytes()).expect("is accepted");
        let written = serde_json::to_vec(&first).expect("is written");
        let second = ActionRequest::parse(&written).expect("is accepted again");
        prop_assert_eq!(first, second);
    }

    #[test]
    fn a_request_that_lost_or_gained_a_byte_never_becomes_real(
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
    fn a_refusal_always_names_a_field_or_a_place(request in accepted(), junk in "[a-z]{1,12}") {
        let mut request = request;
        request[&junk] = 1.into();
        if let Err(error) = ActionRequest::parse(request.to_string().as_bytes()) {
            prop_assert!(error.field.is_some(), "{:?}", error);
        }
    }
}

#[test]
fn the_longest_request_is_read_and_one_byte_more_is_not() {
    let request = r#"{"type":"restart_k8s","parameters":{"deployment":"web"}}"#;
    let padded = format!("{request}{}", " ".repeat(MAX_REQUEST_BYTES - request.len()));
    assert!(ActionRequest::parse(padded.as_bytes()).is_ok());
    assert!(ActionRequest::parse(format!("{padded} ").as_bytes()).is_err());
}
