//! The extension `io.modelcontextprotocol/tasks`
//! (<https://github.com/modelcontextprotocol/ext-tasks/blob/main/specification/draft/tasks.md>): a task is a request's
//! record in the ledger under another name. Nothing else is kept of it, so any replica answers, and after a restart
//! too.
//!
//! A task's id has the record's cluster, if several are listed by name, its namespace, the request's id, and a digest
//! of the last two and of the caller, whose key is the uid of the record's Event. So it cannot be guessed, and is of no
//! use to another caller. Whether the caller may read the record is checked each time. A task asks for no input:
//! nothing in the protocol approves an action.

use std::{fmt, time::Duration};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use ring::hmac;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::{
    auth::Caller,
    contract::{
        error::Code,
        names::{ClusterName, Namespace, RequestId},
        response::rfc3339_millis,
    },
    executor::{
        context::Context,
        incoming::find_as,
        status::{Operation, Progress},
    },
    ledger::record::RecordState,
    mcp::{
        answers,
        calls::Waits,
        protocol::{INTERNAL_ERROR, INVALID_PARAMS, ProtocolError, Request, TASKS},
    },
};

/// How long a client is to wait before it asks again.
const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// A task's id.
#[derive(Clone, Debug, PartialEq, Eq)]
struct TaskId {
    /// The cluster's name in the list, if there is one.
    cluster: Option<ClusterName>,
    namespace: Namespace,
    id: RequestId,
    tag: Vec<u8>,
}

impl TaskId {
    fn of(found: &Operation, context: &Context, caller: Option<&Caller>) -> Self {
        let (namespace, id) = (found.namespace(), found.id());
        let tag = hmac::sign(&key(found.uid()), &message(namespace, id, caller));
        let cluster = context.listed_name().map(ToString::to_string);
        TaskId {
            cluster: cluster.and_then(|name| name.try_into().ok()),
            namespace: namespace.clone(),
            id: id.clone(),
            tag: tag.as_ref().to_vec(),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let parts: Vec<_> = text.split('/').collect();
        let (cluster, namespace, id, tag) = match *parts.as_slice() {
            [namespace, id, tag] => (None, namespace, id, tag),
            [cluster, namespace, id, tag] => (Some(cluster), namespace, id, tag),
            _ => return None,
        };
        Some(TaskId {
            cluster: cluster.map(|name| name.to_owned().try_into()).transpose().ok()?,
            namespace: namespace.to_owned().try_into().ok()?,
            id: id.to_owned().try_into().ok()?,
            tag: BASE64_URL_SAFE_NO_PAD.decode(tag).ok()?,
        })
    }

    /// Whether this caller was given it for the record whose Event has this uid.
    fn is_of(&self, uid: &str, caller: Option<&Caller>) -> bool {
        let message = message(&self.namespace, &self.id, caller);
        hmac::verify(&key(uid), &message, &self.tag).is_ok()
    }
}

impl fmt::Display for TaskId {
    /// Only characters that a header may hold.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let TaskId { cluster, namespace, id, tag } = self;
        if let Some(cluster) = cluster {
            write!(f, "{}/", &**cluster)?;
        }
        write!(f, "{namespace}/{}/{}", &**id, BASE64_URL_SAFE_NO_PAD.encode(tag))
    }
}

fn key(uid: &str) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, uid.as_bytes())
}

/// Neither a namespace nor an id has a slash.
fn message(namespace: &Namespace, id: &RequestId, caller: Option<&Caller>) -> Vec<u8> {
    let caller = caller.map_or("", Caller::name);
    format!("{namespace}/{}/{caller}", &**id).into_bytes()
}

/// The result of a call that continues as a task.
pub(crate) async fn created(
    found: &Operation,
    context: &Context,
    caller: Option<&Caller>,
) -> Value {
    let mut task = described(found, context, caller).await;
    task["resultType"] = "task".into();
    task
}

/// The result of one of the extension's methods.
///
/// # Errors
/// The client does not declare the extension, its parameters are wrong, there is no such task for this caller, or the
/// ledger could not be read.
pub(crate) async fn answer(
    method: Method,
    request: &Request,
    context: &Context,
    caller: Option<&Caller>,
    waits: &Waits,
) -> Result<Value, ProtocolError> {
    if !request.meta.takes_tasks {
        return Err(ProtocolError::missing_capability(json!({ "extensions": { (TASKS): {} } })));
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct TaskParams {
        task_id: String,
        input_responses: Option<Map<String, Value>>,
    }
    let TaskParams { task_id, input_responses, .. } = request.params()?;
    if method == Method::Update && input_responses.is_none() {
        return Err(ProtocolError::new(INVALID_PARAMS, "params.inputResponses: missing"));
    }
    let (found, context) = find(&task_id, context, caller).await?;
    match method {
        Method::Get => return Ok(described(&found, &context, caller).await),
        Method::Cancel => {
            let cluster = context.cluster_name().map(|name| &**name);
            waits.end(cluster, found.namespace(), found.id(), caller);
        }
        // No task asks for input, and a response that was not asked for is ignored.
        Method::Update => {}
    }
    Ok(json!({}))
}

/// The methods of the extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    Get,
    Update,
    Cancel,
}

impl Method {
    /// The method of this name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        match name {
            "tasks/get" => Some(Method::Get),
            "tasks/update" => Some(Method::Update),
            "tasks/cancel" => Some(Method::Cancel),
            _ => None,
        }
    }
}

/// The record of a task of this caller, and the context of its cluster. One that it may not read, or was not given, is
/// as unknown as any other.
async fn find(
    task_id: &str,
    context: &Context,
    caller: Option<&Caller>,
) -> Result<(Operation, Context), ProtocolError> {
    let unknown = || {
        let what = "params.taskId: there is no such task for this caller, or its record is gone";
        ProtocolError::new(INVALID_PARAMS, what)
    };
    let task = TaskId::parse(task_id).ok_or_else(unknown)?;
    let context = context.for_cluster(task.cluster.as_ref()).map_err(|_| unknown())?;
    let found = find_as(&context, caller, &task.namespace, &task.id).await;
    let found = found.map_err(|error| match error.code {
        Code::RequestNotFound | Code::CallerForbidden => unknown(),
        _ => ProtocolError::new(INTERNAL_ERROR, error.with_its_hint()),
    })?;
    if task.is_of(found.uid(), caller) { Ok((found, context)) } else { Err(unknown()) }
}

/// The task as its record is now; once it has ended, with the result of its call.
async fn described(found: &Operation, context: &Context, caller: Option<&Caller>) -> Value {
    let progress = found.progress().await;
    let created = rfc3339_millis(progress.since);
    let mut task = json!({
        "taskId": TaskId::of(found, context, caller).to_string(),
        "createdAt": created,
        "lastUpdatedAt": found.written_at().unwrap_or(&created),
        // Records are kept for longer than a request may be repeated.
        "ttlMs": context.replay_window().as_millis() as u64,
        "pollIntervalMs": POLL_INTERVAL.as_millis() as u64,
    });
    if found.is_in_progress() {
        task["status"] = "working".into();
        task["statusMessage"] = answers::stage(&progress, context.names().as_ref()).into();
    } else {
        task["status"] = "completed".into();
        task["result"] = outcome(found, &progress, context);
    }
    task
}

/// The result of the call whose task has ended.
fn outcome(found: &Operation, progress: &Progress, context: &Context) -> Value {
    let listed = context.names();
    let recorded = found.interrupted_answer().or(progress.answer.as_ref());
    let mut result = match (progress.state, recorded) {
        (RecordState::Answered | RecordState::Applied | RecordState::RollingBack, Some(answer)) => {
            answers::of_record(answer, listed.as_ref())
        }
        _ => {
            let mut result = answers::of_progress(progress, listed.as_ref());
            // The call would have been refused, or would have said that the outcome is unknown.
            result["isError"] = (progress.state != RecordState::PendingApproval).into();
            result
        }
    };
    result["resultType"] = "complete".into();
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(name: &str) -> Option<Caller> {
        Some(Caller::Platform(name.to_owned()))
    }

    fn signed(uid: &str, namespace: &str, id: &str, caller: Option<&Caller>) -> TaskId {
        let namespace: Namespace = namespace.to_owned().try_into().expect("is one");
        let id: RequestId = id.to_owned().try_into().expect("is one");
        let tag = hmac::sign(&key(uid), &message(&namespace, &id, caller));
        TaskId { cluster: None, namespace, id, tag: tag.as_ref().to_vec() }
    }

    #[test]
    fn a_task_is_of_one_record_and_one_caller() {
        let (jo, uid) = (caller("jo"), "6f0e");
        let task = signed(uid, "shop", "alert:7", jo.as_ref());
        let text = task.to_string();
        assert!(text.starts_with("shop/alert:7/") && text.is_ascii(), "{text}");
        assert_eq!(TaskId::parse(&text), Some(task.clone()));
        let blue = "blue".to_owned().try_into().expect("is a name");
        let elsewhere = TaskId { cluster: Some(blue), ..task.clone() };
        assert_eq!(TaskId::parse(&elsewhere.to_string()), Some(elsewhere));
        assert!(task.is_of(uid, jo.as_ref()));
        assert!(!task.is_of("6f0f", jo.as_ref()));
        assert!(!task.is_of(uid, caller("mo").as_ref()));
        assert!(!task.is_of(uid, None));
        for (namespace, id) in [("shop", "alert:8"), ("shop2", "alert:7")] {
            let other = TaskId { tag: task.tag.clone(), ..signed(uid, namespace, id, jo.as_ref()) };
            assert!(!other.is_of(uid, jo.as_ref()), "{other}");
        }
        // Of no caller is not of a caller without a name.
        assert!(signed(uid, "shop", "a", None).is_of(uid, None));
    }

    #[test]
    fn invalid_task_ids_are_refused() {
        for text in [
            "",
            "shop",
            "shop/a",
            "shop/a/!",
            "shop/a/b/c",
            "blue/shop/a/b/c",
            "SHOP/a/YWJj",
            "shop/a b/YWJj",
            "786512e2-9e0d-44bd-8f29-789f320fe840",
        ] {
            assert_eq!(TaskId::parse(text), None, "{text}");
        }
    }
}
