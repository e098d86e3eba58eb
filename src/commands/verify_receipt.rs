//! `verify-receipt`: checks the signature of each receipt of a file, and prints what it says. Makes no calls.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::Path,
};

use serde_json::{Value, json};

use crate::{
    cli::{OutputFormat, VerifyReceiptArgs},
    config::reload::read_one,
    contract::{
        error::{ActionError, Code},
        visible::one_line,
    },
    receipts::{
        envelope::{self, Opened},
        key::VerifyingKey,
        statement::{Predicate, Statement},
    },
};

/// The longest line that is read, in bytes: some ten times as much as a receipt of the most targets has.
const MAX_LINE_BYTES: u64 = 1024 * 1024;

/// How much of a key's id a sentence has.
const KEY_ID_CHARACTERS: usize = 16;

/// A line of the file that is a receipt.
struct Verified {
    key_id: String,
    payload: Value,
    statement: Statement,
}

/// Checks every line. Returns the output and the exit status: 0 if there are receipts and all are valid, else 65.
///
/// # Errors
/// [`Code::Usage`] if a file cannot be read, or a key is none.
pub fn verify(args: &VerifyReceiptArgs) -> Result<(String, u8), ActionError> {
    let keys = args.key.iter().map(|path| key(path)).collect::<Result<Vec<_>, _>>()?;
    let name = args.file.display();
    let unreadable = |error: io::Error| ActionError::new(Code::Usage, format!("{name}: {error}"));
    let mut input: Box<dyn BufRead> = match args.file == Path::new("-") {
        true => Box::new(io::stdin().lock()),
        false => Box::new(BufReader::new(File::open(&args.file).map_err(unreadable)?)),
    };
    let (mut lines, mut number, mut are_valid) = (Vec::new(), 0, true);
    while let Some(line) = next_line(&mut input).map_err(unreadable)? {
        number += 1;
        let result = line.and_then(|line| check(&line, &keys));
        are_valid &= result.is_ok();
        lines.push(match args.output {
            OutputFormat::Text => sentence(number, &result),
            OutputFormat::Json => document(number, &result).to_string(),
            OutputFormat::Pretty => format!("{:#}", document(number, &result)),
        });
    }
    if number == 0 {
        return Err(ActionError::new(Code::InvalidRequest, format!("{name} has no receipts")));
    }
    let status = if are_valid { 0 } else { Code::InvalidRequest.exit_status() };
    Ok((lines.join("\n"), status))
}

fn key(path: &Path) -> Result<VerifyingKey, ActionError> {
    let read =
        read_one(path, "the key").map_err(|error| ActionError { code: Code::Usage, ..error })?;
    VerifyingKey::from_pem(&read.text)
        .map_err(|what| ActionError::new(Code::Usage, format!("the key {} {what}", path.display())))
}

/// The next line without its end; the reason, if it cannot be one.
fn next_line(input: &mut impl BufRead) -> io::Result<Option<Result<String, String>>> {
    let mut line = Vec::new();
    input.by_ref().take(MAX_LINE_BYTES + 1).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Ok(None);
    }
    if line.pop_if(|last| *last == b'\n').is_none() && line.len() as u64 > MAX_LINE_BYTES {
        input.skip_until(b'\n')?;
        return Ok(Some(Err(format!("the line is longer than {MAX_LINE_BYTES} bytes"))));
    }
    Ok(Some(String::from_utf8(line).map_err(|_| "the line is not UTF-8".to_owned())))
}

fn check(line: &str, keys: &[VerifyingKey]) -> Result<Verified, String> {
    let Opened { payload, key_id } = envelope::open(line, keys)?;
    let statement = Statement::read(&payload)?;
    let payload = serde_json::from_slice(&payload).unwrap_or_default();
    Ok(Verified { key_id, payload, statement })
}

fn sentence(number: usize, result: &Result<Verified, String>) -> String {
    let Verified { key_id, statement, .. } = match result {
        Ok(verified) => verified,
        Err(why) => return format!("line {number}: NOT VALID: {}", one_line(why)),
    };
    let Predicate { request_id, action, requester, approved_by, outcome, finished_at, .. } =
        &statement.predicate;
    let mut about = vec![format!("request {request_id}")];
    about.extend(requester.as_ref().map(|name| format!("requested by {name}")));
    about.extend(approved_by.as_ref().map(|name| format!("approved by {name}")));
    about.extend(
        statement.predicate.resumed.then(|| "by the record of an earlier attempt".to_owned()),
    );
    about.push(format!("key {}", &key_id[..KEY_ID_CHARACTERS]));
    let subject = statement.subject();
    one_line(&format!(
        "line {number}: valid: {finished_at} {action} of {subject}: {outcome} ({})",
        about.join(", ")
    ))
}

fn document(number: usize, result: &Result<Verified, String>) -> Value {
    match result {
        Ok(verified) => json!({
            "line": number,
            "valid": true,
            "keyid": verified.key_id,
            "statement": verified.payload,
        }),
        Err(why) => json!({ "line": number, "valid": false, "reason": why }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_is_too_long_or_no_text_is_one_line() {
        let long = "x".repeat(MAX_LINE_BYTES as usize + 1);
        let text = [b"a\n\xff\n\n", long.as_bytes(), b"\nlast"].concat();
        let mut input = &text[..];
        let mut lines = Vec::new();
        while let Some(line) = next_line(&mut input).expect("is read") {
            lines.push(line);
        }
        let expected = [Ok("a"), Err("UTF-8"), Ok(""), Err("longer"), Ok("last")];
        assert_eq!(lines.len(), expected.len());
        for (line, expected) in lines.iter().zip(expected) {
            match expected {
                Ok(text) => assert_eq!(line.as_deref(), Ok(text)),
                Err(part) => assert!(line.as_ref().is_err_and(|why| why.contains(part))),
            }
        }
    }
}
