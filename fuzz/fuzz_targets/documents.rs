//! No text makes the readers of the policy and of the callers' keys panic, and the keys that are read are
//! written with the same meaning.

#![no_main]

use action_executor::{callers::keys::Keys, document::Document, policy::Policy};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let _ = Policy::parse(text, "fuzzed");
    if let Ok(first) = Keys::parse(text, "fuzzed") {
        let written = serde_json::to_string(&first).expect("is written");
        assert_eq!(first, Keys::parse(&written, "written").expect("is read again"));
    }
});
