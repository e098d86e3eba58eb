//! The annotation of an object with the last requests that changed it. Pure.
//!
//! A change adds the request's id in the same patch, which tests that the list is as it was read. So the id is
//! there exactly if the change was made, and a process that resumes a request after a crash can check it.
//! The list is short, since objects are no archives. Its entries are numbered, so that it is known when an id
//! may have been dropped; then the presence is unknown.

use std::{collections::VecDeque, fmt};

use kube::core::ObjectMeta;
use serde_json::Value;

use crate::contract::response::Change;

/// The annotation: `41:alert-7 42:alert-8`, oldest first.
pub(crate) const REQUESTS_ANNOTATION: &str = "action-executor.dev/requests";

/// The path of the change (RFC 6901).
const REQUESTS_POINTER: &str = "/metadata/annotations/action-executor.dev~1requests";

/// More requests than cooldown and budget allow while one is in doubt.
const MAX_REQUESTS: usize = 8;

/// Each request with its number, the oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AppliedRequests(VecDeque<(u64, String)>);

/// Whether a request's change was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Presence {
    /// The change was made.
    Made,
    /// The change was not made.
    NotMade,
    /// Its id may have been dropped.
    Lost,
}

impl AppliedRequests {
    /// Entries in another format are ignored: this program did not write them.
    pub fn from_metadata(metadata: &ObjectMeta) -> Self {
        let text = metadata.annotations.as_ref().and_then(|all| all.get(REQUESTS_ANNOTATION));
        let entry = |word: &str| {
            let (number, id) = word.split_once(':')?;
            Some((number.parse().ok()?, id.to_owned()))
        };
        AppliedRequests(
            text.map(|text| text.split(' ').filter_map(entry).collect()).unwrap_or_default(),
        )
    }

    /// Whether this request changed the object and its id was not dropped since.
    pub(crate) fn contains(&self, id: &str) -> bool {
        self.0.iter().any(|(_, known)| known == id)
    }

    /// The number of the last request; 0 without one.
    pub fn newest(&self) -> u64 {
        self.0.back().map_or(0, |(number, _)| *number)
    }

    /// The annotation's value after one more request.
    pub(crate) fn push(&self, id: &str) -> String {
        let mut requests = self.clone();
        requests.0.push_back((self.newest() + 1, id.to_owned()));
        while requests.0.len() > MAX_REQUESTS {
            requests.0.pop_front();
        }
        requests.to_string()
    }

    /// How one more request changes the annotation.
    pub(crate) fn change(&self, id: &str) -> Change {
        Change {
            path: REQUESTS_POINTER.to_owned(),
            from: if self.0.is_empty() { Value::Null } else { self.to_string().into() },
            to: self.push(id).into(),
        }
    }

    /// Whether a request made its change after `since` was the last number.
    pub(crate) fn evidence_of(&self, id: &str, since: u64) -> Presence {
        if self.contains(id) {
            return Presence::Made;
        }
        // All entries after `since` are still in the list: there is none, or the next one is.
        let next_is_kept = self.0.iter().any(|(number, _)| *number == since + 1);
        if self.newest() == since || next_is_kept { Presence::NotMade } else { Presence::Lost }
    }
}

impl fmt::Display for AppliedRequests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (number, id)) in self.0.iter().enumerate() {
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
    fn the_oldest_request_is_dropped_from_a_full_list() {
        let mut text = String::new();
        for number in 1..=20 {
            text = requests(&text).push(&format!("r{number}"));
        }
        assert!(text.starts_with("13:r13 ") && text.ends_with(" 20:r20"), "{text}");
        assert!(requests(&text).contains("r13") && !requests(&text).contains("r12"));
    }

    #[test]
    fn a_listed_request_was_made() {
        assert_eq!(requests("1:a 2:b").evidence_of("a", 0), Presence::Made);
    }

    #[test]
    fn a_request_was_not_made_if_all_later_ones_are_listed() {
        assert_eq!(requests("").evidence_of("a", 0), Presence::NotMade);
        assert_eq!(requests("1:b 2:c").evidence_of("a", 0), Presence::NotMade);
        assert_eq!(requests("4:x 5:y").evidence_of("a", 5), Presence::NotMade);
    }

    #[test]
    fn a_presence_is_lost_once_the_id_may_have_been_dropped() {
        assert_eq!(requests("4:x 5:y").evidence_of("a", 2), Presence::Lost);
        // The annotation was removed, or an old one restored.
        assert_eq!(requests("").evidence_of("a", 3), Presence::Lost);
        assert_eq!(requests("1:x").evidence_of("a", 3), Presence::Lost);
    }

    #[test]
    fn an_entry_in_another_format_is_ignored() {
        assert_eq!(requests("hello x:y 7").newest(), 0);
    }
}
