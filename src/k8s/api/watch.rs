//! Notices that an object may have changed, so that a wait need not poll it each second.
//!
//! A watch is a hint and nothing more: what the object is, is read again. So a watch that breaks, or that RBAC does
//! not permit, costs calls and time, and changes no answer.

use std::time::Duration;

use http_body_util::BodyExt;
use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{PersistentVolumeClaim, Pod},
};
use kube::{
    Resource,
    api::{ApiResource, DynamicObject, WatchParams},
    client::Body,
    core::Request,
};
use tokio::{sync::watch, task::AbortHandle, time::sleep};

use crate::k8s::{
    api::{client::Cluster, connection::ConnectionIndex},
    cleanup_filter::FINISHED,
    completion::Completion,
    integrations::{APPLICATION, ROLLOUT},
};

/// The pause before a watch that ended begins again.
const RESTART_INTERVAL: Duration = Duration::from_secs(1);

/// What a wait is notified of.
pub(crate) struct Changes {
    /// Whether the watch runs; each event is sent, although the value stays.
    is_live: watch::Receiver<bool>,
    task: Option<AbortHandle>,
}

/// The objects to watch.
struct Watched {
    resource: ApiResource,
    namespace: String,
    params: WatchParams,
}

impl Changes {
    /// Returns when the object may have changed since the last call; never, without a watch.
    pub(crate) async fn next(&mut self) {
        if self.is_live.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Whether a change would be noticed.
    pub(crate) fn is_live(&self) -> bool {
        *self.is_live.borrow()
    }
}

impl Drop for Changes {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

impl Cluster {
    /// Watches what decides whether the effect is complete.
    pub(crate) fn changes(&self, completion: &Completion) -> Changes {
        let (notify, is_live) = watch::channel(false);
        let task = Watched::of(completion).map(|watched| {
            let cluster = self.clone();
            let task = async move {
                loop {
                    // Without a permit the wait polls.
                    if let Some((connection, _permit)) = cluster.watches().try_acquire()
                        && !cluster.watch_once(&watched, connection, &notify).await
                    {
                        return;
                    }
                    notify.send_replace(false);
                    sleep(RESTART_INTERVAL).await;
                }
            };
            tokio::spawn(task).abort_handle()
        });
        Changes { is_live, task }
    }

    /// Watches until the server ends it; false if it does not permit it.
    async fn watch_once(
        &self,
        watched: &Watched,
        connection: ConnectionIndex,
        notify: &watch::Sender<bool>,
    ) -> bool {
        let Watched { resource, namespace, params } = watched;
        let path = DynamicObject::url_path(resource, Some(namespace));
        let Ok(mut request) = Request::new(path).watch_metadata(params, "0") else { return false };
        request.extensions_mut().insert(connection);
        let Ok(response) = self.client().send(request.map(Body::from)).await else { return true };
        let status = response.status();
        if !status.is_success() {
            // A busy server (429) and a version that it has forgotten (410) are no refusal.
            return !status.is_client_error() || matches!(status.as_u16(), 410 | 429);
        }
        let mut body = response.into_body();
        // The first event is the present state.
        while let Some(Ok(_)) = body.frame().await {
            notify.send_replace(true);
        }
        true
    }
}

impl Watched {
    fn of(completion: &Completion) -> Option<Self> {
        let params = WatchParams::default().disable_bookmarks();
        let named = |resource: ApiResource, namespace: &str, name: &str| Watched {
            resource,
            namespace: namespace.to_owned(),
            params: params.clone().fields(&format!("metadata.name={name}")),
        };
        match completion {
            Completion::Immediate(_) => None,
            Completion::RolledOut(awaited) => {
                Some(named(awaited.kind.resource(), &awaited.namespace, &awaited.name))
            }
            Completion::ArgoRollout(awaited) => {
                Some(named(ROLLOUT.resource(), &awaited.namespace, &awaited.name))
            }
            Completion::Scaled { kind, namespace, name, .. } => {
                Some(named(kind.resource(), namespace, name))
            }
            Completion::Gone { namespace, name, .. }
            | Completion::Resized { namespace, name, .. } => {
                Some(named(ApiResource::erase::<Pod>(&()), namespace, name))
            }
            Completion::Expanded { namespace, name, .. } => {
                Some(named(ApiResource::erase::<PersistentVolumeClaim>(&()), namespace, name))
            }
            Completion::Reconciled { kind, namespace, name, .. } => {
                Some(named(kind.custom().resource(), namespace, name))
            }
            Completion::Synced { namespace, name, .. } => {
                Some(named(APPLICATION.resource(), namespace, name))
            }
            Completion::ScalingPaused { kind, namespace, name, .. } => {
                Some(named(kind.custom().resource(), namespace, name))
            }
            Completion::PodsGone { namespace, .. } => Some(Watched {
                resource: ApiResource::erase::<Pod>(&()),
                namespace: namespace.clone(),
                params: params.fields(FINISHED),
            }),
            Completion::Finished { namespace, name, .. } => {
                Some(named(ApiResource::erase::<Job>(&()), namespace, name))
            }
            // The pods of a deleted Job go after it.
            Completion::JobGone { namespace, query, .. }
            | Completion::Replaced { namespace, query, .. } => {
                let (labels, fields) = query.selectors();
                Some(Watched {
                    resource: ApiResource::erase::<Pod>(&()),
                    namespace: namespace.clone(),
                    params: params.labels(&labels).fields(&fields),
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::k8s::{replacement::PodQuery, workload::WorkloadKind};

    #[test]
    fn the_object_that_decides_is_watched() {
        let (namespace, name) = ("shop".to_owned(), "web".to_owned());
        let scaled = Completion::Scaled {
            kind: WorkloadKind::StatefulSet,
            namespace: namespace.clone(),
            name: name.clone(),
            uid: None,
            replicas: 3,
        };
        let watched = Watched::of(&scaled).expect("is watched");
        assert_eq!(watched.resource.plural, "statefulsets");
        assert_eq!(watched.params.field_selector.as_deref(), Some("metadata.name=web"));
        let replaced = Completion::Replaced {
            namespace,
            controller: "ReplicaSet 'web-1'".to_owned(),
            controller_uid: "u1".to_owned(),
            query: PodQuery::Labels("app=web".to_owned()),
            known: Default::default(),
        };
        let watched = Watched::of(&replaced).expect("is watched");
        assert_eq!(watched.resource.plural, "pods");
        assert_eq!(watched.params.label_selector.as_deref(), Some("app=web"));
        assert!(Watched::of(&Completion::Immediate(String::new())).is_none());
    }
}
