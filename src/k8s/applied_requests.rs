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
const KEPT: usize = 8;

/// The last requests that changed an object, each with its number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Marks(VecDeque<(u64, String)>);

/// What the marks say of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trace {
    /// Its change was made.
    Made,
    /// Its change was not made.
    NotMade,
    /// Its mark may have been there and be gone.
    Lost,
}

impl Marks {
    /// The marks on an object. What is not of our form was not written by us and counts as nothing.
    #[must_use]
    pub fn on(metadata: &ObjectMeta) -> Self {
        let text = metadata.annotations.as_ref().and_then(|all| all.get(REQUESTS_ANNOTATION));
        let entry = |word: &str| {
            let (number, id) = word.split_once(':')?;
            Some((number.parse().ok()?, id.to_owned()))
        };
        Marks(text.map(|text| text.split(' ').filter_map(entry).collect()).unwrap_or_default())
    }

    /// Whether this request changed the object and is not pushed out by others since.
    #[must_use]
    pub fn hold(&self, id: &str) -> bool {
        self.0.iter().any(|(_, known)| known == id)
    }

    /// The number of the last change; 0 if there was none.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.0.back().map_or(0, |(number, _)| *number)
    }

    /// The annotation's value after one more request.
    #[must_use]
    pub fn with(&self, id: &str) -> String {
        let mut marks = self.clone();
        marks.0.push_back((self.last() + 1, id.to_owned()));
        while marks.0.len() > KEPT {
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
            to: self.with(id).into(),
        }
    }

    /// What became of a request that was about to make its change when `since` was the last number.
    #[must_use]
    pub fn trace(&self, id: &str, since: u64) -> Trace {
        if self.hold(id) {
            return Trace::Made;
        }
        // All that came after `since` is still here: either nothing did, or the next one is kept.
        let next_is_kept = self.0.iter().any(|(number, _)| *number == since + 1);
        if self.last() == since || next_is_kept { Trace::NotMade } else { Trace::Lost }
    }
}

impl fmt::Display for Marks {
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

    fn marks(text: &str) -> Marks {
        let annotations = [(REQUESTS_ANNOTATION.to_owned(), text.to_owned())];
        Marks::on(&ObjectMeta {
            annotations: Some(annotations.into_iter().collect()),
            ..ObjectMeta::default()
        })
    }

    #[test]
    fn each_change_has_the_next_number() {
        assert_eq!(Marks::default().with("a"), "1:a");
        assert_eq!(marks("1:a").with("b"), "1:a 2:b");
        assert_eq!(marks("1:a 2:b:c").last(), 2);
    }

    #[test]
    fn the_oldest_goes_when_there_are_too_many() {
        let mut text = String::new();
        for number in 1..=20 {
            text = marks(&text).with(&format!("r{number}"));
        }
        assert!(text.starts_with("13:r13 ") && text.ends_with(" 20:r20"), "{text}");
        assert!(marks(&text).hold("r13") && !marks(&text).hold("r12"));
    }

    #[test]
    fn a_request_whose_mark_is_there_was_made() {
        assert_eq!(marks("1:a 2:b").trace("a", 0), Trace::Made);
    }

    #[test]
    fn a_request_was_not_made_when_all_later_marks_are_of_others() {
        assert_eq!(marks("").trace("a", 0), Trace::NotMade);
        assert_eq!(marks("1:b 2:c").trace("a", 0), Trace::NotMade);
        assert_eq!(marks("4:x 5:y").trace("a", 5), Trace::NotMade);
    }

    #[test]
    fn nothing_is_claimed_once_the_mark_could_have_been_pushed_out() {
        assert_eq!(marks("4:x 5:y").trace("a", 2), Trace::Lost);
        // Somebody removed the annotation, or put an old one back.
        assert_eq!(marks("").trace("a", 3), Trace::Lost);
        assert_eq!(marks("1:x").trace("a", 3), Trace::Lost);
    }

    #[test]
    fn what_is_not_of_our_form_counts_as_nothing() {
        assert_eq!(marks("hello x:y 7").last(), 0);
    }
}
