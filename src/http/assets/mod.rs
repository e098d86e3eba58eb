//! The documents that are the same for every client: the actions, the OpenAPI description, and the pages for
//! people.
//!
//! They are public, made once, and need no cluster. The pages get the strictest content security policy
//! that works: nothing from other sites, nothing inline, in no frame.

use std::sync::LazyLock;

use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use hyper::body::Bytes;

use crate::{
    contract::digest::sha256,
    executor::context::Context,
    http::{
        endpoints::actions,
        headers::IF_NONE_MATCH,
        message::{Body, full},
        openapi,
        routes::Asset,
    },
};

/// A document, shared by all of its responses.
pub(crate) struct Document {
    media_type: &'static str,
    body: Bytes,
    /// Its entity tag (RFC 9110, section 8.8.3), in quotes: a digest of the body.
    etag: HeaderValue,
}

const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
     img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
);

/// The headers of all of them: a client revalidates each time, and the body is sent only if it changed.
const HEADERS: [(HeaderName, HeaderValue); 4] = [
    (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (header::CONTENT_SECURITY_POLICY, POLICY),
];

static ACTIONS: LazyLock<Document> = LazyLock::new(|| actions_document(None));
static OPENAPI: LazyLock<Document> =
    LazyLock::new(|| Document::new("application/json", openapi::text()));
static PAGE: LazyLock<Document> =
    LazyLock::new(|| Document::new("text/html; charset=utf-8", include_str!("page.html")));
static SCRIPT: LazyLock<Document> =
    LazyLock::new(|| Document::new("text/javascript; charset=utf-8", include_str!("page.js")));
static STYLE: LazyLock<Document> =
    LazyLock::new(|| Document::new("text/css; charset=utf-8", include_str!("page.css")));

/// The list of the actions, with the names of the clusters that they act on.
pub(crate) fn actions_document(context: Option<&Context>) -> Document {
    Document::new("application/json", actions::text(context))
}

/// The document, or 304 if the client has it already.
pub(crate) fn get(asset: Asset, headers: &HeaderMap) -> Response<Body> {
    let document = match asset {
        Asset::Actions => &ACTIONS,
        Asset::OpenApi => &OPENAPI,
        Asset::Page => &PAGE,
        Asset::Script => &SCRIPT,
        Asset::Style => &STYLE,
    };
    document.response(headers)
}

/// Whether an `If-None-Match` names this tag (RFC 9110, section 13.1.2, which compares weakly).
fn matches_etag(known: &str, etag: &HeaderValue) -> bool {
    known.split(',').map(str::trim).any(|it| it == "*" || it.trim_start_matches("W/") == etag)
}

impl Document {
    fn new(media_type: &'static str, body: impl Into<Bytes>) -> Self {
        let body = body.into();
        let etag = HeaderValue::try_from(format!("\"{}\"", &sha256(&body)[..32]));
        // Hexadecimal digits in quotes are a value.
        let etag = etag.unwrap_or(HeaderValue::from_static("\"\""));
        Document { media_type, body, etag }
    }

    /// The document, or 304 if the client has it already.
    pub(crate) fn response(&self, headers: &HeaderMap) -> Response<Body> {
        let known = IF_NONE_MATCH.read(headers).ok().flatten();
        let mut response = if known.is_some_and(|known| matches_etag(&known, &self.etag)) {
            let mut response = Response::new(Body::Full(Bytes::new()));
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            response
        } else {
            full(self.media_type, self.body.clone())
        };
        let headers = response.headers_mut();
        headers.extend(HEADERS);
        headers.insert(header::ETAG, self.etag.clone());
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(asset: Asset, known: Option<&str>) -> Response<Body> {
        let known = known.map(|known| (header::IF_NONE_MATCH, known.parse().expect("is a value")));
        get(asset, &known.into_iter().collect())
    }

    #[test]
    fn a_document_that_the_client_has_is_not_sent_again() {
        let first = ask(Asset::Page, None);
        let tag = first.headers()[header::ETAG].to_str().expect("is text").to_owned();
        assert_eq!(first.status(), 200);
        for known in [tag.clone(), format!("\"x\", W/{tag}"), "*".to_owned()] {
            let again = ask(Asset::Page, Some(&known));
            assert_eq!(again.status(), 304);
            assert_eq!(again.headers()[header::ETAG], *tag);
            assert!(matches!(again.body(), Body::Full(body) if body.is_empty()));
        }
        assert_eq!(ask(Asset::Script, Some(&tag)).status(), 200);
    }

    #[test]
    fn the_pages_load_nothing_from_other_sites_and_write_no_markup() {
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
