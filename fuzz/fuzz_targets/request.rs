//! No input makes the request parser panic, and an accepted request serializes with the same meaning.

#![no_main]

#[path = "../../tests/suite/readers.rs"]
mod readers;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| readers::request(bytes));
