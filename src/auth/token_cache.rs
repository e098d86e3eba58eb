//! Tokens that the API server has recognised a moment ago, so that it is not asked about them with each
//! request. What their holders may is asked each time.
//!
//! Only a token's SHA-256 is kept, and only of tokens that were recognised, so strangers fill nothing.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::{auth::token_review::Identity, contract::digest::sha256};

/// How long the API server's word holds; a token that was revoked opens no longer than this.
const HOLDS: Duration = Duration::from_secs(10);

/// Most tokens that are remembered.
const MOST: usize = 1024;

/// The tokens, and whose they are.
#[derive(Default)]
pub struct Recognised(Mutex<HashMap<String, (Identity, Instant)>>);

impl Recognised {
    /// Whose token this is, if that was found out a moment ago.
    #[must_use]
    pub fn find(&self, token: &str, now: Instant) -> Option<Identity> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (identity, at) = known.get(&sha256(token.as_bytes()))?;
        holds(*at, now).then(|| identity.clone())
    }

    /// Remembers whose token this is, if there is room.
    pub fn remember(&self, token: &str, identity: &Identity, now: Instant) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MOST {
            known.retain(|_, (_, at)| holds(*at, now));
        }
        if known.len() < MOST {
            known.insert(sha256(token.as_bytes()), (identity.clone(), now));
        }
    }
}

fn holds(at: Instant, now: Instant) -> bool {
    now.saturating_duration_since(at) < HOLDS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_remembered_for_a_moment_and_is_no_other() {
        let (known, now) = (Recognised::default(), Instant::now());
        let jo = Identity::new("jo".to_owned(), Vec::new());
        known.remember("abc", &jo, now);
        assert_eq!(known.find("abc", now), Some(jo));
        assert_eq!(known.find("abd", now), None);
        assert_eq!(known.find("abc", now + HOLDS), None);
    }

    #[test]
    fn many_tokens_take_bounded_room() {
        let (known, now) = (Recognised::default(), Instant::now());
        let jo = Identity::new("jo".to_owned(), Vec::new());
        (0..2 * MOST).for_each(|number| known.remember(&number.to_string(), &jo, now));
        assert_eq!(known.0.lock().expect("is whole").len(), MOST);
        known.remember("another", &jo, now + HOLDS);
        assert_eq!(known.0.lock().expect("is whole").len(), 1);
    }
}
