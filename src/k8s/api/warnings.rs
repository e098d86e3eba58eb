//! What the API server says beside its answers: `Warning` headers (KEP-1693, RFC 7234 section 5.5),
//! from admission policies, webhooks, and about deprecated fields.
//!
//! They come with the response, below the typed client; whoever makes a call in [`hearing`] gets those
//! that came with it.

use std::cell::RefCell;

use http::Response;
use tower::util::MapResponseLayer;

tokio::task_local! {
    static HEARD: RefCell<Vec<String>>;
}

/// The most warnings that are kept of one call, and the longest that is kept whole, in characters.
const MAX_WARNINGS: usize = 10;
const MAX_WARNING_CHARACTERS: usize = 300;

/// A layer of the client that notes the warnings of each response for who asked for them.
pub(crate) fn layer<B>() -> MapResponseLayer<fn(Response<B>) -> Response<B>> {
    MapResponseLayer::new(note)
}

/// Makes calls, and returns what the API server warned of meanwhile, each warning once.
pub(crate) async fn with_warnings<T>(calls: impl Future<Output = T>) -> (T, Vec<String>) {
    HEARD
        .scope(RefCell::default(), async {
            let result = calls.await;
            (result, HEARD.with(RefCell::take))
        })
        .await
}

fn note<B>(response: Response<B>) -> Response<B> {
    let headers = response.headers().get_all(http::header::WARNING);
    let texts = headers.iter().filter_map(|value| text_of(value.to_str().ok()?));
    // Nobody listens to most calls.
    let _ = HEARD.try_with(|heard| {
        let mut heard = heard.borrow_mut();
        for text in texts {
            if heard.len() < MAX_WARNINGS && !heard.contains(&text) {
                heard.push(text);
            }
        }
    });
    response
}

/// The text of `299 - "text"`, as it can be shown anywhere.
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
    fn reads_the_quoted_text() {
        assert_eq!(
            text_of(r#"299 - "spec.x is deprecated""#).as_deref(),
            Some("spec.x is deprecated")
        );
        assert_eq!(text_of(r#"299 - "say \"no\" \\ yes""#).as_deref(), Some(r#"say "no" \ yes"#));
        assert_eq!(text_of("299 - bare"), None);
    }

    #[tokio::test]
    async fn hears_what_comes_while_it_listens_and_each_once() {
        note(response(&[r#"299 - "before""#]));
        let (answer, heard) = with_warnings(async {
            note(response(&[r#"299 - "one""#, r#"299 - "two""#]));
            note(response(&[r#"299 - "one""#]));
            7
        })
        .await;
        assert_eq!((answer, heard), (7, vec!["one".to_owned(), "two".to_owned()]));
    }
}
