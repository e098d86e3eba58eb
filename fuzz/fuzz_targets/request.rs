//! No input makes the parser panic, and what it accepts it writes with the same meaning.

#![no_main]

#[path = "../../tests/suite/readers.rs"]
mod readers;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| readers::request(bytes));
