//! The documents that are the same for everyone as long as the program is: what the actions are, how to
//! ask for them, and the page on which a person does so.
//!
//! They are public, made once, and need no cluster. The page gets the strictest policy that it can live
//! with: nothing from elsewhere, nothing inline, in no frame.

use std::sync::LazyLock;

use http::{HeaderName, HeaderValue, Request, Response, StatusCode, header};

use crate::{
    contract::digest::sha256,
    http::{
        endpoints::actions,
        headers,
        message::{Body, whole},
        openapi,
        routes::Fixed,
    },
};

/// A document on its way to many.
struct Document {
    media_type: &'static str,
    body: Vec<u8>,
    /// Its entity tag (RFC 9110, section 8.8.3), in quotes: another one for other bytes.
    tag: String,
}

const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
     img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
);

/// What goes with every one of them: asked for again each time, and sent only if it has changed.
const HEADERS: [(HeaderName, HeaderValue); 4] = [
    (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (header::CONTENT_SECURITY_POLICY, POLICY),
];

static ACTIONS: LazyLock<Document> =
    LazyLock::new(|| Document::new("application/json", actions::text()));
static OPENAPI: LazyLock<Document> =
    LazyLock::new(|| Document::new("application/json", openapi::text()));
static PAGE: LazyLock<Document> =
    LazyLock::new(|| Document::new("text/html; charset=utf-8", include_str!("page.html")));
static SCRIPT: LazyLock<Document> =
    LazyLock::new(|| Document::new("text/javascript; charset=utf-8", include_str!("page.js")));
static STYLE: LazyLock<Document> =
    LazyLock::new(|| Document::new("text/css; charset=utf-8", include_str!("page.css")));

/// The document, or that the caller has it already.
#[must_use]
pub fn answer(which: Fixed, request: &Request<Vec<u8>>) -> Response<Body> {
    let document = match which {
        Fixed::Actions => &ACTIONS,
        Fixed::OpenApi => &OPENAPI,
        Fixed::Page => &PAGE,
        Fixed::Script => &SCRIPT,
        Fixed::Style => &STYLE,
    };
    let known = headers::header(request.headers(), "if-none-match");
    let mut response = if known.is_some_and(|known| names(&known, &document.tag)) {
        let mut response = Response::new(Body::Whole(Vec::new()));
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response
    } else {
        whole(document.media_type, document.body.clone())
    };
    let headers = response.headers_mut();
    headers.extend(HEADERS);
    // A tag is hexadecimal digits in quotes.
    headers.extend(HeaderValue::try_from(&document.tag).ok().map(|tag| (header::ETAG, tag)));
    response
}

/// Whether an `If-None-Match` names this tag (RFC 9110, section 13.1.2, which compares weakly).
fn names(known: &str, tag: &str) -> bool {
    known.split(',').map(str::trim).any(|it| it == "*" || it.trim_start_matches("W/") == tag)
}

impl Document {
    fn new(media_type: &'static str, body: impl Into<Vec<u8>>) -> Self {
        let body = body.into();
        let tag = format!("\"{}\"", &sha256(&body)[..32]);
        Document { media_type, body, tag }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(which: Fixed, known: Option<&str>) -> Response<Body> {
        let request = known
            .into_iter()
            .fold(Request::get("/"), |request, known| request.header(header::IF_NONE_MATCH, known));
        answer(which, &request.body(Vec::new()).expect("is a request"))
    }

    #[test]
    fn what_the_caller_has_is_not_sent_again() {
        let first = ask(Fixed::Page, None);
        let tag = first.headers()[header::ETAG].to_str().expect("is text").to_owned();
        assert_eq!(first.status(), 200);
        for known in [tag.clone(), format!("\"x\", W/{tag}"), "*".to_owned()] {
            let again = ask(Fixed::Page, Some(&known));
            assert_eq!(again.status(), 304);
            assert_eq!(again.headers()[header::ETAG], *tag);
            assert!(matches!(again.body(), Body::Whole(body) if body.is_empty()));
        }
        assert_eq!(ask(Fixed::Script, Some(&tag)).status(), 200);
    }

    #[test]
    fn the_page_takes_nothing_from_elsewhere_and_writes_no_markup() {
        let page = include_str!("page.html");
        let script = include_str!("page.js");
        let style = include_str!("page.css");
        for (name, text) in [("page", page), ("script", script), ("style", style)] {
            let elsewhere = text.replace("http://www.w3.org/2000/svg", "");
            assert!(!elsewhere.contains("http://") && !elsewhere.contains("https://"), "{name}");
        }
        for inline in ["<script>", "<style", " style=", " onclick=", "javascript:"] {
            assert!(!page.contains(inline), "{inline}");
        }
        for markup in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("] {
            assert!(!script.contains(markup), "{markup}");
        }
        for kept in ["localStorage", "sessionStorage", "indexedDB", "document.cookie"] {
            assert!(!script.contains(kept), "{kept}");
        }
    }
}
