//! No text makes the parsers of the policy and the keys file panic, and accepted keys serialize with the same
//! meaning.

#![no_main]

#[path = "../../tests/suite/readers.rs"]
mod readers;

libfuzzer_sys::fuzz_target!(|text: &str| readers::documents(text));
