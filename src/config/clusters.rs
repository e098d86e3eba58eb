//! The list of clusters on which requests may act by name: its format, and which of them is meant. Must not connect to
//! any.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::{
    config::{
        OwnPod, Settings,
        reload::{ConfigFile, Reloading, Source},
    },
    contract::{
        error::{ActionError, Code},
        names::ObjectName,
    },
};

/// The list of clusters. It is read once, when the program starts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Unchecked")]
pub struct ClusterList {
    /// The cluster of requests that name none; without it each request has to name one, if there are several.
    pub default: Option<ObjectName>,
    /// The cluster that reviews the tokens and the permissions of callers; without it the only one, if there is only
    /// one.
    pub reviewer: Option<ObjectName>,
    /// The clusters; nothing about permissions depends on their order.
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
    #[serde(default)]
    reviewer: Option<ObjectName>,
    clusters: Vec<ClusterEntry>,
}

impl TryFrom<Unchecked> for ClusterList {
    type Error = String;

    fn try_from(list: Unchecked) -> Result<Self, String> {
        let Unchecked { default, reviewer, clusters } = list;
        if clusters.is_empty() {
            return Err("clusters: at least one is needed".to_owned());
        }
        for (index, entry) in clusters.iter().enumerate() {
            if clusters[..index].iter().any(|other| other.name == entry.name) {
                return Err(format!("clusters: the name {} is given twice", entry.name));
            }
        }
        for (field, name) in [("default", &default), ("reviewer", &reviewer)] {
            let Some(name) = name else { continue };
            if !clusters.iter().any(|entry| entry.name == *name) {
                return Err(format!("{field}: {name} is not the name of a cluster in the list"));
            }
        }
        Ok(ClusterList { default, reviewer, clusters })
    }
}

impl ConfigFile for ClusterList {
    const KIND: &'static str = "list of clusters";
    const HINT: &'static str = "write `clusters: [{name: NAME, context: CONTEXT}]`; also `default: NAME`, `reviewer: \
                                NAME`, and for each cluster `kubeconfig: FILE` and `policy: FILE`";
    const IS_SECRET: bool = false;
}

impl ClusterList {
    /// The list of these settings, if there is one. Paths in its file are relative to its directory.
    ///
    /// # Errors
    /// [`Code::Configuration`] if it cannot be read or is not valid, or if no cluster reviews callers that need it.
    pub(crate) fn of(settings: &Settings) -> Result<Option<Self>, ActionError> {
        let Some(source) = settings.clusters.clone() else { return Ok(None) };
        let directory = match &source {
            Source::File(path) => path.parent().map(Path::to_owned).unwrap_or_default(),
            Source::Variable(..) => PathBuf::new(),
        };
        let list = Reloading::<ClusterList>::new(Some(source))?;
        let mut list = (*list.current()).clone();
        for entry in &mut list.clusters {
            // An absolute path stays as it is.
            let paths = [&mut entry.kubeconfig, &mut entry.policy].into_iter().flatten();
            paths.for_each(|path| *path = directory.join(&*path));
        }
        if settings.needs_reviewer() {
            list.check_reviewer()?;
        }
        Ok(Some(list))
    }

    /// The index of the cluster that a request means.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`] if it names one that is not in the list, or none where there is no default.
    pub(crate) fn choose(&self, name: Option<&str>) -> Result<usize, ActionError> {
        let meant = name.or(self.default.as_deref());
        self.named_or_only(meant).ok_or_else(|| {
            let what = match meant {
                Some(_) => "there is no such cluster",
                None => "missing: there are several clusters, and none of them is the default",
            };
            let error = ActionError::invalid_field("cluster", what);
            error.with_hint(format!("name one of {}", self.names()))
        })
    }

    /// The index of the cluster that reviews the tokens and the permissions of callers, if there is one.
    pub(crate) fn reviewer(&self) -> Option<usize> {
        self.named_or_only(self.reviewer.as_deref())
    }

    /// The administrators of that cluster decide who may act on all of them, so it is never guessed.
    fn check_reviewer(&self) -> Result<(), ActionError> {
        if self.reviewer().is_some() {
            return Ok(());
        }
        let detail = "list of clusters: reviewer: missing: one of several clusters has to review the tokens, the \
                      certificates and the permissions of callers";
        let hint = format!(
            "set `reviewer` to the most trusted one of {}: its administrators decide who may act on all of them",
            self.names()
        );
        Err(ActionError::new(Code::Configuration, detail).with_hint(hint))
    }

    fn named_or_only(&self, name: Option<&str>) -> Option<usize> {
        match name {
            Some(name) => self.clusters.iter().position(|entry| *entry.name == *name),
            None => Some(0).filter(|_| self.clusters.len() == 1),
        }
    }

    fn names(&self) -> String {
        let names: Vec<_> = self.clusters.iter().map(|entry| &*entry.name).collect();
        names.join(", ")
    }
}

impl ClusterEntry {
    /// The program's own pod, if it is on this cluster: only on the one that the program uses without a list. A node of
    /// the same name on another one is another node.
    pub(crate) fn own_pod(&self, known: Option<&OwnPod>) -> Option<OwnPod> {
        known.filter(|_| self.context.is_none() && self.kubeconfig.is_none()).cloned()
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

    fn list(text: &str) -> Result<ClusterList, ActionError> {
        ClusterList::parse(text, "clusters.yaml")
    }

    #[test]
    fn a_request_means_the_cluster_that_it_names_or_the_default() {
        let both =
            list("{default: blue, clusters: [{name: green}, {name: blue}]}").expect("is one");
        assert_eq!(both.choose(None), Ok(1));
        assert_eq!(both.choose(Some("green")), Ok(0));
        let error = both.choose(Some("canary")).expect_err("is unknown");
        assert_eq!((error.code, error.field.as_deref()), (Code::InvalidRequest, Some("cluster")));
        assert_eq!(error.hint.as_deref(), Some("name one of green, blue"));
        assert!(!error.detail.contains("canary"));
    }

    #[test]
    fn a_cluster_has_to_be_named_without_a_default() {
        let both = list("{clusters: [{name: green}, {name: blue}]}").expect("is one");
        let error = both.choose(None).expect_err("is refused");
        assert!(error.detail.starts_with("cluster: missing"), "{error:?}");
        assert_eq!(list("clusters: [{name: green}]").expect("is one").choose(None), Ok(0));
    }

    #[test]
    fn the_reviewer_is_named_or_the_only_cluster_whatever_the_order_and_the_default() {
        for clusters in ["[{name: green}, {name: blue}]", "[{name: blue}, {name: green}]"] {
            let read =
                |head: &str| list(&format!("{{{head}clusters: {clusters}}}")).expect("is one");
            let named = read("reviewer: green, default: blue, ");
            let index = named.reviewer().expect("is named");
            assert_eq!(&*named.clusters[index].name, "green");
            assert_eq!(named.check_reviewer(), Ok(()));
            for unnamed in [read(""), read("default: blue, ")] {
                assert_eq!(unnamed.reviewer(), None);
                let error = unnamed.check_reviewer().expect_err("is missing");
                assert_eq!(error.code, Code::Configuration);
                assert!(error.detail.contains("reviewer: missing"), "{error:?}");
                let hint = error.hint.expect("has one");
                assert!(hint.contains("green") && hint.contains("blue"), "{hint}");
            }
        }
        let one = list("clusters: [{name: green}]").expect("is one");
        assert_eq!((one.reviewer(), one.check_reviewer()), (Some(0), Ok(())));
    }

    #[test]
    fn the_own_pod_is_on_the_cluster_that_is_used_without_a_list() {
        let own = OwnPod { name: "executor-1".to_owned(), node: "n1".to_owned() };
        for (entry, is_there) in [
            ("{name: ops}", true),
            ("{name: ops, policy: p.yaml}", true),
            ("{name: blue, context: blue}", false),
            ("{name: blue, kubeconfig: blue.kubeconfig}", false),
        ] {
            let list = list(&format!("clusters: [{entry}]")).expect("is one");
            let found = list.clusters[0].own_pod(Some(&own));
            assert_eq!(found, is_there.then(|| own.clone()), "{entry}");
            assert_eq!(list.clusters[0].own_pod(None), None);
        }
    }

    #[test]
    fn a_wrong_list_is_refused_by_what_is_wrong() {
        for (text, named) in [
            ("clusters: []", "at least one"),
            ("{}", "clusters"),
            ("clusters: [{name: a}, {name: a}]", "the name a is given twice"),
            ("{default: b, clusters: [{name: a}]}", "default: b is not the name"),
            ("{reviewer: b, clusters: [{name: a}]}", "reviewer: b is not the name"),
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
