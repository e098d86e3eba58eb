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

/// The flags that name the cluster on the command lines of others.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ClusterFlags {
    /// Those of kubectl, each after a space.
    pub kubectl: String,
    /// Those of this program, each after a space.
    pub own: String,
}

impl ClusterFlags {
    fn of(args: &ClusterArgs, entry: Option<&ClusterEntry>) -> Self {
        let flag = |name: &str, value: Option<String>| {
            value.map(|value| format!(" --{name} {value}")).unwrap_or_default()
        };
        let Some(ClusterEntry { name, context, kubeconfig, .. }) = entry else {
            let context = flag("context", args.context.clone());
            return ClusterFlags { kubectl: context.clone(), own: context };
        };
        let kubeconfig = kubeconfig.as_ref().map(|path| path.display().to_string());
        ClusterFlags {
            kubectl: flag("kubeconfig", kubeconfig) + &flag("context", context.clone()),
            own: flag("cluster", Some(name.to_string())),
        }
    }
}

/// The flags that name the cluster.
///
/// # Errors
/// As [`find`].
pub(super) fn flags(args: &ClusterArgs, settings: &Settings) -> Result<ClusterFlags, ActionError> {
    Ok(ClusterFlags::of(args, entry(args, settings)?.as_ref()))
}

/// The entry of the list, if there is a list.
fn entry(args: &ClusterArgs, settings: &Settings) -> Result<Option<ClusterEntry>, ActionError> {
    let Some(list) = ClusterList::of(settings)? else { return Ok(None) };
    refuse_context(args.context.as_deref())?;
    let index = list.choose(args.cluster.as_deref())?;
    Ok(list.clusters.into_iter().nth(index))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::reload::ConfigFile;

    #[test]
    fn kubectl_knows_a_listed_cluster_by_its_kubeconfig_and_context_and_this_program_by_its_name() {
        for (entry, kubectl) in [
            ("{name: a}", ""),
            ("{name: a, context: kind-a}", " --context kind-a"),
            ("{name: a, kubeconfig: /k/a.yaml}", " --kubeconfig /k/a.yaml"),
            (
                "{name: a, context: kind-a, kubeconfig: a.yaml}",
                " --kubeconfig a.yaml --context kind-a",
            ),
        ] {
            let list = ClusterList::parse(&format!("clusters: [{entry}]"), "clusters.yaml");
            let list = list.expect("is one");
            let flags = ClusterFlags::of(&ClusterArgs::default(), list.clusters.first());
            assert_eq!((&*flags.kubectl, &*flags.own), (kubectl, " --cluster a"));
        }
        let args = ClusterArgs { context: Some("kind-a".to_owned()), cluster: None };
        let context = " --context kind-a".to_owned();
        let expected = ClusterFlags { kubectl: context.clone(), own: context };
        assert_eq!(ClusterFlags::of(&args, None), expected);
        assert_eq!(ClusterFlags::of(&ClusterArgs::default(), None), ClusterFlags::default());
    }
}
