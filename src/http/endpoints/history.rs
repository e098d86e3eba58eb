//! `GET /api/v1/history`: what was done, by whom and why, for who may list it.

use http::{HeaderValue, Request, Response, header};
use tokio::time::Instant;

use crate::{
    auth::{AccessRequest, Authenticator, Verb},
    contract::error::ActionError,
    executor::context::Context,
    http::{
        message::{Body, credentials, json},
        query::{namespace, parameters},
    },
    ledger::history::{self, Filter, no_cluster},
};

/// How many entries are told of unless the caller says otherwise, and how many at most.
pub const USUAL: usize = 100;
/// See [`USUAL`].
pub const MOST: usize = 500;

/// The longest target that is looked for: a kind, and a name of at most 253 characters.
const LONGEST_TARGET: usize = 320;

/// Answers with the newest entries.
///
/// # Errors
/// That the caller is not known or may not list, that the query is wrong, that there is no cluster, or
/// that we may not list Events there, with the rule that is missing.
pub async fn answer(
    context: &Context,
    callers: &Authenticator,
    request: &Request<Vec<u8>>,
) -> Result<Response<Body>, ActionError> {
    // Nobody learns anything who has not said who they are.
    let caller = callers.authenticate(&credentials(request), context.cluster()).await?;
    let query = Query::read(request.uri().query().unwrap_or_default())?;
    if let Some(caller) = caller {
        let namespace = query.wanted.namespace.as_deref().unwrap_or_default();
        let wish = AccessRequest { verb: Verb::List, kind: None, namespace };
        caller.authorize(&wish, context.cluster()).await?;
    }
    let cluster = context.cluster().ok_or_else(no_cluster)?;
    let deadline = Instant::now() + context.deadline();
    let page = history::query(cluster, &query.wanted, query.limit, deadline).await?;
    let mut response = json(&page);
    // It is for this caller, and as of now.
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// What stands behind the `?`.
#[derive(Debug, PartialEq, Eq)]
struct Query {
    wanted: Filter,
    limit: usize,
}

impl Query {
    /// Reads it.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`](crate::contract::error::Code::InvalidRequest) naming the parameter.
    fn read(text: &str) -> Result<Self, ActionError> {
        let mut query = Query { wanted: Filter::default(), limit: USUAL };
        for parameter in parameters(text) {
            let (name, value) = parameter?;
            match name.as_ref() {
                "namespace" => query.wanted.namespace = Some(namespace(value)?.to_string()),
                "target" if value.is_empty() || value.len() > LONGEST_TARGET => {
                    let what = format!("must have 1 to {LONGEST_TARGET} characters");
                    return Err(ActionError::invalid_field("target", what)
                        .with_hint("name it as deployment/web or web"));
                }
                "target" => query.wanted.target = Some(value.into_owned()),
                "limit" => query.limit = limit(&value)?,
                _ => {
                    return Err(ActionError::invalid_field("query", "holds an unknown parameter")
                        .with_hint("known: namespace, target, limit"));
                }
            }
        }
        Ok(query)
    }
}

fn limit(text: &str) -> Result<usize, ActionError> {
    // Digits alone: no sign, no spaces.
    let number = text.bytes().all(|it| it.is_ascii_digit()).then(|| text.parse().ok()).flatten();
    number.filter(|number| (1..=MOST).contains(number)).ok_or_else(|| {
        ActionError::invalid_field("limit", format!("must be a number from 1 to {MOST}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_says_what_is_wanted() {
        let query = Query::read("namespace=shop&target=deployment%2Fweb&limit=7").expect("is one");
        assert_eq!(query.wanted.namespace.as_deref(), Some("shop"));
        assert_eq!(query.wanted.target.as_deref(), Some("deployment/web"));
        assert_eq!(query.limit, 7);
        assert_eq!(Query::read(""), Ok(Query { wanted: Filter::default(), limit: USUAL }));
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_name() {
        for (text, field) in [
            ("namespace=", "namespace"),
            ("namespace=Shop", "namespace"),
            ("target=", "target"),
            ("limit=0", "limit"),
            ("limit=501", "limit"),
            ("limit=%2B1", "limit"),
            ("limit=99999999999999999999", "limit"),
            ("limit=1&limit=2", "limit"),
            ("name_space=shop", "query"),
        ] {
            let error = Query::read(text).expect_err(text);
            assert_eq!(error.field.as_deref(), Some(field), "{text}");
        }
    }
}
