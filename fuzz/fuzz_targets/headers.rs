//! No header value makes its parsers panic, and a client's timeout is never zero or unlimited.

#![no_main]

#[path = "../../tests/suite/readers.rs"]
mod readers;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| readers::headers(bytes));
