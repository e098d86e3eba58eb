//! `explain`: what an error's code or an exit status means, and what to do. Makes no calls.

use crate::contract::error::{ActionError, Code, EXIT_STATUSES};

/// What this code, or this exit status, means.
///
/// # Errors
/// [`Code::Usage`] if there is none of this name or number.
pub fn explain(what: &str) -> Result<String, ActionError> {
    if let Some(code) = Code::ALL.into_iter().find(|code| code.name() == what) {
        return Ok(of_code(code));
    }
    let status = what.parse().ok();
    let known = EXIT_STATUSES.iter().find(|exit| Some(exit.status) == status);
    known.map(|exit| of_exit_status(exit.status, exit.name, exit.meaning)).ok_or_else(|| {
        let names: Vec<_> = Code::ALL.iter().map(|code| code.name()).collect();
        ActionError::new(Code::Usage, "unknown error code or exit status")
            .with_hint(format!("the codes are {}", names.join(", ")))
    })
}

fn of_code(code: Code) -> String {
    let advice = code.advice();
    let again = match code.retryable() {
        true => "the same request may succeed later",
        false => "the same request has the same result until something else changes",
    };
    format!(
        "{code}: {}\n\nWhen: {}.\nWhat to do: {}.\n\nHTTP {}, exit {}; {again}.",
        code.title(),
        plain(advice.when),
        plain(advice.what_to_do),
        code.http_status(),
        code.exit_status(),
    )
}

fn of_exit_status(status: u8, name: &str, meaning: &str) -> String {
    let codes = Code::ALL.into_iter().filter(|code| code.exit_status() == status);
    let codes: Vec<_> =
        codes.map(|code| format!("  {:<24} {}", code.name(), code.title())).collect();
    match codes.is_empty() {
        true => format!("{status} ({name}): {meaning}"),
        false => format!("{status} ({name}): {meaning}\n\nErrors:\n{}", codes.join("\n")),
    }
}

/// Markdown as plain text: a link as its text. Code keeps its quotes.
fn plain(markdown: &str) -> String {
    let mut text = String::new();
    let mut rest = markdown;
    while let Some((before, from)) = rest.split_once('[') {
        let link =
            from.split_once("](").and_then(|(name, url)| Some((name, url.split_once(')')?.1)));
        text += before;
        match link {
            Some((name, after)) => {
                text += name;
                rest = after;
            }
            None => {
                text.push('[');
                rest = from;
            }
        }
    }
    text + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_code_is_explained_with_what_to_do() {
        for code in Code::ALL {
            let text = explain(&code.name()).expect("is known");
            assert!(text.starts_with(&format!("{code}: {}", code.title())), "{text}");
            assert!(text.contains("\nWhat to do: ") && !text.contains("]("), "{text}");
            assert!(!text.contains(".."), "{text}");
        }
    }

    #[test]
    fn each_exit_status_lists_its_errors_and_nothing_else_is_known() {
        for exit in &EXIT_STATUSES {
            let text = explain(&exit.status.to_string()).expect("is known");
            assert_eq!(text.contains("Errors:"), exit.status != 0, "{text}");
        }
        for unknown in ["", "nothing", "1", "-1", "Policy_denied"] {
            assert_eq!(explain(unknown).expect_err("is unknown").code, Code::Usage);
        }
    }

    #[test]
    fn a_link_is_its_text() {
        assert_eq!(plain("see [Policy](policy.md#x), then `a[0]`"), "see Policy, then `a[0]`");
        assert_eq!(plain("[a](b) [c"), "a [c");
    }
}
