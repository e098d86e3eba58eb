//! The requests that changed an object, written on the object itself.
//!
//! Whoever changes an object adds the request's id to an annotation of it, in the same patch and
//! bound to the resourceVersion that was read. So the mark is there exactly if the change is, and
//! whoever picks up a request after a crash can tell. The list is short, since objects are not
//! archives; it is numbered, so that it is known when a mark could have been pushed out, and then
//! nothing is claimed.

use std::{collections::VecDeque, fmt};

use kube::core::ObjectMeta;
use serde_json::Value;

use crate::contract::response::Change;

/// The annotation: `41:alert-7 42:alert-8`, oldest first.
pub const REQUESTS_ANNOTATION: &str = "action-executor.dev/requests";

/// Where the annotation stands (RFC 6901).
const REQUESTS_POINTER: &str = "/metadata/annotations/action-executor.dev~1requests";

/// How many requests are kept: more than cooldown and budget let through while one is in doubt.
const MAX_REQUESTS: usize = 8;

/// The last requests that changed an object, each with its number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AppliedRequests(VecDeque<(u64, String)>);

/// What the marks say of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// Its change was made.
    Made,
    /// Its change was not made.
    NotMade,
    /// Its mark may have been there and be gone.
    Lost,
}

impl AppliedRequests {
    /// The marks on an object. What is not of our form was not written by us and counts as nothing.
    #[must_use]
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

    /// Whether this request changed the object and is not pushed out by others since.
    #[must_use]
    pub fn contains(&self, id: &str) -> bool {
        self.0.iter().any(|(_, known)| known == id)
    }

    /// The number of the last change; 0 if there was none.
    #[must_use]
    pub fn newest(&self) -> u64 {
        self.0.back().map_or(0, |(number, _)| *number)
    }

    /// The annotation's value after one more request.
    #[must_use]
    pub fn push(&self, id: &str) -> String {
        let mut marks = self.clone();
        marks.0.push_back((self.newest() + 1, id.to_owned()));
        while marks.0.len() > MAX_REQUESTS {
            marks.0.pop_front();
        }
        marks.to_string()
    }

    /// What one more request changes in the annotation.
    #[must_use]
    pub fn change(&self, id: &str) -> Change {
        Change {
            path: REQUESTS_POINTER.to_owned(),
            from: if self.0.is_empty() { Value::Null } else { self.to_string().into() },
            to: self.push(id).into(),
        }
    }

    /// What became of a request that was about to make its change when `since` was the last number.
    #[must_use]
    pub fn evidence_of(&self, id: &str, since: u64) -> Presence {
        if self.contains(id) {
            return Presence::Made;
        }
        // All that came after `since` is still here: either nothing did, or the next one is kept.
        let next_is_kept = self.0.iter().any(|(number, _)| *number == since + 1);
        if self.newest() == since || next_is_kept { Presence::NotMade } else { Presence::Lost }
    }
}

impl fmt::Display for AppliedRequests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, (number, id)) in self.0.iter().enumerate() {
            let space = if place > 0 { " " } else { "" };
            write!(f, "{space}{number}:{id}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marks(text: &str) -> AppliedRequests {
        let annotations = [(REQUESTS_ANNOTATION.to_owned(), text.to_owned())];
        AppliedRequests::from_metadata(&ObjectMeta {
            annotations: Some(annotations.into_iter().collect()),
            ..ObjectMeta::default()
        })
    }

    #[test]
    fn each_change_has_the_next_number() {
        assert_eq!(AppliedRequests::default().push("a"), "1:a");
        assert_eq!(marks("1:a").push("b"), "1:a 2:b");
        assert_eq!(marks("1:a 2:b:c").newest(), 2);
    }

    #[test]
    fn the_oldest_goes_when_there_are_too_many() {
        let mut text = String::new();
        for number in 1..=20 {
            text = marks(&text).push(&format!("r{number}"));
        }
        assert!(text.starts_with("13:r13 ") && text.ends_with(" 20:r20"), "{text}");
        assert!(marks(&text).contains("r13") && !marks(&text).contains("r12"));
    }

    #[test]
    fn a_request_whose_mark_is_there_was_made() {
        assert_eq!(marks("1:a 2:b").evidence_of("a", 0), Presence::Made);
    }

    #[test]
    fn a_request_was_not_made_when_all_later_marks_are_of_others() {
        assert_eq!(marks("").evidence_of("a", 0), Presence::NotMade);
        assert_eq!(marks("1:b 2:c").evidence_of("a", 0), Presence::NotMade);
        assert_eq!(marks("4:x 5:y").evidence_of("a", 5), Presence::NotMade);
    }

    #[test]
    fn nothing_is_claimed_once_the_mark_could_have_been_pushed_out() {
        assert_eq!(marks("4:x 5:y").evidence_of("a", 2), Presence::Lost);
        // Somebody removed the annotation, or put an old one back.
        assert_eq!(marks("").evidence_of("a", 3), Presence::Lost);
        assert_eq!(marks("1:x").evidence_of("a", 3), Presence::Lost);
    }

    #[test]
    fn what_is_not_of_our_form_counts_as_nothing() {
        assert_eq!(marks("hello x:y 7").newest(), 0);
    }
}
