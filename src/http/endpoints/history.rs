//! `GET /api/v1/history`: what was done, by whom and why, for who may list it.

use http::{HeaderValue, Response, header};
use schemars::SchemaGenerator;
use serde_json::json;

use crate::{
    contract::{
        error::ActionError,
        names::{ClusterName, Namespace},
    },
    executor::incoming::list_as,
    http::{
        dispatch::Service,
        message::{Body, FullRequest, RequestInfo, json as json_response},
        openapi::{AUTH_ERRORS, CLUSTER_ERRORS, Operation, Tag, json_content, query, response},
        query::{cluster, cluster_parameter, namespace, parameters},
    },
    ledger::{
        history::{Filter, Page},
        record::HistoryState,
    },
};

/// The default and the maximum number of entries.
pub(crate) const DEFAULT_LIMIT: usize = 100;
/// See [`DEFAULT_LIMIT`].
pub(crate) const MAX_LIMIT: usize = 500;

/// The maximum length of a target: a kind, and a name of at most 253 characters.
const MAX_TARGET_LENGTH: usize = 320;

/// The maximum length of a requester.
const MAX_REQUESTER_LENGTH: usize = 512;

/// The newest entries.
///
/// # Errors
/// The caller may not list, the query is wrong, there is no cluster, or the server may not list Events there; the error
/// names the missing rule.
pub(crate) async fn get(
    service: &Service,
    request: &FullRequest,
    info: &RequestInfo,
) -> Result<Response<Body>, ActionError> {
    let wanted = Query::read(request.uri().query().unwrap_or_default())?;
    let Query { filter, limit, cluster } = &wanted;
    let context = &service.context.for_cluster(cluster.as_ref())?;
    let page = list_as(context, info.caller.as_ref(), filter, *limit, context.deadline()).await?;
    let mut response = json_response(&page);
    // It depends on the caller and the time.
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// The query of the target.
#[derive(Debug, PartialEq, Eq)]
struct Query {
    filter: Filter,
    limit: usize,
    cluster: Option<ClusterName>,
}

impl Query {
    /// Reads it.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`](crate::contract::error::Code::InvalidRequest) naming the parameter.
    fn read(text: &str) -> Result<Self, ActionError> {
        let mut query = Query { filter: Filter::default(), limit: DEFAULT_LIMIT, cluster: None };
        for parameter in parameters(text) {
            let (name, value) = parameter?;
            match name.as_ref() {
                "namespace" => query.filter.namespace = Some(namespace(value)?.to_string()),
                "cluster" => query.cluster = Some(cluster(value)?),
                "target" if value.is_empty() || value.len() > MAX_TARGET_LENGTH => {
                    let what = format!("must have 1 to {MAX_TARGET_LENGTH} characters");
                    return Err(ActionError::invalid_field("target", what)
                        .with_hint("write it as deployment/web or web"));
                }
                "target" => query.filter.target = Some(value.into_owned()),
                "requester" if value.is_empty() || value.chars().count() > MAX_REQUESTER_LENGTH => {
                    let what = format!("must have 1 to {MAX_REQUESTER_LENGTH} characters");
                    return Err(ActionError::invalid_field("requester", what));
                }
                "requester" => query.filter.requester = Some(value.into_owned()),
                "outcome" => {
                    query.filter.state = Some(
                        value
                            .parse()
                            .map_err(|what: String| ActionError::invalid_field("outcome", what))?,
                    )
                }
                "limit" => query.limit = limit(&value)?,
                _ => {
                    return Err(ActionError::invalid_field("query", "has an unknown parameter")
                        .with_hint(
                            "known: namespace, target, requester, outcome, limit, cluster",
                        ));
                }
            }
        }
        Ok(query)
    }
}

fn limit(text: &str) -> Result<usize, ActionError> {
    // Digits alone: no sign, no spaces.
    let number = text.bytes().all(|it| it.is_ascii_digit()).then(|| text.parse().ok()).flatten();
    number.filter(|number| (1..=MAX_LIMIT).contains(number)).ok_or_else(|| {
        ActionError::invalid_field("limit", format!("must be a number from 1 to {MAX_LIMIT}"))
    })
}

/// The operation in the OpenAPI document.
pub(crate) fn operation(generator: &mut SchemaGenerator) -> Operation {
    let namespace = generator.subschema_for::<Namespace>().to_value();
    let outcome = generator.subschema_for::<HistoryState>().to_value();
    Operation {
        description:
            "The newest first, as far back as the API server keeps Events: an hour by default. \
                      Callers need permission to `list`."
                .to_owned(),
        authenticated: true,
        parameters: vec![
            query(
                "namespace",
                "Only records in this namespace, which for actions on nodes is `default`; all namespaces, if \
                 it is left out.",
                namespace,
            ),
            query(
                "target",
                "Only records of this target, for example `deployment/web` or `web`.",
                json!({ "type": "string", "minLength": 1, "maxLength": MAX_TARGET_LENGTH }),
            ),
            query(
                "requester",
                "Only requests of this person or program.",
                json!({ "type": "string", "minLength": 1, "maxLength": MAX_REQUESTER_LENGTH }),
            ),
            query("outcome", "Only requests that ended like this.", outcome),
            query(
                "limit",
                "The maximum number of entries.",
                json!({
                    "type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": DEFAULT_LIMIT,
                }),
            ),
            cluster_parameter(generator),
        ],
        responses: vec![(
            200,
            response("What was done, by whom and why.", json_content::<Page>(generator)),
        )],
        errors: [&AUTH_ERRORS[..], &CLUSTER_ERRORS].concat(),
        ..Operation::get("/api/v1/history", "listHistory", Tag::Actions, "What was done")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_a_filter_and_a_limit() {
        let wanted =
            Query::read("namespace=shop&target=deployment%2Fweb&limit=7&outcome=pending_approval")
                .expect("is one");
        assert_eq!(wanted.filter.namespace.as_deref(), Some("shop"));
        assert_eq!(wanted.filter.target.as_deref(), Some("deployment/web"));
        assert_eq!(wanted.limit, 7);
        assert_eq!(wanted.filter.state, Some(HistoryState::PendingApproval));
        let none = Query { filter: Filter::default(), limit: DEFAULT_LIMIT, cluster: None };
        assert_eq!(Query::read(""), Ok(none));
        let blue = Query::read("cluster=blue").expect("is one");
        assert_eq!(blue.cluster.as_deref(), Some("blue"));
    }

    #[test]
    fn a_wrong_parameter_is_refused_by_its_name() {
        for (text, field) in [
            ("namespace=", "namespace"),
            ("namespace=Shop", "namespace"),
            ("target=", "target"),
            ("limit=0", "limit"),
            ("limit=501", "limit"),
            ("limit=%2B1", "limit"),
            ("limit=99999999999999999999", "limit"),
            ("limit=1&limit=2", "limit"),
            ("requester=", "requester"),
            ("cluster=", "cluster"),
            ("outcome=done", "outcome"),
            ("outcome=Applied", "outcome"),
            ("name_space=shop", "query"),
        ] {
            let error = Query::read(text).expect_err(text);
            assert_eq!(error.field.as_deref(), Some(field), "{text}");
        }
    }
}
