//! The `Warning` headers of the API server (KEP-1693, RFC 7234 section 5.5): from admission policies and
//! webhooks, and about deprecated fields.
//!
//! The typed client does not return them. [`with_warnings`] collects those of the calls made in it.

use std::cell::RefCell;

use http::Response;
use tower::util::MapResponseLayer;

tokio::task_local! {
    static WARNINGS: RefCell<Vec<String>>;
}

const MAX_WARNINGS: usize = 10;
const MAX_WARNING_CHARACTERS: usize = 300;

/// A layer of the client that collects the warnings of each response for [`with_warnings`].
pub(crate) fn layer<B>() -> MapResponseLayer<fn(Response<B>) -> Response<B>> {
    MapResponseLayer::new(note)
}

/// Returns the warnings of the calls, each one once.
pub(crate) async fn with_warnings<T>(calls: impl Future<Output = T>) -> (T, Vec<String>) {
    WARNINGS
        .scope(RefCell::default(), async {
            let result = calls.await;
            (result, WARNINGS.with(RefCell::take))
        })
        .await
}

fn note<B>(response: Response<B>) -> Response<B> {
    let headers = response.headers().get_all(http::header::WARNING);
    let texts = headers.iter().filter_map(|value| text_of(value.to_str().ok()?));
    // Outside of `with_warnings` they are dropped.
    let _ = WARNINGS.try_with(|warnings| {
        let mut warnings = warnings.borrow_mut();
        for text in texts {
            if warnings.len() < MAX_WARNINGS && !warnings.contains(&text) {
                warnings.push(text);
            }
        }
    });
    response
}

/// The text of `299 - "text"`, shortened and without control characters.
fn text_of(header: &str) -> Option<String> {
    let (_, quoted) = header.split_once('"')?;
    let mut text = String::new();
    let mut characters = quoted.chars();
    while let Some(character) = characters.next() {
        match character {
            '"' => break,
            '\\' => text.extend(characters.next()),
            other => text.push(other),
        }
    }
    let shown: String =
        text.chars().filter(|c| !c.is_control()).take(MAX_WARNING_CHARACTERS).collect();
    (!shown.is_empty()).then_some(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(warnings: &[&str]) -> Response<()> {
        let builder = warnings
            .iter()
            .fold(Response::builder(), |it, value| it.header(http::header::WARNING, *value));
        builder.body(()).expect("is a response")
    }

    #[test]
    fn a_warning_is_the_quoted_text() {
        assert_eq!(
            text_of(r#"299 - "spec.x is deprecated""#).as_deref(),
            Some("spec.x is deprecated")
        );
        assert_eq!(text_of(r#"299 - "say \"no\" \\ yes""#).as_deref(), Some(r#"say "no" \ yes"#));
        assert_eq!(text_of("299 - bare"), None);
    }

    #[tokio::test]
    async fn a_warning_within_the_calls_is_collected_once() {
        note(response(&[r#"299 - "before""#]));
        let (answer, warnings) = with_warnings(async {
            note(response(&[r#"299 - "one""#, r#"299 - "two""#]));
            note(response(&[r#"299 - "one""#]));
            7
        })
        .await;
        assert_eq!((answer, warnings), (7, vec!["one".to_owned(), "two".to_owned()]));
    }
}
