//! No bytes in a header make what reads them panic, and a client's time is never none or endless.

#![no_main]

#[path = "../../tests/suite/readers.rs"]
mod readers;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| readers::headers(bytes));
