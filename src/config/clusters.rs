//! The list of clusters on which requests may act by name: its format, and which of them is meant. Must not connect to any.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::{
    config::{
        Settings,
        reload::{ConfigFile, Reloading, Source},
    },
    contract::{error::ActionError, names::ObjectName},
};

/// The list of clusters. It is read once, when the program starts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Unchecked")]
pub struct ClusterList {
    /// The cluster of requests that name none; without it each request has to name one, if there are several.
    pub default: Option<ObjectName>,
    /// The clusters; the default one, else the first, also reviews the tokens and the rights of callers.
    pub clusters: Vec<ClusterEntry>,
}

/// One cluster. Without `context` and `kubeconfig` it is the one that the program uses without a list.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterEntry {
    /// Its name in requests, answers, records and metrics.
    pub name: ObjectName,
    /// The context of the kubeconfig; none: its current one.
    #[serde(default)]
    pub context: Option<String>,
    /// The file of the kubeconfig; none: the one that the program uses without a list.
    #[serde(default)]
    pub kubeconfig: Option<PathBuf>,
    /// The policy file for this cluster; none: the policy of the settings.
    #[serde(default)]
    pub policy: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Unchecked {
    #[serde(default)]
    default: Option<ObjectName>,
    clusters: Vec<ClusterEntry>,
}

impl TryFrom<Unchecked> for ClusterList {
    type Error = String;

    fn try_from(Unchecked { default, clusters }: Unchecked) -> Result<Self, String> {
        if clusters.is_empty() {
            return Err("clusters: at least one is needed".to_owned());
        }
        for (index, entry) in clusters.iter().enumerate() {
            if clusters[..index].iter().any(|other| other.name == entry.name) {
                return Err(format!("clusters: the name {} is given twice", entry.name));
            }
        }
        match default.as_ref().filter(|name| !clusters.iter().any(|it| it.name == **name)) {
            Some(name) => Err(format!("default: {name} is no name of a cluster in the list")),
            None => Ok(ClusterList { default, clusters }),
        }
    }
}

impl ConfigFile for ClusterList {
    const KIND: &'static str = "list of clusters";
    const HINT: &'static str = "write `clusters: [{name: NAME, context: CONTEXT}]`; also `default: NAME`, and for each \
                                cluster `kubeconfig: FILE` and `policy: FILE`";
    const IS_SECRET: bool = false;
}

impl ClusterList {
    /// The list of these settings, if there is one. Paths in its file are relative to its folder.
    ///
    /// # Errors
    /// [`Code::Configuration`](crate::contract::error::Code::Configuration) if it cannot be read or is not valid.
    pub(crate) fn of(settings: &Settings) -> Result<Option<Self>, ActionError> {
        let Some(source) = settings.clusters.clone() else { return Ok(None) };
        let folder = match &source {
            Source::File(path) => path.parent().map(Path::to_owned).unwrap_or_default(),
            Source::Variable(..) => PathBuf::new(),
        };
        let list = Reloading::<ClusterList>::new(Some(source))?;
        let mut list = (*list.current()).clone();
        for entry in &mut list.clusters {
            // An absolute path stays as it is.
            let paths = [&mut entry.kubeconfig, &mut entry.policy].into_iter().flatten();
            paths.for_each(|path| *path = folder.join(&*path));
        }
        Ok(Some(list))
    }

    /// The index of the cluster that a request means.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`](crate::contract::error::Code::InvalidRequest) if it names one that is not in the list, or
    /// none where there is no default.
    pub(crate) fn choose(&self, name: Option<&str>) -> Result<usize, ActionError> {
        let meant = name.or(self.default.as_deref());
        let found = match meant {
            Some(name) => self.clusters.iter().position(|entry| *entry.name == *name),
            None => Some(0).filter(|_| self.clusters.len() == 1),
        };
        found.ok_or_else(|| {
            let names: Vec<_> = self.clusters.iter().map(|entry| &*entry.name).collect();
            let what = match meant {
                Some(_) => "there is no such cluster",
                None => "missing: there are several clusters, and none of them is the default",
            };
            let error = ActionError::invalid_field("cluster", what);
            error.with_hint(format!("name one of {}", names.join(", ")))
        })
    }

    /// The index of the cluster that reviews the tokens and the rights of callers.
    pub(crate) fn reviewer(&self) -> usize {
        let is_default = |entry: &ClusterEntry| Some(&entry.name) == self.default.as_ref();
        self.clusters.iter().position(is_default).unwrap_or(0)
    }
}

/// The error of a request that names another cluster than the only one, if that has a name.
pub(crate) fn another_cluster(only: Option<&str>) -> ActionError {
    let error = ActionError::invalid_field("cluster", "there is no such cluster");
    match only {
        Some(name) => error.with_hint(format!("the only one is {name}")),
        None => error.with_hint("no cluster is configured"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::error::Code;

    fn list(text: &str) -> Result<ClusterList, ActionError> {
        ClusterList::parse(text, "clusters.yaml")
    }

    #[test]
    fn a_request_means_the_cluster_that_it_names_or_the_default() {
        let both =
            list("{default: blue, clusters: [{name: green}, {name: blue}]}").expect("is one");
        assert_eq!(both.choose(None), Ok(1));
        assert_eq!(both.choose(Some("green")), Ok(0));
        assert_eq!(both.reviewer(), 1);
        let error = both.choose(Some("canary")).expect_err("is unknown");
        assert_eq!((error.code, error.field.as_deref()), (Code::InvalidRequest, Some("cluster")));
        assert_eq!(error.hint.as_deref(), Some("name one of green, blue"));
        assert!(!error.detail.contains("canary"));
    }

    #[test]
    fn without_a_default_one_of_several_has_to_be_named() {
        let both = list("{clusters: [{name: green}, {name: blue}]}").expect("is one");
        let error = both.choose(None).expect_err("is refused");
        assert!(error.detail.starts_with("cluster: missing"), "{error:?}");
        assert_eq!(both.reviewer(), 0);
        assert_eq!(list("clusters: [{name: green}]").expect("is one").choose(None), Ok(0));
    }

    #[test]
    fn a_wrong_list_is_refused_by_what_is_wrong() {
        for (text, named) in [
            ("clusters: []", "at least one"),
            ("{}", "clusters"),
            ("clusters: [{name: a}, {name: a}]", "the name a is given twice"),
            ("{default: b, clusters: [{name: a}]}", "default: b is no name"),
            ("clusters: [{name: a, contexts: c}]", "contexts"),
            ("{cluster: a, clusters: [{name: a}]}", "cluster"),
            ("clusters: [{name: A}]", "must be"),
            ("clusters: [{context: a}]", "name"),
        ] {
            let error = list(text).expect_err(text);
            assert_eq!(error.code, Code::Configuration);
            assert!(error.detail.contains(named), "{text}: {}", error.detail);
        }
    }
}
