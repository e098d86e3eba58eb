//! The annotation of an object with the last requests that changed it. Pure.
//!
//! A change adds the request's mark in the same patch, which tests that the list is as it was read. A process that
//! resumes a request after a crash can find it. The mark is the request's id with a digest of what it asks
//! for, so that another request with the same id is not taken for this one. The list is short, since objects are
//! no archives. Its entries are numbered, so that it is known when one may have been dropped. The mark of a request
//! that may have to be rolled back names the revision to return to, too: more accounts may write Events, where the
//! records are, than workloads.

use std::{
    collections::{BTreeSet, VecDeque},
    fmt,
};

use kube::core::ObjectMeta;
use serde_json::Value;

use crate::contract::response::Change;

/// The annotation: `41:alert-7@5d41402a 42:alert-8@7d793037`, oldest first.
pub(crate) const REQUESTS_ANNOTATION: &str = "action-executor.dev/requests";

/// The annotation of a node with its last drains, in the same form: each request's id with a digest of the pods to
/// evict and how.
pub(crate) const DRAINS_ANNOTATION: &str = "action-executor.dev/drains";

/// More requests than cooldown and budget allow while one is in doubt.
const MAX_REQUESTS: usize = 8;

/// The length of the digest in a mark: 128 bits, since a requester chooses what it asks for.
const DIGEST_CHARACTERS: usize = 32;

/// Each request's mark with its number, the oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AppliedRequests {
    entries: VecDeque<(u64, String)>,
    /// The object's generation, 0 without one. A later number is above it, so that no number is used again after an
    /// old list was restored (`kubectl rollout undo` restores the annotations of the revision).
    generation: u64,
}

/// The mark of the request with this id and this digest of what it asks for.
pub(crate) fn mark(id: &str, digest: &str) -> String {
    let digest: String = digest.chars().take(DIGEST_CHARACTERS).collect();
    format!("{id}@{digest}")
}

/// The mark of a request that returns to this revision if its rollout fails. No digest has a slash.
pub(crate) fn mark_with_revision(mark: &str, revision: &str) -> String {
    format!("{mark}/{revision}")
}

/// Whether an entry is this mark, with or without a revision.
fn is_mark(entry: &str, mark: &str) -> bool {
    entry.strip_prefix(mark).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// No id has an `@`.
pub(crate) fn id_of(mark: &str) -> &str {
    mark.split('@').next().unwrap_or_default()
}

impl AppliedRequests {
    /// Entries in another format are ignored: this program did not write them.
    pub fn from_metadata(metadata: &ObjectMeta) -> Self {
        Self::listed_in(metadata, REQUESTS_ANNOTATION)
    }

    /// The list in another annotation of this form.
    pub(crate) fn listed_in(metadata: &ObjectMeta, annotation: &str) -> Self {
        let text = metadata.annotations.as_ref().and_then(|all| all.get(annotation));
        let entry = |word: &str| {
            let (number, id) = word.split_once(':')?;
            Some((number.parse().ok()?, id.to_owned()))
        };
        AppliedRequests {
            entries: text
                .map(|text| text.split(' ').filter_map(entry).collect())
                .unwrap_or_default(),
            generation: metadata.generation.and_then(|it| it.try_into().ok()).unwrap_or_default(),
        }
    }

    /// Whether the request with this mark changed the object and its mark was not dropped since.
    pub(crate) fn contains(&self, mark: &str) -> bool {
        self.entries.iter().any(|(_, known)| is_mark(known, mark))
    }

    /// Whether the change of the request with this mark is the last change of the object's generation.
    pub(crate) fn is_last_change(&self, mark: &str) -> bool {
        let mut entries = self.entries.iter();
        entries.any(|(number, known)| is_mark(known, mark) && *number == self.generation)
    }

    /// Whether another request with the same id as this one changed the object.
    pub(crate) fn contains_id_of_another(&self, mark: &str) -> bool {
        self.entries.iter().any(|(_, known)| !is_mark(known, mark) && id_of(known) == id_of(mark))
    }

    /// How many requests have changed the generation and have a number above this one; `None` if one of them may have
    /// been dropped.
    pub(crate) fn count_above(&self, number: u64) -> Option<i64> {
        let above = || self.entries.iter().map(|(known, _)| *known).filter(|known| *known > number);
        if above().count() >= MAX_REQUESTS {
            return None;
        }
        above().collect::<BTreeSet<_>>().len().try_into().ok()
    }

    /// Whether an entry that came when this was the last number may have been dropped.
    pub(crate) fn may_have_dropped(&self, number: u64) -> bool {
        self.entries.len() >= MAX_REQUESTS && self.entries.iter().all(|(known, _)| *known >= number)
    }

    /// Whether the entry with this number is listed.
    pub(crate) fn has_number(&self, number: u64) -> bool {
        self.entries.iter().any(|(known, _)| *known == number)
    }

    /// The number of the last request; 0 without one.
    pub fn newest(&self) -> u64 {
        self.entries.back().map_or(0, |(number, _)| *number)
    }

    /// The number after which the next request comes.
    pub(crate) fn last_number(&self) -> u64 {
        self.newest().max(self.generation)
    }

    /// The annotation's value after one more request.
    pub(crate) fn push(&self, mark: &str) -> String {
        self.push_as(self.last_number() + 1, mark)
    }

    /// The same after a request that leaves the generation as it is. It has the number of the last request, and not of
    /// the generation, which another client may have raised: a number above that of a lost request would count as a
    /// change.
    pub(crate) fn push_beside(&self, mark: &str) -> String {
        self.push_as(self.newest(), mark)
    }

    fn push_as(&self, number: u64, mark: &str) -> String {
        let mut requests = self.clone();
        requests.entries.push_back((number, mark.to_owned()));
        while requests.entries.len() > MAX_REQUESTS {
            requests.entries.pop_front();
        }
        requests.to_string()
    }

    /// How one more request changes the annotation.
    pub(crate) fn change(&self, mark: &str) -> Change {
        self.change_of(REQUESTS_ANNOTATION, mark)
    }

    /// How a request that leaves the generation as it is changes the annotation.
    pub(crate) fn change_beside(&self, mark: &str) -> Change {
        self.change_to(REQUESTS_ANNOTATION, self.push_beside(mark))
    }

    /// The same as [`AppliedRequests::change`] for another annotation of this form.
    pub(crate) fn change_of(&self, annotation: &str, mark: &str) -> Change {
        self.change_to(annotation, self.push(mark))
    }

    fn change_to(&self, annotation: &str, to: String) -> Change {
        Change {
            // A slash in a JSON Pointer (RFC 6901).
            path: format!("/metadata/annotations/{}", annotation.replace('/', "~1")),
            from: if self.entries.is_empty() { Value::Null } else { self.to_string().into() },
            to: to.into(),
        }
    }
}

impl fmt::Display for AppliedRequests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (number, id)) in self.entries.iter().enumerate() {
            let space = if index > 0 { " " } else { "" };
            write!(f, "{space}{number}:{id}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requests(text: &str) -> AppliedRequests {
        let annotations = [(REQUESTS_ANNOTATION.to_owned(), text.to_owned())];
        AppliedRequests::from_metadata(&ObjectMeta {
            annotations: Some(annotations.into_iter().collect()),
            ..ObjectMeta::default()
        })
    }

    #[test]
    fn a_request_gets_the_next_number() {
        assert_eq!(AppliedRequests::default().push("a"), "1:a");
        assert_eq!(requests("1:a").push("b"), "1:a 2:b");
        assert_eq!(requests("1:a 2:b:c").newest(), 2);
    }

    #[test]
    fn a_number_is_above_the_generation_and_never_used_again() {
        let restored = AppliedRequests::from_metadata(&ObjectMeta {
            generation: Some(9),
            annotations: Some([(REQUESTS_ANNOTATION.to_owned(), "5:r5".to_owned())].into()),
            ..ObjectMeta::default()
        });
        assert_eq!(restored.push("ours"), "5:r5 10:ours");
    }

    #[test]
    fn a_request_that_leaves_the_generation_has_the_number_of_the_last_one() {
        let on = |generation, text: &str| AppliedRequests { generation, ..requests(text) };
        assert_eq!(on(3, "").push_beside("a"), "0:a");
        assert_eq!(on(3, "3:a").push_beside("b"), "3:a 3:b");
        // The next generation is recognised as before.
        assert_eq!(on(3, "3:a 3:b").push("restart"), "3:a 3:b 4:restart");
        assert!(on(4, "3:a 3:b 4:restart 4:c").is_last_change("restart"));
        assert_eq!(on(4, "3:a 3:b 4:restart 4:c").count_above(3), Some(1));
        let full = ["3:a"; 8].join(" ");
        assert!(requests(&full).may_have_dropped(3) && !requests(&full).may_have_dropped(4));
        assert!(!requests("3:a 3:b").may_have_dropped(3));
    }

    #[test]
    fn requests_are_counted_unless_one_may_have_been_dropped() {
        assert_eq!(requests("4:a 5:b 6:c").count_above(4), Some(2));
        let full: Vec<_> = (1..=8).map(|number| format!("{number}:r{number}")).collect();
        assert_eq!(requests(&full.join(" ")).count_above(1), Some(7));
        assert_eq!(requests(&full.join(" ")).count_above(0), None);
    }

    #[test]
    fn the_oldest_request_is_dropped_from_a_full_list() {
        let mut text = String::new();
        for number in 1..=20 {
            text = requests(&text).push(&format!("r{number}"));
        }
        assert!(text.starts_with("13:r13 ") && text.ends_with(" 20:r20"), "{text}");
        assert!(requests(&text).contains("r13") && !requests(&text).contains("r12"));
    }

    #[test]
    fn another_request_with_the_same_id_has_another_mark() {
        let (first, other) = (mark("alert-7", &"a".repeat(64)), mark("alert-7", &"b".repeat(64)));
        let list = requests(&AppliedRequests::default().push(&first));
        assert!(list.contains(&first) && !list.contains_id_of_another(&first));
        assert!(!list.contains(&other) && list.contains_id_of_another(&other));
        assert!(!list.contains_id_of_another(&mark("alert-8", "a")));
    }

    #[test]
    fn a_mark_is_found_with_and_without_its_revision_but_not_with_another() {
        let plain = mark("alert-7", &"a".repeat(64));
        let with_revision = mark_with_revision(&plain, "web-5d41");
        let list = requests(&AppliedRequests::default().push(&with_revision));
        assert!(list.contains(&plain) && list.contains(&with_revision));
        assert!(!list.contains_id_of_another(&plain));
        assert!(!list.contains(&mark_with_revision(&plain, "web-5d42")));
        let rollback = mark("alert-7/rollback", &"a".repeat(64));
        assert!(!list.contains(&rollback) && !list.contains_id_of_another(&rollback));
    }

    #[test]
    fn the_last_change_is_recognised_by_its_number_and_the_generation() {
        let after = |text: &str, generation| AppliedRequests { generation, ..requests(text) };
        assert!(after("4:a 5:b", 5).is_last_change("b"));
        assert!(after("4:a 5:b/web-5d41", 5).is_last_change("b"));
        assert!(!after("4:a 5:b", 5).is_last_change("a"));
        assert!(!after("4:a 5:b", 6).is_last_change("b"));
        // An object that was made anew with its annotations begins with generation 1.
        assert!(!after("41:a 42:b", 3).is_last_change("b"));
    }

    #[test]
    fn an_entry_in_another_format_is_ignored() {
        assert_eq!(requests("hello x:y 7").newest(), 0);
    }
}
