//! No input makes the parser panic, and what it accepts it writes with the same meaning.

#![no_main]

use action_executor::request::ActionRequest;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(first) = ActionRequest::parse(bytes) {
        let written = serde_json::to_vec(&first).expect("is written");
        let second = ActionRequest::parse(&written).expect("is accepted again");
        assert_eq!(first, second);
    }
});
