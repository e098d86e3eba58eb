//! Masks secrets in texts that programs of the cluster wrote: log lines, messages of Events. Pure.
//!
//! The patterns are those by which secret scanners know a secret by its own form (the rules of gitleaks and
//! detect-secrets): keys of AWS, tokens of vendors, JSON Web Tokens, PEM blocks; and those by which logs are scrubbed
//! (`sanitize` of Sentry, the `sensitive data scanner` of Datadog): what follows `password=`, `Authorization:`, a flag
//! such as `--token`, and the user of a URL. It masks rather too much: a word too few costs a reader less than a
//! secret. What has no form and no name, such as a password alone in a line, no pattern finds.

use std::{borrow::Cow, sync::LazyLock};

use regex::bytes::{Regex, RegexBuilder};

use crate::contract::{cut::beginning, visible::visible_part};

/// Patterns, each with what replaces it, in the order in which they apply.
const PATTERNS: [(&str, &str); 11] = [
    // A PEM block, of which the end may be missing; then lines of one whose begin is missing.
    (
        r"(?s)-----BEGIN [A-Z0-9 ]{1,64}-----.*?(?:-----END [A-Z0-9 ]{1,64}-----|\z)",
        "[masked PEM block]",
    ),
    (r"(?m)^[A-Za-z0-9+/]{64,76}={0,2}$", "[masked]"),
    // The user of a URL.
    (r#"([A-Za-z][A-Za-z0-9+.-]*://)[^\s/?#"'<>]+@"#, "${1}[masked]@"),
    // The header Authorization, with and without a scheme; then the schemes alone.
    (
        r#"(?i)(authorization\\?["']?\s*[:=]\s*\\?["']?(?:(?:bearer|basic|digest|token|negotiate|apikey|aws4-hmac-sha256)\s+)?)[^\s"',]+"#,
        "${1}[masked]",
    ),
    (
        r"(?i)\b(bearer|basic)\s+(?:[A-Za-z._~+/-]*[0-9_~+/-][A-Za-z0-9._~+/=-]{3,}|[A-Za-z0-9._~+/=-]{16,})",
        "${1} [masked]",
    ),
    // A name and its value, in JSON, YAML, logfmt, a query, and JSON in JSON.
    (
        r#"(?i)((?:passw(?:or)?d|pwd|passphrase|secret|token|api[_.-]?key|(?:access|private|account|encryption|signing|shared|auth)[_.-]?key|credentials?|connection[_.-]?string|signature|\bsig|session[_.-]?id|cookie)[\w.\x80-\xff-]*(?:\\?["'])?\s*(?:=>|:=|=|:)\s*)(?:\\"[^\n]*?(?:\\"|$)|"(?:[^"\\\n]|\\.)*"?|'[^'\n]*'?|[^\s,;&"'})]+)"#,
        "${1}[masked]",
    ),
    // A flag and its value.
    (
        r"(?i)(--?[\w\x80-\xff-]*(?:passw(?:or)?d|secret|token|api-?key|access-?key|private-?key)[\w\x80-\xff-]*\s+)[^\s-]\S*",
        "${1}[masked]",
    ),
    // A JSON Web Token; the rest of one that was cut.
    (r"\beyJ[A-Za-z0-9_-]{10,}(?:\.[A-Za-z0-9_-]*)*", "[masked]"),
    // Keys of AWS.
    (r"\b(?:A3T[A-Z0-9]|AKIA|ASIA|ABIA|ACCA|AGPA|AIDA|AROA|ANPA)[A-Z0-9]{16}\b", "[masked]"),
    // Tokens of GitHub, GitLab, Slack, Stripe, npm, PyPI, DigitalOcean, Google, SendGrid, Vault, age; of model APIs.
    (
        r"\b(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|xox[abeoprs]-[\w-]{10,}|[prs]k_(?:live|test)_[A-Za-z0-9]{10,}|npm_[A-Za-z0-9]{30,}|pypi-[\w-]{40,}|dop_v1_[a-f0-9]{40,}|AIza[\w-]{30,}|hv[bs]\.[\w-]{20,}|AGE-SECRET-KEY-1[0-9A-Z]{40,}|sk-[\w-]{20,})",
        "[masked]",
    ),
    (r"\b(?:ya29\.[\w-]{20,}|SG\.[\w-]{16,}\.[\w-]{16,})", "[masked]"),
];

/// How much of a text is read for a line, in bytes.
const MAX_MASKED: usize = 16 * 1024;

static RULES: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
    // A test makes sure that each of them is one.
    let rule = |(pattern, with): &(&str, &'static str)| Some((compiled(pattern).ok()?, *with));
    PATTERNS.iter().filter_map(rule).collect()
});

/// The classes are those of ASCII: those of Unicode take many times as long to compile. A name may have bytes above it.
fn compiled(pattern: &str) -> Result<Regex, regex::Error> {
    RegexBuilder::new(pattern).unicode(false).build()
}

/// The text, of one line or several, without what nobody can see and with its secrets masked. What was removed first
/// cannot hide a secret from a pattern.
pub(crate) fn masked(text: &str) -> String {
    let lines: Vec<_> = text.lines().map(|line| visible_part(line, usize::MAX)).collect();
    // The patterns know the spaces of ASCII alone.
    let is_other_space = |c: char| !c.is_ascii() && c.is_whitespace();
    let mut text = lines.join("\n").replace(is_other_space, " ").into_bytes();
    for (pattern, with) in RULES.iter() {
        if let Cow::Owned(changed) = pattern.replace_all(&text, with.as_bytes()) {
            text = changed;
        }
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// The same in one line of at most so many characters.
pub(crate) fn masked_line(text: &str, max: usize) -> String {
    let text = masked(first_words(text)).replace('\n', " ");
    match text.chars().count() > max {
        false => text,
        true => text.chars().take(max.saturating_sub(3)).collect::<String>() + "...",
    }
}

/// The first words of a text that is much longer than a line. No part of a secret is left that no pattern knows.
fn first_words(text: &str) -> &str {
    if text.len() <= MAX_MASKED {
        return text;
    }
    let text = beginning(text, MAX_MASKED);
    &text[..text.rfind(char::is_whitespace).unwrap_or(0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_pattern_is_one() {
        assert_eq!(RULES.len(), PATTERNS.len());
        for (pattern, _) in PATTERNS {
            assert!(compiled(pattern).is_ok(), "{pattern}");
        }
    }

    #[test]
    fn secrets_are_masked() {
        for (text, expected) in [
            ("password=hunter2 user=jo", "password=[masked] user=jo"),
            ("DB_PASSWORD: 'hunter 2'", "DB_PASSWORD: [masked]"),
            (r#"{"password":"hun\"ter2","user":"jo"}"#, r#"{"password":[masked],"user":"jo"}"#),
            (r#"msg="{\"apiKey\":\"hunter2\"}""#, r#"msg="{\"apiKey\":[masked]}""#),
            ("aws_secret_access_key = wJalrXUtnFEMI/K7MDENG", "aws_secret_access_key = [masked]"),
            ("GET /x?access_token=hunter2&a=b", "GET /x?access_token=[masked]&a=b"),
            ("run --token hunter2 --verbose", "run --token [masked] --verbose"),
            ("run --db-password=hunter2", "run --db-password=[masked]"),
            ("Authorization: Bearer abc.def-123", "Authorization: Bearer [masked]"),
            (r#"{"Authorization":"hunter2"}"#, r#"{"Authorization":"[masked]"}"#),
            ("sent Bearer 0123abcd", "sent Bearer [masked]"),
            ("basic dXNlcjpodW50ZXIy", "basic [masked]"),
            ("dial postgres://jo:p@ss@db:5432/shop", "dial postgres://[masked]@db:5432/shop"),
            ("clone https://ghp_x@github.com/a", "clone https://[masked]@github.com/a"),
            ("key AKIAIOSFODNN7EXAMPLE here", "key [masked] here"),
            ("jwt eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln end", "jwt [masked] end"),
            ("jwt eyJhbGciOiJIUzI1Ni", "jwt [masked]"),
            ("ghp_0123456789abcdefghijABCDEFGHIJ012345", "[masked]"),
            ("password=hun\u{200b}ter2", "password=[masked]"),
            ("pass\u{200b}word=hunter2", "password=[masked]"),
            ("password=\"hunter", "password=[masked]"),
            ("Token\u{202f}: abc", "Token : [masked]"),
            ("password\u{a0}: hunter2", "password : [masked]"),
            ("password:\u{a0}\"hunter 2\"", "password: [masked]"),
            ("token_größe=abc123", "token_größe=[masked]"),
            ("run --tokenß hunter2 --verbose", "run --tokenß [masked] --verbose"),
            ("größe=1 password=hünter2 naïve", "größe=1 password=[masked] naïve"),
            ("Passwort: '日本', password: '日本', ok", "Passwort: '日本', password: [masked], ok"),
        ] {
            let masked = masked(text);
            assert_eq!(masked, expected);
            assert_eq!(super::masked(&masked), masked, "again");
        }
    }

    #[test]
    fn a_pem_block_is_masked_over_its_lines_and_where_a_part_is_missing() {
        let line = "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7VJTUt9Us8cKj";
        let whole = format!(
            "a\n-----BEGIN PRIVATE KEY-----\n{line}\nc2hvcnQ=\n-----END PRIVATE KEY-----\nb"
        );
        assert_eq!(masked(&whole), "a\n[masked PEM block]\nb");
        let begin = format!("a\n-----BEGIN RSA PRIVATE KEY-----\n{line}\nc2hvcnQ=");
        assert_eq!(masked(&begin), "a\n[masked PEM block]");
        let end = format!("{line}\n-----END PRIVATE KEY-----");
        assert!(!masked(&end).contains(line));
    }

    #[test]
    fn ordinary_messages_are_not_masked() {
        for text in [
            "MountVolume.SetUp failed for volume \"x\" : secret \"db\" not found",
            "Back-off pulling image \"registry.example.com/shop/web:1.2\"",
            "Readiness probe failed: HTTP probe failed with statuscode: 500",
            "pods \"web-5d4f-\" is forbidden: exceeded quota: q, requested: pods=1, used: pods=2, limited: pods=2",
            "dial tcp 10.0.0.1:5432: connect: connection refused",
            "image sha256:9b2b1f0c4b1e6d1a7e0a4d1c7a0d3b5f9b2b1f0c4b1e6d1a7e0a4d1c7a0d3b5f",
            "GET http://web:8080/healthz?verbose=1",
            "basic authentication failed",
        ] {
            assert_eq!(masked(text), text);
        }
    }

    #[test]
    fn a_line_is_cut_after_it_is_masked() {
        assert_eq!(masked_line("password=hunter2", 12), "password=...");
        assert_eq!(masked_line("a\nb", 12), "a b");
        let long = format!("{} password=hunter2", "x ".repeat(MAX_MASKED / 2 - 4));
        assert!(!masked_line(&long, usize::MAX).contains("hunter"));
        assert_eq!(masked_line(&"x".repeat(2 * MAX_MASKED), 12), "");
    }
}
