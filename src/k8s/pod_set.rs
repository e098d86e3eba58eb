//! A set of pods that a record can have. Pure.

use std::collections::BTreeSet;

use kube::core::ObjectMeta;
use serde::{Deserialize, Serialize};

use crate::contract::digest::sha256;

/// How much of a digest identifies a pod among those of one node or namespace.
const DIGEST_CHARACTERS: usize = 10;

/// Pods, each as a piece of the digest of its uid: short enough for thousands of pods.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct PodSet(BTreeSet<String>);

impl PodSet {
    pub(crate) fn insert(&mut self, uid: &str) {
        self.0.insert(hash(uid));
    }

    pub(crate) fn contains(&self, pod: &ObjectMeta) -> bool {
        self.0.contains(&hash(pod.uid.as_deref().unwrap_or_default()))
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// As a text, for what a decision rests on.
    pub(crate) fn to_text(&self) -> String {
        self.0.iter().map(String::as_str).collect::<Vec<_>>().join(" ")
    }

    /// The set of which this is the text.
    pub(crate) fn of_text(text: &str) -> Self {
        PodSet(text.split_whitespace().map(str::to_owned).collect())
    }
}

impl<'a> FromIterator<&'a str> for PodSet {
    /// The pods with these uids.
    fn from_iter<T: IntoIterator<Item = &'a str>>(uids: T) -> Self {
        PodSet(uids.into_iter().map(hash).collect())
    }
}

fn hash(uid: &str) -> String {
    sha256(uid.as_bytes())[..DIGEST_CHARACTERS].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_knows_its_pods_by_uid_also_after_it_was_a_text() {
        let set: PodSet = ["u1", "u2"].into_iter().collect();
        let pod = |uid: &str| ObjectMeta { uid: Some(uid.to_owned()), ..ObjectMeta::default() };
        for set in [PodSet::of_text(&set.to_text()), set] {
            assert!(set.contains(&pod("u1")) && set.contains(&pod("u2")));
            assert!(!set.contains(&pod("u3")) && !set.contains(&ObjectMeta::default()));
            assert_eq!(set.len(), 2);
        }
        assert_eq!(PodSet::of_text("").len(), 0);
    }
}
