//! Which cluster the arguments of a command mean, with the settings' list of clusters or without one. It connects, and
//! calls nothing.

use crate::{
    cli::ClusterArgs,
    config::{
        Settings,
        clusters::{ClusterEntry, ClusterList, another_cluster},
        reload::Source,
    },
    contract::error::ActionError,
    executor::{clusters::connect_entry, context::refuse_context},
    k8s::api::{client::Cluster, connect::connect, kubeconfig},
    telemetry::calls::no_calls,
};

/// The cluster, if one is configured.
///
/// # Errors
/// Its configuration cannot be used, or there is no cluster of this name.
pub(super) async fn find(
    args: &ClusterArgs,
    settings: &Settings,
) -> Result<Option<Cluster>, ActionError> {
    if let Some(entry) = entry(args, settings)? {
        return connect_entry(&entry, &no_calls()).await.map(Some);
    }
    let found = connect(args.context.as_deref()).await?;
    let found = found.map(|cluster| match &settings.cluster_name {
        Some(name) => cluster.with_name(name.clone()),
        None => cluster,
    });
    let name = found.as_ref().map(Cluster::name);
    match args.cluster.as_deref() {
        Some(wanted) if name != Some(wanted) => Err(another_cluster(name)),
        _ => Ok(found),
    }
}

/// The name of the cluster as far as it is known without a kubeconfig: that in the list, or without a list the one that
/// is asked for or configured.
///
/// # Errors
/// As [`find`].
pub(super) fn name(args: &ClusterArgs, settings: &Settings) -> Result<Option<String>, ActionError> {
    if let Some(entry) = entry(args, settings)? {
        return Ok(Some(entry.name.to_string()));
    }
    let configured = settings.cluster_name.as_deref();
    match args.cluster.as_deref() {
        Some(wanted) if configured.is_some_and(|name| name != wanted) => {
            Err(another_cluster(configured))
        }
        wanted => Ok(wanted.or(configured).map(str::to_owned)),
    }
}

/// The namespace of the kubeconfig's context, if there is one.
///
/// # Errors
/// As [`find`].
pub(super) fn namespace(
    args: &ClusterArgs,
    settings: &Settings,
) -> Result<Option<String>, ActionError> {
    match entry(args, settings)? {
        Some(entry) => kubeconfig::namespace(entry.kubeconfig.as_deref(), entry.context.as_deref()),
        None => kubeconfig::namespace(None, args.context.as_deref()),
    }
}

/// The policy of the cluster, if it is not the default one.
///
/// # Errors
/// As [`find`].
pub(super) fn policy(
    args: &ClusterArgs,
    settings: &Settings,
) -> Result<Option<Source>, ActionError> {
    let own = entry(args, settings)?.and_then(|entry| entry.policy).map(Source::File);
    Ok(own.or_else(|| settings.policy.clone()))
}

/// The entry of the list, if there is a list.
fn entry(args: &ClusterArgs, settings: &Settings) -> Result<Option<ClusterEntry>, ActionError> {
    let Some(list) = ClusterList::of(settings)? else { return Ok(None) };
    refuse_context(args.context.as_deref())?;
    let index = list.choose(args.cluster.as_deref())?;
    Ok(list.clusters.into_iter().nth(index))
}
