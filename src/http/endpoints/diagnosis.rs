//! `GET /api/v1/diagnosis`: what is wrong with a target, for who may list what was done and read the target.

use http::{HeaderValue, Response, header};
use schemars::SchemaGenerator;
use serde_json::json;

use crate::{
    contract::{
        error::{ActionError, Code},
        names::{ClusterName, Namespace},
    },
    diagnosis::{
        report::Report,
        target::{MAX_LENGTH, Target},
    },
    executor::incoming::diagnose_as,
    http::{
        dispatch::Service,
        message::{Body, FullRequest, RequestInfo, json as json_response},
        openapi::{AUTH_ERRORS, CLUSTER_ERRORS, Operation, Tag, json_content, query, response},
        query::{cluster, cluster_parameter, namespace, parameters},
    },
};

/// The report.
///
/// # Errors
/// The caller may not ask, the policy forbids the namespace, the query is wrong, there is no cluster, or the target
/// could not be read.
pub(crate) async fn get(
    service: &Service,
    request: &FullRequest,
    info: &RequestInfo,
) -> Result<Response<Body>, ActionError> {
    let (target, cluster) = read(request.uri().query().unwrap_or_default())?;
    let context = &service.context.for_cluster(cluster.as_ref())?;
    let report = diagnose_as(context, info.caller.as_ref(), &target, context.deadline()).await?;
    let mut response = json_response(&report);
    // It depends on the caller and the time.
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// The target of a query, and the cluster that it names.
fn read(text: &str) -> Result<(Target, Option<ClusterName>), ActionError> {
    let (mut target, mut of, mut named) = (None, None, None);
    for parameter in parameters(text) {
        let (name, value) = parameter?;
        match name.as_ref() {
            "target" => target = Some(value.into_owned()),
            "namespace" => of = Some(namespace(value)?),
            "cluster" => named = Some(cluster(value)?),
            _ => {
                return Err(ActionError::invalid_field("query", "has an unknown parameter")
                    .with_hint("known: target, namespace, cluster"));
            }
        }
    }
    let target = target.ok_or_else(|| {
        ActionError::invalid_field("target", "missing").with_hint("write it as deployment/web")
    })?;
    Ok((Target::read(&target, of)?, named))
}

/// The operation in the OpenAPI document.
pub(crate) fn operation(generator: &mut SchemaGenerator) -> Operation {
    let namespace = generator.subschema_for::<Namespace>().to_value();
    let mut target = query(
        "target",
        "The target, for example `deployment/web`; also `statefulset`, `daemonset`, `replicaset`, `pod`, `job`, `cronjob` \
         and `node`.",
        json!({ "type": "string", "minLength": 1, "maxLength": MAX_LENGTH }),
    );
    target["required"] = true.into();
    let own_errors = [Code::TargetNotFound, Code::PolicyDenied];
    Operation {
        description: "Findings, the most important first, with state, pods, Events, the end of the failing log, owners \
                      and what was done lately; at most 8 KiB, with secrets masked. It changes nothing. Callers need \
                      permission to `list`, and users of the cluster permission to `get` the target. What may not be \
                      read is left out and named."
            .to_owned(),
        authenticated: true,
        parameters: vec![
            target,
            query(
                "namespace",
                "The target's namespace: `default`, if it is left out; none for a node.",
                namespace,
            ),
            cluster_parameter(generator),
        ],
        responses: vec![(200, response("The diagnosis.", json_content::<Report>(generator)))],
        errors: [&AUTH_ERRORS[..], &CLUSTER_ERRORS, &own_errors].concat(),
        ..Operation::get("/api/v1/diagnosis", "diagnose", Tag::Actions, "What is wrong with a target")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_names_a_target() {
        let text = "target=deployment%2Fweb&namespace=shop&cluster=blue";
        let (target, cluster) = read(text).expect("is one");
        assert_eq!(cluster.as_deref(), Some("blue"));
        assert_eq!(target.object().to_string(), "Deployment shop/web");
        for (text, field) in [
            ("", "target"),
            ("target=web", "target"),
            ("target=secret/web", "target"),
            ("target=node/n1&namespace=shop", "namespace"),
            ("target=pod/a&namespace=Shop", "namespace"),
            ("target=pod/a&target=pod/b", "target"),
            ("target=pod/a&limit=1", "query"),
        ] {
            let error = read(text).expect_err(text);
            assert_eq!(error.field.as_deref(), Some(field), "{text}");
        }
    }
}
