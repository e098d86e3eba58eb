//! No text makes the readers of the policy and of the callers' keys panic, and the keys that are read are
//! written with the same meaning.

#![no_main]

#[path = "../../tests/suite/readers.rs"]
mod readers;

libfuzzer_sys::fuzz_target!(|text: &str| readers::documents(text));
